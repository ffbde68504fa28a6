"""Linear symmetric forms: the matrices whose entries agree on the orbits of a group.

- :class:`OrbitCoordinates` stores one parameter per orbit: the entry itself (``tri``, ``block``,
  ``chunk``), or the entry times the square root of the orbit's size (``avg``).
- :class:`FullMatrix` (``avg:full``) stores a full matrix and takes its mean over the group.

``expand`` is a gather, and its adjoint a segment sum. On a GPU the additions of that sum come in no
fixed order, which leaves the sum of an orbit of two exact and reproducible (addition commutes), but
not that of a larger orbit.
"""

import math
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from symrnn.symmetry.folding import Folding
from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.orbits import Constant, Orbits
from symrnn.threads import one_thread


class LinearSymmetry(Symmetry):
    """What the linear forms share: their orbits."""

    index: Tensor  # annotations are evaluated in this file: TorchScript reads these
    sizes: Tensor

    def __init__(
        self, name: str, orbits: Orbits, numel: int, folding: Folding | None = None
    ) -> None:
        super().__init__(name, orbits.side, numel, len(orbits.sizes.array), folding)
        self.orbits = orbits
        self.own_transpose = orbits.own_transpose

    def scriptable(self, device: torch.device) -> "LinearSymmetry":
        """The same form with its maps for attributes, as TorchScript reads tensors of a module.

        device: where they are read; elsewhere each call copies them.
        """
        twin = copy(self)
        twin.index = self.orbits.orbit.on(device, wide=True)
        twin.sizes = self.orbits.sizes.on(device)
        return twin

    def __prepare_scriptable__(self) -> "LinearSymmetry":
        return self if "index" in vars(self) else self.scriptable(torch.get_default_device())


class OrbitCoordinates(LinearSymmetry):
    """One parameter per orbit: the entry itself, or scaled to orthonormal coordinates.

    ``tri`` and ``avg`` of side 3, from their six parameters a … f in the order they are stored,
    with s = 1/√2::

        tri         avg

        a b c         a  s·b  s·c
        b d e       s·b    d  s·e
        c e f       s·c  s·e    f

    The entry itself is the paper's triangular form. The gradient of such a parameter is the sum
    over its orbit, so off the diagonal it is twice a plain entry's gradient; ``lr_scale`` is one
    over the mean orbit size.

    In orthonormal coordinates ``expand`` preserves lengths and angles. So SGD, momentum, weight
    decay and gradient-norm clipping take exactly the path that the mean ½(W + Wᵀ) of a full matrix
    takes (:class:`FullMatrix`), at half the memory.

    "tri:diagB" and "avg:diagB" leave the blocks of B × B along the diagonal free, whose entries are
    orbits of one. Of side 5 and B = 2, from the parameters a … q::

        tri:diag2

        a b c d e        the units of a block may rotate among themselves: the matrix
        f g h i j        has complex eigenvalues, where a symmetric one has none;
        c h k l m        N(N+1)/2 + N(B-1)/2 parameters where B divides N
        d i n o p
        e j m p q

    With B ≥ N it is every matrix, with B = 1 ``tri`` and ``avg``. Where B does not divide N the
    last block is smaller.

    Odd sides and side 1 need no special care.
    """

    def __init__(
        self, name: str, orbits: Orbits, folding: Folding | None = None, *, orthonormal: bool
    ) -> None:
        super().__init__(name, orbits, len(orbits.sizes.array), folding)
        self.orthonormal = orthonormal
        size = self.side**2 / self.numel  # of an orbit, on average
        self.lr_scale = 1.0 if orthonormal else 1 / size
        # A step of a size that the gradient does not decide moves each entry by it over √size.
        self.adaptive_lr_scale = math.sqrt(size) if orthonormal else 1.0
        self._make_part()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_part()

    def _make_part(self) -> None:
        """See that the folding's part of the map is there, which no trace could make."""
        if self.folding is not None:
            self.orbits.part(self.folding)

    def expand(self, v: Tensor) -> Tensor:
        self._check_parameters(v)
        if torch.jit.is_scripting():
            w = _gather(v, self.index, self.sizes if self.orthonormal else None)
        else:
            w = _spread(v, self.orbits.orbit, self._scaled_by)
        return w.view(list(v.shape[:-1]) + [self.side, self.side])  # noqa: RUF005

    def project(self, w: Tensor) -> Tensor:
        if self.orthonormal:
            return self.adjoint(w)
        self._check_matrix(w)
        return _orbit_mean(w.flatten(-2), self.orbits)

    def write(self, v: Tensor, out: Tensor) -> None:
        """``expand(v)``, without gradient, into the memory of ``out`` (..., N, N), contiguous."""
        self._check_parameters(v)
        u = _scaled(v.detach(), self._scaled_by)
        index = self.orbits.orbit.on(v.device)
        torch.index_select(u, -1, index, out=out.flatten(-2))

    def adjoint(self, w: Tensor) -> Tensor:
        """The adjoint of ``expand``: the gradient of its result (..., N, N) to that of v."""
        self._check_matrix(w)
        return _orbit_sum(w.flatten(-2), self.orbits.orbit, self._scaled_by, self.numel)

    @one_thread()
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """An entry is drawn as a plain layer draws it.

        In orthonormal coordinates a full matrix is drawn so, and its mean over the group taken.
        """
        with torch.no_grad():
            if self.orthonormal:
                full = v.new_empty(*v.shape[:-1], self.side, self.side)
                draw(full)
                v.copy_(self.project(full))
            else:
                draw(v)

    def matrices(self, v: Tensor) -> list[Tensor]:
        if self.folding is None:
            raise ValueError(f"{self.name} does not fold")
        self._check_parameters(v)
        part = self.orbits.part(self.folding)
        entries = _spread(v, part, self._scaled_by)
        return self.folding.matrices(entries.unflatten(-1, part.array.shape))

    @property
    @torch.jit.unused
    def _scaled_by(self) -> Constant | None:
        return self.orbits.sizes if self.orthonormal else None


class FullMatrix(LinearSymmetry):
    """A full matrix W, row-major, of which ``expand`` takes the mean over the group, ½(W + Wᵀ).

    The over-complete form of the paper, here to compare with: N² parameters are trained, of which
    only the symmetric part is ever used. ``project`` gives the nearest symmetric matrix itself.
    """

    def __init__(self, name: str, orbits: Orbits) -> None:
        super().__init__(name, orbits, orbits.side**2)

    def expand(self, v: Tensor) -> Tensor:
        self._check_parameters(v)
        if torch.jit.is_scripting():
            mean = _scatter(v, self.index, None, self.deployed) / self.sizes
            w = _gather(mean, self.index, None)
        else:
            w = self._mean(v)
        return w.view(list(v.shape[:-1]) + [self.side, self.side])  # noqa: RUF005

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        return self._mean(w.flatten(-2))

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """A full matrix is drawn as a plain layer draws it, and stored as it is."""
        with torch.no_grad():
            draw(v)

    def _mean(self, w: Tensor) -> Tensor:
        return _spread(_orbit_mean(w, self.orbits), self.orbits.orbit, None)


def _spread(u: Tensor, orbit: Constant, sizes: Constant | None) -> Tensor:
    """u (..., orbits) -> (..., positions): the number of each position's orbit, perhaps scaled."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        # A traced or exported program holds operators, not Python's gradients; so it gathers by
        # int64, for the gradient that autograd has of an index_select is slow, as said below.
        index = orbit.on(u.device, wide=True).flatten()
        return _gather(u, index, None if sizes is None else sizes.on(u.device))
    spread: Tensor = _Spread.apply(u, orbit, sizes)
    return spread


def _gather(u: Tensor, index: Tensor, sizes: Tensor | None) -> Tensor:
    """As :func:`_spread`, in operators that TorchScript knows."""
    if sizes is not None:
        u = u * sizes.to(u.device).to(u.dtype).rsqrt()
    # Lists, which TorchScript and Python both take. A scripted module that was moved has left the
    # map behind.
    return u.gather(-1, index.to(u.device).expand(list(u.shape[:-1]) + [index.size(0)]))  # noqa: RUF005


def _scatter(w: Tensor, index: Tensor, sizes: Tensor | None, count: int) -> Tensor:
    """w (..., positions) -> (..., orbits): the adjoint of :func:`_gather`."""
    # On a CPU scatter_add takes int64 alone, and index_add, which takes int32, ten times as long.
    u = w.new_zeros(list(w.shape[:-1]) + [count])  # noqa: RUF005
    u = u.scatter_add_(-1, index.to(w.device).expand_as(w), w)
    return u if sizes is None else u.mul_(sizes.to(u.device).to(u.dtype).rsqrt())


def _orbit_sum(w: Tensor, orbit: Constant, sizes: Constant | None, count: int) -> Tensor:
    """The adjoint of :func:`_spread`: w (..., positions) to (..., orbits)."""
    index = orbit.on(w.device, wide=True).flatten()
    return _scatter(w, index, None if sizes is None else sizes.on(w.device), count)


def _orbit_mean(w: Tensor, orbits: Orbits) -> Tensor:
    """The mean of w (..., N²) over each orbit: (..., orbits)."""
    total = _orbit_sum(w, orbits.orbit, None, len(orbits.sizes.array))
    return total / orbits.sizes.on(w.device)


def _scaled(u: Tensor, sizes: Constant | None) -> Tensor:
    return u if sizes is None else u * sizes.on(u.device).to(u.dtype).rsqrt()


def _select(u: Tensor, orbit: Constant) -> Tensor:
    """u (..., orbits) -> (..., positions), without scale."""
    if u.is_cpu:
        # A gather, which takes int64 alone, runs on all threads; index_select runs on one.
        index = orbit.on(u.device, wide=True).flatten()
        return u.gather(-1, index.expand(*u.shape[:-1], -1))
    return u.index_select(-1, orbit.on(u.device).flatten())


class _Spread(torch.autograd.Function):
    """:func:`_gather`, with :func:`_scatter` for a gradient.

    Autograd's own gradient of a gather saves its input, half a matrix that nobody needs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, orbit: Constant, sizes: Constant | None) -> Tensor:
        return _select(_scaled(u, sizes), orbit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, ctx.orbit, ctx.sizes = inputs
        ctx.count = u.size(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _orbit_sum(grad, ctx.orbit, ctx.sizes, ctx.count), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _select(_scaled(tangent, ctx.sizes), ctx.orbit)
