"""The sides of a matrix: classes of rows, or of columns, that a symmetry makes equal.

Where equal columns meet a vector, its entries can be added up over each class before they are
multiplied; where rows are equal, the product is computed once for each class and spread. That is
all there is to folding by sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Classes(ABC):
    """A rule that parts the indices 0 … N-1 of a side into classes, for any N.

    Classes are numbered so that class k has index k for its first member.
    """

    @abstractmethod
    def count(self, side: int) -> int:
        """How many classes the indices of a side N fall into."""

    @abstractmethod
    def of(self, side: int) -> NDArray[np.int32]:
        """The class of each index: (N,)."""

    @abstractmethod
    def add(self, x: Tensor, dim: int) -> Tensor:
        """x (..., N, ...) added up over each class: (..., count, ...)."""

    @abstractmethod
    def spread(self, y: Tensor, side: int, dim: int) -> Tensor:
        """y (..., count, ...) to every member of the class: (..., N, ...); the adjoint of add."""


@dataclass(frozen=True)
class Mirrored(Classes):
    """Index i and its mirror image N-1-i are one class; ``times`` mirrors, each inside the last.

    Sides 6 and 7 under one mirror, and side 8 under two::

        0 1 2 2 1 0      0 1 2 3 2 1 0      0 1 1 0 0 1 1 0

    An odd side's middle is a class of its own, which belongs to the half that is folded again.
    """

    times: int = 1

    def count(self, side: int) -> int:
        return self._sides(side)[-1]

    def of(self, side: int) -> NDArray[np.int32]:
        index = np.arange(side, dtype=np.int32)
        for length in self._sides(side)[:-1]:
            index = np.minimum(index, np.int32(length - 1) - index)
        return index

    def add(self, x: Tensor, dim: int) -> Tensor:
        for length in self._sides(x.size(dim))[:-1]:
            half = length // 2
            pairs = x.narrow(dim, 0, half) + x.narrow(dim, length - half, half).flip(dim)
            odd = length % 2 == 1
            x = torch.cat([pairs, x.narrow(dim, half, 1)], dim) if odd else pairs
        return x

    def spread(self, y: Tensor, side: int, dim: int) -> Tensor:
        for length in reversed(self._sides(side)[:-1]):
            y = torch.cat([y, y.narrow(dim, 0, length // 2).flip(dim)], dim)
        return y

    def _sides(self, side: int) -> list[int]:
        """The side, and what is left of it after each mirror."""
        sides = [side]
        for _ in range(self.times):
            sides.append((sides[-1] + 1) // 2)
        return sides


@dataclass(frozen=True)
class Translated(Classes):
    """Indices a K-th of the side apart are one class; K = ``pieces``.

    Side 6 in 2 pieces and in 3, and side 7 in 3::

        0 1 2 0 1 2      0 1 0 1 0 1      0 1 2 0 1 2 0

    Where K does not divide N the distance is N/K rounded up and the last piece, or the last few,
    come short; from K = N on all indices are one class.
    """

    pieces: int

    def count(self, side: int) -> int:
        return -(-side // self.pieces)

    def of(self, side: int) -> NDArray[np.int32]:
        return np.arange(side, dtype=np.int32) % np.int32(self.count(side))

    def add(self, x: Tensor, dim: int) -> Tensor:
        length = self.count(x.size(dim))
        missing = -x.size(dim) % length
        if missing:
            x = F.pad(x.movedim(dim, -1), (0, missing)).movedim(-1, dim)
        return x.unflatten(dim, (-1, length)).sum(dim if dim >= 0 else dim - 1)

    def spread(self, y: Tensor, side: int, dim: int) -> Tensor:
        copies = -(-side // y.size(dim))
        return torch.cat([y] * copies, dim).narrow(dim, 0, side)
