"""Numbers reach metrics.jsonl and TensorBoard once each, over kills and resumes."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from symrnn.files import UserError, run_program
from symrnn.training import RunFolder, Tracker


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", {}) as folder:
        yield folder


def lines(run: RunFolder) -> list[dict[str, Any]]:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = run.metrics.read_text()
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def events(run: RunFolder) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.tensorboard))
    accumulator.Reload()
    return accumulator


def points(run: RunFolder, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def test_scalars_go_to_both(run: RunFolder) -> None:
    with Tracker(run, resume_step=None) as tracker:
        tracker.scalars(0, {"train/loss": 0.5, "lr": 1})
        tracker.scalars(10, {"train/loss": torch.tensor([0.25]), "lr": np.float32(0.5)})
        assert len(lines(run)) == 2  # before any flush
    assert [{**line, "time": 0} for line in lines(run)] == [
        {"step": 0, "time": 0, "train/loss": 0.5, "lr": 1.0},
        {"step": 10, "time": 0, "train/loss": 0.25, "lr": 0.5},
    ]
    assert lines(run)[0]["time"] == pytest.approx(lines(run)[1]["time"], abs=60)
    assert points(run, "train/loss") == [(0, 0.5), (10, 0.25)]
    assert points(run, "lr") == [(0, 1.0), (10, 0.5)]


def test_non_finite_values_are_strings_in_json(run: RunFolder) -> None:
    with Tracker(run, resume_step=None) as tracker:
        tracker.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (line,) = lines(run)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    assert float(line["b"]) == math.inf
    assert points(run, "b") == [(1, math.inf)]


def test_resume_drops_what_came_after_the_checkpoint(run: RunFolder) -> None:
    with Tracker(run, resume_step=None) as tracker:
        for step in range(1, 8):
            tracker.scalars(step, {"loss": step})
        tracker.scalars(5, {"valid": 5})  # out of order: an evaluation logged late
    with open(run.metrics, "a") as file:
        file.write('{"step": 4, "loss": 4')  # a kill in the middle of a line
    with Tracker(run, resume_step=5) as tracker:
        for step in range(6, 9):
            tracker.scalars(step, {"loss": -step})
    loss = [(line["step"], line["loss"]) for line in lines(run) if "loss" in line]
    assert loss == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, -6), (7, -7), (8, -8)]
    assert [line["step"] for line in lines(run) if "valid" in line] == [5]
    assert points(run, "loss") == loss


def test_resume_at_step_0_and_beginning_anew(run: RunFolder) -> None:
    for resume_step, left in ((None, []), (0, [0]), (None, [])):
        with Tracker(run, resume_step=resume_step) as tracker:
            assert [line["step"] for line in lines(run)] == left
            if resume_step is None:
                tracker.scalars(0, {"a": 0})
            tracker.scalars(1, {"a": 1})
    assert points(run, "a") == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize("clocks", [(300, 200, 100), (300, 100, 200), (100, 300, 200), (5, 5, 5)])
def test_resume_drops_what_came_after_whatever_the_clock_says(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, clocks: Sequence[int]
) -> None:
    """Set back, or not gone on, between two resumes: TensorBoard orders its files by time."""
    pytest.importorskip("tensorboard")
    started, resume_step = time.time(), None
    for turn, clock in enumerate(clocks):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda clock=clock: started + clock)
            with Tracker(run, resume_step=resume_step) as tracker:
                for step in range(3 * turn + 1, 3 * turn + 6):
                    tracker.scalars(step, {"loss": 10 * turn + step})
        resume_step = 3 * turn + 3
    expected = [(1, 1), (2, 2), (3, 3), (4, 14), (5, 15), (6, 16)]
    expected += [(step, 20 + step) for step in range(7, 12)]
    assert points(run, "loss") == expected
    assert [(line["step"], line["loss"]) for line in lines(run)] == expected


def test_damaged_lines_are_dropped_with_a_notice(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"step": 1, "time": 0, "a": 1}\n'
    deep = b'{"step": 1, "a": ' + b"[" * 100_000 + b"\n"
    damaged = b"\xff\n" + good + b"[1]\n" + b'{"step": "x"}\n' + deep
    run.metrics.write_bytes(damaged + good + b"\0\0\0")
    Tracker(run, resume_step=1).close()
    assert run.metrics.read_bytes() == good + good
    assert "dropped 4 lines" in capsys.readouterr().err


def test_a_torn_last_line_is_no_news(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.metrics.write_bytes(b'{"step": 1, "time": 0, "a": 1}\n{"st')
    Tracker(run, resume_step=3).close()
    assert [line["step"] for line in lines(run)] == [1]
    assert capsys.readouterr().err == ""


def test_figures_and_texts(run: RunFolder) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    with Tracker(run, resume_step=None) as tracker:
        figure = pyplot.figure(figsize=(1, 1))
        tracker.figure(3, "curve", figure)
        tracker.text("sample", "the **cat**")
        tracker.text("sample", "the dog", step=4)
    assert not pyplot.get_fignums()
    read = events(run)
    assert [event.step for event in read.Images("curve")] == [3]
    texts = [event.tensor_proto.string_val[0] for event in read.Tensors("sample/text_summary")]
    assert texts == [b"the **cat**", b"the dog"]


def hparams_tab(logdir: Path) -> Any:
    """What TensorBoard's HPARAMS tab shows of the runs under `logdir`."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(logdir)))
    request = api_pb2.GetExperimentRequest()
    experiment = get_experiment.Handler(RequestContext(), context, "", request).run()
    groups = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        slice_size=10,
    )
    listed = list_session_groups.Handler(RequestContext(), context, "", groups).run()
    return experiment, listed.session_groups


def test_the_hparams_tab_lists_runs_side_by_side(tmp_path: Path) -> None:
    configs = [
        {"symm": "avg", "hidden": 200, "model": {"tied": True, "clip": None}},
        {"symm": "none", "hidden": 200, "only here": [1, 2]},
    ]
    for number, config in enumerate(configs):
        with (
            RunFolder.create(tmp_path / f"run{number}", config) as run,
            Tracker(run, resume_step=None) as tracker,
        ):
            tracker.hparams(config, {})
            tracker.scalars(5, {"train/loss": 4.0 + number})
            if number == 0:  # the other was killed
                tracker.hparams(config, {"test/perplexity": 80.0})
    assert not [path for path in (tmp_path / "run0" / "tensorboard").iterdir() if path.is_dir()]
    experiment, groups = hparams_tab(tmp_path)
    names = {info.name for info in experiment.hparam_infos}
    assert names == {"symm", "hidden", "model.tied", "model.clip", "only here"}
    shown = {group.hparams["symm"].string_value: group for group in groups}
    assert shown.keys() == {"avg", "none"}
    assert shown["avg"].hparams["hidden"].number_value == 200
    assert shown["avg"].hparams["model.tied"].string_value == "true"
    assert shown["none"].hparams["only here"].string_value == "[1, 2]"
    values = {value.name.tag: value.value for value in shown["avg"].metric_values}
    assert values == {"train/loss": 4.0, "hparam/test/perplexity": 80.0}


def test_without_tensorboard_there_is_one_notice_and_the_json(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with Tracker(run, resume_step=None) as tracker:
        tracker.scalars(1, {"a": 1})
        tracker.text("t", "x")
        tracker.figure(1, "f", None)  # type: ignore[arg-type]
        tracker.hparams({"a": 1}, {"b": 2.0})
        tracker.flush()
    assert [line["a"] for line in lines(run)] == [1.0]
    assert not run.tensorboard.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "symrnn[train]" in error


def test_without_matplotlib_there_is_one_notice_and_no_figure(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with Tracker(run, resume_step=None) as tracker:
        tracker.scalars(1, {"a": 1})
        tracker.figure(1, "f", pytest.fail)
    assert points(run, "a") == [(1, 1.0)]
    error = capsys.readouterr().err
    assert error.startswith(
        "notice: matplotlib cannot be imported (pip install 'symrnn[train]'): import of "
    )
    assert error.count("\n") == 1


def test_a_full_disk_is_a_users_error(small_disk: Path) -> None:
    with RunFolder.create(small_disk / "run", {}) as run:
        tracker = Tracker(run, resume_step=None)
        (small_disk / "filler").write_bytes(bytes(1 << 19))

        def fill() -> None:
            for step in range(20_000):
                tracker.scalars(step, {"a" * 200: step})

        with pytest.raises(UserError, match=r"metrics\.jsonl: metrics: the disk is full"):
            fill()
        (small_disk / "filler").unlink()
        # If the disk was full for TensorBoard's thread too, it remembers and says so again.
        with contextlib.suppress(UserError):
            tracker.close()


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: path.rename(path.with_name("other"))])
def test_a_folder_that_goes_away_ends_the_run(
    run: RunFolder, gone: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard's thread stores its error, and raises the same one at each call."""
    pytest.importorskip("tensorboard")

    def main() -> None:
        with Tracker(run, resume_step=None) as tracker:
            tracker.flush()
            gone(run.path)
            tracker.scalars(1, {"a": 1})
            tracker.flush()

    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    message = f"error: {run.path}: the run's folder was renamed or deleted\n"
    assert capsys.readouterr().err == message
