"""Dropout by masks of a whole batch, of which a call may see some of the sequences.

The streams of a batch may be divided: among processes, or into parts whose gradients add up. In
:func:`part_of_batch` each part drops what it would drop in a call with the whole batch, from the
same state of the generator. So the parts together are that call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class _Part(NamedTuple):
    batch: int
    sequences: Tensor  # their numbers: a tensor, so that one compiled graph serves parts of a size


# Of the calls now; None: they see whole batches. Of all threads, as torch.utils.checkpoint runs the
# forward pass again in one of autograd's on a GPU, where a ContextVar or thread-local is not seen.
_part: _Part | None = None


@contextmanager
def part_of_batch(batch: int, sequences: slice) -> Iterator[None]:
    """In its ``with``, recurrent layers and :func:`dropout` see these sequences of a batch.

    Each mask is drawn for the whole batch, B, and the part takes its share: so a draw takes the
    time of the whole batch. What does not belong to a sequence, as weights, is dropped as ever.

    sequences: of 0 to B - 1, one or more.

    One call with the whole batch may still differ on a GPU: between layers that cuDNN runs in one
    call it draws the masks, by a generator of its own. Calls of other threads of the process see
    the part too: none may train meanwhile on whole batches.

    Raises ValueError if there are no such sequences.
    """
    global _part
    part = torch.arange(batch)[sequences]
    if not len(part):
        raise ValueError(f"sequences: {sequences} has none of a batch of {batch}")
    before = _part
    _part = None if len(part) == batch else _Part(batch, part)
    try:
        yield
    finally:
        _part = before


def sees_part() -> bool:
    """Whether calls now see only a part of their batch."""
    return _part is not None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """As ``F.dropout``, by the mask of the whole batch.

    x (..., B, F), or (T·B, F): its rows are the sequences of one time step after the other.

    Raises ValueError for rows that are not.
    """
    part = _part
    if part is None or not training or p == 0:
        return F.dropout(x, p, training)
    here, rows = len(part.sequences), x[..., 0].numel()
    if rows % here:
        raise ValueError(f"x should have the rows of {here} sequences, got: {tuple(x.shape)}")
    whole = F.dropout(x.new_ones(rows // here, part.batch, x.size(-1)), p)
    return x * whole.index_select(1, part.sequences.to(x.device)).view(x.shape)
