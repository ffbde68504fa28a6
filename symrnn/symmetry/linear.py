"""Linear symmetric forms: the matrices whose entries agree on the orbits of a group.

Two coordinate systems on the same space, and one over-complete form:

- :class:`RawOrbits` (``tri``, ``block``, ``chunk``) keeps one number per orbit, the entry itself.
- :class:`OrthonormalOrbits` (``avg``) keeps the entry times the square root of the orbit's size.
- :class:`FullMatrix` (``avg:full``) keeps a full matrix and takes its mean over the group.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symrnn.symmetry.folding import Folding
from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.orbits import OrbitMap, orbit_map

_MAPS = ("orbit", "sizes", "part")


class LinearSymmetry(Symmetry):
    """The matrices whose entries agree on the orbits of a group.

    The adjoint of the gather in ``expand`` is a segment sum. On a GPU its additions come in no
    fixed order, which leaves the sum of an orbit of two exact and reproducible (addition
    commutes), but not that of a larger orbit.
    """

    orbit: Tensor  # annotations are evaluated in this file: TorchScript reads these
    sizes: Tensor
    part: Tensor

    def __init__(
        self,
        name: str,
        orbits: OrbitMap,
        folding: Folding | None = None,
        numel: int | None = None,
    ) -> None:
        count = len(orbits.sizes)
        super().__init__(name, orbits.side, count if numel is None else numel, count, folding)
        self._place_maps(orbits, torch.get_default_device())

    def _spread(self, u: Tensor, scaled: bool = False) -> Tensor:
        """One number per orbit (..., orbits) to every position: (..., N, N).

        scaled: each divided by the square root of its orbit's size.
        """
        if not torch.jit.is_scripting():
            self._follow(u)
        w = _spread(u, self.orbit, self.sizes if scaled else None)
        return w.view(list(u.shape[:-1]) + [self.side, self.side])  # noqa: RUF005

    def _orbit_sum(self, w: Tensor, scaled: bool = False) -> Tensor:
        """The adjoint of :meth:`_spread`: (..., N, N) to (..., orbits)."""
        if not torch.jit.is_scripting():
            self._follow(w)
        return _scatter(w.flatten(-2), self.orbit, self.sizes if scaled else None, self.deployed)

    def _orbit_mean(self, w: Tensor) -> Tensor:
        """The mean over each orbit: (..., N, N) to (..., orbits)."""
        return self._orbit_sum(w) / self.sizes  # in this order: the sum sees to the maps' place

    def _small(self, u: Tensor, scaled: bool = False) -> list[Tensor]:
        """The folding's small matrices of one number per orbit (..., orbits)."""
        if self.folding is None:
            raise ValueError(f"{self.name} does not fold")
        self._check_free(u)
        self._follow(u)
        part = _spread(u, self.part.flatten(), self.sizes if scaled else None)
        return self.folding.matrices(part.unflatten(-1, self.part.shape))

    # The index maps follow from the generators and the side: neither a state_dict nor a pickle
    # holds them, and they outlive `to_empty`, which leaves a module's buffers unset. They are not
    # made in inference mode, whose tensors no later training could use.

    @torch.inference_mode(False)
    def _place_maps(self, orbits: OrbitMap, device: torch.device) -> None:
        self._orbits = orbits
        self.own_transpose = orbits.own_transpose
        self.register_buffer("orbit", orbits.orbit.to(device), persistent=False)
        self.register_buffer("sizes", orbits.sizes.to(device), persistent=False)
        part = orbits.orbit[:0]
        if self.folding is not None:
            rows, columns = (torch.from_numpy(k) for k in self.folding.part(self.side))
            part = orbits.orbit.view(self.side, self.side)[rows[:, None], columns]
        self.register_buffer("part", part.to(device), persistent=False)

    @torch.jit.unused
    def _follow(self, tensor: Tensor) -> None:
        """See that the maps are where the tensor is.

        They stay behind on "meta" when a module made there is given the tensors of a state_dict,
        and PyTorch would read them without a word.
        """
        if self.orbit.device != tensor.device:
            self._place_maps(self._orbits, tensor.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LinearSymmetry":
        if self.orbit.is_meta:  # nothing there could be copied
            self._place_maps(self._orbits, torch.device("cpu"))
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


def _spread(u: Tensor, orbit: Tensor, sizes: Tensor | None) -> Tensor:
    """u (..., orbits) -> (..., positions): the number of each position's orbit, perhaps scaled."""
    if torch.jit.is_scripting():
        return _gather(u, orbit, sizes)
    # A program that is written down keeps operators, not Python's gradients.
    written_down = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return (_gather if written_down else _Spread.apply)(u, orbit, sizes)


def _gather(u: Tensor, orbit: Tensor, sizes: Tensor | None) -> Tensor:
    """As :func:`_spread`, in plain operators."""
    if sizes is not None:
        u = u * sizes.to(u.dtype).rsqrt()
    # Lists, which TorchScript and Python both take.
    return u.gather(-1, orbit.expand(list(u.shape[:-1]) + [orbit.size(0)]))  # noqa: RUF005


def _scatter(w: Tensor, orbit: Tensor, sizes: Tensor | None, count: int) -> Tensor:
    """w (..., positions) -> (..., orbits): the sum over each orbit, perhaps scaled."""
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


class OrbitNumbers(LinearSymmetry):
    """One number per orbit: what the two coordinate systems share.

    scaled: whether it is the entry times the square root of the orbit's size, or the entry itself.
    """

    scaled: bool

    def __init__(
        self, name: str, orbits: OrbitMap, folding: Folding | None = None, *, scaled: bool
    ) -> None:
        super().__init__(name, orbits, folding)
        self.scaled = scaled

    def expand(self, v: Tensor) -> Tensor:
        self._check_free(v)
        return self._spread(v, scaled=self.scaled)

    def write(self, v: Tensor, out: Tensor) -> None:
        """``expand(v)``, without gradient, into the memory of ``out`` (..., N, N), contiguous."""
        self._check_free(v)
        self._follow(v)
        u = v.detach()
        if self.scaled:
            u = u * self.sizes.to(u.dtype).rsqrt()
        torch.gather(u, -1, self.orbit.expand(*u.shape[:-1], -1), out=out.flatten(-2))

    def adjoint(self, w: Tensor) -> Tensor:
        """The adjoint of ``expand``: the gradient of its result (..., N, N) to that of v."""
        self._check_matrix(w)
        return self._orbit_sum(w, scaled=self.scaled)

    def matrices(self, v: Tensor) -> list[Tensor]:
        return self._small(v, scaled=self.scaled)


class RawOrbits(OrbitNumbers):
    """One raw number per orbit, the entry itself: the paper's triangular form.

    ``tri`` of side 3, its six numbers in the order they are stored::

        a b c
        b d e
        c e f

    The gradient of a number is the sum over its orbit, so off the diagonal it is twice a plain
    entry's gradient; ``lr_scale`` is one over the mean orbit size. Odd sides and side 1 need no
    special care.
    """

    def __init__(self, name: str, orbits: OrbitMap, folding: Folding | None = None) -> None:
        super().__init__(name, orbits, folding, scaled=False)
        self.lr_scale = self.numel / self.side**2

    def project(self, w: Tensor) -> Tensor:
        self._check_matrix(w)
        return self._orbit_mean(w)

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Each orbit's number is drawn as a plain layer draws an entry."""
        with torch.no_grad():
            draw(v)


class OrthonormalOrbits(OrbitNumbers):
    """One number per orbit, scaled by the square root of the orbit's size.

    ``avg`` of side 3, from its six numbers a … f, with s = 1/√2::

          a  s·b  s·c
        s·b    d  s·e
        s·c  s·e    f

    The coordinates are orthonormal: ``expand`` keeps lengths and angles. So SGD, momentum, weight
    decay and gradient-norm clipping take exactly the path that the mean ½(W + Wᵀ) of a full
    matrix takes (:class:`FullMatrix`), at half the memory.
    """

    def __init__(self, name: str, orbits: OrbitMap, folding: Folding | None = None) -> None:
        super().__init__(name, orbits, folding, scaled=True)

    def project(self, w: Tensor) -> Tensor:
        return self.adjoint(w)

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """A full matrix is drawn as a plain layer draws it, and its mean over the group taken."""
        with torch.no_grad():
            full = v.new_empty(*v.shape[:-1], self.side, self.side)
            draw(full)
            v.copy_(self.project(full))


class FullMatrix(LinearSymmetry):
    """A full matrix W, row-major, of which ``expand`` takes the mean over the group, ½(W + Wᵀ).

    The over-complete form of the paper, kept to compare with: N² numbers are trained, of which
    only the symmetric part is ever used. ``project`` gives the nearest symmetric matrix itself.
    """

    def __init__(self, name: str, orbits: OrbitMap) -> None:
        super().__init__(name, orbits, numel=orbits.side**2)

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
        return self._spread(self._orbit_mean(w))
