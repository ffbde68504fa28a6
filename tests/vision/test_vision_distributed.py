"""Two processes train as one with the joint batch; what ends one of them ends the other."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import vision_children
from resumed import assert_same_run, lines_of
from safetensors.torch import load_file
from torch.nn import functional as F
from worlds import ended, failing, interrupted, program

import symrnn.vision.train
from symrnn.files import UserError
from symrnn.training import World, load_checkpoint
from symrnn.vision.datasets import open_dataset

pytestmark = pytest.mark.usefixtures("no_picture")

Together = Callable[..., list[BaseProcess]]

TINY = "--image-size 8 --workers 0 --recipe cifar --batch-size 8 --lr 0.02 --threads 1"
WRN = f"{TINY} --model wrn-10-1-basic --epochs 2 --log-every 1 --save-every 2"


def arguments(pictures: Path, out: Path, options: str) -> list[str]:
    return ["--data", str(pictures), *options.split(), "--out", str(out)]


def said(tmp_path: Path, rank: int) -> str:
    return (tmp_path / f"output{rank}.txt").read_text()


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        "--model nin --symm tri --epochs 1",  # without batch norm
        "--model wrn-10-1-basic --symm avg --epochs 2 --sync-bn",
        "--model wrn-10-1-bottleneck --symm tri --share stage --epochs 1 --sync-bn",
        "--model wrn-10-1-basic --soft-symmetry 0.05 --epochs 1 --sync-bn",
    ],
)
def test_two_processes_are_one_with_the_joint_batch(
    together: Together, pictures: Path, tmp_path: Path, model: str
) -> None:
    options = f"{TINY} {model} --log-every 1"
    processes = together(program, *arguments(pictures, tmp_path / "two", options))
    assert ended(processes) == [0, 0]
    assert said(tmp_path, 1) == ""
    symrnn.vision.train.main(arguments(pictures, tmp_path / "one", options))
    one, two = (lines_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) >= 4
    for line, other in zip(one, two, strict=True):
        assert other == pytest.approx(line, rel=1e-5)
    first, second = (
        load_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("one", "two")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["joint", "own"])
def test_batch_norm(together: Together, tmp_path: Path, kind: str) -> None:
    """Joint, it is that of one process; its own, each half has statistics of its own."""
    path = tmp_path / "two.safetensors"
    assert ended(together(vision_children.joint_batch_norm, path, kind)) == [0, 0]
    two = load_file(path)
    model, pictures, labels = vision_children.small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    one = {"losses": torch.tensor(losses).double(), **model.state_dict()}
    close = [torch.allclose(two[n], one[n], rtol=1e-12, atol=1e-12) for n in sorted(one)]
    if kind == "joint":
        assert all(close), close
    else:
        assert not torch.allclose(two["losses"], one["losses"], rtol=1e-3)


def test_every_validation_picture_counts_once(pictures: Path) -> None:
    dataset = open_dataset(str(pictures), image_size=8, workers=0)
    assert dataset.val_size == 12
    for size in (1, 5, 13):  # 13: a process has none
        labels = [
            labels
            for rank in range(size)
            for _, labels in dataset.val_batches(4, rank=rank, world_size=size)
        ]
        assert torch.cat(labels).bincount().tolist() == [3, 3, 3, 3]


# ---- folders, checkpoints, ends ------------------------------------------------------------------


def test_an_interrupt_of_one_process_ends_both_at_the_same_step(
    together: Together, pictures: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert ended(together(program, *arguments(pictures, whole, WRN))) == [0, 0]
    options = arguments(pictures, run, WRN)
    assert ended(together(interrupted, *options, int(signal.SIGINT))) == [130, 130]
    assert lines_of(run)[-1]["step"] == 4
    assert f"to go on:\n  python -m symrnn.vision.train --resume {run}" in said(tmp_path, 0)
    assert "interrupted in epoch" not in said(tmp_path, 1)
    # One process alone may go on as well: with the joint batch, though not to the bit.
    alone = shutil.copytree(run, tmp_path / "alone")
    assert symrnn.vision.train.main(["--resume", str(alone)]) == 0
    assert ended(together(program, "--resume", run)) == [0, 0]
    assert_same_run(whole, run)


@pytest.mark.parametrize(
    ("place", "rank"),
    [("log", 0), ("_restore", 0), ("measure", 1), ("asleep", 1)],
)
def test_an_error_of_one_process_ends_both(
    together: Together, pictures: Path, tmp_path: Path, place: str, rank: int
) -> None:
    options = arguments(pictures, tmp_path / "run", WRN)
    processes = together(failing, *options, place, rank)
    assert ended(processes) == [2, 2]
    assert said(tmp_path, rank).splitlines()[-1] == "error: the disk is full"
    assert "error:" not in said(tmp_path, 1 - rank)


def test_an_environment_that_is_not_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="torchrun makes: RANK=2, LOCAL_RANK=None, WORLD_SIZE=2"):
        World()
