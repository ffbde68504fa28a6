"""All that only a machine with an NVIDIA GPU can tell, in one command.

    python scripts/gpu_check.py
    python scripts/gpu_check.py --part build correct --minutes 3
    python scripts/gpu_check.py --corpus ~/ptb

Compiles the kernels for the GPU at hand, runs the tests marked `gpu`, compares the fused layers
with the loop in float64, looks for wrong accesses to memory, and times kernels and training against
nn.LSTM. Each part runs in a process of its own, which may die or hang without taking the others
along, and has a share of the time; what does not fit in is skipped, and the report says so. After
each part the report is written anew: check.md to be read, check.json with all there is, check.log
with what the programs said.

Needs torch with CUDA, numpy and safetensors, for the parts build a compiler (nvcc, g++), for tests
pytest; no network. Ends with 1 if something failed. A goal that is missed is no failure.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # the package need not be installed here

import gpu_bench  # noqa: E402
import gpu_correct  # noqa: E402
import gpu_report  # noqa: E402
import torch  # noqa: E402
from gpu_child import Cases, Record, how_it_ended, run_child, run_limited, short  # noqa: E402

from symrnn.native import cuda  # noqa: E402
from symrnn.native.cuda import building, resources  # noqa: E402
from symrnn.training import environment  # noqa: E402

# The parts, and what of eight minutes is for each. What one leaves the later ones get.
PARTS = {
    "build": 75,
    "tests": 60,
    "correct": 105,
    "sanitize": 50,
    "bench": 85,
    "profile": 35,
    "train": 65,
}

EXAMPLE = """\
examples:
  python scripts/gpu_check.py                                  everything, in eight minutes
  python scripts/gpu_check.py --part build correct --minutes 3
  python scripts/gpu_check.py --part train --corpus ~/ptb      with train.txt, valid.txt, test.txt
"""

LONGEST_BUILD = 200.0  # seconds

NO_GPU = "gpu_check: there is no CUDA device that PyTorch can use here"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python scripts/gpu_check.py",
        description=__doc__.split("\n\n")[0],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    folder = os.environ.get("OUT") or "results/gpu"
    add("--out", type=Path, default=Path(folder), help="a folder ($OUT, or results/gpu)")
    add("--part", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME",
        help=f"some of {', '.join(PARTS)} (all)")  # fmt: skip
    add("--minutes", type=float, default=8.0, help="for all of it (8)")
    add("--corpus", type=Path, help="a folder with train.txt, valid.txt, test.txt, to train on")
    # To try this program itself where there is no GPU, on the kernels for CPUs and small sizes.
    add("--device", default="cuda", help=argparse.SUPPRESS)
    # What this program starts itself as.
    add("--child", help=argparse.SUPPRESS)
    add("--records", type=Path, help=argparse.SUPPRESS)
    add("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    if options.child:
        return child(options, device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    return Check(options).run()


# ---- the parts, each in a process of its own ---------------------------------------------------


def child(options: argparse.Namespace, device: torch.device) -> int:
    """What a process that this program has started does."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    alone: dict[str, Callable[[], Any]] = {
        "together": lambda: print(gpu_correct.together(device)),
        "tiny": lambda: gpu_correct.run_tiny(device),
        "one": lambda: gpu_bench.run_one(device),
    }
    if options.child in alone:
        alone[options.child]()
        return 0
    cases = Cases(options.records, options.seconds, lambda: gpu_correct.usable(device))
    parts: dict[str, Callable[[], None]] = {
        "about": lambda: cases.run("about", 60.0, lambda: about(device)),
        "build": lambda: cases.run("CUDA kernels", 200.0, lambda: build(device)),
        "correct": lambda: gpu_correct.run(cases, device),
        "bench": lambda: gpu_bench.run_bench(cases, device),
        "profile": lambda: gpu_bench.run_profile(cases, device),
        "train": lambda: gpu_bench.run_train(cases, device, options.corpus),
    }
    parts[options.child]()
    sys.stdout.flush()
    os._exit(0)  # at once: what a library does at the end is no part of the check


def about(device: torch.device) -> Record:
    """Machine, versions, date."""
    found: Record = environment()
    found["gpu"] = found["driver"] = found["commit"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["memory"] = properties.total_memory
        found["compute_capability"] = list(torch.cuda.get_device_capability(device))
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["commit"] = said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return found


def said(*command: str) -> str | None:
    """The first line of a command's words; None if it fails."""
    try:
        words = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return words.stdout.strip().partition("\n")[0] or None


def build(device: torch.device) -> Record:
    """Compile the kernels for the GPUs at hand, and load them."""
    if device.type != "cuda":
        return {"ok": None, "words": "skipped: there is no GPU"}
    wanted = cuda.architectures()
    if not wanted:
        return {"ok": False, "words": cuda.why_not() or "no GPU is new enough"}
    there = building.find(wanted) is not None
    began = time.monotonic()
    path = building.find(wanted) or building.build(wanted)
    seconds = time.monotonic() - began
    report = building.report(path)
    print(report, flush=True)
    rows = resources.resources(report)
    names = resources.readable(one.name for one in rows)
    spills = sorted({names[one.name] for one in rows if one.spills})
    cuda.load(path)
    gpu = cuda.machine(device.index or 0)
    words = "was there already" if there else f"compiled in {seconds:.1f} s"
    words += f", for {path.stem}; {report.partition(chr(10))[0]}"
    if spills:
        words += f"; spills: {', '.join(spills)}"
    if gpu is None:
        return {"ok": False, "words": cuda.why_not(device.index or 0)}
    return {
        "words": words,
        "seconds": seconds,
        "text": resources.table(rows),
        "resources": [one.__dict__ | {"name": names[one.name]} for one in rows],
        "gpu": [gpu.multiprocessors, gpu.shared_bytes],
    }


# ---- whoever starts them -----------------------------------------------------------------------


class Check:
    """All parts, one after the other, and the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes
        self.out = options.out.resolve()
        self.log = self.out / "check.log"
        self.saved = 0.0
        self.found: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "about": {},
            "parts": {},
        }

    def run(self) -> int:
        self.out.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        parts = [part for part in PARTS if part in self.options.part]
        if self.options.device != "cpu" and "build" not in parts:
            parts = ["build", *parts]  # for the others; it takes no time if it has been done
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            self.scratch = Path(scratch)
            self.environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
                ),
                "PYTHONUNBUFFERED": "1",
                "PYTHONFAULTHANDLER": "1",
                "SYMRNN_DATA": str(self.scratch / "data"),
            }
            self.found["about"] = self.about()
            for k, part in enumerate(parts):
                left = self.end - time.monotonic()
                share = left * PARTS[part] / sum(PARTS[one] for one in parts[k:])
                if part == "build":  # without which there is nothing else
                    share = max(share, min(LONGEST_BUILD, left / 2))
                self.part(part, share)
        print("\n" + gpu_report.short_table(self.found), flush=True)
        print(f"\n{self.out / 'check.md'}", flush=True)
        return 1 if gpu_report.failures(self.found) else 0

    def about(self) -> Record:
        records = self.in_a_child("about", min(90.0, self.end - time.monotonic()), lambda _: None)
        found = records[0] if records else {}
        if found.get("ok"):
            return found
        self.keep("about", records or [{"case": "about", "ok": False, "words": "no word of it"}])
        return {}

    def part(self, name: str, seconds: float) -> None:
        """Run a part, and write the report."""
        print(f"{name}: up to {seconds:.0f} s", flush=True)
        began = time.monotonic()
        why = "the time was up" if seconds < 5 else ""
        unbuilt = gpu_report.counted(gpu_report.cases_of(self.found, "build"))[1] > 0
        if unbuilt and name == "tests":
            self.environment["SYMRNN_NATIVE_CUDA"] = "0"  # not to try again
        elif unbuilt:
            why = "the kernels could not be built"
        if why:
            self.keep(name, [skipped(name, why)])
            self.save()
            return
        runs: dict[str, Callable[[float], list[Record]]] = {
            "build": self.build,
            "tests": self.tests,
            "sanitize": self.sanitize,
            "profile": self.profile,
        }

        def saw(records: list[Record]) -> None:
            self.keep(name, [one for one in records if one["type"] == "case"])
            if time.monotonic() - self.saved > 10:
                self.save()

        words = ""
        try:
            if name in runs:
                records = runs[name](seconds)
            else:
                records = self.in_a_child(name, seconds, saw)
        except Exception as error:
            records = self.found["parts"].get(name, {}).get("cases", [])
            records = [*records, {"case": name, "ok": False, "words": short(error)}]
        if not records:
            records = [{"case": name, "ok": False, "words": "no word of it"}]
        self.keep(name, records, time.monotonic() - began, words)
        self.save()
        ok, failed, left = gpu_report.counted(records)
        print(f"  {ok} ok, {failed} failed, {left} skipped", flush=True)

    def keep(self, part: str, cases: list[Record], seconds: float = 0.0, words: str = "") -> None:
        self.found["parts"][part] = {"seconds": seconds, "words": words, "cases": cases}

    def save(self) -> None:
        self.saved = time.monotonic()
        goals = [
            {"goal": what, "wanted": wanted, "found": number, "met": met}
            for what, wanted, number, met in gpu_report.goals(self.found)
        ]
        text = json.dumps(finite({**self.found, "goals": goals}), indent=1, ensure_ascii=False)
        for file, words in (
            ("check.json", text + "\n"),
            ("check.md", gpu_report.markdown(self.found)),
        ):
            aside = self.out / f".{file}"
            aside.write_text(words, encoding="utf-8")
            os.replace(aside, self.out / file)

    # ---- how they are started ------------------------------------------------------------------

    def in_a_child(
        self, part: str, seconds: float, saw: Callable[[list[Record]], None]
    ) -> list[Record]:
        records = self.scratch / f"{part}.jsonl"

        def command(left: float) -> list[str]:
            return [
                *self.itself(part),
                *("--records", str(records), "--seconds", f"{left:.1f}"),
                *(["--corpus", str(self.options.corpus.resolve())] if self.options.corpus else []),
            ]

        return run_child(command, seconds, records, self.log, environment=self.environment, saw=saw)

    def itself(self, part: str) -> list[str]:
        return [sys.executable, __file__, "--child", part, "--device", self.options.device]

    def command(
        self, case: str, command: Sequence[str], seconds: float, **environment: str
    ) -> tuple[Record, str]:
        """Run a command: its record, "ok" if it ended with 0, and its words."""
        path = self.scratch / "words.log"
        path.write_bytes(b"")
        began = time.monotonic()
        ended = run_limited(
            command, max(seconds, 1.0), path, environment={**self.environment, **environment},
            folder=ROOT,
        )  # fmt: skip
        words = path.read_text(encoding="utf-8", errors="replace")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(words)
        good = ended.status == 0
        record: Record = {
            "case": case,
            "ok": good,
            "words": "" if good else f"the process {how_it_ended(ended)}",
            "took": round(time.monotonic() - began, 1),
            "killed": bool(ended.words),
        }
        return record, words

    def build(self, seconds: float) -> list[Record]:
        """The kernels for CPUs, which plan for GPUs too, if they are missing; then the others."""
        end = time.monotonic() + seconds
        code = "import sys; from symrnn import native; print(native.why_not()); sys.exit({})"
        look = [sys.executable, "-c", code.format("not native.available()")]
        name = "CPU kernels"
        record, _ = self.command(name, look, seconds / 2)
        if not record["ok"]:
            # As `python setup.py build_ext --inplace`, without setuptools.
            make = (
                "import pathlib, runpy, sys; made = runpy.run_path('symrnn/native/building.py'); "
                "sys.exit(made['build'](pathlib.Path('symrnn/native')))"
            )
            made, words = self.command(name, [sys.executable, "-c", make], seconds / 2)
            record, _ = self.command(name, look, seconds / 4)
            record["words"] = f"compiled in {made['took']:.1f} s"
            if not record["ok"]:
                record["words"] = f"cannot be compiled: {last_line(words)}"
        else:
            record["words"] = "were there already"
        return [record, *self.in_a_child("build", end - time.monotonic(), lambda _: None)]

    def tests(self, seconds: float) -> list[Record]:
        if importlib.util.find_spec("pytest") is None:
            return [{"case": "pytest", "ok": None, "words": "skipped: pytest is not installed"}]
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if importlib.util.find_spec("hypothesis") is None:
            stand_in = self.scratch / "stand_in"
            stand_in.mkdir(exist_ok=True)
            (stand_in / "hypothesis.py").write_text(WITHOUT_HYPOTHESIS, encoding="utf-8")
            places.append(str(stand_in))
        # Without pyproject.toml: its settings want the pytest of constraints.txt.
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", "."]
        command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-m", "gpu", "-v"]
        command += ["--continue-on-collection-errors", "--color=no", "--tb=short", "-rfEs"]
        command += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
        command += ["-o", f"faulthandler_timeout={ONE_TEST}"]  # then it is said which one hangs
        command += ["tests/rnn", "tests/vision", "tests/native"]
        path = os.pathsep.join(filter(None, places))
        record, words = self.command("pytest", command, seconds - 2, PYTHONPATH=path)
        return test_records(record, words)

    def sanitize(self, seconds: float) -> list[Record]:
        end = time.monotonic() + seconds
        program = tool("compute-sanitizer")
        if program is None:
            return [skipped(name, "there is no compute-sanitizer") for name in SANITIZERS]
        found = []
        for k, name in enumerate(SANITIZERS):
            left = end - time.monotonic()
            share = left if k + 1 == len(SANITIZERS) else left * SANITIZERS[name]
            if share < 8:
                found.append(skipped(name, "the time was up"))
                continue
            base = [program, "--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
            if name in ("racecheck", "synccheck"):  # of shared memory and barriers: ours alone
                base += ["--kernel-name", "kernel_substring=run_layer"]
            record, words = self.command(
                name, [*base, *self.itself("tiny")], share, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
            )
            found.append(sanitizer_record(record, words))
            self.keep("sanitize", found)
            self.save()
        return found

    def profile(self, seconds: float) -> list[Record]:
        end = time.monotonic() + seconds
        program = tool("ncu")
        kept = 0.0 if program is None else min(60.0, seconds / 3)

        def saw(records: list[Record]) -> None:
            self.keep("profile", [one for one in records if one["type"] == "case"])

        found = self.in_a_child("profile", seconds - kept, saw)
        if program is None:
            return [*found, skipped("ncu", "there is no ncu")]
        command = [
            program,
            "--clock-control",
            "none",
            "--set",
            "basic",
            "--target-processes",
            "all",
        ]
        command += ["--kernel-name", "regex:run_layer", "--launch-skip", "1", "--launch-count", "1"]
        left = min(60.0, end - time.monotonic())
        record, words = self.command("ncu", [*command, *self.itself("one")], left)
        (self.out / "ncu.txt").write_text(words, encoding="utf-8")
        if record["ok"] and "run_layer" not in words:
            record["words"] = "says nothing of the kernel"
        if not record["ok"]:  # a tool that does not work here is no fault of the kernels
            record |= {"ok": None, "words": f"skipped: ncu: {record['words']}: {last_line(words)}"}
        return [*found, record]


ONE_TEST = 25  # seconds that one of the tests may take

# What the tools look for; of the time that is left when a tool's turn comes, how much is its.
SANITIZERS = {"memcheck": 0.4, "racecheck": 0.5, "synccheck": 0.5, "initcheck": 1.0}

# Stands in for hypothesis where it is not installed: its tests are skipped, the others run.
WITHOUT_HYPOTHESIS = """\
import inspect

import pytest


class Anything:
    def __getattr__(self, name):
        return Anything()

    def __call__(self, *_, **__):
        return Anything()

    def __or__(self, other):
        return self


class settings:
    register_profile = load_profile = staticmethod(lambda *_, **__: None)

    def __init__(self, *_, **__):
        pass

    def __call__(self, test):
        return test


def given(*unnamed, **named):
    def wrap(test):
        names = [p for n, p in inspect.signature(test).parameters.items() if n not in named]
        kept = names[: len(names) - len(unnamed)]

        def skipped(**_):
            pytest.skip("hypothesis is not installed")

        skipped.__name__ = test.__name__
        skipped.__signature__ = inspect.Signature(kept)
        return skipped

    return wrap


def example(*_, **__):
    return lambda test: test


assume = note = event = target = lambda *_, **__: True
strategies = HealthCheck = Phase = Verbosity = Anything()
"""


def skipped(case: str, why: str) -> Record:
    return {"case": case, "ok": None, "words": f"skipped: {why}"}


def tool(name: str) -> str | None:
    """A program of CUDA's, on PATH or where it is usually installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word"


_TEST = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_BROKEN = re.compile(r"^ERROR (\S+?)(?: - (.*))?$", re.MULTILINE)
_SUMMARY = re.compile(r"^(FAILED|ERROR) (\S+::\S.*?)(?: - (.*))?$", re.MULTILINE)


def test_records(record: Record, words: str) -> list[Record]:
    """A record for each test that failed, and one for all of them, from pytest's words."""
    ends = dict(_TEST.findall(words))
    count = {end: list(ends.values()).count(end) for end in ("PASSED", "FAILED", "SKIPPED")}
    why = {name: said for _, name, said in _SUMMARY.findall(words)}
    found = [
        {"case": name, "ok": False, "words": why.get(name, "")}
        for name, end in ends.items()
        if end in ("FAILED", "ERROR")
    ]
    found += [
        {"case": name, "ok": False, "words": said or "cannot be collected"}
        for name, said in _BROKEN.findall(words)
        if "::" not in name
    ]
    record = {**record, **count}
    summary = f"{count['PASSED']} passed, {count['FAILED']} failed, {count['SKIPPED']} skipped"
    if record["killed"]:
        begun = re.findall(r"^(\S+::\S+) *$", words, re.MULTILINE)
        running = f" in {begun[-1]}" if begun else ""
        record["words"] = f"{summary}; {record['words']}{running}"
        if "Timeout (0:" not in words:  # no test hangs: there were too many for the time
            record |= {"ok": None, "words": f"skipped: the rest of the tests; {record['words']}"}
    elif record["ok"] or (ends and found):  # the failing ones speak for themselves
        record |= {"ok": True, "words": summary}
    else:
        record["words"] = f"{record['words']}: {last_line(words)}"
    return [record, *found]


def sanitizer_record(record: Record, words: str) -> Record:
    """What compute-sanitizer says of a program."""
    summary = re.findall(r"========= ((?:ERROR|RACECHECK|LEAK) SUMMARY: .*)", words)
    ended = "all calls have ended" in words
    ours = re.findall(r"=========\s+(?:at |in )?.*\b(?:run_layer|pack_\w+|symrnn)\b.*", words)
    if not summary or not ended:
        refused = re.findall(r"========= (?:Error|Internal|Device not).*", words)
        if refused and not record["killed"]:
            return {**record, "ok": None, "words": f"skipped: it does not work here: {refused[0]}"}
        why = record["words"] or "the program did not end"
        if record["killed"]:  # too slow under the tool: nothing is known
            return {**record, "ok": None, "words": f"skipped: {why}; errors so far: {len(ours)}"}
        return {**record, "ok": False, "words": f"{why}: {last_line(words)}"}
    errors = sum(map(int, re.findall(r"SUMMARY: (\d+) (?:errors?|hazards?)", " ".join(summary))))
    words = summary[-1]
    if errors and record["case"] == "initcheck" and not ours:
        return {**record, "ok": True, "words": f"{words}; none in these kernels"}
    if ours:
        words += f"; first: {' '.join(ours[0].split())[:200]}"
    return {**record, "ok": errors == 0, "words": words}


def finite(value: Any) -> Any:
    """With words for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    raise SystemExit(main())
