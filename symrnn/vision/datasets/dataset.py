"""What the training program asks of a set of pictures, and the order in which it is seen.

Which pictures a batch holds, and how they are cropped and flipped, is a pure function of the seed,
the epoch and the number of the batch: a run that goes on from a checkpoint, and a run on any
number of processes, sees what the uninterrupted run on one process sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn.files import UserError

Batch = tuple[Tensor, Tensor]
"""Pictures, float32 (B, 3, s, s), normalised, and their labels, int64 (B,)."""


class Dataset(ABC):
    """Labelled pictures in two parts, to train on and to validate on.

    name: of the set.
    classes: their names; a label is a place in it.
    image_size: s, the side of the square pictures in pixels.
    mean, std: of the channels red, green and blue, by which pixels from 0 to 1 are normalised:
        (pixel - mean) / std.
    fingerprint: a SHA-256, in hex, equal for equal sets: of the contents where they are in memory,
        else of the list of files.
    train_size, val_size: how many pictures.
    device: where batches lie.
    broken: paths of the files that turned out to be unreadable so far, in this process, and why.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    train_size: int
    val_size: int
    device: torch.device
    broken: dict[str, str]

    @property
    def skipped(self) -> int:
        """How many files were unreadable so far, in this process."""
        return len(self.broken)

    def num_batches(self, batch_size: int) -> int:
        """How many batches of training pictures are in an epoch; what fills none is left out.

        Raises UserError if there are none.
        """
        require_integer("batch_size", batch_size, 1)
        if batch_size > self.train_size:
            raise UserError(
                f"batch_size should be at most the {self.train_size} training pictures of "
                f"{self.name}, got: {batch_size}"
            )
        return self.train_size // batch_size

    def train_batches(
        self,
        epoch: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, cropped and flipped at random.

        epoch: from 0. Each sees every picture once in another order, but for those that would
            begin a last, incomplete batch.
        batch_size: of all processes together.
        seed: from 0.
        start: from 0 to ``num_batches(batch_size)``.
        rank, world_size: of ``world_size`` equal slices of each batch, the one numbered ``rank``.

        Raises UserError for anything else, and if the slices are not equal.
        """
        count = self.num_batches(batch_size)
        require_integer("epoch", epoch, 0)
        require_integer("seed", seed, 0)
        require_integer("start", start, 0, count)
        _check_rank(rank, world_size)
        if batch_size % world_size:
            raise UserError(
                f"batch_size should be a multiple of the {world_size} processes, got: {batch_size}"
            )
        each = batch_size // world_size
        share = slice(rank * each, (rank + 1) * each)
        return self._train_batches((seed, epoch), range(start, count), batch_size, share)

    def val_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Every validation picture once, over all processes, in the order of the set.

        batch_size: of this process, at most; the last batch may be smaller.
        rank, world_size: of ``world_size`` contiguous shares, which differ by at most one picture
            and may be empty, the one numbered ``rank``.
        """
        require_integer("batch_size", batch_size, 1)
        _check_rank(rank, world_size)
        first, end = (self.val_size * part // world_size for part in (rank, rank + 1))
        return self._val_batches(
            [range(i, min(i + batch_size, end)) for i in range(first, end, batch_size)]
        )

    @abstractmethod
    def _train_batches(
        self, key: tuple[int, int], numbers: range, batch_size: int, share: slice
    ) -> Iterator[Batch]:
        """The share of the batches of those numbers; key: seed and epoch."""

    @abstractmethod
    def _val_batches(self, batches: list[range]) -> Iterator[Batch]:
        """The validation pictures in those places."""


def random_numbers(seed: int, *key: int) -> np.random.Generator:
    """A generator whose numbers have nothing to do with those of another seed or key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def shuffled(size: int, key: tuple[int, int]) -> NDArray[np.int64]:
    """The order in which an epoch sees its pictures; key: seed and epoch."""
    return random_numbers(*key).permutation(size)


def require_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise UserError unless the value is an integer of that range."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} should be an integer {allowed}, got: {value!r}")


def _check_rank(rank: int, world_size: int) -> None:
    require_integer("world_size", world_size, 1)
    require_integer("rank", rank, 0, world_size - 1)
