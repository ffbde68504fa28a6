"""From ids to the windows a recurrent model trains on and is evaluated on.

Shapes: T (unrolled steps), B (batch). torch is needed when a window is made, not to import this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, require_integer

if TYPE_CHECKING:
    import torch


class TrainBatches:
    """Windows over B contiguous streams, whose hidden state carries over from one to the next.

    The ids are cut into `batch_size` streams of L = len(ids) // batch_size each, what remains is
    dropped. Window k holds places kT … kT+T-1 of every stream as inputs and the places one later as
    targets; a last window of fewer than T steps is dropped. This is the reader of Zaremba et al.
    2014.

    ids: 1-D, any integer type; a memory map is read window by window.
    batch_size, steps: B ≥ 1 and T ≥ 1.

    bounds: the place in its stream at which each window begins, and last, where the last one ends.

    Raises DataError if the ids do not fill one window.
    """

    def __init__(self, ids: NDArray[Any], batch_size: int, steps: int) -> None:
        self.batch_size = require_integer("batch_size", batch_size, least=1)
        self.steps = require_integer("steps", steps, least=1)
        ids = _one_dimensional(ids)
        self.stream_length = len(ids) // self.batch_size
        length = max(self.stream_length - 1, 0) // self.steps
        self.bounds: Sequence[int] = range(0, length * self.steps + 1, self.steps)
        if length == 0:
            raise DataError(
                f"the text is too short: {len(ids)} tokens, but one window of batch_size "
                f"{self.batch_size} and steps {self.steps} takes at least "
                f"{self.batch_size * (self.steps + 1)}"
            )
        self._streams = ids[: self.batch_size * self.stream_length].reshape(
            self.batch_size, self.stream_length
        )

    def __len__(self) -> int:
        """How many windows: (L - 1) // T."""
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Window `index`: inputs and targets, both int64 of shape (T, B)."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start, end = self.bounds[place : place + 2]
        window = self._streams[:, start : end + 1].T
        return _tensor(window[:-1]), _tensor(window[1:])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(len(self)):
            yield self[index]


SHORTEST = 5
"""The steps of the shortest window of random length, but for the last."""

HALVED, DEVIATION = 0.05, 5.0
"""How often a random length is around half the steps; its standard deviation, in steps."""


class RandomBatches(TrainBatches):
    """Windows of random lengths, other ones in each epoch: so the places where they end move.

    Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models" (2018), section
    4.1, with the numbers of their program: a length is drawn from a normal distribution around T,
    or in :data:`HALVED` of the cases T / 2, with a standard deviation of :data:`DEVIATION`, cut to
    an integer, and :data:`SHORTEST` at least. The last window ends with the stream, and is as long
    as that leaves it: every place of a stream but its last is an input once.

    seed, epoch: the lengths depend on these and the length of the streams alone, so that processes
        agree, and a resumed run finds them again.

    Raises DataError as :class:`TrainBatches`, and for ``steps`` below :data:`SHORTEST`.
    """

    def __init__(
        self, ids: NDArray[Any], batch_size: int, steps: int, *, seed: int, epoch: int
    ) -> None:
        super().__init__(ids, batch_size, steps)
        require_integer("steps", steps, least=SHORTEST)
        total = self.stream_length - 1
        # Its numbers are promised to be the same in every NumPy.
        random = np.random.RandomState([seed, epoch])
        most = -(-total // SHORTEST)
        means = np.where(random.random_sample(most) < HALVED, steps / 2, steps)
        lengths = np.maximum(random.normal(means, DEVIATION).astype(np.int64), SHORTEST)
        ends = lengths.cumsum()
        self.bounds = [0, *ends[ends < total].tolist(), total]


def stream_windows(
    ids: NDArray[Any], steps: int, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One stream in consecutive windows, so that every id is a target exactly once.

    ids: 1-D, at least one.
    steps: T ≥ 1, the length of a window; the last may be shorter.
    first: the input before the first target, for a text the id of `<eos>`.

    Yields inputs and targets, both int64 of shape (T, 1).
    """
    steps = require_integer("steps", steps, least=1)
    first = require_integer("first", first, least=0)
    ids = _one_dimensional(ids)
    if len(ids) == 0:
        raise DataError("the text has no tokens: there is nothing to evaluate")
    return _windows(ids, steps, first)


def _windows(
    ids: NDArray[Any], steps: int, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    before = first
    for start in range(0, len(ids), steps):
        targets = np.asarray(ids[start : start + steps], dtype=np.int64)
        inputs = np.concatenate([[before], targets[:-1]])
        before = int(targets[-1])
        yield _tensor(inputs[:, None]), _tensor(targets[:, None])


def _one_dimensional(ids: NDArray[Any]) -> NDArray[Any]:
    array = np.asanyarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"ids must be a 1-D array of integers, got shape {array.shape} of {array.dtype}"
        )
    return array


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(values, dtype=np.int64, order="C"))
