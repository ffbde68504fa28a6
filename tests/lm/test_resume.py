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
import torch
from resumed import KilledError, assert_same_run, changed, dying_after, lines_of, wait_for_new

import lm.evaluate
import lm.train
from data import EncodedText
from lm.model import LanguageModel
from lm.perplexity import Score
from symrnn import open_packed
from symrnn.training import RunFolder, Tracker, load_checkpoint, loop
from symrnn.training.loop import saved_progress

FULL = "--dropout 0.5 --save-every 3 --log-every 2 --epochs 3 --recipe annealed"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert lm.train.main(arguments(corpus, folder)) == 0
    return folder


def arguments(corpus: Path, folder: Path) -> list[str]:
    tiny = "--hidden-size 8 --batch-size 4 --steps 5 --threads 1"
    return ["--data", str(corpus), *tiny.split(), *FULL.split(), "--out", str(folder)]


def test_killed_at_random_moments(
    straight: Path, corpus: Path, tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    run, moments = tmp_path / "run", random.Random(1)
    last = run / "last.safetensors"
    for _ in range(2):
        begin = not (run / "config.json").exists()
        before = changed(last)
        process = spawn("train", *(arguments(corpus, run) if begin else ["--resume", run]))
        wait_for_new(last, before, process)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
    process = spawn("train", "--resume", run)
    process.join(600)
    assert process.exitcode == 0
    assert_same_run(straight, run)


def test_killed_after_any_line(
    straight: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no checkpoint has yet is done again; of other writes see tests/training/test_loop.py."""
    run, kills, original = tmp_path / "run", 0, Tracker.scalars
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    for _ in range(200):
        # Sometimes late, so that it gets on.
        monkeypatch.setattr(Tracker, "scalars", dying_after(1 + kills % 5, original))
        begin = not (run / "config.json").exists()
        try:
            lm.train.main(arguments(corpus, run) if begin else ["--resume", str(run)])
        except KilledError:
            kills += 1
            continue
        break
    assert kills >= 2
    assert_same_run(straight, run)


@pytest.mark.parametrize(
    ("signal_number", "call", "code"), [(signal.SIGINT, 1, 130), (signal.SIGTERM, 7, 143)]
)
def test_interrupted_once_and_resumed(
    straight: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    signal_number: int,
    call: int,
    code: int,
) -> None:
    """In the first epoch, and in a later one; after Ctrl-C the best model is tested."""
    run, calls, original = tmp_path / "run", 0, Tracker.scalars

    def interrupting(*values: object) -> None:
        nonlocal calls
        original(*values)  # type: ignore[arg-type]
        calls += 1
        if calls == call * 4:
            os.kill(os.getpid(), signal_number)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "scalars", interrupting)
        assert lm.train.main(arguments(corpus, run)) == code
    output = capfd.readouterr()
    plan = "; the best model is tested" if code == 130 else ""
    assert f": ending after this step{plan}; once more to leave at once" in output.err
    assert ("test perplexity" in output.out) == (code == 130)
    assert f"python -m lm.train --resume {run}" in output.out
    assert (run / "best.safetensors").exists()
    assert lm.train.main(["--resume", str(run)]) == 0
    assert "interrupted in epoch" not in capfd.readouterr().out
    assert_same_run(straight, run)


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("lstm", "--symm tri8"),
        ("gru", "--soft-symmetry 0.1"),
        ("rnn", "--soft-symmetry 0.02 --soft-norm 1"),
    ],
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


@pytest.mark.parametrize(("split", "call"), [("valid", 1), ("valid", 3), ("test", 4)])
def test_sigterm_ends_a_measurement(
    straight: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    split: str,
    call: int,
) -> None:
    """It is given up at the next window, and done again."""
    run, calls, original = tmp_path / "run", 0, lm.train.measure

    def interrupted(model: LanguageModel, text: EncodedText, *more: Any, **options: Any) -> Score:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(model, text, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lm.train, "measure", interrupted)
        assert lm.train.main(arguments(corpus, run)) == 143
    assert calls == call
    assert "test perplexity" not in capfd.readouterr().out
    epochs = [line["epoch"] for line in lines_of(run) if "epoch" in line]
    assert epochs == ([1, 2, 3] if split == "test" else list(range(1, call)))
    assert lm.train.main(["--resume", str(run)]) == 0
    assert_same_run(straight, run)


def test_a_finished_run_is_only_reported(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(lm.train, "measure")  # nothing is measured again
    run = shutil.copytree(straight, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("last.safetensors", "metrics.jsonl")}
    assert lm.train.main(["--resume", str(run)]) == 0
    assert lm.train.main(["--out", str(run), "--resume", "--threads", "1"]) == 0
    assert before == {name: (run / name).read_bytes() for name in before}
    output = capsys.readouterr().out
    assert output.count("it is finished: 3 epochs, ") == 2
    assert "continuing" not in output
    logged = lines_of(run)[-1]["test/perplexity"]
    assert output.count(f"test perplexity       {logged:.2f}\n") == 2


def test_the_best_model_is_not_made_up(
    straight: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "best.safetensors").unlink()
    message = refused("train", "--resume", run)
    assert message == f"{run / 'best.safetensors'}: is missing, the model that validated best"


def test_a_plain_run_takes_its_own_options_again(corpus: Path, tmp_path: Path) -> None:
    """Also those on symmetric gates, of which it has none."""
    run = [*arguments(corpus, tmp_path / "run"), "--symm", "none", "--symm-ih", "ifgo"]
    assert lm.train.main([*run, "--symm-hh", "if", "--epochs", "1"]) == 0
    assert lm.train.main([*run, "--epochs", "2", "--auto-resume"]) == 0


def test_the_corpus_may_move(straight: Path, corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    assert lm.train.main(["--resume", str(run), "--data", str(moved)]) == 0


def test_the_same_options_may_be_given_again(straight: Path, corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    assert lm.train.main([*arguments(corpus, run), "--resume"]) == 0


# ---- a longer run --------------------------------------------------------------------------------


def without_early_tests(folder: Path) -> list[dict[str, float]]:
    """The lines of a run, but for those of the test text before the last."""
    lines = lines_of(folder)
    return [line for line in lines[:-1] if "test/loss" not in line] + lines[-1:]


@pytest.mark.parametrize("recipe", ["annealed", "zaremba"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_is_extended_is_the_longer_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stopped: bool
) -> None:
    """A finished one, or one in its second epoch: to the bit, but for the former test."""
    options = ["--recipe", recipe, "--lr-after", "1"]
    assert lm.train.main([*arguments(corpus, tmp_path / "long"), *options]) == 0
    short = [*arguments(corpus, tmp_path / "run"), *options, "--epochs", "2"]
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", dying_after(10, loop.save_checkpoint))
            with pytest.raises(KilledError):
                lm.train.main(short)
    else:
        assert lm.train.main(short) == 0
    assert lm.train.main(["--resume", str(tmp_path / "run"), "--epochs", "3"]) == 0
    for file in ("last.safetensors", "best.safetensors"):
        read = load_checkpoint if file == "last.safetensors" else open_packed
        long, run = (read(tmp_path / name / file) for name in ("long", "run"))
        for name, tensor in long.tensors.items():
            assert torch.equal(tensor, run.tensors[name]), name
    assert without_early_tests(tmp_path / "run") == lines_of(tmp_path / "long")


def test_an_extended_run_goes_on_without_being_told_again(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also one that is killed before its first checkpoint of the longer run."""
    run = shutil.copytree(straight, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying_after(1, loop.save_checkpoint))
        with pytest.raises(KilledError):
            lm.train.main(["--resume", str(run), "--epochs", "4"])
    assert lm.train.main(["--resume", str(run)]) == 0
    output = capsys.readouterr().out
    assert output.count("extended from 3 epochs\n") == 1
    assert "epoch  4/4" in output
    tests = [line["step"] for line in lines_of(run) if "test/loss" in line]
    assert len(tests) == 2


def test_a_dry_run_extends_nothing(straight: Path, tmp_path: Path) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    assert lm.train.main(["--resume", str(run), "--epochs", "9", "--dry-run"]) == 0
    assert (run / "config.json").read_bytes() == before


# ---- checkpoints that are kept -------------------------------------------------------------------


def kept_epochs(folder: Path) -> dict[int, int]:
    """The epochs whose checkpoints are there, and the step of each."""
    files = {int(file.stem.removeprefix("epoch-")): file for file in folder.glob("epoch-*")}
    return {epoch: saved_progress(file)["step"] for epoch, file in sorted(files.items())}


def test_the_checkpoints_of_the_last_epochs_are_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original = tmp_path / "run", RunFolder.keep_epoch
    command = [*arguments(corpus, run), "--keep", "2", "--epochs", "4"]
    # Killed between an epoch's checkpoint and keeping it, then again.
    for epoch in (1, 3):
        with monkeypatch.context() as patch:

            def dying(self: RunFolder, number: int, count: int, epoch: int = epoch) -> None:
                if number == epoch:
                    raise KilledError
                original(self, number, count)

            patch.setattr(RunFolder, "keep_epoch", dying)
            with pytest.raises(KilledError):
                lm.train.main(command if epoch == 1 else ["--resume", str(run)])
    assert lm.train.main(["--resume", str(run)]) == 0
    steps = saved_progress(run / "last.safetensors")["step"] // 4
    assert kept_epochs(run) == {3: 3 * steps, 4: 4 * steps}
    newest = (run / "last.safetensors").read_bytes()
    assert (run / "epoch-4.safetensors").read_bytes() == newest
    assert lm.evaluate.main([str(run / "epoch-3.safetensors"), "--threads", "1"]) == 0
    # The number may change; of a finished run none comes back.
    assert lm.train.main(["--resume", str(run), "--keep", "1"]) == 0
    assert list(kept_epochs(run)) == [4]


def test_without_links_they_are_copied(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    assert lm.train.main([*arguments(corpus, tmp_path / "run"), "--keep", "9"]) == 0
    assert list(kept_epochs(tmp_path / "run")) == [1, 2, 3]
