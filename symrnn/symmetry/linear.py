"""Linear symmetric forms: the matrices whose entries agree on the orbits of a group.

Two coordinate systems on the same space, and one over-complete form:

- :class:`RawOrbits` (``tri``) keeps one number per orbit, the entry itself.
- :class:`OrthonormalOrbits` (``avg``) keeps the entry times the square root of the orbit's size.
- :class:`FullMatrix` (``avg:full``) keeps a full matrix and takes its mean over the group.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from symrnn.symmetry.orbits import OrbitMap, orbit_map

_MAPS = ("orbit", "sizes")


class Symmetry(nn.Module):
    """A symmetric form of N×N matrices with ``numel`` free numbers, always one flat vector.

    A module without parameters: ``forward`` is :meth:`expand` and ``right_inverse`` is
    :meth:`project`, so that ``torch.nn.utils.parametrize.register_parametrization`` takes it as it
    is. Made by :func:`symrnn.get_symmetry`.

    name: as given to ``get_symmetry``.
    side: N.
    numel: how many numbers are trained.
    deployed: how many different numbers the expanded matrix holds (the number of orbits).

    The adjoint of the gather in ``expand`` is a segment sum. On a GPU its additions come in no
    fixed order, which leaves the sum of an orbit of two exact and reproducible (addition
    commutes), but not that of a larger orbit.
    """

    orbit: Tensor  # annotations are evaluated in this file: TorchScript reads these two
    sizes: Tensor

    def __init__(self, name: str, orbits: OrbitMap) -> None:
        super().__init__()
        self.name = name
        self.side = orbits.side
        self.deployed = len(orbits.sizes)
        self.numel = self.deployed
        self._place_maps(orbits, torch.get_default_device())

    @abstractmethod
    def expand(self, v: Tensor) -> Tensor:
        """Free numbers (..., numel) to matrices (..., N, N)."""

    @abstractmethod
    def project(self, w: Tensor) -> Tensor:
        """Matrices (..., N, N) to the free numbers (..., numel) of the nearest symmetric ones.

        Nearest in Frobenius norm, which is the mean over each orbit.
        """

    @abstractmethod
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Fill v (..., numel) in place with starting values.

        draw: fills a tensor in place the way a plain layer draws its entries.
        """

    def fold(self, x: Tensor, v: Tensor) -> Tensor:
        """x (..., N) times the transposed matrix of v (numel,): (..., N), ``x @ expand(v).T``.

        The two-way symmetries have nothing to fold and multiply by the expanded matrix.
        """
        if x.shape[-1:] != (self.side,):
            raise ValueError(f"x has shape {list(x.shape)}; {self.name} folds (..., {self.side})")
        if v.shape != (self.numel,):
            raise ValueError(f"v has shape {list(v.shape)}; {self.name} folds with ({self.numel},)")
        return x @ self.expand(v).mT

    def forward(self, v: Tensor) -> Tensor:
        return self.expand(v)

    def right_inverse(self, w: Tensor) -> Tensor:
        return self.project(w)

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.side}"

    def _check_free(self, v: Tensor) -> None:
        if v.dim() < 1 or v.shape[-1] != self.numel:
            raise ValueError(
                f"v has shape {list(v.shape)}; {self.name} expands (..., {self.numel})"
            )

    def _check_matrix(self, w: Tensor) -> None:
        if w.dim() < 2 or w.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"w has shape {list(w.shape)}; {self.name} projects (..., {self.side}, {self.side})"
            )

    def _spread(self, u: Tensor, sizes: Tensor | None = None) -> Tensor:
        """One number per orbit (..., orbits) to every position: (..., N, N).

        sizes: of the orbits, to divide each number by their square root.
        """
        if torch.jit.is_scripting():
            w = _gather(u, self.orbit, sizes)
        else:
            # A program that is written down keeps operators, not Python's gradients.
            written_down = torch.jit.is_tracing() or torch.compiler.is_exporting()
            w = (_gather if written_down else _Spread.apply)(u, self.orbit, sizes)
        return w.view(list(u.shape[:-1]) + [self.side, self.side])  # noqa: RUF005

    def _orbit_sum(self, w: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The adjoint of :meth:`_spread`: (..., N, N) to (..., orbits)."""
        return _scatter(w.flatten(-2), self.orbit, sizes, self.deployed)

    # The index maps follow from the generators and the side: neither a state_dict nor a pickle
    # holds them, and they outlive `to_empty`, which leaves a module's buffers unset.

    def _place_maps(self, orbits: OrbitMap, device: torch.device) -> None:
        self._orbits = orbits
        self.register_buffer("orbit", orbits.orbit.to(device), persistent=False)
        self.register_buffer("sizes", orbits.sizes.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Symmetry":
        super()._apply(fn, recurse)
        self._place_maps(self._orbits, self.orbit.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_orbits"] = self._orbits.generators
        state["_buffers"] = {k: b for k, b in self._buffers.items() if k not in _MAPS}
        # An empty tensor tells the device, and `torch.load` maps it to another if asked to.
        state["_place"] = self.orbit.new_empty(0)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, generators = state.pop("_place").device, state.pop("_orbits")
        super().__setstate__(state)
        self._place_maps(orbit_map(generators, self.side), device)


def _gather(u: Tensor, orbit: Tensor, sizes: Tensor | None) -> Tensor:
    """u (..., orbits) -> (..., N²): each position gets its orbit's number, perhaps scaled."""
    if sizes is not None:
        u = u * sizes.to(u.dtype).rsqrt()
    # Lists, which TorchScript and Python both take.
    return u.gather(-1, orbit.expand(list(u.shape[:-1]) + [orbit.size(0)]))  # noqa: RUF005


def _scatter(w: Tensor, orbit: Tensor, sizes: Tensor | None, count: int) -> Tensor:
    """w (..., N²) -> (..., orbits): the sum over each orbit, perhaps scaled."""
    u = w.new_zeros(list(w.shape[:-1]) + [count])  # noqa: RUF005
    u = u.scatter_add_(-1, orbit.expand_as(w), w)
    return u if sizes is None else u.mul_(sizes.to(u.dtype).rsqrt())


class _Spread(torch.autograd.Function):
    """:func:`_gather` with :func:`_scatter` for a gradient.

    Autograd's own gradient of a gather keeps its input until then, half a matrix that nobody needs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, orbit: Tensor, sizes: Tensor | None) -> Tensor:
        return _gather(u, orbit, sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, orbit, sizes = inputs
        ctx.count = u.size(-1)
        ctx.save_for_backward(orbit, sizes)
        ctx.save_for_forward(orbit, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        orbit, sizes = ctx.saved_tensors
        return _scatter(grad, orbit, sizes, ctx.count), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        orbit, sizes = ctx.saved_tensors
        return _gather(tangent, orbit, sizes)


class RawOrbits(Symmetry):
    """One raw number per orbit, the entry itself: the paper's triangular form.

    ``tri`` of side 3, its six numbers in the order they are stored::

        a b c
        b d e
        c e f

    The gradient of a number is the sum over its orbit, so off the diagonal it is twice a plain
    entry's gradient. Odd sides and side 1 need no special care.
    """

    def expand(self, v: Tensor) -> Tensor:
        self._check_free(v)
        return self._spread(v)

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        return self._orbit_sum(w) / self.sizes

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Each orbit's number is drawn as a plain layer draws an entry."""
        with torch.no_grad():
            draw(v)


class OrthonormalOrbits(Symmetry):
    """One number per orbit, scaled by the square root of the orbit's size.

    ``avg`` of side 3, from its six numbers a … f, with s = 1/√2::

          a  s·b  s·c
        s·b    d  s·e
        s·c  s·e    f

    The coordinates are orthonormal: ``expand`` keeps lengths and angles. So SGD, momentum, weight
    decay and gradient-norm clipping take exactly the path that the mean ½(W + Wᵀ) of a full
    matrix takes (:class:`FullMatrix`), at half the memory.
    """

    def expand(self, v: Tensor) -> Tensor:
        self._check_free(v)
        return self._spread(v, self.sizes)

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        return self._orbit_sum(w, self.sizes)

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """A full matrix is drawn as a plain layer draws it, and its mean over the group taken."""
        with torch.no_grad():
            full = v.new_empty(*v.shape[:-1], self.side, self.side)
            draw(full)
            v.copy_(self.project(full))


class FullMatrix(Symmetry):
    """A full matrix W, row-major, of which ``expand`` takes the mean over the group, ½(W + Wᵀ).

    The over-complete form of the paper, kept to compare with: N² numbers are trained, of which
    only the symmetric part is ever used. ``project`` gives the nearest symmetric matrix itself.
    """

    def __init__(self, name: str, orbits: OrbitMap) -> None:
        super().__init__(name, orbits)
        self.numel = self.side**2

    def expand(self, v: Tensor) -> Tensor:
        self._check_free(v)
        return self._mean(v.view(list(v.shape[:-1]) + [self.side, self.side]))  # noqa: RUF005

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        return self._mean(w).flatten(-2)

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """A full matrix is drawn as a plain layer draws it, and kept whole."""
        with torch.no_grad():
            draw(v)

    def _mean(self, w: Tensor) -> Tensor:
        return self._spread(self._orbit_sum(w) / self.sizes)
