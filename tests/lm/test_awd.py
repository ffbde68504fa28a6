"""The recipe awd and what it is made of: each part against a hand-made one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resumed import KilledError, assert_same_run, dying_after, lines_of

import lm.train
from data import DataError, RandomBatches
from lm.options import make_parser, resolve
from symrnn.training import Tracker
from symrnn.training.command_line import given

TINY = "--hidden-size 8 --batch-size 4 --threads 1 --log-every 1"


def config_of(*arguments: str) -> dict[str, Any]:
    return resolve(given(make_parser().parse_args(arguments)))


# ---- windows of random length --------------------------------------------------------------------


def test_random_windows_cover_the_streams_once() -> None:
    """Each place of a stream but its last is an input, and the next one its target."""
    streams = np.arange(4 * 1000).reshape(4, 1000)
    for epoch in (1, 2):
        windows = list(RandomBatches(np.arange(4003), 4, 10, seed=3, epoch=epoch))
        inputs, targets = (torch.cat(parts) for parts in zip(*windows, strict=True))
        assert torch.equal(inputs, torch.from_numpy(streams[:, :-1].T))
        assert torch.equal(targets, torch.from_numpy(streams[:, 1:].T))


def test_the_lengths_have_the_published_distribution() -> None:
    """max(5, int(N(base, 5))), where base is T, and with a probability of 0.05 T / 2."""
    bounds = RandomBatches(np.zeros(5 * 10**6, np.uint16), 1, 70, seed=1, epoch=1).bounds
    lengths = np.diff(bounds)[:-1]
    assert len(lengths) > 70_000
    halved = lengths < 52  # four deviations from either base
    # Of so many lengths the share deviates by 0.0008, the means by 0.08 and 0.02.
    assert abs(halved.mean() - 0.05) < 0.003
    assert abs(lengths[halved].mean() - (35 - 0.5)) < 0.3  # int() cuts half a step on average
    assert abs(lengths[~halved].mean() - (70 - 0.5)) < 0.07
    assert abs(lengths[~halved].std() - math.sqrt(25 + 1 / 12)) < 0.05
    short = np.diff(RandomBatches(np.zeros(10**6, np.uint16), 1, 8, seed=1, epoch=1).bounds)
    assert short[:-1].min() == 5
    # Below 6 a normal number gives 5: of N(8, 5) 34.5 %, of N(4, 5) 65.5 %.
    assert abs((short == 5).mean() - (0.95 * 0.3446 + 0.05 * 0.6554)) < 0.005


def test_the_lengths_depend_on_seed_and_epoch() -> None:
    def lengths(seed: int, epoch: int) -> list[int]:
        return list(RandomBatches(np.zeros(9000, np.uint16), 2, 20, seed=seed, epoch=epoch).bounds)

    assert lengths(1, 1) == lengths(1, 1)
    assert len({tuple(lengths(*which)) for which in ((1, 1), (1, 2), (2, 1))}) == 3
    # These numbers are those of every version of NumPy: a run is continued on another one too.
    assert lengths(1, 1)[:5] == [0, 21, 43, 70, 88]
    with pytest.raises(DataError, match="steps must be at least 5, got 4"):
        RandomBatches(np.zeros(9000, np.uint16), 2, 4, seed=1, epoch=1)


def test_the_rate_is_in_proportion_to_the_length(
    train: Callable[..., int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    step = lm.train.LanguageLearner.step

    def watched(learner: Any, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        (rate,) = {group["lr"] for group in learner.optimizer.param_groups}
        seen.append((len(inputs), rate))
        return step(learner, inputs, targets)

    monkeypatch.setattr(lm.train.LanguageLearner, "step", watched)
    options = "--random-steps --steps 10 --lr 0.5 --log-every 1 --epochs 2"
    assert train(*options.split(), "--out", tmp_path / "run") == 0
    assert len({length for length, _ in seen}) > 5
    assert [rate for _, rate in seen] == pytest.approx([0.05 * length for length, _ in seen])
    # The perplexity of an epoch is that of its tokens, however they are divided.
    lengths = iter(length for length, _ in seen)
    nats, places, epochs = 0.0, 0, 0
    for line in lines_of(tmp_path / "run"):
        if "train/loss" in line:
            length = next(lengths)
            nats, places = nats + length * line["train/loss"], places + length
        if "train/epoch_perplexity" in line:
            assert line["train/epoch_perplexity"] == pytest.approx(math.exp(nats / places))
            nats, places, epochs = 0.0, 0, epochs + 1
    assert epochs == 2


RANDOM = f"{TINY} --random-steps --steps 10 --dropout 0.3 --epochs 3 --save-every 3"


def test_killed_and_resumed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as the run that nothing stopped, in whatever window it was."""
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    arguments = ["--data", str(corpus), *RANDOM.split(), "--out"]
    assert lm.train.main([*arguments, str(tmp_path / "straight")]) == 0
    original = Tracker.scalars
    for calls in (7, 25):
        run = tmp_path / str(calls)
        monkeypatch.setattr(Tracker, "scalars", dying_after(calls, original))
        with pytest.raises(KilledError):
            lm.train.main([*arguments, str(run)])
        monkeypatch.setattr(Tracker, "scalars", original)
        assert lm.train.main(["--resume", str(run)]) == 0
        assert_same_run(tmp_path / "straight", run)


def test_a_cosine_ends_with_the_last_window_of_random_length(
    train: Callable[..., int], tmp_path: Path
) -> None:
    options = "--random-steps --steps 10 --lr 0.5 --schedule cosine --log-every 1 --epochs 2"
    assert train(*options.split(), "--out", tmp_path / "run") == 0
    lines = lines_of(tmp_path / "run")
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    cosine = [0.25 * (1 + math.cos(math.pi * k / len(rates))) for k in range(len(rates))]
    assert rates == pytest.approx(cosine)
