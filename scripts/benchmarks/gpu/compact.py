"""lm.train with the recipe compact, for as long as there is time; then its best model is tested.

    python scripts/benchmarks/gpu/compact.py --corpus data/ptb --symm avg --seconds 360

The recipe drops h before the recurrent product, which no operator of PyTorch's knows. Symmetric
weights run on the fused kernels, which take such a mask; plain ones run step by step, compiled.
Interrupted in time, the run is told as what it is: so many epochs, the best validation, and the
test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import ROOT, make_parser

TESTING = 30.0  # seconds before the end in which the run is interrupted
VARIANTS = {"avg": ["--backend", "fused"], "none": ["--backend", "reference", "--compile"]}
SHOWN = ("epochs", "ms a step", "best valid", "test")
SMALL = ["--hidden-size", "16", "--embedding-size", "16", "--steps", "4", "--epochs", "1"]


def record_of(folder: Path, said: str) -> dict[str, Any]:
    """What a run's folder and last words say of it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    valid = [line["valid/perplexity"] for line in lines if "valid/perplexity" in line]
    trained = [line for line in lines if "train/loss" in line]
    record: dict[str, Any] = {"epochs": len(valid), "curve": valid}
    if valid:
        record["best valid"] = min(valid)
    if len(trained) > 1:
        # Between two lines of one epoch there are only steps.
        paces = [
            (b["time"] - a["time"]) / (b["step"] - a["step"])
            for a, b in pairwise(lines)
            if a in trained and b in trained
        ]
        record["ms a step"] = 1e3 * sorted(paces)[len(paces) // 2] if paces else None
    if found := re.search(r"test perplexity\s+([\d.]+)", said):
        record["test"] = float(found[1])
    return record


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--corpus", required=True, help="a folder with train.txt, ... or a name")
    parser.add_argument("--symm", choices=[*VARIANTS], default="avg", help="(avg)")
    parser.add_argument("--seconds", type=float, default=360, help="for all of it (360)")
    parser.add_argument("--out", type=Path, help="the run's folder (runs/compact-SYMM)")
    parser.add_argument("--device", default="cuda", help="cpu: a small model, one epoch (cuda)")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds - TESTING
    out = (options.out or Path("runs") / f"compact-{options.symm}").resolve()
    command = [sys.executable, "-m", "lm.train", "--data", options.corpus, "--recipe", "compact"]
    command += ["--symm", options.symm, *VARIANTS[options.symm], "--device", options.device]
    command += ["--lr-patience", "6"]  # about the published 2,600 steps
    command += ["--out", str(out), *(SMALL if options.device == "cpu" else ["--precision", "bf16"])]
    print("$", *command, flush=True)
    said = []
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    # It finishes the step under way, and tests the best model.
    interrupt = threading.Timer(end - time.monotonic(), process.send_signal, [signal.SIGINT])
    interrupt.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
        status = process.wait()
    finally:
        interrupt.cancel()
        process.kill()
    ok = status in (0, 130) and (out / "metrics.jsonl").exists()
    case = f"compact, {options.symm}"
    record = {"part": "compact", "case": case, "what": "run", "ok": ok,
              "words": "" if ok else f"ended with status {status}"}  # fmt: skip
    if ok:
        record |= record_of(out, "".join(said))
    if results := os.environ.get("SYMRNN_GPU_RESULTS"):
        with Path(results).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(", ".join(f"{name} {record[name]:.2f}" for name in SHOWN if record.get(name)))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
