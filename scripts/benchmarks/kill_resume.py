"""Kill a training run at random moments; each resumed run must end as the uninterrupted one.

    python scripts/benchmarks/kill_resume.py
    python scripts/benchmarks/kill_resume.py --kills 3 --seed 7

A short run with dropout on the built-in corpus is trained once without interruption. Then, ten
times, it is started anew, killed with SIGKILL at a random moment, resumed, and its final
checkpoint and best model are compared with the uninterrupted run's, bit for bit: every tensor of
the models, the carried state and the random states.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import ROOT, explanation, make_parser, table, write_report

from symrnn import open_packed
from symrnn.storage import is_packed
from symrnn.training import load_checkpoint, unpack_state

SHORT = (
    "--epochs 2 --hidden-size 64 --dropout 0.3 --lr-after 1 --steps 40 --save-every 20 --threads 1"
)


def train(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lm.train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def equal_files(a: Path, b: Path) -> bool:
    """Whether two checkpoints, or two packed models, hold the same tensors, bit for bit."""
    first, second = (
        open_packed(file).tensors if is_packed(file) else load_checkpoint(file).tensors
        for file in (a, b)
    )
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))
        if first[name].dim()
        else torch.equal(first[name], second[name])
        for name in first
    )


def main() -> int:
    parser = make_parser(__doc__, "results/kill_resume.md")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    rows, failures = [], 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        start = time.monotonic()
        if train(*SHORT.split(), "--out", str(whole)).wait() != 0:
            raise SystemExit("the uninterrupted run failed")
        seconds = time.monotonic() - start
        for number in range(1, options.kills + 1):
            out = Path(folder) / f"killed{number}"
            moment = moments.uniform(0.05, 0.95) * seconds
            process = train(*SHORT.split(), "--out", str(out))
            time.sleep(moment)
            finished = process.poll() is not None
            if not finished:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            last, best = out / "last.safetensors", out / "best.safetensors"
            at = "none"
            if last.exists():
                stored = load_checkpoint(last)
                at = str(unpack_state(stored.tensors, stored.meta["state"])["progress"]["step"])
            started = (out / "config.json").exists()
            again = ["--resume", str(out)] if started else [*SHORT.split(), "--out", str(out)]
            code = train(*again).wait()
            equal = [code == 0 and equal_files(whole / file.name, file) for file in (last, best)]
            failures += not all(equal)
            when = f"{moment:.2f} s" + (" (had finished)" if finished else "")
            rows.append([str(number), when, at, *("yes" if each else "NO" for each in equal)])
    write_report(
        options.out,
        "Killed and resumed runs",
        [
            *explanation(__doc__),
            f"The run: `python -m lm.train {SHORT}`; uninterrupted it takes {seconds:.1f} s, "
            f"start of Python and PyTorch included. The seed is that of the moments.",
            table(["", "killed after", "step of the checkpoint", "last equal", "best equal"], rows),
            f"{options.kills - failures} of {options.kills} resumed runs ended equal, bit for bit.",
        ],
        seed=options.seed,
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
