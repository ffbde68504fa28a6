"""scripts/gpu_check.py where there is no GPU: its choice of cases, its counts, its report.

And what it does with a process that hangs or dies.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import SymGRU, SymLSTM, native

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the program, by the names they have there."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    before = list(sys.path)
    import gpu_bench
    import gpu_cases
    import gpu_check
    import gpu_child
    import gpu_correct
    import gpu_floor
    import gpu_report

    yield SimpleNamespace(
        bench=gpu_bench, cases=gpu_cases, check=gpu_check, child=gpu_child, correct=gpu_correct,
        floor=gpu_floor, report=gpu_report,
    )  # fmt: skip
    sys.path[:] = before


# ---- the command line --------------------------------------------------------------------------


def test_help_has_an_example(scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scripts.check.main(["--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out
    assert "python scripts/gpu_check.py --part build correct --minutes 3" in words
    assert "--child" not in words


def test_without_a_gpu_it_says_so_and_ends_with_2(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts.check.main([]) == 2
    assert capsys.readouterr().err == f"{scripts.check.NO_GPU}\n"


def test_out_names_another_folder(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scripts.check.make_parser().parse_args([]).out == Path("results/gpu")
    monkeypatch.setenv("OUT", "/elsewhere")
    assert scripts.check.make_parser().parse_args([]).out == Path("/elsewhere")


# ---- cases -------------------------------------------------------------------------------------


def test_the_cases_show_every_value_and_every_pair(scripts: SimpleNamespace) -> None:
    cases = scripts.cases
    chosen = cases.chosen()
    assert len(chosen) == len(set(chosen)) < 60
    assert chosen[: len(cases.START)] == list(cases.START)
    seen = {name: {getattr(case, name) for case in chosen} for name in cases.Case._fields}
    assert seen["side"] == {1, 7, 64, 200, 650, 1024, 1500, 2048}
    assert seen["batch"] == {1, 4, 20, 64, 128}
    assert seen["steps"] == {1, 2, 35, 200}
    assert seen["kind"] == {"exact", "tf32", "bf16", "fp16"}
    for a, b in (("side", "kind"), ("batch", "kind"), ("steps", "reverse"), ("side", "batch")):
        pairs = {(getattr(case, a), getattr(case, b)) for case in chosen}
        assert len(pairs) == len(seen[a]) * len(seen[b])
    assert all(case.steps < 200 or case.side * case.batch <= 4096 for case in chosen)
    assert chosen == cases.chosen()


def test_small_cases_are_drawn_several_times(scripts: SimpleNamespace) -> None:
    draws = scripts.cases.draws
    assert [draws(1, 1, 1), draws(1, 1, 200), draws(1, 20, 35), draws(64, 4, 35)] == [32, 8, 13, 1]


def test_limits_of_results_and_of_gradients(scripts: SimpleNamespace) -> None:
    limit = scripts.cases.limit
    assert [limit("exact", name) for name in ("output", "hn", "d_h0")] == [1e-5, 1e-5, 5e-5]


def test_the_goals_are_measured_first(scripts: SimpleNamespace) -> None:
    settings = scripts.bench.settings()
    assert len(settings) == len(set(settings)) == 5 * 3 * 2 * 2 * 2 + 4
    first = {(*one[:3], one.kind, one.train) for one in settings[:8]}
    assert first == {
        (*sizes, kind, train)
        for sizes in scripts.bench.GOALS
        for kind in ("tf32", "bf16")
        for train in (False, True)
    }


# ---- the floor ---------------------------------------------------------------------------------


def test_the_most_tiles_of_a_block(scripts: SimpleNamespace) -> None:
    most = scripts.floor.most_tiles
    assert most(1, 1) == 1
    assert most(4, 1) == 10  # the triangle of one square
    assert most(4, 2) == 6  # two triangles of two along a side; the square beside them has 4
    assert most(41, 8) == 15 + 21  # sides of 5, the last of 6


def test_the_floor_is_what_one_counts_by_hand(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H = 650: 41 tiles, in 8 squares a side of 6 tiles at most, 96 units; a block has 36 tiles."""
    fit = SimpleNamespace(blocks=128, squares=8, together=1, columns=24)
    monkeypatch.setattr(scripts.floor, "layout", lambda *_: fit)
    parts, states = 128 * 2 * 1 * 20 * 96 * 4, 128 * 2 * 96 * 20
    found = scripts.floor.floor("tf32", 650, 20)
    assert found.exchanges == 4.0
    assert found.bytes == pytest.approx((2 * parts + states * 4) / 4e12 * 1e6)
    clocks = 36 * 256 * 4 * 2 / 128  # each tile read twice, which takes longer than 24 products
    assert clocks > 36 * 256 * 2 * 24 / 1024
    assert found.product == pytest.approx(clocks / 1755)
    assert found.total == pytest.approx(4.0 + 1.47456 + 0.3282051)
    exact = scripts.floor.floor("exact", 650, 20)
    assert exact.product == pytest.approx(36 * 256 * 2 * 24 / 128 / 1755)
    # 64 sequences take three rounds.
    assert scripts.floor.floor("tf32", 650, 64).product == pytest.approx(3 * found.product)
    # On the way back one vector is left of q gates, and q are multiplied.
    fit.together = 2
    back = scripts.floor.floor("bf16", 650, 20, backward=True)
    assert back.bytes == pytest.approx((2 * parts + states * 2 * 2) / 4e12 * 1e6)


@needs_kernels
def test_the_layout_is_that_of_the_kernels(scripts: SimpleNamespace) -> None:
    assert scripts.floor.floor("bf16", 1500, 20).blocks == 128
    with pytest.raises(ValueError, match="H=2048 B=20 tf32 does not fit"):
        scripts.floor.floor("tf32", 2048, 20)


# ---- processes that hang or die ----------------------------------------------------------------

CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from gpu_child import Cases, Skipped

def hang():
    Path(sys.argv[3]).write_text(str(subprocess.Popen(["sleep", "60"]).pid))
    time.sleep(60)

def fail():
    raise ValueError("no such number")

def skip():
    raise Skipped("there is one GPU only")

def lost():
    raise RuntimeError("CUDA error")

cases = Cases(Path(sys.argv[1]), float(sys.argv[2]), lost)
cases.run("good", 9, lambda: {"error": float("nan")})
cases.run("hangs", 1, hang)
cases.run("dies", 9, lambda: os.kill(os.getpid(), signal.SIGSEGV))
cases.run("loses the GPU", 9, fail)
cases.run("skips", 9, skip)
cases.run("is last", 9, dict)
"""


def run_child(
    scripts: SimpleNamespace, folder: Path, code: str, seconds: float, grace: float = 5.0
) -> Any:
    here = str(Path(scripts.child.__file__).parent)
    return scripts.child.run_child(
        lambda left: [sys.executable, "-c", code, str(folder / "records"), str(left),
                      str(folder / "pid")],
        seconds,
        folder / "records",
        folder / "log",
        environment={**os.environ, "PYTHONPATH": here},
        grace=grace,
    )  # fmt: skip


def test_a_case_that_hangs_or_dies_takes_no_other_along(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    found = run_child(scripts, tmp_path, CHILD, 60)
    words = {one["case"]: (one["ok"], one.get("words", "")) for one in found}
    assert words == {
        "good": (True, ""),
        "hangs": (False, "the process was killed: hangs took longer than 1 s"),
        "dies": (False, "the process died of SIGSEGV"),
        "loses the GPU": (False, "ValueError: no such number"),
        "skips": (None, "skipped: there is one GPU only"),
        "is last": (True, ""),
    }
    assert len(found) == len(words)
    # What the hanging process had started is gone too.
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()
    assert (tmp_path / "log").read_text().count("$ ") == 4
    assert "ValueError: no such number" in (tmp_path / "log").read_text()


def test_what_there_is_no_time_for_is_said(scripts: SimpleNamespace, tmp_path: Path) -> None:
    code = "import time\n" + CHILD.replace('"hangs", 1, hang', '"slow", 9, lambda: time.sleep(9)')
    code = code.replace("float(sys.argv[2])", "0.2").replace("sleep(9)", "sleep(0.3) or {}")
    code = code.replace('lost)\ncases.run("good"', 'lost)\ntime.sleep(0.3)\ncases.run("good"')
    found = run_child(scripts, tmp_path, code, 60)
    assert {one["words"] for one in found} == {"skipped: the time was up"}
    assert len(found) == 6


def test_a_part_is_ended_with_its_time(scripts: SimpleNamespace, tmp_path: Path) -> None:
    began = time.monotonic()
    found = run_child(scripts, tmp_path, CHILD.replace('"hangs", 1', '"hangs", 50'), 4, 0.5)
    assert time.monotonic() - began < 30
    assert found[-1]["case"] == "hangs"
    assert found[-1]["words"] == "the process was killed: it did not end within 4 s"


def test_a_child_that_cannot_start_is_a_failure(scripts: SimpleNamespace, tmp_path: Path) -> None:
    found = run_child(scripts, tmp_path, "raise SystemExit(7)", 30)
    assert [(one["ok"], one["words"]) for one in found] == [
        (False, "the process ended with status 7")
    ]


# ---- comparisons, on the kernels for CPUs ------------------------------------------------------


@needs_kernels
def test_kernels_that_are_right(scripts: SimpleNamespace) -> None:
    for reverse in (False, True):
        found = scripts.correct.compare(SymLSTM, 17, 3, 4, "exact", CPU, reverse=reverse)
        assert found["ok"], found["words"]
        assert found["path"] == "fused"
        assert {"output", "hn", "cn", "d_input", "d_h0", "d_c0"} < found["errors"].keys()
        assert "d_weight_hh_l0_avg" in found["errors"]
        assert 0 < max(found["errors"].values()) < 1e-5
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    assert scripts.correct.compare(SymGRU, 9, 2, 3, "exact", CPU, **options)["ok"]


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y * 1.001, "too far from float64: output: 1.00e-03"),
        (lambda y: torch.where(y == y.max(), math.nan, y), "not finite: output"),
        (lambda y: y + torch.rand_like(y) * 1e-7, "other bits in a second run: output"),
    ],
)
def test_kernels_that_are_wrong(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, wrong: Any, words: str
) -> None:
    right = scripts.correct.by_module

    def by_module(layer: Any, x: Tensor, state: list[Tensor]) -> Any:
        output, last = right(layer, x, state)
        return wrong(output) if layer.backend == "fused" else output, last

    monkeypatch.setattr(scripts.correct, "by_module", by_module)
    found = scripts.correct.compare(SymLSTM, 17, 16, 4, "exact", CPU)
    assert not found["ok"]
    assert words in found["words"]


@needs_kernels
def test_the_program_runs_to_its_end(scripts: SimpleNamespace, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--out", str(tmp_path), "--part", "sanitize", "profile"]
    command = [sys.executable, scripts.check.__file__, *options, "--minutes", "2"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "nothing failed" in ended.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {
        "check.json", "check.log", "check.md", "ncu.txt",
    }  # fmt: skip
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["about"]["torch"] == torch.__version__
    first = found["parts"]["profile"]["cases"][0]
    assert first["case"] == "H=24 B=3 exact"
    assert first["forth"]["floor"]["exchanges"] == 4.0
    assert "| H=24 B=3 exact, back |" in (tmp_path / "check.md").read_text()


# ---- the report --------------------------------------------------------------------------------


def made_up(scripts: SimpleNamespace) -> dict[str, Any]:
    def time_of(median: float) -> dict[str, Any]:
        return {"median": median, "least": median, "most": median, "how": "graph"}

    def bench(side: int, train: bool, ratio: float) -> dict[str, Any]:
        times = {"nn.LSTM": time_of(300 * ratio), "vendor": time_of(400), "fused": time_of(300)}
        return {
            "case": f"H={side}", "ok": True, "side": side, "batch": 20, "steps": 35,
            "kind": "tf32", "train": train, "times": {**times, "operator": time_of(280)},
            "ratio": ratio, "step": 8.0, "floor": 5.8, "expand": 10.0, "pack": 5.0,
        }  # fmt: skip

    errors = {"output": 1e-6, "d_weight_hh_l0_avg": 2e-6}
    correct = [
        {"case": "one", "ok": True, "kind": "exact", "errors": errors, "path": "fused"},
        {"case": "two", "ok": False, "kind": "exact", "path": "vendor",
         "errors": {"output": math.nan, "d_weight_hh_l1_avg": 3e-6},
         "words": "not finite: output | all of it"},
        {"case": "three", "ok": None, "words": "skipped: the time was up"},
    ]  # fmt: skip

    def trained(variant: str, speed: float) -> dict[str, Any]:
        return {
            "case": variant, "ok": True, "variant": variant, "size": "medium", "steps": 10,
            "of": 20, "seconds": 1.0, "step": 0.1, "tokens_per_second": speed,
            "perplexity": 300.0, "rounding": "tf32",
        }  # fmt: skip

    parts = {
        "build": [{"case": "CUDA kernels", "ok": True, "words": "", "text": "run_layer  168"}],
        "correct": correct,
        "bench": [bench(1500, False, 2.5), bench(1500, True, 1.1)],
        "train": [trained("nn.LSTM", 100.0), trained("fused", 150.0)],
    }
    return {
        "command": "python scripts/gpu_check.py",
        "about": {"gpu": "a GPU", "torch": "2.11", "date": "2026-01-02T03:04:05"},
        "parts": {k: {"seconds": 1.0, "words": "", "cases": v} for k, v in parts.items()},
    }


def test_goals_are_met_missed_or_not_measured(scripts: SimpleNamespace) -> None:
    goals = {what: met for what, _, _, met in scripts.report.goals(made_up(scripts))}
    of = "H=1500 B=20 T=35 tf32, "
    assert goals[f"nn.LSTM / fused, {of}forward: at least"] is True
    assert goals[f"nn.LSTM / fused, {of}forward and backward: at least"] is False
    assert goals[f"step / floor, {of}forward: at most"] is True
    assert goals["nn.LSTM / fused, H=650 B=20 T=35 bf16, forward: at least"] is None
    assert goals["nn.LSTM / fused, a training epoch: at least"] is True
    assert len(goals) == 13


def test_the_report_has_the_failing_things_first(scripts: SimpleNamespace) -> None:
    text = scripts.report.markdown(made_up(scripts))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[1:] == [
        "## Failed", "## Goals", "## build", "## correct", "## bench", "## train",
    ]  # fmt: skip
    assert "| correct | two | not finite: output \\| all of it |" in text
    assert "| output | nan |" in text
    assert "| d_weight_hh_avg | 3.0e-06 |" in text
    assert "skipped: the time was up: three." in text
    assert "do not fit: two." in text
    assert "| fused | 10 of 20 | 1.0 | 100.00 | 150 | 1.50 | 300.0 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.replace("\\|", "").count("|") > 2 for row in rows)


def test_a_made_up_run_is_written_as_json(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = scripts.check.make_parser().parse_args(["--out", str(tmp_path)])
    check = scripts.check.Check(options)
    check.found.update(made_up(scripts))
    check.save()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    kept = json.loads((tmp_path / "check.json").read_text(), parse_constant=refuse)
    assert kept["parts"]["correct"]["cases"][1]["errors"]["output"] == "nan"
    assert {one["met"] for one in kept["goals"]} == {True, False, None}
    short = scripts.report.short_table(check.found)
    assert "1 failed\n  correct: two: not finite" in short
    assert len(short) < 6000


def test_nothing_else_is_run_where_the_kernels_cannot_be_built(
    scripts: SimpleNamespace, tmp_path: Path
) -> None:
    options = scripts.check.make_parser().parse_args(["--out", str(tmp_path)])
    check = scripts.check.Check(options)
    check.keep("build", [{"case": "CUDA kernels", "ok": False, "words": "no nvcc"}])
    check.part("bench", 60.0)
    assert check.found["parts"]["bench"]["cases"] == [
        {"case": "bench", "ok": None, "words": "skipped: the kernels could not be built"}
    ]


# ---- other programs' words ---------------------------------------------------------------------

PYTEST = """\
tests/rnn/test_a.py::test_one[a b] PASSED                     [ 25%]
tests/rnn/test_a.py::test_two FAILED                          [ 50%]
tests/rnn/test_a.py::test_three SKIPPED (no second GPU)       [ 75%]
"""


def test_words_of_pytest(scripts: SimpleNamespace) -> None:
    record = {"case": "pytest", "ok": False, "words": "the process ended with status 1"}
    words = (
        f"{PYTEST}FAILED tests/rnn/test_a.py::test_two - assert 1 == 2\nERROR tests/b.py - gone\n"
    )
    first, *others = scripts.check.test_records({**record, "killed": False}, words)
    assert first["ok"]
    assert first["words"] == "1 passed, 1 failed, 1 skipped"
    assert [(one["case"], one["words"]) for one in others] == [
        ("tests/rnn/test_a.py::test_two", "assert 1 == 2"),
        ("tests/b.py", "gone"),
    ]
    record |= {"words": "the process was killed: it did not end within 9 s", "killed": True}
    words = f"{PYTEST}tests/rnn/test_a.py::test_4 \n"
    first, *others = scripts.check.test_records(record, words)
    assert first["ok"] is None
    first, *others = scripts.check.test_records(record, f"Timeout (0:00:25)!\n{words}")
    assert first["ok"] is False
    assert first["words"].endswith("within 9 s in tests/rnn/test_a.py::test_4")
    assert len(others) == 1
    record |= {"words": "the process ended with status 4", "killed": False}
    (only,) = scripts.check.test_records(record, "ERROR: no such option\n")
    assert not only["ok"]


DONE = "all calls have ended\n========= "


@pytest.mark.parametrize(
    ("tool", "words", "ok"),
    [
        ("memcheck", f"{DONE}ERROR SUMMARY: 0 errors\n", True),
        ("memcheck", f"{DONE}ERROR SUMMARY: 3 errors\n", False),
        ("racecheck", f"{DONE}RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n", True),
        (
            "racecheck",
            f"{DONE}RACECHECK SUMMARY: 2 hazards displayed (2 errors)\n",
            False,
        ),
        (
            "initcheck",
            f"=========     at gemm+0x10\n{DONE}ERROR SUMMARY: 2 errors\n",
            True,
        ),
        (
            "initcheck",
            f"=========     at void symrnn::run_layer<x>\n{DONE}ERROR SUMMARY: 2 errors\n",
            False,
        ),
        ("memcheck", "========= Error: Device not supported\n", None),
        ("memcheck", "========= ERROR SUMMARY: 0 errors\nTraceback\n", False),
    ],
)
def test_words_of_the_sanitizer(
    scripts: SimpleNamespace, tool: str, words: str, ok: bool | None
) -> None:
    record = {"case": tool, "ok": True, "words": "", "killed": False}
    assert scripts.check.sanitizer_record(record, words)["ok"] is ok


def test_a_sanitizer_that_is_too_slow_tells_nothing(scripts: SimpleNamespace) -> None:
    record = {
        "case": "racecheck",
        "ok": False,
        "words": "the process was killed: …",
        "killed": True,
    }
    assert scripts.check.sanitizer_record(record, "")["ok"] is None


def test_the_stand_in_for_hypothesis(scripts: SimpleNamespace) -> None:
    made: dict[str, Any] = {}
    exec(scripts.check.WITHOUT_HYPOTHESIS, made)
    st = made["strategies"]

    def test(folder: Path, n: int, m: int) -> None: ...

    named = made["given"](n=st.integers(0, 9).map(abs), m=st.just(1) | st.none())(test)
    assert list(inspect.signature(named).parameters) == ["folder"]
    unnamed = made["settings"](max_examples=3)(made["given"](st.integers(), st.floats())(test))
    assert list(inspect.signature(unnamed).parameters) == ["folder"]
    with pytest.raises(pytest.skip.Exception, match="hypothesis is not installed"):
        unnamed(folder=Path())
    made["settings"].register_profile("x", deadline=None)
