"""The loop by itself, around a model of one layer: order, checkpoints, interrupts, the lock."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from killed_programs import BATCHES, Toy, configured, started
from resumed import KilledError, assert_same_run, dying_after, seconds_in

from symrnn import save_packed
from symrnn.files import UserError
from symrnn.training import RunFolder, Stopped, Tracker, World, load_checkpoint, loop
from symrnn.training.loop import Run

EVERY = {"save_every": 2, "log_every": 3}


def train(
    run: Run, interrupt_at: int = 0, number: int = signal.SIGINT
) -> list[tuple[int, int, int]]:
    """Do what a training program does; epoch, batch and step of each step that was done.

    interrupt_at: after this step it gets the signal of that number.
    """
    done = []
    toy, progress = run.learner, run.progress
    assert isinstance(toy, Toy)
    for epoch in run.epochs(run.config["epochs"]):
        for _ in run.steps(range(progress.batch, BATCHES)):
            assert toy.model.training
            loss = toy.step()
            done.append((epoch, progress.batch, progress.step))
            if run.due:
                run.log({"loss": loss, "nats": progress.nats})
            if progress.step == interrupt_at:
                os.kill(os.getpid(), number)
        if run.stopped:
            break
        toy.model.eval()
        with run.measuring():
            if run.terminated():
                raise Stopped
            run.log({"valid": progress.nats})
            run.figure("empty", lambda: matplotlib.figure.Figure((1, 1)))
            run.keep_best(progress.nats, lambda path: save_packed(toy.model, path))
    return done


DONE = [(1 + step // 5, 1 + step % 5, 1 + step) for step in range(15)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with World() as world, Run("toy", world) as run:
        started(run, "--out", folder, **EVERY)
        assert train(run) == DONE
    return folder


@pytest.mark.parametrize(
    ("number", "code", "steps"),
    [(signal.SIGINT, 130, range(1, 15)), (signal.SIGTERM, 143, (3, 5, 15))],
)
def test_a_run_that_was_interrupted_in_any_step_ends_the_same(
    whole: Path, tmp_path: Path, number: int, code: int, steps: Iterable[int]
) -> None:
    """SIGTERM in an epoch's last step keeps it from its validation, and the step is saved."""
    for step in steps:
        out = tmp_path / f"{step}"
        with World() as world, Run("toy", world) as run:
            started(run, "--out", out, **EVERY)
            first = train(run, interrupt_at=step, number=number)
            assert run.stopped == (step % 5 != 0 or number == signal.SIGTERM)
            assert run.progress.step == step
            assert run.end(lambda: {}) == code
        state = dict(load_checkpoint(out / "last.safetensors").meta["state"]["dict"])
        assert dict(state["progress"]["dict"])["step"] == step
        with World() as world, Run("toy", world) as run:
            started(run, "--resume", out)
            assert first + train(run) == DONE
        assert_same_run(whole, out)


@pytest.mark.parametrize("moment", ["scalars", "figure"])
def test_a_run_that_was_interrupted_at_any_line_ends_the_same(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    """Also in a validation, after which it is over: the last one is finished, and so is the run."""
    original = getattr(Tracker, moment)
    for call in range(1, 9 if moment == "scalars" else 4):
        out, calls = tmp_path / f"{call}", 0
        number = signal.SIGINT if call % 2 else signal.SIGTERM

        def interrupting(*values: object, at: int = call, number: int = number) -> None:
            nonlocal calls
            original(*values)
            calls += 1
            if calls == at:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch, World() as world, Run("toy", world) as run:
            patch.setattr(Tracker, moment, interrupting)
            started(run, "--out", out, **EVERY)
            first = train(run)
            unfinished = len(first) < len(DONE) or run.stopped
            assert run.end(lambda: {}) == (128 + number if unfinished else 0)
        output = capfd.readouterr()
        assert f"{number.name}: ending after this step; once more to leave at once" in output.err
        assert ("interrupted in epoch" in output.out) == unfinished
        with World() as world, Run("toy", world) as run:
            started(run, "--resume", out)
            assert first + train(run) == DONE
            assert run.end(lambda: {}) == 0
        assert "interrupted in epoch" not in capfd.readouterr().out
        assert_same_run(whole, out)


@pytest.mark.parametrize(
    ("owner", "moment"),
    [(Tracker, "scalars"), (Tracker, "figure"), (Run, "keep_best"), (loop, "save_checkpoint")],
)
def test_a_run_killed_between_any_two_writes_ends_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, moment: str
) -> None:
    """Every line, figure and checkpoint of a run in turn is the last that a killed run wrote."""
    out, kills, original = tmp_path / "run", 0, getattr(owner, moment)
    for _ in range(200):
        # Sometimes late, so that it gets on.
        monkeypatch.setattr(owner, moment, dying_after(1 + kills % 5, original))
        begun = (out / "config.json").exists()
        try:
            with World() as world, Run("toy", world) as run:
                started(run, "--resume" if begun else "--out", out, **({} if begun else EVERY))
                train(run)
        except KilledError:
            kills += 1
            continue
        break
    assert kills >= 2
    assert_same_run(whole, out)


def test_time_adds_up_over_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = 0.0, tmp_path / "run"

    def tick() -> float:
        nonlocal clock
        clock += 1.0
        return clock

    monkeypatch.setattr("symrnn.training.loop.time.monotonic", tick)
    with World() as world, Run("toy", world) as run:
        started(run, "--out", out, **EVERY)
        train(run, interrupt_at=7)
    kept = seconds_in(out)
    clock += 1000.0  # nobody trains
    with World() as world, Run("toy", world) as run:
        started(run, "--resume", out)
        train(run)
    assert 0 < kept < seconds_in(out) < 1000


def test_the_time_of_a_picture_is_not_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def draw(*_: object) -> None:
        nonlocal clock
        clock += 1000.0

    monkeypatch.setattr("symrnn.training.loop.time.monotonic", lambda: clock)
    monkeypatch.setattr(Tracker, "figure", draw)
    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "run", **EVERY)
        clock += 1.0
        train(run)
    assert clock == 3001.0
    assert seconds_in(tmp_path / "run") == 1.0


def test_checkpoints_come_every_so_many_steps_and_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "run", **EVERY)
        save = run._save
        monkeypatch.setattr(run, "_save", lambda: (saved.append(run.progress.step), save()))
        train(run)
    assert saved == [2, 4, 5, 6, 8, 10, 12, 14, 15]  # an epoch's last step waits for its end


def test_a_resumed_run_is_opened_once_and_locked_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened, original = tmp_path / "run", [], RunFolder.open

    def counting(path: Path) -> RunFolder:
        opened.append(path)
        return original(path)

    with World() as world, Run("toy", world) as run:
        started(run, "--out", out)
    monkeypatch.setattr(RunFolder, "open", counting)
    with World() as world, Run("toy", world) as run:
        configured(run, "--resume", out)
        with pytest.raises(UserError, match="in use"):
            original(out)
    opened.clear()
    with World() as world, Run("toy", world) as run:
        started(run, "--resume", out)
        with pytest.raises(UserError, match="in use"):
            original(out)
        train(run)
    assert opened == [out]
    original(out).close()


def test_a_refused_resume_lets_the_folder_go(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with World() as world, Run("toy", world) as run:
        started(run, "--out", out)
    with pytest.raises(UserError, match="tpu"), World() as world, Run("toy", world) as run:
        configured(run, "--resume", out, "--device", "tpu")
    RunFolder.open(out).close()


def test_an_error_in_a_step_gives_signals_and_folder_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def failing() -> None:
        with World() as world, Run("toy", world) as run:
            started(run, "--out", tmp_path / "run")
            for _ in run.epochs(3):
                for _ in run.steps(range(BATCHES)):
                    assert signal.getsignal(signal.SIGINT) != before
                    raise UserError("the disk is full")

    with pytest.raises(UserError, match="full") as caught:
        failing()
    assert signal.getsignal(signal.SIGINT) == before  # while the traceback holds the generators
    RunFolder.open(tmp_path / "run").close()
    del caught


@pytest.mark.parametrize(("lowest", "saved"), [(True, [3, 2, 1]), (False, [3, 4])])
def test_the_best_is_saved(tmp_path: Path, lowest: bool, saved: list[int]) -> None:
    files: list[Path] = []
    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "run", lowest_is_best=lowest)
        values = (3, 2, 4, 2, 1, math.nan)
        assert [value for value in values if run.keep_best(value, files.append)] == saved
        assert run.progress.best == saved[-1]
    assert files == [tmp_path / "run" / "best.safetensors"] * len(saved)


def test_numbers_that_are_none_end_a_run(tmp_path: Path) -> None:
    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "run")
        run.require_finite("loss", 1e300)
        run.progress.lr = 0.25
        message = "the loss is nan in epoch 1, after 0 of its 5 batches .step 0., at learning rate "
        with pytest.raises(UserError, match=f"{message}0.25: stopped; .* from before: none yet"):
            run.require_finite("loss", math.nan)


def test_the_report_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "a run")
        train(run, interrupt_at=7)
        assert run.end(lambda: {"best loss": "3"}) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"the run is kept in {tmp_path / 'a run'}"
    assert lines[1].startswith("runs on          cpu (")
    assert lines[2] == "length           3 epochs of 5 steps"
    assert lines[4] == "interrupted in epoch 2; to go on:"
    assert lines[5] == f"  python -m toy --resume '{tmp_path / 'a run'}'"
    assert [line[:22] for line in lines[6:]] == [
        "best loss             ",
        "time                  ",
        "peak memory           ",
    ]


def test_after_sigterm_there_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured() -> dict[str, str]:
        raise AssertionError

    with World() as world, Run("toy", world) as run:
        started(run, "--out", tmp_path / "run")
        train(run, interrupt_at=7, number=signal.SIGTERM)
        assert run.end(measured) == 143
    assert capsys.readouterr().out.splitlines()[3:] == [
        "",
        "interrupted in epoch 2; to go on:",
        f"  python -m toy --resume {tmp_path / 'run'}",
    ]


def test_a_test_that_sigterm_ends_after_the_validation_is_done_again_with_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that are written already must not follow a checkpoint of their step."""
    out = tmp_path / "run"

    def stopped(*_: object) -> bool:
        if run.progress.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped
        return original(*_)

    with World() as world, Run("toy", world) as run:
        original = run.keep_best
        monkeypatch.setattr(run, "keep_best", stopped)
        started(run, "--out", out, **EVERY)
        assert train(run) == DONE
        assert run.end(lambda: {}) == 143
    with World() as world, Run("toy", world) as run:
        started(run, "--resume", out)
        assert train(run) == DONE[-1:]  # the last checkpoint was that of step 14
    assert_same_run(whole, out)


def stopping_in_the_end(run: Run, original: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the run that is ended by a SIGTERM instead, in the last validation."""

    def stopped(*values: Any) -> Any:
        if run.progress.step == 15 and (type(values[0]) is float or "valid" in values[0]):
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped
        return original(*values)

    return stopped


def test_no_line_stands_twice_after_two_sigterms(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before the last validation's line, which leaves a checkpoint there, and one after it."""
    out = tmp_path / "run"
    for name in ("log", "keep_best"):
        with World() as world, Run("toy", world) as run:
            monkeypatch.setattr(run, name, stopping_in_the_end(run, getattr(run, name)))
            started(run, *(("--resume", out) if out.exists() else ("--out", out)), **EVERY)
            train(run)
            assert run.end(lambda: {}) == 143
    with World() as world, Run("toy", world) as run:
        started(run, "--resume", out)
        assert train(run) == []
    assert_same_run(whole, out)


def test_a_finished_run_says_so_and_writes_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(out)
    with World() as world, Run("toy", world) as run:
        started(run, "--resume", out)
        assert train(run) == []
        assert run.end(lambda: {}) == 0
    assert contents(out) == before
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [f"the run is kept in {out}", "it is finished: 3 epochs, 15 steps", ""]


def contents(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in files}
