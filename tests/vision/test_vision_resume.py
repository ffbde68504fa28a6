"""A run that is stopped, in whatever way, and resumed ends as if it had not been."""

from __future__ import annotations

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
from resumed import KilledError, assert_same_run, changed, dying_after, lines_of, wait_for_new

import symrnn.vision.train
from symrnn.training import Tracker, loop
from symrnn.vision.accuracy import Score

pytestmark = pytest.mark.usefixtures("no_picture")

MODEL = "--model wrn-10-1-basic --dropout 0.3"
FULL = (
    "--image-size 8 --workers 0 --recipe cifar --batch-size 4 --lr 0.05 --epochs 3 --threads 1 "
    "--save-every 3 --log-every 2"
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert symrnn.vision.train.main(arguments(pictures, folder)) == 0
    return folder


def arguments(pictures: Path, folder: Path, options: str = MODEL) -> list[str]:
    return ["--data", str(pictures), *FULL.split(), *options.split(), "--out", str(folder)]


def test_killed_at_random_moments(
    straight: Path, pictures: Path, tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    run, moments = tmp_path / "run", random.Random(1)
    last = run / "last.safetensors"
    for _ in range(2):
        begin = not (run / "config.json").exists()
        before = changed(last)
        process = spawn(*(arguments(pictures, run) if begin else ["--resume", run]))
        wait_for_new(last, before, process)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
    process = spawn("--resume", run)
    process.join(600)
    assert process.exitcode == 0
    assert_same_run(straight, run)


def test_killed_after_any_line(
    straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no checkpoint has yet is done again; of other writes see tests/training/test_loop.py."""
    run, kills, original = tmp_path / "run", 0, Tracker.scalars
    program = symrnn.vision.train
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    for _ in range(200):
        # Sometimes late, so that it gets on.
        monkeypatch.setattr(Tracker, "scalars", dying_after(1 + kills % 5, original))
        begin = not (run / "config.json").exists()
        try:
            program.main(arguments(pictures, run) if begin else ["--resume", str(run)])
        except KilledError:
            kills += 1
            continue
        break
    assert kills >= 2
    assert_same_run(straight, run)


@pytest.mark.parametrize(
    ("signal_number", "call", "code"),
    [(signal.SIGINT, 1, 130), (signal.SIGINT, 5, 130), (signal.SIGTERM, 5, 143)],
)
def test_interrupted_once_and_resumed(
    straight: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    signal_number: int,
    call: int,
    code: int,
) -> None:
    """In the first epoch, and in later ones; also as the scalars of a validation are written."""
    run, calls, original = tmp_path / "run", 0, Tracker.scalars

    def interrupting(*values: object) -> None:
        nonlocal calls
        original(*values)  # type: ignore[arg-type]
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal_number)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "scalars", interrupting)
        assert symrnn.vision.train.main(arguments(pictures, run)) == code
    output = capfd.readouterr()
    assert "once more to leave at once" in output.err
    assert f"python -m symrnn.vision.train --resume {run}" in output.out
    assert ("best accuracy" in output.out) == (call > 1 and code == 130)
    assert symrnn.vision.train.main(["--resume", str(run)]) == 0
    assert "interrupted in epoch" not in capfd.readouterr().out
    assert_same_run(straight, run)


@pytest.mark.parametrize(
    "options",
    [
        f"{MODEL} --soft-symmetry 0.1 --soft-norm 1",
        "--model wrn-10-1-bottleneck --symm avg --share stage --precision fp16",
        "--model diracnet-10-1 --symm block4 --channels-last",
    ],
)
def test_other_models_and_precisions_go_on_exactly_too(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    """Killed within an epoch, after a checkpoint."""
    options += " --epochs 2"
    straight, run = (arguments(pictures, tmp_path / name, options) for name in ("straight", "run"))
    assert symrnn.vision.train.main(straight) == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying_after(1, loop.save_checkpoint))
        with pytest.raises(KilledError):
            symrnn.vision.train.main(run)
    assert symrnn.vision.train.main(["--resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_sigterm_ends_a_validation(
    straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up at the next batch, and done again."""
    run, calls, original = tmp_path / "run", 0, symrnn.vision.train.measure

    def interrupted(*values: Any, **options: Any) -> Score:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(symrnn.vision.train, "measure", interrupted)
        assert symrnn.vision.train.main(arguments(pictures, run)) == 143
    assert [line["epoch"] for line in lines_of(run) if "epoch" in line] == [1]
    assert symrnn.vision.train.main(["--resume", str(run)]) == 0
    assert_same_run(straight, run)


def test_a_finished_run_is_only_reported(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("last.safetensors", "metrics.jsonl")}
    assert symrnn.vision.train.main(["--resume", str(run)]) == 0
    assert symrnn.vision.train.main(["--out", str(run), "--resume", "--threads", "1"]) == 0
    assert before == {name: (run / name).read_bytes() for name in before}
    output = capsys.readouterr().out
    assert output.count("best accuracy") == 2
    assert output.count("it is finished: 3 epochs, ") == 2
    assert "continuing" not in output


def test_the_pictures_may_move(straight: Path, pictures: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    assert symrnn.vision.train.main(["--resume", str(run), "--data", str(moved)]) == 0


def test_the_same_options_may_be_given_again(
    straight: Path, pictures: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    assert symrnn.vision.train.main([*arguments(pictures, run), "--resume"]) == 0
