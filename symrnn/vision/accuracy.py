"""How many pictures of a validation set a model recognises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from symrnn.training import Stopped, World
from symrnn.vision.datasets import Dataset


class Score(NamedTuple):
    """What a model does on a set.

    loss: nats a picture.
    accuracy: percent whose class is the likeliest.
    accuracy5: percent whose class is among the five likeliest; None for fewer than 100 classes.
    """

    loss: float
    accuracy: float
    accuracy5: float | None


@torch.no_grad()
def measure(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    *,
    world: World | None = None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Measure ``model``, on the device of ``dataset``, on the whole validation set.

    batch_size: pictures at a time, in each process.
    world: the processes that measure a part each, and all get the score of the whole.
    precision: makes the context to run in.
    memory_format: of the pictures.
    stop: whether to give up, asked at every batch; if any process says so, all raise Stopped.

    The model is left in evaluation mode.
    """
    world = world or World()
    sums = torch.zeros(3, dtype=torch.float64, device=dataset.device)
    own, stopped = 0, False
    model.eval()
    for pictures, labels in dataset.val_batches(batch_size, rank=world.rank, world_size=world.size):
        stopped = stop()
        if stopped:
            break
        with precision():
            logits = model(pictures.contiguous(memory_format=memory_format))
        logits = logits.float()
        hits = logits.topk(min(5, logits.size(1))).indices == labels[:, None]
        nats = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([nats, hits[:, 0].sum(), hits.sum()])
        own += len(hits)
    nats_in_all, first, five, count, gave_up = world.sum([*sums.tolist(), own, stopped])
    if gave_up:
        raise Stopped
    accuracy5 = 100 * five / count if len(dataset.classes) >= 100 else None
    return Score(nats_in_all / count, 100 * first / count, accuracy5)
