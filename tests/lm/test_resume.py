"""A run that is stopped, in whatever way, and resumed ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import lm.train
from symrnn import open_packed
from symrnn.training import Tracker, load_checkpoint, loop

FULL = "--dropout 0.5 --save-every 3 --log-every 2 --epochs 3 --recipe annealed"


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the bit, but for the times."""
    for read, file in ((load_checkpoint, "last.safetensors"), (open_packed, "best.safetensors")):
        first, second = (read(folder / file) for folder in (one, other))
        assert first.tensors.keys() == second.tensors.keys()
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor, second.tensors[name]), name
        assert untimed(first.meta) == untimed(second.meta)
    lines = [
        [untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, other)
    ]
    assert lines[0] == lines[1]


def untimed(value: Any) -> Any:
    """Without what says when, where or how fast, in a line, or packed in a checkpoint's state."""
    apart = ("time", "tokens_per_second", "seconds", "began", "data")
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name not in apart}
    if isinstance(value, list):
        # A packed dict is a list of pairs of a key and a value.
        timed = [isinstance(item, list) and item[:1] in (["seconds"], ["began"]) for item in value]
        return [untimed(item) for item, out in zip(value, timed, strict=True) if not out]
    return value


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert lm.train.main(arguments(corpus, folder)) == 0
    return folder


def arguments(corpus: Path, folder: Path) -> list[str]:
    tiny = "--hidden-size 8 --batch-size 4 --steps 5 --threads 1"
    return ["--data", str(corpus), *tiny.split(), *FULL.split(), "--out", str(folder)]


def wait_for_new(file: Path, before: int, process: BaseProcess) -> None:
    end = time.monotonic() + 60
    while changed(file) == before and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.001)


def changed(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def test_killed_at_random_moments(
    straight: Path, corpus: Path, tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    run, moments, kills = tmp_path / "run", random.Random(1), 0
    last = run / "last.safetensors"
    while kills < 5:
        begin = not (run / "config.json").exists()
        before = changed(last)
        process = spawn("train", *(arguments(corpus, run) if begin else ["--resume", run]))
        wait_for_new(last, before, process)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        kills += 1
    process = spawn("train", "--resume", run)
    process.join(120)
    assert process.exitcode == 0
    assert_same_run(straight, run)


class KilledError(BaseException):
    """Stands for SIGKILL: nobody catches it, and nothing is done on the way out."""


@pytest.mark.parametrize("moment", ["scalars", "figure", "save_best", "save_checkpoint"])
def test_killed_between_any_two_writes(
    straight: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Every line, figure and checkpoint of a run in turn is the last that a killed run wrote."""
    run, kills = tmp_path / "run", 0
    owner = {"save_best": lm.train, "save_checkpoint": loop}.get(moment, Tracker)
    original = getattr(owner, moment)
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    for _ in range(200):
        calls, fatal = 0, 1 + kills % 5  # sometimes late, so that it gets on

        def dying(*values: object, fatal: int = fatal, **named: object) -> None:
            nonlocal calls
            original(*values, **named)
            calls += 1
            if calls == fatal:
                raise KilledError

        monkeypatch.setattr(owner, moment, dying)
        begin = not (run / "config.json").exists()
        try:
            lm.train.main(arguments(corpus, run) if begin else ["--resume", str(run)])
        except KilledError:
            kills += 1
            continue
        break
    assert kills >= 2
    assert_same_run(straight, run)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [1, 7, 8])
def test_interrupted_once_and_resumed(
    straight: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    signal_number: int,
    call: int,
) -> None:
    """In the first epoch, and in a later one; the epoch loop ends and the best model is tested."""
    run, calls, original = tmp_path / "run", 0, Tracker.scalars

    def interrupting(*values: object) -> None:
        nonlocal calls
        original(*values)  # type: ignore[arg-type]
        calls += 1
        if calls == call * 4:
            os.kill(os.getpid(), signal_number)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "scalars", interrupting)
        assert lm.train.main(arguments(corpus, run)) == 0
    output = capfd.readouterr()
    assert "once more to leave at once" in output.err
    assert "test perplexity" in output.out
    assert f"python -m lm.train --resume {run}" in output.out
    assert (run / "best.safetensors").exists()
    assert lm.train.main(["--resume", str(run)]) == 0
    assert "interrupted in epoch" not in capfd.readouterr().out
    assert_same_run(straight, run)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    "form", ["--symm tri8", "--soft-symmetry 0.1", "--soft-symmetry 0.02 --soft-norm 1"]
)
def test_other_cells_and_forms_go_on_exactly_too(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, form: str
) -> None:
    """Killed within an epoch, after a checkpoint with the hidden state in it."""
    options = ["--cell", cell, *form.split(), "--epochs", "2"]
    straight, run = (
        [*arguments(corpus, tmp_path / name), *options] for name in ("straight", "run")
    )
    assert lm.train.main(straight) == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying_after(2, loop.save_checkpoint))
        with pytest.raises(KilledError):
            lm.train.main(run)
    kept = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert kept.tensors["state/hidden/0"].shape == (2, 4, 8)
    assert ("state/hidden/1" in kept.tensors) == (cell == "lstm")
    assert lm.train.main(["--resume", str(tmp_path / "run"), *options]) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def dying_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """``function``, at whose so-many-th call the run is killed."""
    left = calls

    def dying(*values: object, **named: object) -> None:
        nonlocal left
        function(*values, **named)
        left -= 1
        if left == 0:
            raise KilledError

    return dying


def test_interrupted_in_the_last_validation_is_finished(
    straight: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls, original = 0, Tracker.figure

    def interrupting(*values: object) -> None:
        nonlocal calls
        original(*values)  # type: ignore[arg-type]
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tracker, "figure", interrupting)
    assert lm.train.main(arguments(corpus, tmp_path / "run")) == 0
    assert "interrupted in epoch" not in capfd.readouterr().out
    assert_same_run(straight, tmp_path / "run")


def test_interrupted_twice_leaves_at_once(
    straight: Path, corpus: Path, tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    run = tmp_path / "run"
    # Enough epochs that it would go on for minutes.
    process = spawn("train", *arguments(corpus, run), "--epochs", 2000)
    wait_for_new(run / "best.safetensors", 0, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive before it tests the best model
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    process.join(30)
    assert process.exitcode == 130
    load_checkpoint(run / "last.safetensors")


def test_a_finished_run_is_only_reported(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("last.safetensors", "metrics.jsonl")}
    assert lm.train.main(["--resume", str(run)]) == 0
    assert lm.train.main(["--out", str(run), "--resume", "--threads", "1"]) == 0
    assert before == {name: (run / name).read_bytes() for name in before}
    assert capsys.readouterr().out.count("test perplexity") == 2


def test_the_corpus_may_move(straight: Path, corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    assert lm.train.main(["--resume", str(run), "--data", str(moved)]) == 0


def test_the_same_options_may_be_given_again(straight: Path, corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    assert lm.train.main([*arguments(corpus, run), "--resume"]) == 0


def test_time_adds_up_over_resumes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def tick() -> float:
        nonlocal clock
        clock += 1.0
        return clock

    monkeypatch.setattr("symrnn.training.loop.time.monotonic", tick)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(lm.train, "save_best", dying_after(1, lm.train.save_best))
        with pytest.raises(KilledError):
            lm.train.main(arguments(corpus, run))
    kept = seconds_in(run)
    clock += 1000.0  # nobody trains
    assert lm.train.main(["--resume", str(run)]) == 0
    assert kept < seconds_in(run) < 1000


def seconds_in(run: Path) -> float:
    packed = load_checkpoint(run / "last.safetensors").meta["state"]
    state = dict(packed["dict"])
    return float(dict(state["progress"]["dict"])["seconds"])
