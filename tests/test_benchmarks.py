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
SHARED = ("timing.py", "report.py", "trees.py", "gpu/goals.py", "gpu/times.py")  # no programs
PROGRAMS = sorted(p for f in FOLDERS for p in f.glob("*.py") if not p.as_posix().endswith(SHARED))

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


def loaded(path: str) -> ModuleType:
    """A module of this repository that is in no package."""
    spec = importlib.util.spec_from_file_location(f"loaded_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def layers() -> Any:
    """The module of tests/gpu/test_layers.py."""
    return loaded("tests/gpu/test_layers.py")


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


def test_what_the_blocks_of_packed_kernels_read(module: Any) -> None:
    """In tiles, of sides that one can count with a pencil."""
    floor = module("gpu/floor")
    # The triangle of one block, two tiles along a side: two strips of two, each by its own warp.
    assert floor.shares(2, 1, 1, 1, 3) == [floor.Share(weights=4, operand=4, written=2)]
    # Two triangles, and the block beside them, which multiplies both ways.
    assert floor.shares(4, 2, 1, 1, 3) == [
        floor.Share(weights=8, operand=8, written=4),
        floor.Share(weights=8, operand=8, written=4),
    ]
    # 24 strips of 12 tiles on 12 warps: two at once share what they read of the operand.
    beside = floor.Share(weights=288, operand=144, written=24)
    assert beside in floor.shares(24, 2, 1, 1, 3)
    # Two gates are two vectors forward: 48 strips, three of them at once are all a warp can.
    assert floor.Share(576, 192, 24) in floor.shares(24, 2, 2, 1, 3)
    # ... and two operands backward.
    assert floor.Share(576, 288, 48) in floor.shares(24, 2, 1, 2, 3)


@pytest.fixture
def laid_out(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the floor, where every layer is laid out as one says."""
    floor = module("gpu/floor")

    def so(**fit: Any) -> ModuleType:
        monkeypatch.setattr(floor, "layout", lambda *_: SimpleNamespace(**fit))
        return floor

    return so


def test_the_floor_of_packed_weights_is_what_one_counts_by_hand(laid_out: Any) -> None:
    """H = 650: 41 tiles, in 8 blocks a side of 5 or 6 tiles: at most 96 units."""
    fit = {"kernel": native.Kernel.PACKED, "blocks": 128, "squares": 8, "columns": 24}
    floor = laid_out(**fit, together=1)
    sums, states = 8 * 20 * 656 * 4, 128 * 2 * 96 * 20  # a vector of sums from each square; read
    found = floor.floor("tf32", 650, 20)
    assert found.exchanges == 2.0
    written = 656 * 20
    assert found.bytes == pytest.approx((2 * 4 * sums + (states + written) * 4) / 4e12 * 1e6)
    # The two triangles of 5 and 6: 25 + 36 tiles read, the operand of as many, and 11 written.
    read = (61 * 256 + (61 + 11) * 24 * 16) * 4
    assert read / 128 > 61 * 256 * 24 / 1024  # which takes longer than 24 products
    assert found.product == pytest.approx(read / 128 / 1755)
    assert found.total == pytest.approx(found.exchanges + found.bytes + found.product)
    # On units that multiply one number a clock and lane, the products do.
    assert floor.floor("exact", 650, 20).product == pytest.approx(61 * 256 * 24 / 128 / 1755)
    # 64 sequences take three rounds.
    assert floor.floor("tf32", 650, 64).product == pytest.approx(3 * found.product)
    # In the backward pass one vector is left of q gates, and q are multiplied, of four written.
    back = laid_out(**fit, together=2).floor("bf16", 650, 20, backward=True)
    moved = 2 * 2 * sums + (2 * states + 4 * written) * 2
    assert back.bytes == pytest.approx(moved / 4e12 * 1e6)


def test_the_floor_by_rows_is_what_one_counts_by_hand(laid_out: Any) -> None:
    """H = 650 in 16 bits: 21 chunks of 32 units; 5 units a block are 20 rows, two tiles."""
    shared = 20 * 21 * 64 + 4 * 2 * 16 * 24 * 4
    fit = {"kernel": native.Kernel.ROWS, "blocks": 130, "units": 5, "columns": 24}
    floor = laid_out(**fit, shared_bytes=shared)
    found = floor.floor("bf16", 650, 20)
    assert found.exchanges == 1.0
    assert found.bytes == pytest.approx(130 * 21 * 64 * 20 / 4e12 * 1e6)
    rows, sums = 32 * 21 * 64, 16 * 2 * 16 * 24 * 4
    assert found.product == pytest.approx((rows + sums) / 128 / 1755)
    # Backward a block reads the gradients of four gates, and its rows are one tile a gate.
    floor = laid_out(**fit, shared_bytes=shared - 4 * 16 * 24 * 4)
    back = floor.floor("bf16", 650, 20, backward=True)
    assert back.bytes == pytest.approx(4 * found.bytes)
    assert back.product == pytest.approx((4 * 16 * 21 * 64 + sums / 2) / 128 / 1755)
    # In float32 the exact products are of two tiles at once, and 24 sequences are a pass.
    floor = laid_out(**fit, shared_bytes=20 * 41 * 64 + 4 * 2 * 16 * 24 * 4)
    exact = floor.floor("exact", 650, 48)
    assert exact.bytes == pytest.approx(130 * 41 * 64 * 48 / 4e12 * 1e6)
    assert exact.product == pytest.approx(2 * 32 * 650 * 24 / 128 / 1755)


def test_the_floor_of_two_layers_is_what_one_counts_by_hand(laid_out: Any) -> None:
    """As above; 6 units a block are 24 rows of each of three matrices, two tiles."""
    floor = laid_out(kernel=native.Kernel.WAVEFRONT, blocks=109, units=6, columns=24)
    read = 109 * 21 * 64 * 20 / 4e12 * 1e6  # a vector, by all blocks
    found = floor.floor("bf16", 650, 20)
    assert (found.kernel, found.exchanges) == (native.Kernel.WAVEFRONT, 1.0)
    assert found.bytes == pytest.approx(2 * read)  # the first layer's once for two matrices
    rows, sums = 6 * 16 * 21 * 64, 6 * 16 * 16 * 24 * 4
    assert found.product == pytest.approx((rows + sums) / 128 / 1755)
    # Backward of each gate of both layers, and of each gate 6 rows and 12: a tile each.
    back = floor.floor("bf16", 650, 20, backward=True)
    assert back.bytes == pytest.approx(8 * read)
    assert back.product == pytest.approx((4 * rows + sums) / 3 / 128 / 1755)
    # No two matrices of GRUs are multiplied by the same gradients.
    gru = floor.floor("bf16", 650, 20, backward=True, mode="GRU")
    assert gru.bytes == pytest.approx(3 * 3 * read)
    assert gru.product == pytest.approx((3 * rows + sums) / 2 / 128 / 1755)


def test_rows_in_registers_are_not_read(laid_out: Any) -> None:
    """H = 1500 in float32: of 94 chunks of 48 rows registers hold 32, four a warp."""
    fit = {"kernel": native.Kernel.ROWS, "blocks": 125, "units": 12, "columns": 24}
    floor = laid_out(**fit, shared_bytes=62 * 48 * 64 + 4 * 3 * 16 * 24 * 4)
    found, sums = floor.floor("tf32", 1500, 20), 16 * 3 * 16 * 24 * 4
    assert found.bytes == pytest.approx(125 * 94 * 64 * 20 / 4e12 * 1e6)
    assert found.product == pytest.approx((62 * 48 * 64 + sums) / 128 / 1755)
    # Exact products are of all three tiles and of eight sequences at once, in three passes; and
    # four lanes share what is held.
    exact = floor.floor("exact", 1500, 20)
    assert exact.bytes == pytest.approx(found.bytes)
    read = (62 + 4 * 32) * 48 * 64 + sums / 3
    assert read > 48 * 1500 * 8
    assert exact.product == pytest.approx(3 * read / 128 / 1755)
    # Backward of each gate three chunks a warp, 16 rows at once.
    floor = laid_out(**fit, shared_bytes=70 * 48 * 64 + 4 * 16 * 24 * 4)
    back = floor.floor("tf32", 1500, 20, backward=True)
    assert back.bytes == pytest.approx(4 * found.bytes)
    assert back.product == pytest.approx((4 * 70 * 16 * 64 + sums / 3) / 128 / 1755)


@needs_kernels
def test_the_layout_is_that_of_the_kernels(module: Any) -> None:
    floor = module("gpu/floor")
    rows = floor.floor("bf16", 1500, 20)
    assert rows.kernel == native.Kernel.ROWS
    assert set(rows.terms()) == {"exchanges", "bytes", "product", "total"}
    two = floor.floor("bf16", 650, 20, kernel=native.Kernel.WAVEFRONT, backward=True)
    assert two.kernel == native.Kernel.WAVEFRONT
    packed = floor.floor("bf16", 1500, 20, kernel=native.Kernel.PACKED)
    assert (packed.kernel, packed.blocks) == (native.Kernel.PACKED, 128)
    with pytest.raises(ValueError, match="H=2048 B=20 tf32 does not fit"):
        floor.floor("tf32", 2048, 20)
    with pytest.raises(ValueError, match="H=1600 B=20 tf32 does not fit rows"):
        floor.floor("tf32", 1600, 20, kernel=native.Kernel.ROWS)


# ---- the times of a GPU, and their report ------------------------------------------------------


def test_goals_and_all_other_settings(module: Any) -> None:
    goals = module("gpu/goals").GOALS
    assert len(goals) == 2 * 2 * 2 + 2
    assert {(one.side, one.batch, one.steps) for one in goals} == {
        (1500, 20, 35), (650, 20, 35), (768, 16, 200)
    }  # fmt: skip
    settings = module("gpu/times").settings()
    assert len(settings) == len(set(settings)) == 5 * 3 * 2 * 2 * 2 - 8 + 4
    assert not set(settings) & set(goals)


def test_parts_share_what_is_left_of_the_time(module: Any) -> None:
    share = module("gpu/goals").share
    assert share(90.0, [10, 20, 15]) == pytest.approx(20.0)
    assert share(70.0, [15]) == 70.0


@needs_kernels
def test_layers_on_one_of_the_two_kernels(module: Any) -> None:
    times = module("gpu/times")
    of = times.fused_cuda
    assert of.KERNEL == native.Kernel.ANY
    with times.only_on(native.Kernel.PACKED):
        assert (of.KERNEL, of.WAVEFRONT) == (native.Kernel.PACKED, False)
    with times.only_on(native.Kernel.WAVEFRONT):
        assert (of.KERNEL, of.WAVEFRONT) == (native.Kernel.ANY, True)
    assert (of.KERNEL, of.WAVEFRONT) == (native.Kernel.ANY, False)


def made_up() -> list[dict[str, Any]]:
    def layer(what: str, ratio: float) -> dict[str, Any]:
        times = {
            "nn.LSTM": {"us": 300 * ratio, "how": "graph"},
            "fused": {"us": 300, "how": "graph"},
        }
        case = f"H=1500 B=20 T=35 tf32, {what}"
        return {"part": "goals", "case": case, "what": "layer", "ok": True, "words": "",
                "times": times, "ratios": {"times": ratio}}  # fmt: skip

    floor = {"exchanges": 4.0, "bytes": 1.0, "product": 0.8, "total": 5.8}
    step = {"part": "steps", "case": "H=1500 B=20 tf32, packed", "what": "step", "ok": True,
            "words": "", "step": {"forward": 8.0, "backward": 9.0}, "rest": 10.0,
            "floor": {"forward": floor, "backward": floor}}  # fmt: skip
    errors = {"output": 1e-6, "d_weight_hh_l0_avg": 2e-6}
    others = {"output": math.nan, "d_weight_hh_l1_avg": 3e-6}
    made = {"cpu": "some", "cores": 2, "threads": 2, "gpus": ["a GPU"], "cuda": "13.0",
            "python": "3.12", "torch": "2.11", "numpy": "2.5", "date": "2026-01-02"}  # fmt: skip
    return [
        {"part": "load", "case": "machine", "ok": True, "words": "", "machine": made},
        {"part": "micro", "case": "a flag", "what": "micro", "ok": True, "words": "",
         "value": 0.5, "unit": "µs"},
        {"part": "correct", "case": "one", "ok": True, "words": "", "kind": "exact",
         "errors": errors},
        {"part": "correct", "case": "two", "ok": False, "words": "not finite: output | all of it",
         "kind": "exact", "errors": others},
        {"part": "correct", "case": "three", "ok": None, "words": "skipped: the time was up"},
        {"part": "correct", "case": "correct", "command": True, "ok": True, "words": "2 passed",
         "seconds": 3.0},
        layer("forward", 2.5), layer("forward and backward", 0.9), step,
        {"part": "times", "case": "a training step, medium", "what": "training", "ok": True,
         "words": "", "us": {"nn.LSTM": 300.0, "fused": 200.0}, "ratio": 1.5},
        {"part": "compact", "case": "compact, avg", "what": "run", "ok": True, "words": "",
         "epochs": 7, "best valid": 71.25, "test": 68.5, "ms a step": 2.5},
    ]  # fmt: skip


def test_goals_are_met_missed_or_not_measured(module: Any) -> None:
    goals = {what: met for what, _, _, met in module("gpu/summary").goals(made_up())}
    of = "H=1500 B=20 T=35 tf32, "
    assert goals[f"{of}forward, graphs"] is True
    assert goals[f"{of}forward and backward, graphs"] is False
    assert goals[f"{of}forward, plain calls"] is None
    assert goals["H=768 B=16 T=200 fp16, forward, graphs"] is None
    assert len(goals) == 20


def test_the_report_has_the_failing_things_first(module: Any) -> None:
    text = module("gpu/summary").markdown(made_up())
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("##")]
    assert headings == [
        "Failed", "Goals", "Parts", "What a step is made of",
        "Largest errors against the loop in float64", "A layer", "Where nn.LSTM is faster",
        "A step of it", "Two layers, training steps, other kernels", "Runs of lm.train",
    ]  # fmt: skip
    assert "- machine: some, 2 cores, 2 threads; a GPU, CUDA 13.0" in text
    assert "| correct | two | not finite: output \\| all of it |" in text
    assert "| correct | 1 ok, 1 failed, 1 skipped | 3 | 2 passed |" in text
    assert "| a flag | 0.5 | µs |" in text
    assert "| output | nan |" in text
    assert "| d_weight_hh_avg | 3.0e-06 |" in text
    assert "| H=1500 B=20 T=35 tf32, forward | 750.0 |  | 300.0 | 2.50 | gg |" in text
    assert "| H=1500 B=20 T=35 tf32, forward and backward | 0.90 |" in text
    row = "| H=1500 B=20 tf32, packed, forward | 8.00 | 5.80 | 1.38 | 4.00 | 1.00 | 0.80 | 10.0 |"
    assert row in text
    assert "| compact, avg | 7 | 2.50 | 71.25 | 68.50 |" in text
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
    monkeypatch.setattr(run, "gpus", lambda: 0)
    assert run.main([]) == 2
    assert capsys.readouterr().err == f"{run.NO_GPU}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--part", "firts"],
            "there is no firts; there are load, micro, first, steps, goals, ncu,",
        ),
        (["--part", "compact"], "--part compact needs --corpus FOLDER"),
        (["--corpus", "nowhere"], "--corpus: there is no folder nowhere"),
        (["--prepared", "nowhere"], "--prepared: there is no folder nowhere"),
    ],
)
def test_mistakes_of_a_user(
    module: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        module("gpu/run").main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_its_plan_has_what_tells_the_most_first(module: Any) -> None:
    run = module("gpu/run")
    plan = run.plan("cuda", Path("scratch"), Path("corpus"), True)
    seconds = {name: s for command in plan for name, s in command.parts.items()}
    assert list(seconds) == [
        "load", "micro", "first", "steps", "goals", "ncu", "correct", "memcheck", "racecheck",
        "times", "tests", "synccheck", "initcheck", "compact",
    ]  # fmt: skip
    default = run.by_default(plan)
    assert "compact" not in default
    assert sum(seconds[name] for name in default) <= 480
    # One process does all up to the goals: each imports torch.
    assert list(plan[0].parts) == ["load", "micro", "first", "steps", "goals"]
    assert [list(plan[0].only(["load", "goals"]).parts), plan[1].only(["goals"]).parts] == [
        ["load", "goals"], {}
    ]  # fmt: skip
    assert [one.name for one in plan if "compact" in one.parts] == ["compact, avg", "compact, none"]


def test_it_does_without_torch() -> None:
    """Whose import takes seconds of a GPU's time."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import run; print('torch' in sys.modules)"
    folder = str(ROOT / "scripts" / "benchmarks" / "gpu")
    said = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    )
    assert said.stdout == "False\n"


def test_what_was_prepared_becomes_ours_alone(module: Any, tmp_path: Path) -> None:
    """Or it would not be loaded from where others may write."""
    (tmp_path / "given" / "kernels").mkdir(parents=True)
    (tmp_path / "given" / "kernels" / "a.so").write_bytes(b"a library")
    (tmp_path / "given" / "kernels" / "a.so").chmod(0o666)
    (tmp_path / "given").chmod(0o777)
    module("gpu/run").copy_prepared(tmp_path / "given", tmp_path / "own")
    copied = [tmp_path / "own", *sorted((tmp_path / "own").rglob("*"))]
    assert [(one.name, one.stat().st_mode & 0o777) for one in copied] == [
        ("own", 0o700), ("kernels", 0o700), ("a.so", 0o700)
    ]  # fmt: skip


def run_parts(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, **commands: Any
) -> tuple[int, dict[str, tuple[bool | None, str]]]:
    """Of a run whose parts are these commands: its exit status, and what came of each case."""
    plan = [command._replace(parts={name: 1.0}) for name, command in commands.items()]
    monkeypatch.setattr(run, "plan", lambda *_: plan)
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
    dying = run.Command(
        "dying", {}, [*python, DYING, str(tmp_path / "pid")], again=True, cases=True
    )
    missing = run.Command("memcheck", {}, ["no-such-tool", "--tool", "memcheck"], tool=True)
    bad = run.Command("bad", {}, [*python, "raise SystemExit('no such number')"])
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


def test_what_cannot_be_loaded_leaves_the_rest_alone(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module("gpu/run")
    load = run.Command("measure", {}, [sys.executable, "-c", "raise SystemExit('no nvcc')"])
    tests = run.Command("tests", {}, [sys.executable, "-c", "print('3 passed')"])
    status, found = run_parts(run, tmp_path, monkeypatch, 600, load=load, tests=tests)
    assert status == 1
    assert found == {
        "measure": (False, "ended with status 1: no nvcc"),
        "tests": (True, "3 passed"),
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
    assert run.outcome(run.Command(tool, {}, [tool], tool=True), status, words)[0] is ok


def test_words_of_pytest(module: Any) -> None:
    run = module("gpu/run")
    command = run.tests("correct", 60, "tests/gpu")
    assert run.outcome(command, 1, "=== 1 failed, 2 passed in 3s ===\n") == (
        True,
        "=== 1 failed, 2 passed in 3s ===",
    )
    assert run.outcome(command, 2, "no such option")[0] is False
    assert run.outcome(command, None, "tests/gpu/a.py::b PASSED")[0] is None
    for status in (None, 1):  # a test hung; faulthandler ends the process with 1
        assert run.outcome(command, status, "Timeout (0:01:30)!\ntests/gpu/a.py::b ")[0] is False
    missing = "E   ModuleNotFoundError: No module named 'matplotlib'"
    assert run.outcome(command, 4, missing) == (None, "skipped: matplotlib is not installed")
    for own in ("symrnn.cuda", "unsynced"):
        assert run.outcome(command, 4, f"No module named '{own}'")[0] is False


def test_a_test_that_has_hung_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that has ended; those of other parts are."""
    results = tmp_path / "results.jsonl"
    monkeypatch.setenv("SYMRNN_GPU_RESULTS", str(results))
    monkeypatch.setenv("SYMRNN_GPU_PART", "correct")
    conftest = loaded("tests/gpu/conftest.py")
    conftest.Results().pytest_runtest_logstart("a.py::hangs")
    other = {"part": "tests", "case": "a.py::other", "ok": True, "words": ""}
    with results.open("a") as file:
        file.write(json.dumps(other) + "\n")
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    items = [SimpleNamespace(nodeid=f"a.py::{name}") for name in ("first", "hangs", "other")]
    conftest.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    assert [one.nodeid for one in items] == ["a.py::first", "a.py::other"]
    assert [one.nodeid for one in left_out] == ["a.py::hangs"]
    begun = json.loads(results.read_text().splitlines()[0])
    assert begun == {"part": "correct", "case": "a.py::hangs", "ok": None, "words": "begun"}


@needs_kernels
def test_cases_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small ones, on the kernels for CPUs; what was begun is not begun again."""
    path, out = ROOT / "scripts" / "benchmarks" / "gpu" / "cases.py", tmp_path / "results.jsonl"
    begun = {"part": "load", "case": "CPU kernels", "ok": None, "words": "begun"}
    out.write_text(json.dumps(begun) + "\n")
    parts = ["load=1", "micro=1", "steps=100", "goals=100"]
    main_of(path, monkeypatch, "--device", "cpu", "--results", str(out), "--parts", *parts)
    records = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert all(one["words"] == "begun" for one in records[::2])
    cases = [(one["part"], one["case"], one["ok"]) for one in records[1::2]]
    assert cases == [
        ("load", "machine", True),
        ("micro", "microbenchmarks", None),
        ("steps", "H=24 B=3 exact, rows", True),
        ("steps", "two layers, H=24 B=3 T=4 exact, forward", True),
        ("goals", "H=24 B=3 T=4 exact, forward", True),
        ("goals", "what nn.LSTM runs, H=24 B=3 T=4 exact, forward", True),
    ]
    machine, _, step, two, layer, vendor = records[1::2]
    assert machine["machine"]["torch"] == str(torch.__version__)
    assert step["floor"]["forward"]["exchanges"] == 1.0
    assert two["times"].keys() == {"nn.LSTM", "in one launch", "one by one"}
    assert layer["times"].keys() == layer["plain_calls"].keys() == {"nn.LSTM", "vendor", "fused"}
    assert layer["ratios"].keys() == {"times", "plain_calls"}
    assert "lstm" in vendor["words"]


def test_a_part_whose_time_is_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of its cases is begun; loading is."""
    path, out = ROOT / "scripts" / "benchmarks" / "gpu" / "cases.py", tmp_path / "results.jsonl"
    of = ["--device", "cpu", "--seconds", "-1", "--results", str(out)]
    main_of(path, monkeypatch, *of, "--parts", "load=1", "goals=1")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(one["part"], one["words"]) for one in records if one["part"] == "goals"} == {
        ("goals", "skipped: the time was up")
    }
    assert [one["ok"] for one in records if one["case"] == "machine"] == [None, True]


def test_a_run_of_lm_train_is_told_as_what_it_is(module: Any, tmp_path: Path) -> None:
    lines = [
        {"step": 50, "time": 10.0, "train/loss": 6.0},
        {"step": 100, "time": 10.5, "train/loss": 5.0},
        {"step": 110, "time": 19.0, "valid/perplexity": 90.0},
        {"step": 150, "time": 20.0, "train/loss": 5.0},
        {"step": 200, "time": 20.5, "train/loss": 4.5},
        {"step": 220, "time": 29.0, "valid/perplexity": 80.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = module("gpu/compact").record_of(
        tmp_path, "valid perplexity  80.00\ntest perplexity   78.50\n"
    )
    assert found == {
        "epochs": 2, "curve": [90.0, 80.0], "best valid": 80.0, "ms a step": 10.0, "test": 78.5,
    }  # fmt: skip


@needs_kernels
def test_a_rehearsal(module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tests of the sizes with goals, on the kernels for CPUs."""
    options = ["--device", "cpu", "--out", str(tmp_path), "--part", "first", "memcheck"]
    status = module("gpu/run").main([*options, "--limit", "2000"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "load, first: up to" in said
    assert "nothing failed" in said
    assert {one.name for one in tmp_path.iterdir()} == {"report.md", "results.jsonl", "run.log"}
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    tested = [one for one in records if one.get("errors")]
    assert {one["kind"] for one in tested} == {"exact"}
    assert "| d_weight_hh_avg |" in (tmp_path / "report.md").read_text()
