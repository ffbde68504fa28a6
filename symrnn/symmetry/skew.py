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

    The parameters are those of S, as ``avg`` stores them, then X and Y, each transposed (R, N) and
    row-major: N(N+1)/2 + 2NR. U is X with its columns made orthonormal, and V = Y/√2.

    *Dimension and gauge.* (U V) and (U V) M give the same W for every symplectic M (M J Mᵀ = J, a
    group of R(2R+1) dimensions): a rotation of u_k and v_k within their plane, a scale that one
    gains and the other loses, or a mixture of planes. So the skew parts are a set of
    R(2N - 2R - 1) dimensions for R ≤ N/2. From R = N/2 on, rounded down, W is every matrix; more
    pairs are over-complete. Orthonormal U leave V the scale and take nothing from the set, as any U
    and V are orthonormal U after such an M.

    *Why U is orthonormal.* Free factors diverge: a step of one moves W by the other's size, and
    once they have grown, a learning rate of 1 is too much. Pairs that are scaled each by itself
    stay bounded, but all turn to the one plane in which the gradient is largest, and it is learned
    R times too fast. With orthonormal U a step of Y moves W by the gradient's part in the span of
    U, as a step of S does by its symmetric part. U turns after it more slowly, by a derivative of
    about ‖V‖ / ‖X‖ of that: therefore X starts large.

    ``project`` takes the mean ½(W + Wᵀ) and, of ½(W - Wᵀ), whose singular values come in pairs, the
    R largest pairs: the two parts are orthogonal, so it is the nearest of this form. Its gradient
    is not defined.
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
        x, y = self._pairs(v)
        return _orthonormal(x), y * 0.5**0.5

    def _pairs(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """X and Y (..., N, R)."""
        pairs = v[..., self.symmetric.numel :].unflatten(-1, (2, self.rank, self.side)).mT
        return pairs[..., 0, :, :], pairs[..., 1, :, :]

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        w = w.detach()
        exact = w.to(torch.float64 if w.dtype == torch.float64 else torch.float32)
        u, v = _planes((exact - exact.mT) / 2, self.rank)
        x = u * self.side**0.5
        # A column of X becomes one of U of a length that is 1 but for what the iteration leaves.
        length = torch.linalg.vector_norm(_polar_factor(x), dim=-2, keepdim=True)
        y = v * (2**0.5 / torch.where(length == 0, 1.0, length))
        pairs = torch.stack([x, y], -3).mT.flatten(-3)
        return torch.cat([self.symmetric.project(w), pairs.to(w.dtype)], -1)

    @one_thread()
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """As the nearest to a full matrix drawn as a plain layer's: S exactly, planes in size.

        Of entries of a standard deviation d the R ≪ N largest planes of the skew part have about
        the size d·√(2N), and random directions: so V is drawn, Y as twice the draw of a plain
        layer's entries. The decomposition itself would only give other random directions. X is
        drawn too, and scaled to entries of a mean square of 1.
        """
        with torch.no_grad():
            self.symmetric.initialize(v[..., : self.symmetric.numel], draw)
            x, y = self._pairs(v)
            drawn = torch.empty_like(x.mT.contiguous())
            draw(drawn)
            size = torch.linalg.vector_norm(drawn, dim=(-2, -1), keepdim=True)
            scale = (self.side * self.rank) ** 0.5 / torch.where(size == 0, 1.0, size)
            x.copy_((drawn * scale).mT)
            draw(drawn)
            y.copy_(2 * drawn.mT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # without the symmetric part's


def _orthonormal(x: Tensor) -> Tensor:
    """x (..., N, R) with its columns made orthonormal: the polar factor X (XᵀX)^(-1/2).

    By the iteration of Newton and Schulz, which only multiplies: every program knows it, no matrix
    is too singular for it, and its derivatives are bounded. Singular values below about 1/10 of the
    norm of X come out smaller than 1, those of zero as zero. In float32 at least, also under
    autocast: eight roundings to 16 bits would leave little of it.
    """
    if not torch.jit.is_scripting():
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return _polar_factor(x)
    return _polar_factor(x)


def _polar_factor(x: Tensor) -> Tensor:
    u = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True)
    u = u / (norm + (norm == 0).to(u.dtype))
    for _ in range(8):
        u = 1.5 * u - 0.5 * (u @ (u.mT @ u))
    return u.to(x.dtype)


def _planes(a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U and V (..., N, R) of the R largest planes of skew matrices a (..., N, N), U orthonormal.

    i·a is Hermitian with eigenvalues ±σ. The eigenvector of a positive one, (p + i q)/√2, has
    orthonormal p and q, and a is the sum of σ (q pᵀ - p qᵀ) over them.
    """
    side = a.size(-1)
    values, vectors = torch.linalg.eigh(1j * a)
    planes = min(rank, side // 2)
    values, vectors = values[..., side - planes :], vectors[..., side - planes :]
    missing = a.new_zeros(*a.shape[:-1], rank - planes)
    u = torch.cat([2**0.5 * vectors.imag, missing], -1)
    v = torch.cat([2**0.5 * vectors.real * values.clamp_min(0).unsqueeze(-2), missing], -1)
    return u, v
