"""All that only a machine with an NVIDIA GPU can tell, in one command.

    python scripts/benchmarks/gpu/run.py
    python scripts/benchmarks/gpu/run.py --limit 180 --part first goals
    python scripts/benchmarks/gpu/run.py --prepared runs/gpu-prepared   # what prepare.py compiled
    python scripts/benchmarks/gpu/run.py --part compact --corpus path/to/ptb --limit 540
    python scripts/benchmarks/gpu/run.py --device cpu  # a rehearsal, on the kernels for CPUs

Loads the kernels (load), takes the times that a step is made of (micro), compares five layers with
the loop in float64 (first), takes the time of a step of each kernel (steps), then those that answer
the goals (goals); reads Nsight Compute's counters at H = 1500 (ncu); runs all of tests/gpu
(correct) and small calls under compute-sanitizer (memcheck, racecheck), takes the other times
(times), runs the tests marked gpu elsewhere (tests), and once more small calls (synccheck,
initcheck). Only where it is named: the recipe compact by lm.train, plain and symmetric (compact).

Each process may die or hang without taking the others along, and has a share of the time; what does
not fit in is skipped, and the report says so. There are few of them, as each imports torch, which
takes seconds; the first does load to goals. Results are lines of JSON in results.jsonl, written as
they come; report.md is made of them after each process, run.log has what the programs said. So a
stop loses only what was under way, and what fails leaves what follows alone.

Needs torch with CUDA, numpy and safetensors, to compile nvcc and g++, for tests pytest (and
pytest-xdist, with which a test that crashes takes no other along); no network. Ends with 1 if
something failed. A goal that is missed is no failure.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from goals import share

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import ROOT, make_parser

NO_GPU = "run.py: there is no CUDA device here (--device cpu rehearses)"
LEAST = 5.0  # seconds without which a command is not begun
ONE_TEST = 90  # seconds that one of the tests may take
DYING = 10.0  # seconds a killed process has to be gone
FOUND = 9  # compute-sanitizer's exit status where it found something
HERE = Path(__file__).parent
ON = "--continue-on-collection-errors"  # of modules that want packages which are not there
HELPERS = [ROOT / "tests" / "training", ROOT / "tests" / "vision"]  # of tests, by name


class Command(NamedTuple):
    """A process that does some parts.

    parts: their names, and how many seconds each should take: its weight where the time that is
        left is shared among it and the later ones.
    again: it goes on where it stopped, if it is started again.
    cases: it is cases.py, which takes parts and their time.
    tool: a failure may be that it does not work here.
    """

    name: str
    parts: dict[str, float]
    arguments: Sequence[str]
    again: bool = False
    cases: bool = False
    tool: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012

    def only(self, wanted: Sequence[str]) -> Command:
        """With these parts alone."""
        return self._replace(parts={name: s for name, s in self.parts.items() if name in wanted})


def plan(device: str, scratch: Path, corpus: Path | None, prepared: bool) -> list[Command]:
    """What is run, what tells the most first."""
    on = [sys.executable, str(HERE / "cases.py"), "--device", device]
    watched = [sys.executable, str(HERE / "watched.py"), "--device", device]
    first = "test_the_sizes_of_the_goals"
    load = 10.0 if prepared else 80.0
    measured = {"load": load, "micro": 15.0, "first": 25.0, "steps": 40.0, "goals": 60.0}
    ncu = ["ncu", "--clock-control", "none", "--kernel-name", "regex:run_(layer|rows)"]
    ncu += [f"--section={name}" for name in SECTIONS]
    files = [f"tests/gpu/test_{name}.py" for name in ("calls", "layers", "vendor")]
    return [
        Command("measure", measured, on, again=True, cases=True),
        Command("ncu", {"ncu": 35}, [*ncu, *watched, "--large"], tool=True),
        tests("correct", 60, *files, "-k", f"not {first}"),
        *(sanitizer(tool, watched) for tool in ("memcheck", "racecheck")),
        Command("times", {"times": 60}, on, again=True, cases=True),
        tests("tests", 30, "-m", "gpu", "-p", "tests.gpu.conftest", "tests/vision", ON),
        *(sanitizer(tool, watched) for tool in ("synccheck", "initcheck")),
        *(compact(symm, device, scratch, corpus) for symm in ("avg", "none")),
    ]


# Of Nsight Compute: how long, what it waits for, and what the memories are asked for.
SECTIONS = (
    "SpeedOfLight",
    "WarpStateStats",
    "SchedulerStats",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Tables",
    "LaunchStats",
)


def sanitizer(tool: str, watched: list[str]) -> Command:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND)]
    if tool in ("racecheck", "synccheck"):  # of shared memory and barriers: ours alone
        command += ["--kernel-name", "kernel_substring=run_"]
    of = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Command(tool, {tool: 20}, [*command, *watched], tool=True, environment=of)


def compact(symm: str, device: str, scratch: Path, corpus: Path | None) -> Command:
    """Has a minute more than it trains: the best model is tested at the end."""
    command = [sys.executable, str(HERE / "compact.py"), "--device", device, "--symm", symm]
    command += ["--out", str(scratch / symm), "--corpus", str(corpus or "")]
    return Command(f"compact, {symm}", {"compact": 360}, command)


def pytest_command() -> list[str]:
    """Without pyproject.toml, whose settings want the pytest of constraints.txt."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", "."]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-v", "-rfE", "--tb=short"]
    command += ["--color=no", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command += ["-o", f"faulthandler_timeout={ONE_TEST}", "-o", "faulthandler_exit_on_timeout=true"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "1", "--max-worker-restart", "20"]  # after a crash another goes on
    return command


def tests(part: str, seconds: float, *arguments: str) -> Command:
    cut = ["--confcutdir", "tests/gpu"] if arguments[0].startswith("tests/gpu") else []
    return Command(part, {part: seconds}, [*pytest_command(), *cut, *arguments], again=True)


# ---- running them ------------------------------------------------------------------------------


class Run:
    """All commands, one after the other, and the report."""

    def __init__(self, options: Any, scratch: Path) -> None:
        self.end = time.monotonic() + options.limit
        folder = "results/gpu" if options.device == "cuda" else "runs/gpu"
        self.out = (options.out or Path(folder)).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.results, self.log = self.out / "results.jsonl", self.out / "run.log"
        for file in (self.results, self.log):
            file.write_bytes(b"")
        commands = plan(options.device, scratch, options.corpus, options.prepared is not None)
        wanted = [*options.part, "load"] if options.part else by_default(commands)
        narrowed = [command.only(wanted) for command in commands]
        self.commands = [command for command in narrowed if command.parts]
        paths = [ROOT, *HELPERS, os.environ.get("PYTHONPATH") or ""]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "SYMRNN_DATA": str(scratch / "data"),
            "SYMRNN_GPU_RESULTS": str(self.results),
            "SYMRNN_GPU_TESTS": options.device,
        }
        self.prepared: list[str] = []
        if options.prepared is not None:
            copy_prepared(options.prepared, scratch / "prepared")
            self.environment["SYMRNN_CACHE"] = str(scratch / "prepared" / "kernels")
            self.prepared = ["--prepared", str(scratch / "prepared")]

    def run(self) -> int:
        weights = [sum(command.parts.values()) for command in self.commands]
        for index, command in enumerate(self.commands):
            seconds = share(self.end - time.monotonic(), weights[index:])
            print(f"{', '.join(command.parts)}: up to {seconds:.0f} s", flush=True)
            self.command(command, seconds)
            records = summary.read(self.results)
            (self.out / "report.md").write_text(summary.markdown(records), encoding="utf-8")
            own = [one for one in records if one["part"] in command.parts]
            print("  " + summary.counted(own), flush=True)
        print("\n" + summary.short(records), flush=True)
        print(f"\n{self.out / 'report.md'}", flush=True)
        return 1 if any(one["ok"] is False for one in records) else 0

    def command(self, command: Command, seconds: float) -> None:
        """Run it, and again while it dies but gets on."""
        began = time.monotonic()
        arguments, why = list(command.arguments), ""
        if "pytest" in arguments and not importlib.util.find_spec("pytest"):
            why = "pytest is not installed"
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
            more = []
            if command.cases:
                more = ["--parts", *(f"{name}={weight}" for name, weight in command.parts.items())]
                more += ["--results", str(self.results), *self.prepared]
            if command.cases or "compact" in command.parts:
                more += ["--seconds", f"{max(left - LEAST, 0):.0f}"]
            part = next(iter(command.parts))
            status, said = self.process(part, [*arguments, *more], left, command.environment)
            ok, words = outcome(command, status, said)
            got_on = self.results.stat().st_size > size
            if status is None or ok or not command.again or not got_on:
                break
            if seconds - (time.monotonic() - began) < LEAST:
                break
        took = round(time.monotonic() - began, 1)
        part = command.name if command.cases else next(iter(command.parts))
        record = {"part": part, "case": command.name, "command": True, "ok": ok, "words": words}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "seconds": took}) + "\n")

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
    hangs = "Timeout (0:" in said  # of a test, by faulthandler
    if status is None:
        return False if hangs else None, f"skipped: the time was up: {last}"
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
    if "pytest" in command.arguments:
        missing = re.search(r"No module named '(?!symrnn|lm|data)(\w+)", said)
        ours = missing and any((folder / f"{missing[1]}.py").exists() for folder in HELPERS)
        if status in (2, 4) and missing and not ours:
            return None, f"skipped: {missing[1]} is not installed"
        # The failing tests speak for themselves; 5 is where none was chosen.
        if status in (1, 5) and not hangs:
            return None if status == 5 else True, last
    return False, f"{how}: {last}"


def by_default(commands: Sequence[Command]) -> list[str]:
    """All parts but those that are run only where they are named."""
    return [name for command in commands for name in command.parts if name != "compact"]


def copy_prepared(folder: Path, to: Path) -> None:
    """A copy that is ours alone: nothing is loaded from a folder that others may write."""
    shutil.copytree(folder, to)
    for path in (to, *to.rglob("*")):
        path.chmod(0o700)


def gpus() -> int:
    """How many the driver finds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    fine = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if fine else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="a folder (results/gpu; of a rehearsal runs/gpu)")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for all of it (480)")
    parser.add_argument("--part", nargs="+", metavar="NAME", help="some of those below (all)")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="of prepare.py")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER",
                        help="of compact: with train.txt, valid.txt, test.txt")  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(cuda)")
    options = parser.parse_args(arguments)
    known = [name for one in plan(options.device, Path(), None, False) for name in one.parts]
    for name in options.part or ():
        if name not in known:
            parser.error(f"--part: there is no {name}; there are {', '.join(dict.fromkeys(known))}")
    if "compact" in (options.part or ()) and options.corpus is None:
        parser.error("--part compact needs --corpus FOLDER")
    for name, folder in (("prepared", options.prepared), ("corpus", options.corpus)):
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: there is no folder {folder}")
    if options.device == "cuda" and not gpus():
        print(NO_GPU, file=sys.stderr)
        return 2
    options.corpus = options.corpus and options.corpus.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        return Run(options, Path(scratch)).run()


if __name__ == "__main__":
    raise SystemExit(main())
