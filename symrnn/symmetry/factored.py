"""Symmetric matrices stored as factors of a product: not linear in the parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symrnn.symmetry.form import Symmetry
from symrnn.threads import one_thread


class Eigen(Symmetry):
    """V diag(λ) Vᵀ with R eigenvalues, N/2 (rounded down, at least 1) unless a rank is named.

    The parameters are V (N, R), row-major, then λ (R). A matrix of side 3 and rank 1::

        λaa  λab  λac
        λab  λbb  λbc        v = (a, b, c, λ)
        λac  λbc  λcc

    V starts with orthonormal columns and is then free, as in the paper. ``project`` takes the R
    eigenvalues of largest magnitude of ½(W + Wᵀ), which is the nearest matrix of that rank.
    """

    def __init__(self, name: str, side: int, rank: int) -> None:
        if not 1 <= rank <= side:
            raise ValueError(f"{name!r} has rank {rank}; a matrix of side {side} takes 1 to {side}")
        # A product of high rank holds no more different numbers than a triangle.
        deployed = min(side * rank + rank, side * (side + 1) // 2)
        super().__init__(name, side, side * rank + rank, deployed)
        self.rank = rank

    def expand(self, v: Tensor) -> Tensor:
        self._check_parameters(v)
        vectors = v[..., : self.side * self.rank].unflatten(-1, (self.side, self.rank))
        values = v[..., self.side * self.rank :].unsqueeze(-2)
        return _symmetric((vectors * values) @ vectors.mT)

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        values, vectors = torch.linalg.eigh(_symmetric(w).to(_exact(w.dtype)))
        largest = values.abs().argsort(-1, descending=True)[..., : self.rank]
        values = values.gather(-1, largest)
        vectors = vectors.gather(-1, largest.unsqueeze(-2).expand(*w.shape[:-1], self.rank))
        return torch.cat([vectors.flatten(-2), values], -1).to(w.dtype)

    @one_thread()
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """From the eigendecomposition of a full matrix, drawn as a plain layer draws it."""
        with torch.no_grad():
            full = v.new_empty((*v.shape[:-1], self.side, self.side))
            draw(full)
            v.copy_(self.project(full))


class LDL(Symmetry):
    """L diag(d) Lᵀ with L unit lower triangular and a diagonal d of either sign.

    The parameters are d (N), then L below its diagonal, row by row. A matrix of side 2::

        d    da
        da   daa + e         v = (d, e, a)

    Without pivoting, as the order of rows is the order of units. A symmetric matrix one of whose
    leading minors vanishes has no such factors, and near one that does they are large. So a pivot
    below the square root of the dtype's precision, relative to the largest entry, is taken as
    large as that, which changes the matrix by about as much; and ``project``, which computes in
    float64 and then rounds to the dtype, comes the less near the larger the matrix is: float32 is
    too coarse for random symmetric matrices of some hundred rows. Its gradient is not defined.
    """

    def __init__(self, name: str, side: int) -> None:
        numel = side * (side + 1) // 2
        super().__init__(name, side, numel, numel)

    def expand(self, v: Tensor) -> Tensor:
        self._check_parameters(v)
        shape = list(v.shape[:-1])
        d, entries = v[..., : self.side], v[..., self.side :]
        at = torch.tril_indices(self.side, self.side, -1, device=v.device)
        below = (at[0] * self.side + at[1]).expand(shape + [at.size(1)])  # noqa: RUF005
        lower = v.new_zeros(shape + [self.side * self.side])  # noqa: RUF005
        lower = lower.scatter(-1, below, entries).unflatten(-1, (self.side, self.side))
        lower = lower + torch.eye(self.side, dtype=v.dtype, device=v.device)
        return _symmetric((lower * d.unsqueeze(-2)) @ lower.mT)

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        w = w.detach()
        smallest = torch.finfo(w.dtype).eps ** 0.5
        lower, d = _ldl(_symmetric(w).to(torch.float64), smallest)
        at = torch.tril_indices(self.side, self.side, -1, device=w.device)
        return torch.cat([d, lower[..., at[0], at[1]]], -1).to(w.dtype)

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Each entry of d and L is drawn as a plain layer draws an entry.

        So the matrix starts near its diagonal. The factors of a random symmetric matrix would have
        entries of any size, for its leading minors come close to zero: nothing to begin with.
        """
        with torch.no_grad():
            draw(v)


def _symmetric(w: Tensor) -> Tensor:
    """½(W + Wᵀ); of a product that is symmetric but for rounding, exactly so."""
    return (w + w.mT) / 2


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What the decomposition of a matrix of ``dtype`` is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _ldl(w: Tensor, smallest: float, block: int = 32) -> tuple[Tensor, Tensor]:
    """The factors L (..., N, N), whose upper half means nothing, and d (..., N) of symmetric w.

    smallest: the magnitude that a pivot has at least, relative to the largest entry of its matrix.
    block: columns after which the rest of the matrix is brought up to date by one product.
    """
    side = w.size(-1)
    least = smallest * w.abs().amax((-2, -1))
    rest, lower, d = w.clone(), torch.zeros_like(w), w.new_empty(w.shape[:-1])
    for start in range(0, side, block):
        width = min(block, side - start)
        panel = rest[..., start:, start : start + width]
        for k in range(width):
            pivot = panel[..., k, k]
            pivot = torch.where(pivot.abs() < least, least.copysign(pivot), pivot)
            d[..., start + k] = pivot
            # A pivot is zero only where the whole matrix is.
            column = panel[..., k + 1 :, k] / torch.where(pivot == 0, 1.0, pivot).unsqueeze(-1)
            row = column[..., : width - k - 1] * pivot.unsqueeze(-1)
            panel[..., k + 1 :, k + 1 :] -= column.unsqueeze(-1) * row.unsqueeze(-2)
            lower[..., start + k + 1 :, start + k] = column
        left = lower[..., start + width :, start : start + width]
        weighted = left * d[..., start : start + width].unsqueeze(-2)
        rest[..., start + width :, start + width :] -= weighted @ left.mT
    return lower, d
