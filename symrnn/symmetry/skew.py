"""Symmetric matrices with a little rotation: a symmetric part and a skew one of low rank."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.linear import OrbitCoordinates
from symrnn.threads import one_thread


class SymmetricAndSkew(Symmetry):
    r"""W = S + U Vᵀ - V Uᵀ, with a symmetric S and R pairs of columns u_k, v_k of length N.

    A symmetric matrix has real eigenvalues: it stretches. Each pair adds a rotation in the plane
    that u_k and v_k span. Of side 3 and R = 1::

        a  b  c          0   m  -n
        b  d  e    +    -m   0   p        m = u₁v₂ - u₂v₁, n = u₃v₁ - u₁v₃, p = u₂v₃ - u₃v₂
        c  e  f          n  -p   0

    The parameters are those of S, as ``avg`` stores them, then x (R, N) and y (R, N), row-major, of
    which u_k = x_k / √s_k and v_k = y_k / √s_k with s_k = √2 ‖(x_k, y_k)‖: N(N+1)/2 + 2NR.

    *Dimension and gauge.* (U V) and (U V) M give the same W for every symplectic M (M J Mᵀ = J, a
    group of R(2R+1) dimensions): a rotation of x_k and y_k within their plane, a shear, a scale
    that one gains and the other loses, or a mixture of planes. So the skew parts are a set of
    R(2N - 2R - 1) dimensions for R ≤ N/2. From R = N/2 on, rounded down, W is every matrix; more
    pairs are over-complete.

    *Why the scale s_k.* U Vᵀ is of degree two in its factors: once they have grown, a step of
    theirs moves W by as much more, and with a learning rate of 1 they run away along the gauge's
    scale. Divided by s_k, W is of degree one. Its derivative by a pair is at most 3/2 in norm
    whatever the pair is, and 1 by the y_k at which training begins: what a step of the orthonormal
    coordinates of S does. Every U and V are still to be had.

    ``project`` takes the mean ½(W + Wᵀ) and, of ½(W - Wᵀ), whose singular values come in pairs, the
    R largest pairs: the two parts are orthogonal, so it is the nearest of this form. Pairs are
    balanced (‖x_k‖ = ‖y_k‖ and x_k ⊥ y_k). Its gradient is not defined.
    """

    own_transpose = False

    def __init__(self, name: str, symmetric: OrbitCoordinates, rank: int) -> None:
        side = symmetric.side
        numel = symmetric.numel + 2 * side * rank
        super().__init__(name, side, numel, min(numel, side**2))
        self.symmetric = symmetric
        self.rank = rank

    def expand(self, v: Tensor) -> Tensor:
        self._check_parameters(v)
        u, w = self.factors(v)
        product = u @ w.mT
        # Subtracted as a whole, so that the two parts are symmetric and skew to the last bit.
        return self.symmetric.expand(self.symmetric_part(v)) + (product - product.mT)

    def symmetric_part(self, v: Tensor) -> Tensor:
        """The parameters (..., N(N+1)/2) of S among v."""
        return v[..., : self.symmetric.numel]

    def factors(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """U and V (..., N, R) of the parameters v (..., numel)."""
        pairs = v[..., self.symmetric.numel :].unflatten(-1, (2, self.rank, self.side))
        norm = torch.linalg.vector_norm(pairs, dim=(-3, -1), keepdim=True)
        norm = norm + (norm == 0).to(v.dtype)  # of a pair of zeros, U and V are zero
        scaled = (pairs * (2**0.5 * norm).rsqrt()).mT
        return scaled[..., 0, :, :], scaled[..., 1, :, :]

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        w = w.detach()
        exact = w.to(torch.float64 if w.dtype == torch.float64 else torch.float32)
        pairs = _planes((exact - exact.mT) / 2, self.rank).to(w.dtype)
        return torch.cat([self.symmetric.project(w), pairs.flatten(-3)], -1)

    @one_thread()
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """S starts as that of ``avg``, x as a plain layer draws its entries, and y at zero.

        So the matrix starts symmetric, and each x_k has a gradient for its y_k.
        """
        with torch.no_grad():
            self.symmetric.initialize(v[..., : self.symmetric.numel], draw)
            pairs = v[..., self.symmetric.numel :].unflatten(-1, (2, self.rank, self.side))
            x = torch.empty_like(pairs[..., 0, :, :])
            draw(x)
            pairs[..., 0, :, :] = x
            pairs[..., 1, :, :] = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # without the symmetric part's


def _planes(a: Tensor, rank: int) -> Tensor:
    """The pairs (..., 2, R, N) of the R largest planes of skew matrices a (..., N, N).

    i·a is Hermitian with eigenvalues ±σ. The eigenvector of a positive one, (p + i q)/√2, has
    orthonormal p and q, and a is the sum of σ (q pᵀ - p qᵀ) over them.
    """
    side = a.size(-1)
    values, vectors = torch.linalg.eigh(1j * a)
    planes = min(rank, side // 2)
    values, vectors = values[..., side - planes :], vectors[..., side - planes :]
    size = 2**0.5 * 2 * values.clamp_min(0).unsqueeze(-2)  # ‖x‖ = ‖y‖ = 2σ give a plane of size σ
    pairs = torch.stack([vectors.imag * size, vectors.real * size], -3).mT.flip(-2)
    missing = a.new_zeros(*a.shape[:-2], 2, rank - planes, side)
    return torch.cat([pairs, missing], -2)
