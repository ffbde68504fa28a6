"""Multiplying by a symmetric matrix without building it: fold x, multiply by less, unfold y.

A folding turns y = W x into ``outputs(M · inputs(x))`` with one or two small matrices M, which are
made of a part of W. The channels that are folded may lie along any dimension of x, so that the
same few lines serve a recurrent product, a linear layer and a convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn.symmetry.sides import Classes

Indices = NDArray[np.intp]


class Folding(ABC):
    """How products by the N×N matrices of one symmetry are folded, for any N."""

    @abstractmethod
    def part(self, side: int) -> tuple[Indices, Indices]:
        """The r rows and c columns of the matrix that :meth:`matrices` needs, in its order."""

    @abstractmethod
    def matrices(self, part: Tensor) -> list[Tensor]:
        """The small matrices, each (..., rows, columns), made of that part (..., r, c)."""

    @abstractmethod
    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        """x, N long along dim, folded: what each small matrix is multiplied by."""

    @abstractmethod
    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        """What the small matrices gave, unfolded to N along dim."""

    @abstractmethod
    def inputs_adjoint(self, grads: list[Tensor], side: int, dim: int) -> Tensor:
        """The gradient of x, N long along dim, from those of :meth:`inputs`."""

    @abstractmethod
    def outputs_adjoint(self, grad: Tensor, dim: int) -> list[Tensor]:
        """The gradients of the products from that of :meth:`outputs`."""

    def cost(self, side: int) -> float:
        """Multiplications of the folded product as a fraction of the N² of the full one."""
        rows, columns = self.part(side)
        part = torch.empty(len(rows), len(columns), device="meta")
        return sum(m.numel() for m in self.matrices(part)) / side**2


@dataclass(frozen=True)
class BySides(Folding):
    """Equal rows are computed once, entries that meet equal columns are added up first.

    rows, columns: which are equal; None where all differ.
    """

    rows: Classes | None = None
    columns: Classes | None = None

    def part(self, side: int) -> tuple[Indices, Indices]:
        rows = self.rows.count(side) if self.rows else side
        columns = self.columns.count(side) if self.columns else side
        return np.arange(rows), np.arange(columns)

    def matrices(self, part: Tensor) -> list[Tensor]:
        return [part]

    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        return [self.columns.add(x, dim) if self.columns else x]

    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        return self.rows.spread(products[0], side, dim) if self.rows else products[0]

    def inputs_adjoint(self, grads: list[Tensor], side: int, dim: int) -> Tensor:
        return self.columns.spread(grads[0], side, dim) if self.columns else grads[0]

    def outputs_adjoint(self, grad: Tensor, dim: int) -> list[Tensor]:
        return [self.rows.add(grad, dim) if self.rows else grad]


@dataclass(frozen=True)
class EvenOdd(Folding):
    """For matrices that a half turn leaves as they are (``tri4``): even and odd half apart.

    A matrix with W[i, j] = W[N-1-i, N-1-j] maps a vector that reads the same backwards to another
    such, and one that changes its sign when read backwards likewise. So x is split into both
    halves, and each is multiplied by a matrix of half the side: half the work in all.
    """

    def part(self, side: int) -> tuple[Indices, Indices]:
        # The upper half; its right half is read backwards, so that it lies as the left one does.
        half = side // 2
        columns = [np.arange(side - half), np.arange(side - 1, side - half - 1, -1)]
        return np.arange(side - half), np.concatenate(columns)

    def matrices(self, part: Tensor) -> list[Tensor]:
        half = part.size(-1) // 2
        left, middle, right = part.split([half, part.size(-1) - 2 * half, half], -1)
        even = left + right
        if middle.size(-1):
            even = torch.cat([even, middle], -1)
        return [even, (left - right)[..., :half, :]]

    # Halved where x is split and not in the matrices, which have more entries than x.

    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        return self._split(x, dim, 0.5)

    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        return self._join(products, side, dim, 1.0)

    def inputs_adjoint(self, grads: list[Tensor], side: int, dim: int) -> Tensor:
        return self._join(grads, side, dim, 0.5)

    def outputs_adjoint(self, grad: Tensor, dim: int) -> list[Tensor]:
        return self._split(grad, dim, 1.0)

    def _split(self, x: Tensor, dim: int, scale: float) -> list[Tensor]:
        """The even half and the odd one, times scale; an odd side's middle as it is, with even."""
        half = x.size(dim) // 2
        ahead, middle, back = x.split([half, x.size(dim) - 2 * half, half], dim)
        back = back.flip(dim)
        if scale != 1:
            ahead, back = ahead * scale, back * scale
        even = ahead + back
        return [torch.cat([even, middle], dim) if middle.size(dim) else even, ahead - back]

    def _join(self, halves: list[Tensor], side: int, dim: int, scale: float) -> Tensor:
        """The adjoint of :meth:`_split`."""
        even, odd = halves
        even, middle = even.split([side // 2, side % 2], dim)
        if scale != 1:
            even, odd = even * scale, odd * scale
        return torch.cat([even + odd, middle, (even - odd).flip(dim)], dim)
