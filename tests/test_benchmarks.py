"""The programs in scripts/benchmarks and scripts/tables: what they do beside taking times.

Those for a GPU too, as far as one can tell without one: their choice of cases, their counts, their
report, and what they do with a process that hangs or dies.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from symrnn import SymGRU, SymLSTM, native

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT / "scripts" / name for name in ("benchmarks", "benchmarks/gpu", "tables")]
SHARED = ("timing.py", "report.py", "trees.py")  # no programs of their own
PROGRAMS = sorted(p for f in FOLDERS for p in f.glob("*.py") if p.name not in SHARED)

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What they import, by short names, and how they end on SIGTERM is no other test's."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before, ending = dict(sys.modules), signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, ending)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name not in before and path and str(path).startswith(str(ROOT / "scripts")):
            del sys.modules[name]


@pytest.fixture
def module() -> Callable[[str], ModuleType]:
    """Imports one of their modules by name, "gpu/floor"."""

    def load(name: str) -> ModuleType:
        path = ROOT / "scripts" / "benchmarks" / f"{name}.py"
        sys.path.insert(0, str(path.parent))
        return importlib.import_module(path.stem)

    return load


@pytest.fixture
def layers() -> Any:
    """The module of tests/gpu/test_layers.py."""
    spec = importlib.util.spec_from_file_location("gpu_layers", ROOT / "tests/gpu/test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def main_of(path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run a program in this process."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_has_an_example(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main_of(path, monkeypatch, "--help")
    assert ended.value.code == 0
    assert f"python {path.relative_to(ROOT)}" in capsys.readouterr().out


# ---- taking the time ---------------------------------------------------------------------------


def test_peers_take_turns(module: Any) -> None:
    timing = module("timing")
    turns: list[str] = []
    peers = [
        timing.Peer("a", lambda: turns.append("a"), lambda: turns.append("before a")),
        timing.Peer("b", lambda: turns.append("b")),
    ]
    found = timing.interleaved(peers, 0, rounds=3)
    assert turns == ["before a", "a"] * 2 + ["b"] * 2 + ["before a", "a", "b"] * 3
    assert [one.stmt for one in found] == ["a", "b"]
    assert [len(one.times) for one in found] == [3, 3]


def test_a_ratio_is_of_the_same_round(module: Any) -> None:
    timing = module("timing")
    a, b = timing.measurement("a", [1.0, 8.0, 3.0]), timing.measurement("b", [1.0, 2.0, 6.0])
    assert timing.ratio(a, b) == 1.0
    assert timing.quartiles([4.0]) == (4.0, 4.0, 4.0)
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(("expected", "calls"), [(1e-3, 2 + 40), (0.05, 1 + 2), (0.2, 1)])
def test_how_many_calls_are_a_block(module: Any, expected: float, calls: int) -> None:
    timing = module("timing")
    made: list[None] = []
    timing.block(timing.Peer("", lambda: made.append(None)), expected)
    assert len(made) == calls


@needs_kernels
def test_two_trees_in_turn(module: Any) -> None:
    """This one against itself; a case that a tree cannot run says so, and the next goes on."""
    trees = module("trees")
    cases = [
        trees.Case("LSTM", "none", "folded", 8, 2, 1),
        trees.Case("LSTM", "avg", "fused", 8, 2, 1, bf16=True),
        trees.Case("GRU", "block4", "folded", 8, 2, 1, train=True, both=True),
    ]
    found = {case: trees.Found() for case in cases}
    with trees.both_trees(ROOT, ROOT, 1) as pair:
        for case in cases:
            found[case].measure(case, pair, 0)
    bad, *good = found.values()
    assert bad.words.startswith("now: ValueError")
    assert bad.medians == ([], [])
    for one in good:
        assert one.words == ""
        assert [len(times) for times in one.medians] == [trees.LEAST_ROUNDS] * 2
        assert min(one.medians[0] + one.medians[1]) > 0
    assert cases[2].name == "GRU block4 both, folded, H = 8, (2, 1), forward and backward"


def test_the_table_of_two_trees(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What looked slower once is called so if it does again."""
    trees = module("trees")
    # Ratios, in turn; none where there is no time left.
    sizes = {8: [1.2, 1.2], 16: [1.2, 1.0], 32: [1.0], 64: [], 128: [0.9, None]}

    def measure(self: Any, case: Any, *_: Any) -> None:
        if not sizes[case.size]:
            self.words = "before: ValueError: no such backend"
            return
        ratio = sizes[case.size].pop(0)
        self.medians = ([ratio] * 5, [1.0] * 5) if ratio else ([], [])

    monkeypatch.setattr(trees.Found, "measure", measure)
    monkeypatch.setattr(trees, "both_trees", lambda *_: contextlib.nullcontext([]))
    cases = [trees.Case("LSTM", "avg", "fused", size, 1, 1) for size in sizes]
    of = {"against": ROOT, "cases": None, "budget": 600.0, "out": tmp_path / "table.md"}
    trees.compare(cases, argparse.Namespace(**of), 1)
    text = of["out"].read_text()
    assert f"- Slower: {cases[0].name}.\n- Faster: {cases[4].name}." in text
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert rows[f"| {cases[0].name}"].endswith("| 1.200 | 1.200 – 1.200 | 10 | slower |")
    assert rows[f"| {cases[1].name}"].endswith("| 1.100 | 1.000 – 1.200 | 10 |  |")
    assert rows[f"| {cases[3].name}"].endswith("| before: ValueError: no such backend |")
    assert rows[f"| {cases[4].name}"].endswith("| 5 | faster, timed once |")
    trees.compare(cases, argparse.Namespace(**{**of, "budget": 0.0}), 1)
    assert f"Not timed, as the budget of 0 s was spent: {cases[0].name}; " in of["out"].read_text()
    with pytest.raises(SystemExit, match="no case is like GRU 9"):
        trees.compare(cases, argparse.Namespace(**{**of, "cases": ["GRU 9"]}), 1)


def test_faster_and_slower(module: Any) -> None:
    found = module("trees").Found()
    for ratios, verdict in (
        ([1.0, 1.1, 1.2, 1.1, 1.1], "slower"),
        ([0.9, 1.1, 1.2, 0.9, 1.1], ""),
        ([1.01, 1.01, 1.02, 1.01, 1.01], ""),
        ([0.9, 0.9, 0.9, 0.8, 1.1], "faster"),
    ):
        found.medians = (ratios, [1.0] * 5)
        assert found.verdict() == verdict


@pytest.mark.parametrize("name", ["ptb_small", "cifar10"])
def test_a_table_of_runs_from_an_earlier_one(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    earlier, out = ROOT / "results" / f"{name}.json", tmp_path / "table.md"
    main_of(ROOT / "scripts/tables/runs.py", monkeypatch, str(earlier), "--out", str(out))
    rows = [line for line in earlier.with_suffix(".md").read_text().splitlines() if "|" in line]
    assert [line for line in out.read_text().splitlines() if "|" in line] == rows
    assert json.loads(out.with_suffix(".json").read_text())["runs"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# ---- the cases of tests/gpu --------------------------------------------------------------------


def test_the_cases_show_every_value_and_every_pair(layers: Any) -> None:
    chosen = layers.CASES
    assert len(chosen) == len(set(chosen)) < 60
    assert chosen[: len(layers.START)] == list(layers.START)
    seen = {name: {getattr(case, name) for case in chosen} for name in layers.Case._fields}
    assert seen["side"] == {1, 7, 64, 200, 650, 1024, 1500, 2048}
    assert seen["batch"] == {1, 4, 20, 64, 128}
    assert seen["steps"] == {1, 2, 35, 200}
    assert seen["kind"] == {"exact", "tf32", "bf16", "fp16"}
    for a, b in layers.PAIRS:
        pairs = {(getattr(case, a), getattr(case, b)) for case in chosen}
        assert len(pairs) == len(seen[a]) * len(seen[b])
    assert all(case.steps < 200 or case.side * case.batch <= 4096 for case in chosen)


def test_small_cases_are_drawn_several_times(layers: Any) -> None:
    draws = layers.draws
    assert [draws(1, 1, 1), draws(1, 1, 200), draws(1, 20, 35), draws(64, 4, 35)] == [32, 8, 13, 1]


def test_limits_of_results_and_of_gradients(layers: Any) -> None:
    errors = {"output": 2e-5, "hn": 1e-5, "d_h0": 4e-5, "d_c0": math.nan}
    assert layers.too_far(errors, "exact").keys() == {"output", "d_c0"}


@needs_kernels
def test_kernels_that_are_right(layers: Any) -> None:
    for both in (False, True):
        errors = layers.compare(SymLSTM, 17, 3, 4, "exact", CPU, bidirectional=both)
        assert {"output", "hn", "cn", "d_input", "d_h0", "d_c0"} < errors.keys()
        assert "d_weight_hh_l0_avg" in errors
        assert 0 < max(errors.values()) < 1e-5
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    errors = layers.compare(SymGRU, 9, 2, 3, "exact", CPU, **options)
    assert layers.too_far(errors, "exact") == {}


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y * 1.001, "1.0e-03"),
        (lambda y: torch.where(y == y.max(), math.nan, y), "not finite: output"),
        (lambda y: y + torch.rand_like(y) * 1e-7, "other bits in a second run: output"),
    ],
)
def test_kernels_that_are_wrong(
    layers: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any, words: str
) -> None:
    right = layers.called

    def called(layer: Any, x: Any, state: Any) -> Any:
        output, last = right(layer, x, state)
        return wrong(output) if layer.backend == "fused" else output, last

    monkeypatch.setattr(layers, "called", called)
    try:
        errors = layers.compare(SymLSTM, 17, 16, 4, "exact", CPU)
        found = " ".join(f"{one:.1e}" for one in layers.too_far(errors, "exact").values())
    except AssertionError as error:
        found = str(error)
    assert words in found


# ---- the floor of a step -----------------------------------------------------------------------


def test_the_most_tiles_of_a_block(module: Any) -> None:
    most = module("gpu/floor").most_tiles
    assert most(1, 1) == 1
    assert most(4, 1) == 10  # the triangle of one block
    assert most(4, 2) == 6  # two triangles of two along a side; the block beside them has 4
    assert most(41, 8) == 15 + 21  # sides of 5, the last of 6


def test_the_floor_is_what_one_counts_by_hand(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """H = 650: 41 tiles, in 8 blocks a side of 6 tiles at most, 96 units; a block has 36 tiles."""
    floor = module("gpu/floor")
    fit = SimpleNamespace(blocks=128, squares=8, together=1, columns=24)
    monkeypatch.setattr(floor, "layout", lambda *_: fit)
    partial, states = 128 * 2 * 1 * 20 * 96 * 4, 128 * 2 * 96 * 20
    found = floor.floor("tf32", 650, 20)
    assert found.exchanges == 4.0
    assert found.bytes == pytest.approx((2 * partial + states * 4) / 4e12 * 1e6)
    clocks = 36 * 256 * 4 * 2 / 128  # each tile read twice, which takes longer than 24 products
    assert clocks > 36 * 256 * 2 * 24 / 1024
    assert found.product == pytest.approx(clocks / 1755)
    assert found.total == pytest.approx(4.0 + 1.47456 + 0.3282051)
    exact = floor.floor("exact", 650, 20)
    assert exact.product == pytest.approx(36 * 256 * 2 * 24 / 128 / 1755)
    # 64 sequences take three rounds.
    assert floor.floor("tf32", 650, 64).product == pytest.approx(3 * found.product)
    # In the backward pass one vector is left of q gates, and q are multiplied.
    fit.together = 2
    back = floor.floor("bf16", 650, 20, backward=True)
    assert back.bytes == pytest.approx((2 * partial + states * 2 * 2) / 4e12 * 1e6)


@needs_kernels
def test_the_layout_is_that_of_the_kernels(module: Any) -> None:
    floor = module("gpu/floor")
    assert floor.floor("bf16", 1500, 20).blocks == 128
    assert set(floor.floor("bf16", 1500, 20).terms()) == {"exchanges", "bytes", "product", "total"}
    with pytest.raises(ValueError, match="H=2048 B=20 tf32 does not fit"):
        floor.floor("tf32", 2048, 20)


# ---- the times of a GPU, and their report ------------------------------------------------------


def test_the_goals_are_measured_first(module: Any) -> None:
    times = module("gpu/times")
    settings = times.settings()
    assert len(settings) == len(set(settings)) == 5 * 3 * 2 * 2 * 2 + 4
    first = {(*one[:3], one.kind, one.train) for one in settings[:8]}
    assert first == {
        (*sizes, kind, train)
        for sizes in times.GOALS
        for kind in ("tf32", "bf16")
        for train in (False, True)
    }


def made_up() -> list[dict[str, Any]]:
    def layer(what: str, ratio: float) -> dict[str, Any]:
        times = {
            "nn.LSTM": {"us": 300 * ratio, "how": "graph"},
            "fused": {"us": 300, "how": "graph"},
        }
        case = f"H=1500 B=20 T=35 tf32, {what}"
        return {"part": "goals", "case": case, "what": "layer", "ok": True, "words": "",
                "times": times, "ratio": ratio}  # fmt: skip

    floor = {"exchanges": 4.0, "bytes": 1.0, "product": 0.8, "total": 5.8}
    step = {"part": "goals", "case": "H=1500 B=20 tf32", "what": "step", "ok": True, "words": "",
            "step": {"forward": 8.0, "backward": 9.0}, "rest": 10.0,
            "floor": {"forward": floor, "backward": floor}}  # fmt: skip
    errors = {"output": 1e-6, "d_weight_hh_l0_avg": 2e-6}
    others = {"output": math.nan, "d_weight_hh_l1_avg": 3e-6}
    return [
        {"part": "correct", "case": "one", "ok": True, "words": "", "kind": "exact",
         "errors": errors},
        {"part": "correct", "case": "two", "ok": False, "words": "not finite: output | all of it",
         "kind": "exact", "errors": others},
        {"part": "correct", "case": "three", "ok": None, "words": "skipped: the time was up"},
        {"part": "correct", "case": "correct", "command": True, "ok": True, "words": "2 passed",
         "seconds": 3.0},
        layer("forward", 2.5), layer("forward and backward", 1.1), step,
        {"part": "goals", "case": "a training step, medium", "what": "training", "ok": True,
         "words": "", "us": {"nn.LSTM": 300.0, "fused": 200.0}, "ratio": 1.5},
    ]  # fmt: skip


def test_goals_are_met_missed_or_not_measured(module: Any) -> None:
    goals = {what: met for what, _, _, met in module("gpu/summary").goals(made_up())}
    of = "H=1500 B=20 T=35 tf32, "
    assert goals[f"nn.LSTM / fused, {of}forward: at least"] is True
    assert goals[f"nn.LSTM / fused, {of}forward and backward: at least"] is False
    assert goals["step / floor, H=1500 B=20 tf32, forward: at most"] is True
    assert goals["nn.LSTM / fused, H=650 B=20 T=35 bf16, forward: at least"] is None
    assert goals["nn.LSTM / fused, a training step of the medium model: at least"] is True
    assert len(goals) == 13


def test_the_report_has_the_failing_things_first(module: Any) -> None:
    text = module("gpu/summary").markdown(made_up())
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("##")]
    assert headings == [
        "Failed", "Goals", "Parts", "Largest errors against the loop in float64", "A layer",
        "A step of it", "Training steps, other kernels",
    ]  # fmt: skip
    assert "| correct | two | not finite: output \\| all of it |" in text
    assert "| correct | 1 ok, 1 failed, 1 skipped | 3 | 2 passed |" in text
    assert "| output | nan |" in text
    assert "| d_weight_hh_avg | 3.0e-06 |" in text
    assert "| H=1500 B=20 T=35 tf32, forward | 750.0 |  | 300.0 | 2.50 | gg |" in text
    assert "| H=1500 B=20 tf32, forward | 8.00 | 5.80 | 1.38 | 4.00 | 1.00 | 0.80 | 10.0 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.replace("\\|", "").count("|") > 2 for row in rows)


def test_results_of_a_process_that_was_stopped(module: Any, tmp_path: Path) -> None:
    begun = {"part": "goals", "case": "a", "ok": None, "words": "begun"}
    lines = [begun, {**begun, "ok": True, "words": ""}, {**begun, "case": "b"}]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"part": "go')
    found = module("gpu/summary").read(file)
    assert [(one["case"], one["ok"], one["words"]) for one in found] == [
        ("a", True, ""),
        ("b", False, "the process ended meanwhile"),
    ]


# ---- the one command for a GPU -----------------------------------------------------------------


def test_without_a_gpu_it_says_so_and_ends_with_2(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = module("gpu/run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([]) == 2
    assert capsys.readouterr().err == f"{run.NO_GPU}\n"
    with pytest.raises(SystemExit):
        run.main(["--part", "firts"])
    assert "there is no firts; there are load, first, goals, correct," in capsys.readouterr().err


def run_parts(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, **commands: Any
) -> tuple[int, dict[str, tuple[bool | None, str]]]:
    """Of a run whose parts are these commands: its exit status, and what came of each case."""
    parts = {name: run.Part(1, [command]) for name, command in commands.items()}
    monkeypatch.setattr(run, "parts", lambda *_: parts)
    status = run.main(["--device", "cpu", "--out", str(tmp_path), "--limit", str(limit)])
    records = run.summary.read(tmp_path / "results.jsonl")
    assert (tmp_path / "report.md").exists()
    return status, {one["case"]: (one["ok"], one["words"]) for one in records}


# Dies at its second case, and hangs at its third; what it has started is to be gone too.
DYING = """
import json, os, pathlib, signal, subprocess, sys, time
results = pathlib.Path(os.environ["SYMRNN_GPU_RESULTS"])
def write(**record):
    with results.open("a") as file:
        file.write(json.dumps({"part": os.environ["SYMRNN_GPU_PART"], **record}) + "\\n")
begun = results.read_text()
if "dies" not in begun:
    write(case="good", ok=True, words="")
    write(case="dies", ok=None, words="begun")
    os.kill(os.getpid(), signal.SIGSEGV)
write(case="hangs", ok=None, words="begun")
child = subprocess.Popen(["sleep", "600"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def impatient(file: Path) -> type[subprocess.Popen[Any]]:
    """Processes whose time is up when this file has been written."""

    class Impatient(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            while self.poll() is None:
                if file.exists() and file.read_text() and not self.late:
                    self.late = True
                    raise subprocess.TimeoutExpired("a test", 0)
                time.sleep(0.01)
            return super().wait(timeout)

        late = False

    return Impatient


def test_a_part_that_dies_goes_on_and_one_that_hangs_is_ended(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module("gpu/run")
    python = [sys.executable, "-c"]
    dying = run.Command("dying", [*python, DYING, str(tmp_path / "pid")], again=True)
    missing = run.Command("memcheck", ["no-such-tool", "--tool", "memcheck"], tool=True)
    bad = run.Command("bad", [*python, "raise SystemExit('no such number')"])
    monkeypatch.setattr(run.subprocess, "Popen", impatient(tmp_path / "pid"))
    status, found = run_parts(
        run, tmp_path, monkeypatch, 6000, memcheck=missing, bad=bad, dying=dying
    )
    assert status == 1
    assert found["memcheck"] == (None, "skipped: there is no no-such-tool")
    assert found["bad"] == (False, "ended with status 1: no such number")
    assert found["good"] == (True, "")
    for case in ("dies", "hangs"):
        assert found[case] == (False, "the process ended meanwhile")
    assert found["dying"][0] is None
    assert found["dying"][1].startswith("skipped: the time was up")
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()
    assert (tmp_path / "run.log").read_text().count("$ ") == 3


def test_nothing_else_is_run_where_the_kernels_cannot_be_built(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module("gpu/run")
    load = run.Command("CUDA kernels", [sys.executable, "-c", "raise SystemExit('no nvcc')"])
    goals = run.Command("goals", [sys.executable, "-c", ""])
    status, found = run_parts(run, tmp_path, monkeypatch, 60, load=load, goals=goals)
    assert status == 1
    assert found == {
        "CUDA kernels": (False, "ended with status 1: no nvcc"),
        "goals": (None, "skipped: the kernels could not be built"),
    }


@pytest.mark.parametrize(
    ("tool", "status", "words", "ok"),
    [
        ("memcheck", 0, "1 passed\n========= ERROR SUMMARY: 0 errors\n", True),
        ("memcheck", 9, "1 passed\n========= ERROR SUMMARY: 3 errors\n", False),
        ("racecheck", 9, "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors)\n", False),
        ("initcheck", 9, "=========     at gemm+0x10\n========= ERROR SUMMARY: 2 errors\n", True),
        ("initcheck", 9, "=========     at void symrnn::run_layer<x>\n========= 2 errors\n", False),
        ("memcheck", 1, "========= Error: Device not supported\n", None),
        ("memcheck", 1, "1 failed\n========= ERROR SUMMARY: 0 errors\n", False),
        ("memcheck", None, "", None),
    ],
)
def test_words_of_the_sanitizer(
    module: Any, tool: str, status: int | None, words: str, ok: bool | None
) -> None:
    run = module("gpu/run")
    assert run.outcome(run.Command(tool, [tool], tool=True), status, words)[0] is ok


def test_words_of_pytest(module: Any) -> None:
    run = module("gpu/run")
    command = run.tests("correct", "tests/gpu")
    assert run.outcome(command, 1, "=== 1 failed, 2 passed in 3s ===\n") == (
        True,
        "=== 1 failed, 2 passed in 3s ===",
    )
    assert run.outcome(command, 2, "no such option")[0] is False
    assert run.outcome(command, None, "tests/gpu/a.py::b PASSED")[0] is None
    assert run.outcome(command, None, "Timeout (0:01:30)!\ntests/gpu/a.py::b ")[0] is False


@needs_kernels
def test_times_that_answer_goals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small ones, on the kernels for CPUs; what was begun is not begun again."""
    path, out = ROOT / "scripts" / "benchmarks" / "gpu" / "times.py", tmp_path / "results.jsonl"
    begun = {"part": "times", "case": "a training step, small", "ok": None, "words": "begun"}
    out.write_text(json.dumps(begun) + "\n")
    main_of(path, monkeypatch, "--device", "cpu", "--goals", "--results", str(out))
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["case"], one["ok"]) for one in records[1:]] == [
        ("H=24 B=3 T=4 exact, forward", None),
        ("H=24 B=3 T=4 exact, forward", True),
        ("H=24 B=3 exact", None),
        ("H=24 B=3 exact", True),
    ]
    assert records[2]["times"].keys() == {"nn.LSTM", "vendor", "fused"}
    assert records[4]["floor"]["forward"]["exchanges"] == 4.0


@needs_kernels
def test_a_rehearsal(module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tests of the sizes with goals, on the kernels for CPUs."""
    options = ["--device", "cpu", "--out", str(tmp_path), "--part", "first"]
    status = module("gpu/run").main([*options, "--limit", "2000"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "nothing failed" in said
    assert {one.name for one in tmp_path.iterdir()} == {"report.md", "results.jsonl", "run.log"}
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    tested = [one for one in records if one.get("errors")]
    assert {one["kind"] for one in tested} == {"exact"}
    assert "| d_weight_hh_avg |" in (tmp_path / "report.md").read_text()
