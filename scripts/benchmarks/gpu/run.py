"""All that only a machine with an NVIDIA GPU can tell, in one command.

    python scripts/benchmarks/gpu/run.py
    python scripts/benchmarks/gpu/run.py --limit 180 --part first goals
    python scripts/benchmarks/gpu/run.py --corpus ~/ptb      # with train.txt, valid.txt, test.txt
    python scripts/benchmarks/gpu/run.py --device cpu        # a rehearsal, on the kernels for CPUs

Compiles and loads the kernels (load), runs a few tests of the sizes that have goals (first), takes
the times that answer the goals (goals), then all of tests/gpu (correct), compute-sanitizer's tools
on small calls (memcheck, racecheck, synccheck, initcheck), the other times (times), the tests
marked gpu elsewhere (tests), Nsight Compute on one call (ncu), an epoch of lm.train (train).

Each part is a process of its own, which may die or hang without taking the others along, and has a
share of the time; what does not fit in is skipped, and the report says so. Results are lines of
JSON in results.jsonl, written as they come; report.md is made of them after each part, run.log has
what the programs said. So a stop loses only what was under way.

Needs torch with CUDA, numpy and safetensors, to compile nvcc and g++, for tests pytest (and
pytest-xdist, with which a test that crashes takes no other along); no network. Ends with 1 if
something failed. A goal that is missed is no failure.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import summary
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import ROOT, make_parser

from symrnn import native

NO_GPU = "run.py: there is no CUDA device that PyTorch can use here (--device cpu rehearses)"
LEAST = 5.0  # seconds without which a command is not begun
ONE_TEST = 90  # seconds that one of the tests may take
DYING = 10.0  # seconds a killed process has to be gone
FOUND = 9  # compute-sanitizer's exit status where it found something
HERE = Path(__file__).parent


class Command(NamedTuple):
    """again: it goes on where it stopped.  tool: a failure may be that it does not work here.

    needed: that its time is up is a failure.
    """

    name: str
    arguments: Sequence[str]
    again: bool = False
    tool: bool = False
    needed: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012


class Part(NamedTuple):
    """weight: of what is left of the time when its turn comes, against those of the later parts."""

    weight: float
    commands: list[Command]


def parts(device: str, results: Path, scratch: Path, corpus: Path | None) -> dict[str, Part]:
    """The parts, what tells the most first."""
    python = sys.executable
    times = [python, str(HERE / "times.py"), "--device", device, "--results", str(results)]
    small = [*pytest_command(False), "tests/gpu/test_layers.py", "-k", "test_small_calls"]
    first = "test_the_sizes_of_the_goals or test_a_graph"
    load = []
    if not native.available():
        load.append(
            Command("CPU kernels", [python, "setup.py", "build_ext", "--inplace"], needed=True)
        )
    if device == "cuda":
        load.append(
            Command("CUDA kernels", [python, "-m", "symrnn.native.cuda", "--check"], needed=True)
        )
    found = {
        "load": Part(80, load),
        "first": Part(30, [tests("first", "tests/gpu", "-k", first)]),
        "goals": Part(60, [Command("goals", [*times, "--goals", "--part", "goals"], again=True)]),
        "correct": Part(100, [tests("correct", "tests/gpu", "-k", f"not ({first})")]),
    }
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND)]
        if tool in ("racecheck", "synccheck"):  # of shared memory and barriers: ours alone
            command += ["--kernel-name", "kernel_substring=run_"]
        of = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found[tool] = Part(15, [Command(tool, [*command, *small], tool=True, environment=of)])
    ncu = ["ncu", "--clock-control", "none", "--set", "basic", "--target-processes", "all"]
    ncu += ["--kernel-name", "regex:run_(layer|rows)", "--launch-count", "1", *small]
    elsewhere = ["-m", "gpu", "-p", "tests.gpu.conftest", "tests/vision"]
    found["times"] = Part(80, [Command("times", [*times, "--part", "times"], again=True)])
    found["tests"] = Part(50, [tests("tests", *elsewhere)])
    found["ncu"] = Part(15, [Command("ncu", ncu, tool=True)])
    if corpus is not None:
        train = [python, "-m", "lm.train", "--data", str(corpus), "--device", device]
        train += ["--size", "medium", "--epochs", "1"]
        found["train"] = Part(60, [
            Command(f"{symm}, {backend}", [*train, "--symm", symm, "--backend", backend, "--out",
                                           str(scratch / backend)])
            for symm, backend in (("none", "vendor"), ("avg", "fused"))
        ])  # fmt: skip
    return found


def pytest_command(processes: bool) -> list[str]:
    """Without pyproject.toml, whose settings want the pytest of constraints.txt."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", "."]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-v", "-rfE", "--tb=short"]
    command += ["--color=no", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command += ["-o", f"faulthandler_timeout={ONE_TEST}", "-o", "faulthandler_exit_on_timeout=true"]
    if processes and importlib.util.find_spec("xdist"):
        command += ["-n", "1", "--max-worker-restart", "20"]  # after a crash another goes on
    return command


def tests(name: str, *arguments: str) -> Command:
    cut = ["--confcutdir", "tests/gpu"] if "tests/gpu" in arguments else []
    return Command(name, [*pytest_command(True), *cut, *arguments])


# ---- running them ------------------------------------------------------------------------------


class Run:
    """All parts, one after the other, and the report."""

    def __init__(self, options: Any, scratch: Path) -> None:
        self.end = time.monotonic() + options.limit
        folder = os.environ.get("OUT") or (
            "results/gpu" if options.device == "cuda" else "runs/gpu"
        )
        self.out = (options.out or Path(folder)).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.results, self.log = self.out / "results.jsonl", self.out / "run.log"
        for file in (self.results, self.log):
            file.write_bytes(b"")
        self.parts = parts(options.device, self.results, scratch, options.corpus)
        wanted = options.part or list(self.parts)
        self.parts = {name: p for name, p in self.parts.items() if name in wanted or name == "load"}
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "SYMRNN_DATA": str(scratch / "data"),
            "SYMRNN_GPU_RESULTS": str(self.results),
            "SYMRNN_GPU_TESTS": options.device,
        }

    def run(self) -> int:
        names = list(self.parts)
        why = ""
        for index, name in enumerate(names):
            part = self.parts[name]
            left = self.end - time.monotonic()
            seconds = left * part.weight / sum(self.parts[one].weight for one in names[index:])
            if name == "load":  # without which there is nothing else
                seconds = max(seconds, min(200.0, left / 2))
            print(f"{name}: up to {seconds:.0f} s", flush=True)
            share = seconds / max(len(part.commands), 1)
            good = [self.command(name, one, share, why) for one in part.commands]
            if name == "load" and False in good:
                why = "the kernels could not be built"
            records = summary.read(self.results)
            (self.out / "report.md").write_text(summary.markdown(records), encoding="utf-8")
            print("  " + summary.counted([one for one in records if one["part"] == name]))
        print("\n" + summary.short(records), flush=True)
        print(f"\n{self.out / 'report.md'}", flush=True)
        return 1 if any(one["ok"] is False for one in records) else 0

    def command(self, part: str, command: Command, seconds: float, why: str) -> bool | None:
        """Run it, and again while it dies but gets on; whether it was good, None if skipped."""
        began = time.monotonic()
        arguments = list(command.arguments)
        if "-m" in arguments and "pytest" in arguments and not importlib.util.find_spec("pytest"):
            why = why or "pytest is not installed"
        if command.tool:
            known = shutil.which(arguments[0]) or shutil.which(
                arguments[0], path="/usr/local/cuda/bin"
            )
            why = why or ("" if known else f"there is no {arguments[0]}")
            arguments[0] = known or arguments[0]
        if not why and seconds < LEAST:
            why = "the time was up"
        ok, words = None, f"skipped: {why}"
        while not why:
            size = self.results.stat().st_size
            left = seconds - (time.monotonic() - began)
            if command.again:
                arguments = [*command.arguments, "--seconds", f"{max(left - LEAST, 0):.0f}"]
            status, said = self.process(part, arguments, left, command.environment)
            ok, words = outcome(command, status, said)
            got_on = self.results.stat().st_size > size
            if status is None or ok or not command.again or not got_on:
                break
            if seconds - (time.monotonic() - began) < LEAST:
                break
        took = round(time.monotonic() - began, 1)
        record = {"part": part, "case": command.name, "command": True, "ok": ok, "words": words}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "seconds": took}) + "\n")
        return ok

    def process(
        self, part: str, command: Sequence[str], seconds: float, environment: dict[str, str]
    ) -> tuple[int | None, str]:
        """Run a command: its exit status, None if the time was up, and its words."""
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, "SYMRNN_GPU_PART": part, **environment},
                cwd=ROOT,
                start_new_session=True,  # so that all of it can be killed
            )
            status = None
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:  # kill it, or what it left behind; one that the system does not let go is left
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(DYING)
        with self.log.open("rb") as log:
            log.seek(start)
            return status, log.read().decode(errors="replace")


def outcome(command: Command, status: int | None, said: str) -> tuple[bool | None, str]:
    """Whether a command was good, None if that tells nothing, and a line about it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "no word"
    if status is None:
        hangs = "Timeout (0:" in said  # of a test, by faulthandler
        return False if hangs or command.needed else None, f"skipped: the time was up: {last}"
    if status == 0:
        return True, last
    if command.tool:
        ours = re.findall(r"=========\s+(?:at |in )?.*\b(?:run_\w+|pack_\w+|symrnn)\b.*", said)
        if status != FOUND:
            refused = re.findall(r".*(?:Device not supported|LibraryNotLoaded|ERR_NV\w+).*", said)
            if refused:
                return None, f"skipped: it does not work here: {refused[0].strip()[:200]}"
        elif command.name == "initcheck" and not ours:
            return True, f"{last}; none in these kernels"
        return False, f"{last}; first: {' '.join(ours[0].split())[:200]}" if ours else last
    how = f"ended with status {status}"
    if status < 0:
        how = f"died of {signal.Signals(-status).name}"
    if "pytest" in command.arguments and status in (1, 5):
        # The failing tests speak for themselves; 5 is where none was chosen.
        return None if status == 5 else True, last
    return False, f"{how}: {last}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="a folder ($OUT, or results/gpu)")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for all of it (480)")
    parser.add_argument("--part", nargs="+", metavar="NAME", help="some of those below (all)")
    parser.add_argument("--corpus", type=Path, help="a folder with texts to train on, an epoch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(cuda)")
    options = parser.parse_args(arguments)
    known = parts(options.device, Path(), Path(), Path())
    for name in options.part or ():
        if name not in known:
            parser.error(f"--part: there is no {name}; there are {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    options.corpus = options.corpus and options.corpus.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        return Run(options, Path(scratch)).run()


if __name__ == "__main__":
    raise SystemExit(main())
