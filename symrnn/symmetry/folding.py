"""Multiplying by a symmetric matrix without building it: fold x, multiply by less, unfold y.

A folding turns y = W x into ``outputs(M · inputs(x))`` with one or two small matrices M, which are
made of a corner of W. The channels that are folded may lie along any dimension of x, so that the
same few lines serve a recurrent product, a linear layer and a convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from symrnn.symmetry.sides import Classes, Mirrored


class Folding(ABC):
    """How products by the N×N matrices of one symmetry are folded, for any N."""

    @abstractmethod
    def corner(self, side: int) -> tuple[int, int]:
        """How many first rows and first columns of the matrix :meth:`matrices` needs."""

    @abstractmethod
    def matrices(self, corner: Tensor) -> list[Tensor]:
        """The small matrices, each (..., rows, columns), made of the corner (..., r, c)."""

    @abstractmethod
    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        """x, N long along dim, folded: what each small matrix is multiplied by."""

    @abstractmethod
    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        """What the small matrices gave, unfolded to N along dim."""

    def cost(self, side: int) -> float:
        """Multiplications of the folded product as a fraction of the N² of the full one."""
        r, c = self.corner(side)
        return sum(m.numel() for m in self.matrices(torch.empty(r, c, device="meta"))) / side**2


@dataclass(frozen=True)
class BySides(Folding):
    """Equal rows are computed once, entries that meet equal columns are added up first.

    rows, columns: which are equal; None where all differ.
    """

    rows: Classes | None = None
    columns: Classes | None = None

    def corner(self, side: int) -> tuple[int, int]:
        r = self.rows.count(side) if self.rows else side
        return r, self.columns.count(side) if self.columns else side

    def matrices(self, corner: Tensor) -> list[Tensor]:
        return [corner]

    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        return [self.columns.add(x, dim) if self.columns else x]

    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        return self.rows.spread(products[0], side, dim) if self.rows else products[0]


@dataclass(frozen=True)
class EvenOdd(Folding):
    """For matrices that a half turn leaves as they are (``tri4``): even and odd half apart.

    A matrix with W[i, j] = W[N-1-i, N-1-j] maps a vector that reads the same backwards to another
    such, and one that changes its sign when read backwards likewise. So x is split into both
    halves, and each is multiplied by a matrix of half the side: half the work in all.
    """

    def corner(self, side: int) -> tuple[int, int]:
        return (side + 1) // 2, side

    def matrices(self, corner: Tensor) -> list[Tensor]:
        half = corner.size(-1) // 2
        left, right = corner[..., :half], corner[..., corner.size(-1) - half :].flip(-1)
        even = torch.cat([(left + right) / 2, corner[..., half : corner.size(-2)]], -1)
        odd = (left - right)[..., :half, :] / 2
        return [even, odd]

    def inputs(self, x: Tensor, dim: int) -> list[Tensor]:
        half = x.size(dim) // 2
        back = x.narrow(dim, x.size(dim) - half, half).flip(dim)
        return [Mirrored().add(x, dim), x.narrow(dim, 0, half) - back]

    def outputs(self, products: list[Tensor], side: int, dim: int) -> Tensor:
        even, odd = products
        half = side // 2
        middle = even.narrow(dim, half, side % 2)
        even = even.narrow(dim, 0, half)
        return torch.cat([even + odd, middle, (even - odd).flip(dim)], dim)
