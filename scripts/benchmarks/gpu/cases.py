"""What run.py lets one process do on a GPU, as importing torch takes seconds: a case at a time.

    python scripts/benchmarks/gpu/cases.py --results runs/gpu.jsonl --parts load=10 goals=60
    python scripts/benchmarks/gpu/cases.py --device cpu --parts load=10 steps=10 --seconds 60

load has the machine's name and loads the kernels; micro runs micro.cu; first compares five layers
with the loop in float64, of the sizes that have goals; steps times a step of each kernel; goals
times what there are goals for; times all else.

Each result is a line of JSON, written as it comes. A part has its share of the time, and none of
its cases is begun after that. A case that was begun before in the same file, and so has killed this
program, is not begun again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from goals import GOALS, KINDS, PERSISTENT, Setting, share
from prepare import build_micro
from times import (
    Record,
    layer_case,
    others_case,
    settings,
    step_case,
    synchronize,
    training_case,
    two_layers_case,
    vendors_kernels_case,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import ROOT, make_parser

from symrnn import SymLSTM, native
from symrnn.native import Kernel, cuda
from symrnn.native.cuda import building
from symrnn.training import environment

CASE_SECONDS = 40.0  # then the program ends, with every thread's stack
MICRO_SECONDS = 30.0
LOST = 3  # the exit status where the GPU is lost to this process

Case = tuple[str, str, Callable[[], Record]]
"""What a case measures, its name, and how it is run."""


# ---- loading -----------------------------------------------------------------------------------


def machine_case(device: torch.device) -> Record:
    made = environment()
    if device.type == "cuda" and not torch.cuda.is_available():
        words = f"torch {torch.__version__} finds no GPU: {made['gpus']}"
        return {"ok": False, "words": words, "machine": made}
    return {"words": f"torch {torch.__version__}", "machine": made}


def cpu_kernels_case() -> Record:
    """Those for CPUs, which have the arithmetic of what fits a GPU. Built if they do not load."""
    if native.available():
        return {}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, check=True)
    return {"words": f"built, as {native.why_not()}", "again": True}


def cuda_kernels_case(prepared: Path | None) -> Record:
    """Those for the GPU: what was prepared, or else they are compiled."""
    wanted, words = cuda.architectures(), ""
    found = building.find(wanted) if wanted else None
    if found is not None and prepared is not None:
        try:
            cuda.load(found)
        except cuda.AbsentError as error:
            found.unlink()
            words = f"compiled here, as what was prepared did not load: {error}"
    elif prepared is not None:
        words = f"compiled here, as what was prepared is of other sources or GPUs than {wanted}"
    if cuda.machine(0) is None:
        return {"ok": False, "words": f"{words} {cuda.why_not(0)}".strip()}
    return {"words": words}


def micro_case(device: torch.device, prepared: Path | None, results: Path) -> Record:
    """micro.cu, whose lines go to the results; compiled where what was prepared does not run."""
    if device.type != "cuda":
        return {"ok": None, "words": "skipped: needs a CUDA device"}
    words = "none was prepared"
    if prepared is not None:
        words = run_micro(prepared / "micro", results)
    if words:
        folder = building.cache()
        folder.mkdir(parents=True, exist_ok=True)
        build_micro(folder / "micro", "native")
        why, words = words, run_micro(folder / "micro", results)
        return {"ok": not words, "words": words or f"compiled here: {why}"}
    return {}


def run_micro(program: Path, results: Path) -> str:
    """Why it did not run to its end; "" if it did."""
    try:
        with results.open("ab") as file:
            status = subprocess.run([program], stdout=file, timeout=MICRO_SECONDS).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"{program.name} ended with status {status}" if status else ""


# ---- comparing ---------------------------------------------------------------------------------


def gpu_tests() -> ModuleType:
    """The module of tests/gpu/test_layers.py, which has the cases and the comparison."""
    path = ROOT / "tests" / "gpu" / "test_layers.py"
    spec = importlib.util.spec_from_file_location("gpu_layers", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def first_cases(device: torch.device) -> Iterator[Case]:
    """As test_the_sizes_of_the_goals has them."""
    tests = gpu_tests()

    def run(one: Any) -> Record:
        errors = tests.compare(SymLSTM, *one[:4], device, bidirectional=one.bidirectional)
        far = tests.too_far(errors, one.kind)
        return {"ok": not far, "words": f"{far}" if far else "", "kind": one.kind, "errors": errors}

    for one in tests.CASES[: tests.FIRST]:
        yield "first", str(one), partial(run, one)


# ---- all cases ---------------------------------------------------------------------------------

STEPS = [
    (side, batch, kind, kernel)
    for batch in (20, 1, 64)
    for side in (1500, 650, 64)
    for kind in (*KINDS, "exact")
    for kernel in (Kernel.ROWS, Kernel.PACKED)
]
FIRST_STEPS = [one for one in STEPS if one[0] >= 650 and one[1] == 20 and one[2] in KINDS]

TWO_LAYERS = [(kind, train) for kind in KINDS for train in (False, True)]


def step_cases(steps: list[Any], device: torch.device) -> Iterator[Case]:
    for side, batch, kind, kernel in steps:
        name = f"H={side} B={batch} {kind}, {kernel.name.lower()}"
        yield "step", name, partial(step_case, side, batch, kind, kernel, device)


def layer_cases(of: list[Setting], device: torch.device, plain_calls: bool) -> Iterator[Case]:
    for setting in of:
        yield "layer", setting.name, partial(layer_case, setting, device, plain_calls)


def cases_of(
    part: str, device: torch.device, results: Path, prepared: Path | None
) -> Iterator[Case]:
    """In the order that tells the most first. On a CPU, a rehearsal, small ones."""
    real = device.type == "cuda"
    small = [Setting(24, 3, 4, "exact", train) for train in (False, True)]
    if part == "load":
        yield "load", "machine", partial(machine_case, device)
        yield "load", "CPU kernels", cpu_kernels_case
        if real:
            yield "load", "CUDA kernels", partial(cuda_kernels_case, prepared)
    elif part == "micro":
        yield "load", "microbenchmarks", partial(micro_case, device, prepared, results)
    elif part == "first":
        yield from first_cases(device)
    elif part == "steps":
        rehearsed = [(24, 3, "exact", Kernel.ROWS)]
        yield from step_cases(FIRST_STEPS if real else rehearsed, device)
        for kind, train in TWO_LAYERS if real else [("exact", False)]:
            sizes = (650, 20, 35) if real else (24, 3, 4)
            name = f"two layers, {Setting(*sizes, kind, train).name}"
            yield "two layers", name, partial(two_layers_case, *sizes, kind, train, device)
    elif part == "goals":
        yield from layer_cases([*GOALS] if real else small[:1], device, True)
        of = PERSISTENT[0] if real else small[0]
        name = f"what nn.LSTM runs, {of.name}"
        yield "vendor", name, partial(vendors_kernels_case, of, device)
        extra = [one for one in PERSISTENT if one not in GOALS]
        yield from layer_cases(extra if real else [], device, True)
    else:
        size, seconds, rounds = ("medium", 5.0, 7) if real else ("small", 0.0, 1)
        training = partial(training_case, size, device, seconds, rounds)
        yield "training", f"a training step, {size}", training
        rest = [one for one in STEPS if one not in FIRST_STEPS]
        rehearsed = [(24, 3, "exact", Kernel.PACKED)]
        yield from step_cases(rest if real else rehearsed, device)
        yield from layer_cases(settings() if real else small[1:], device, False)
        yield "others", "other kernels", partial(others_case, device)


def why_stopped() -> str:
    """Which block of a kernel waited for what, where that is why a launch was stopped."""
    library = cuda.library()
    words: str = "" if library is None else library.symrnn_cuda_error().decode()
    return words if "stopped" in words else ""


# ---- one after the other -----------------------------------------------------------------------


def part_of_time(text: str) -> tuple[str, float]:
    """An argparse type: "goals=60"."""
    name, _, seconds = text.partition("=")
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"should be one of {', '.join(PARTS)}, got: {name!r}")
    return name, float(seconds)


PARTS = ("load", "micro", "first", "steps", "goals", "times")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", type=part_of_time, required=True, metavar="NAME=S",
                        help="and their shares of the time")  # fmt: skip
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal (cuda)")
    parser.add_argument("--seconds", type=float, default=300, help="for all of it (300)")
    parser.add_argument("--prepared", type=Path, help="a folder that prepare.py has written")
    parser.add_argument(
        "--results", type=Path, default=Path("runs/gpu.jsonl"), help="(runs/gpu.jsonl)"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    end = time.monotonic() + options.seconds
    options.results.parent.mkdir(parents=True, exist_ok=True)
    before = options.results.read_text() if options.results.exists() else ""
    begun = {(one["part"], one["case"]) for one in map(json.loads, before.splitlines())}

    def write(**record: Any) -> None:
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    warnings.simplefilter("ignore", DeprecationWarning)
    torch.manual_seed(0)
    weights = dict(options.parts)
    for number, part in enumerate(weights):
        part_end = time.monotonic() + share(end - time.monotonic(), [*weights.values()][number:])
        for what, name, run in cases_of(part, device, options.results, options.prepared):
            of = {"part": part, "case": name, "what": what}
            if (part, name) in begun:
                continue
            if time.monotonic() > part_end and part != "load":
                write(**of, ok=None, words="skipped: the time was up")
                continue
            write(**of, ok=None, words="begun")
            found = outcome(run, device, watched=what != "load")
            write(**of, **found)
            print(f"{name}: {'ok' if found['ok'] else found['words']}", flush=True)
            if found.get("again"):  # with what was built
                os.execv(sys.executable, [sys.executable, *sys.argv])
            if found["ok"] is False and what != "load":
                leave_if_lost(device)
            if device.type == "cuda" and torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # the memory of the graphs


def outcome(run: Callable[[], Record], device: torch.device, watched: bool) -> Record:
    """What a case found, whether it is good, and its seconds. watched: it runs on the GPU, and the
    program ends if it hangs."""
    if watched and device.type == "cuda":
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
    began = time.monotonic()
    try:
        found = {"ok": True, "words": "", **run()}
        if watched:
            synchronize(device)
    except Exception as error:
        traceback.print_exc()
        words = " ".join(f"{error} {why_stopped()}".split())
        found = {"ok": False, "words": f"{type(error).__name__}: {words}"}
    faulthandler.cancel_dump_traceback_later()
    return {"seconds": round(time.monotonic() - began, 2), **found}


def leave_if_lost(device: torch.device) -> None:
    """End the process where its GPU answers every call with an error: another goes on."""
    try:
        synchronize(device)
    except RuntimeError:
        os._exit(LOST)  # at once


if __name__ == "__main__":
    main()
