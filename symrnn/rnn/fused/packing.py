"""How the gates' matrices of a layer are packed for the native kernels.

Some matrices are packed together: those of the symmetric gates, of which each pair of equal entries
is stored once; those of the others; or, of forms that fold, the small matrices of all gates, with
the sparse maps that fold what they are multiplied by and unfold what comes of it. symrnn.h calls
one such group a term of a product.

Where a symmetric matrix has one parameter for each pair of equal entries (``tri``, ``avg``, and
both with free blocks that fit the tiles of the packed layout) it is packed from its parameters, and
never expanded; all others are packed from matrices. Of ``avg:skewR`` the symmetric part is one
group and the factors of the skew part are another, whose products are added.

Shapes: R rows (vectors to be multiplied), G gates, H the rows of one gate's matrix, C its columns;
r rows and c columns of a small matrix.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from symrnn import native
from symrnn.rnn.modes import MODES
from symrnn.rnn.torch_state import without_modes
from symrnn.rnn.weights import GateMatrix
from symrnn.symmetry import Symmetry, get_symmetry
from symrnn.symmetry.folding import Folding
from symrnn.symmetry.linear import OrbitCoordinates
from symrnn.symmetry.skew import SymmetricAndSkew

DTYPES: dict[torch.dtype, native.Dtype] = {
    torch.float32: native.Dtype.FLOAT,
    torch.float64: native.Dtype.DOUBLE,
    torch.bfloat16: native.Dtype.BFLOAT16,
    torch.float16: native.Dtype.HALF,
    torch.int8: native.Dtype.INT8,
}
"""The types of packed numbers.

On a CPU bfloat16 and int8 are packed from float32, products with bfloat16 are summed in float32,
and there is no float16. symrnn.h says what int8 means.
"""


def library() -> ctypes.CDLL:
    """The native library; RuntimeError that says why there is none."""
    found = native.library()
    if found is None:
        raise RuntimeError(f"the native kernels are not here: {native.why_not()}")
    return found


def check_numbers(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all are on the CPU, of one dtype, which the kernels know."""
    first = next(tensor for tensor in tensors.values() if tensor is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} should be on the device cpu, got: {tensor.device}")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} should be float32 or float64, got: {tensor.dtype}")
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{name} should be {first.dtype}, as {next(iter(tensors))} is, got: {tensor.dtype}"
            )


def check_shape(name: str, tensor: Tensor | None, *shape: int) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} should have shape {shape}, got: {tuple(tensor.shape)}")


def prefer_huge_pages(packed: Tensor, *, now: bool = False) -> None:
    """Have packed numbers lie in huge pages, for the reading of them takes most of a step.

    now: whether they are written already.
    """
    if packed.nbytes >= _WORTH_HUGE_PAGES:
        library().symrnn_prefer_huge_pages(packed.data_ptr(), packed.nbytes, now)


_WORTH_HUGE_PAGES = 1 << 22
"""Bytes that hold one whole page of 2 MiB, wherever they begin."""

_TILE = 16
"""The side of a tile of the packed layout."""

WHOLE = "whole"
"""The form of matrices that are their own transposes and are given whole."""


class Source(NamedTuple):
    """What a stacked gate matrix is packed from.

    form: a name of a symmetry, :data:`WHOLE`, or "" where no matrix is known to be symmetric.
    symmetric: the gates whose matrices are of that form.
    tensors: one for each group of :func:`plan_of`, differentiable to the parameters: parameters
        (gates of the group, numel), or matrices (gates of the group, r, c).
    """

    form: str
    symmetric: str
    tensors: list[Tensor]


def source_of(matrix: GateMatrix, *, whole: bool = False) -> Source:
    """What ``matrix`` is packed from.

    whole: whether matrices are to be expanded that could be packed from their parameters, or be
        folded.
    """
    layout, symmetry, parameters, rest = (
        matrix.layout, matrix.symmetry, matrix.parameters, matrix.rest,
    )  # fmt: skip
    blocks = (-1, layout.rows, layout.columns)
    if parameters is None or symmetry is None:
        return Source("", "", [matrix.dense().view(blocks)])
    if not whole and matrix.folds:
        return Source(symmetry.name, layout.symmetric, matrix.folded())
    others = [] if rest is None else [rest.view(blocks)]
    if not whole and staircase_of(symmetry) is not None:
        return Source(symmetry.name, layout.symmetric, [parameters, *others])
    if not whole and isinstance(symmetry, SymmetricAndSkew):
        factors = torch.cat(symmetry.factors(parameters), -1)
        parts = [symmetry.symmetric_part(parameters), factors]
        return Source(symmetry.name, layout.symmetric, [*parts, *others])
    if not symmetry.own_transpose:
        return Source("", "", [matrix.dense().view(blocks)])
    return Source(WHOLE, layout.symmetric, [symmetry.expand(parameters), *others])


class Staircase(NamedTuple):
    """The upper triangle of a symmetric matrix, row after row, as parameters.

    With free blocks it is a staircase: each row begins with the first column of its block.

    form: which has them.
    block: B, the side of a block; 1 where only the diagonal is free.
    """

    form: OrbitCoordinates
    block: int

    @property
    def scale(self) -> float:
        """What an entry outside the blocks is in units of its parameter."""
        return math.sqrt(0.5) if self.form.orthonormal else 1.0

    @property
    def symmetric(self) -> int:
        """Of the packed matrices, as symrnn.h has it."""
        return -(-min(self.block, self.form.side) // _TILE)


def triangle_of(symmetry: Symmetry) -> OrbitCoordinates | None:
    """The form, if it has one parameter for each entry of the upper triangle, in its order."""
    side = symmetry.side
    if not isinstance(symmetry, OrbitCoordinates) or not symmetry.own_transpose:
        return None
    return symmetry if symmetry.numel == side * (side + 1) // 2 else None


def staircase_of(symmetry: Symmetry) -> Staircase | None:
    """How the kernels take the form from its parameters; None if they do not.

    That is where W = Wᵀ outside free blocks of B × B along the diagonal, if B divides the side of a
    tile, is a multiple of it, or the block is all of the matrix.
    """
    if not isinstance(symmetry, OrbitCoordinates):
        return None
    block = symmetry.orbits.free_block
    if block is None or (_TILE % block and block % _TILE and block < symmetry.side):
        return None
    return Staircase(symmetry, block)


@dataclass(frozen=True)
class SparseMap:
    """A linear map as ``symrnn_map`` has it: to[i] = Σ scale[k] · from[index[k]].

    Over k in start[i] … start[i+1] - 1.

    columns: the length of ``from``.
    start: int32 (length of ``to`` + 1,).  index: int32 (start[-1],).  scale: float32 (start[-1],).
    """

    columns: int
    start: NDArray[np.int32]
    index: NDArray[np.int32]
    scale: NDArray[np.float32]

    @staticmethod
    def of(dense: NDArray[np.float32]) -> SparseMap:
        """The map that multiplies by a matrix (length of ``to``, length of ``from``)."""
        to, index = np.nonzero(dense)
        start = np.searchsorted(to, np.arange(len(dense) + 1)).astype(np.int32)
        scale = dense[to, index].astype(np.float32)
        return SparseMap(dense.shape[1], start, index.astype(np.int32), scale)

    def structure(self) -> native.Map:
        """As the kernels take it. Valid as long as this map lives."""
        arrays = (array.ctypes.data for array in (self.start, self.index, self.scale))
        return native.Map(self.columns, len(self.start) - 1, *arrays)


class Maps(NamedTuple):
    """What is done around the product by a small matrix; adjoints are for the backward pass."""

    inputs: SparseMap
    outputs: SparseMap
    inputs_adjoint: SparseMap
    outputs_adjoint: SparseMap


@dataclass(frozen=True)
class Group:
    """Matrices that are packed together, one of each of some gates.

    gates: their places among all gates.
    rows, columns: r and c; zero where there is nothing (the odd half of a vector of one number).
    symmetric: 1 if the matrices are their own transposes, and packed as such, else 0; more where
        blocks along the diagonal are free, as symrnn.h has it.
    maps: of a folded product, else None.
    staircase: of matrices that are packed from their parameters, else None.
    skew: whether they are factors [U V], of as many columns each, of skew parts U Vᵀ - V Uᵀ, which
        are added to the matrices of the same gates in other groups.
    """

    gates: tuple[int, ...]
    rows: int
    columns: int
    symmetric: int
    maps: Maps | None = None
    staircase: Staircase | None = None
    skew: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it is packed from."""
        if self.staircase is None:
            return len(self.gates), self.rows, self.columns
        return len(self.gates), self.staircase.form.numel

    @property
    def is_empty(self) -> bool:
        return self.rows * self.columns == 0

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What they are packed as if the others are packed as ``dtype``: no factors as int8."""
        return torch.float32 if self.skew and dtype == torch.int8 else dtype

    def length(self, dtype: torch.dtype) -> int:
        """How many elements of ``dtype`` they take when packed: a multiple of 64 bytes."""
        if self.is_empty:
            return 0
        own = self.dtype(dtype)
        length: int = library().symrnn_packed_length(
            self.symmetric, self.rows, self.columns, len(self.gates), DTYPES[own]
        )
        native.check(-length if length < 0 else 0)
        return length * own.itemsize // dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """How a stacked gate matrix (G·H, C) is packed.

    gates: G.  rows, columns: H and C.
    folding: where the product is folded, by what; else None.
    """

    gates: int
    rows: int
    columns: int
    groups: tuple[Group, ...]
    folding: Folding | None = None

    def length(self, dtype: torch.dtype) -> int:
        """How many elements all packed matrices have."""
        return sum(group.length(dtype) for group in self.groups)

    def shapes(self) -> list[tuple[int, ...]]:
        """Of what each group is packed from."""
        return [group.shape for group in self.groups]

    def check(self, hidden: Sequence[Tensor]) -> None:
        """Raise ValueError unless the tensors have the shapes of this plan."""
        shapes = [tuple(m.shape) for m in hidden]
        if shapes != self.shapes():
            raise ValueError(f"hidden should have shapes {self.shapes()}, got: {shapes}")

    def pack(self, hidden: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The packed numbers of all groups, one after another: ``dtype`` (length,).

        hidden: what each group is packed from, all float32 or all float64, and ``dtype`` the same;
            or of float32 bfloat16 or int8.

        Raises ValueError for others, and for any that have not the shapes of this plan.
        """
        self.check(hidden)
        check_numbers(**{f"hidden[{k}]": m for k, m in enumerate(hidden)})
        source = hidden[0].dtype
        low = [torch.bfloat16, torch.int8] if source == torch.float32 else []
        allowed = [source, *low]
        if dtype not in allowed:
            names = " or ".join(map(str, allowed))
            raise ValueError(f"dtype should be {names} for numbers of {source}, got: {dtype}")
        # PyTorch aligns what it allocates to 64 bytes, and every group is a multiple of that long.
        packed = torch.empty(self.length(dtype), dtype=dtype, device="cpu")
        prefer_huge_pages(packed)
        place = packed.data_ptr()
        for group, of_group in zip(self.groups, hidden, strict=True):
            if group.is_empty:
                continue
            rows = of_group if of_group.stride(-1) == 1 else of_group.contiguous()
            to = (DTYPES[group.dtype(dtype)], place, torch.get_num_threads())
            if group.staircase is None:
                status = library().symrnn_pack(
                    *(group.symmetric, group.rows, group.columns, len(group.gates)),
                    *(DTYPES[source], rows.data_ptr(), rows.stride(0), rows.stride(1)),
                    *to,
                )
            else:
                status = library().symrnn_pack_triangles(
                    *(group.rows, group.staircase.block, len(group.gates)),
                    *(DTYPES[source], rows.data_ptr(), rows.stride(0), group.staircase.scale),
                    *to,
                )
            native.check(status)
            place += group.length(packed.dtype) * packed.element_size()
        return packed

    def product(self, packed: Tensor, rounds: bool = False) -> native.Product:
        """The packed matrices as the kernels take them. Valid as long as plan and tensor live.

        rounds: of bfloat16, whether vectors are rounded to it too, before they are multiplied.
        """
        terms: list[native.Term] = []
        skew = None
        place = packed.data_ptr()
        for group in self.groups:
            if group.is_empty:
                continue
            gates = sum(1 << gate for gate in group.gates)
            if group.skew:
                skew = ctypes.pointer(native.Skew(group.columns // 2, gates, place))
            else:
                term = native.Term(group.symmetric, group.rows, group.columns, gates, place)
                for name, map in zip(Maps._fields, group.maps or (), strict=False):
                    setattr(term, name, ctypes.pointer(map.structure()))
                terms.append(term)
            place += group.length(packed.dtype) * packed.element_size()
        array = (native.Term * len(terms))(*terms)
        assert not rounds or packed.dtype == torch.bfloat16
        dtype = native.Dtype.BFLOAT16_BOTH if rounds else DTYPES[packed.dtype]
        return native.Product(
            *(dtype, self.gates, self.rows, self.columns),
            *(len(terms), array, skew),
        )

    def multiply(self, x: Tensor, hidden: Sequence[Tensor], rounds: bool = False) -> Tensor:
        """x (R, C) times the transposed matrices: (R, G, H), in operators that autograd knows.

        rounds: as in :meth:`product`, matrices packed as bfloat16; gradients are not rounded.
        """

        def rounded(t: Tensor) -> Tensor:
            return t + (t.bfloat16().to(t.dtype) - t).detach() if rounds else t

        matrices = [
            rounded(of_group if group.staircase is None else group.staircase.form.expand(of_group))
            for group, of_group in zip(self.groups, hidden, strict=True)
        ]
        inputs = [x] if self.folding is None else self.folding.inputs(x, -1)
        if len(inputs) < len(matrices):
            inputs = inputs * len(matrices)
        products = [
            _skew_product(part, m)
            if group.skew
            else (rounded(part) @ m.flatten(0, 1).mT).unflatten(1, m.shape[:2])
            for group, part, m in zip(self.groups, inputs, matrices, strict=True)
        ]
        if self.folding is not None:
            return self.folding.outputs(products, self.rows, -1)
        by_gate: dict[int, Tensor] = {}
        for group, product in zip(self.groups, products, strict=True):
            for gate, y in zip(group.gates, product.unbind(1), strict=True):
                by_gate[gate] = by_gate[gate] + y if gate in by_gate else y
        return torch.stack([by_gate[gate] for gate in range(self.gates)], 1)

    def gradients(
        self, d_y: Tensor, x: Tensor, hidden: Sequence[Tensor], matmul: Callable[..., Tensor]
    ) -> list[Tensor]:
        """The gradients of ``hidden`` from that of the product, d_y (R, G, H), and x (R, C).

        matmul: (a, b) -> a · b, of two matrices.
        """
        if self.folding is not None:
            d_products = self.folding.outputs_adjoint(d_y, -1)
            inputs = self.folding.inputs(x, -1)
        else:
            every = tuple(range(self.gates))
            d_products = [
                d_y if group.gates == every else d_y[:, list(group.gates)] for group in self.groups
            ]
            inputs = [x] * len(self.groups)
        found = []
        for group, d, part, m in zip(self.groups, d_products, inputs, hidden, strict=True):
            if group.skew:
                found.append(_skew_gradients(d, part, m, matmul))
                continue
            d_matrices = matmul(d.flatten(1).mT, part)
            d_matrices = d_matrices.view(len(group.gates), group.rows, group.columns)
            if group.staircase is not None:
                d_matrices = _adjoint(d_matrices, group.staircase)
            found.append(d_matrices)
        return found


def _skew_product(x: Tensor, factors: Tensor) -> Tensor:
    """x (R, N) times the transposed U Vᵀ - V Uᵀ of [U V] (S, N, 2R'): (R, S, N)."""
    return (_swapped(x @ factors) @ factors.mT).movedim(0, 1)


def _skew_gradients(
    d_y: Tensor, x: Tensor, factors: Tensor, matmul: Callable[..., Tensor]
) -> Tensor:
    """The gradient of the factors of :func:`_skew_product` from that of its result (R, S, N)."""
    # By dW = d_yᵀ x that of U is (dW - dWᵀ) V, and of V (dWᵀ - dW) U.
    found = []
    for d, p in zip(d_y.unbind(1), factors, strict=True):
        on_x, on_d = (_swapped(matmul(rows, p)) for rows in (x, d))
        found.append(matmul(d.mT, on_x) - matmul(x.mT, on_d))
    return torch.stack(found)


def _swapped(z: Tensor) -> Tensor:
    """From products with [U V] to those with [V -U]."""
    u, v = z.chunk(2, -1)
    return torch.cat([v, -u], -1)


def _adjoint(w: Tensor, staircase: Staircase) -> Tensor:
    """The adjoint of expanding triangles, by the kernels: (S, N, N) to (S, numel)."""
    check_numbers(w=w)
    count, side, _ = w.shape
    found = w.new_empty(count, staircase.form.numel)
    given = w.contiguous()
    status = library().symrnn_triangle_adjoint(
        *(side, staircase.block, count, DTYPES[w.dtype], given.data_ptr(), staircase.scale),
        *(found.data_ptr(), torch.get_num_threads()),
    )
    native.check(status)
    return found


@lru_cache(maxsize=64)
def plan_of(gates: str, rows: int, columns: int, form: str, symmetric: str) -> Plan:
    """How the matrix of these gates is packed.

    gates: all of the layer, by letter, in its order.  rows, columns: H and C.
    form, symmetric: as :class:`Source` has them; matrices of a form are square.
    """
    if not symmetric:
        group = _group(gates, gates, rows, columns, 0)
        return Plan(len(gates), rows, columns, (group,))
    staircase = None
    planes = 0
    if form != WHOLE:
        # Whatever PyTorch is about (tracing it may be), these are numbers of our own.
        with without_modes(), torch.device("cpu"), torch.inference_mode(False):
            symmetry = get_symmetry(form, rows)
            folding = symmetry.folding
            if folding is not None and symmetric == gates:
                small = _folded(len(gates), symmetry, folding)
                return Plan(len(gates), rows, columns, tuple(small), folding)
            if isinstance(symmetry, SymmetricAndSkew):
                planes = symmetry.rank
                symmetry = symmetry.symmetric
            staircase = staircase_of(symmetry)
        if staircase is None:
            raise ValueError(f"matrices of form={form!r} should be given as form={WHOLE!r}")
    packed_as = 1 if staircase is None else staircase.symmetric
    groups = [_group(gates, symmetric, rows, columns, packed_as, staircase)]
    if planes:
        factors = _group(gates, symmetric, rows, 2 * planes, 0)
        groups.append(replace(factors, skew=True))
    rest = "".join(gate for gate in gates if gate not in symmetric)
    if rest:
        groups.append(_group(gates, rest, rows, columns, 0))
    return Plan(len(gates), rows, columns, tuple(groups))


def _group(
    gates: str,
    some: str,
    rows: int,
    columns: int,
    symmetric: int,
    staircase: Staircase | None = None,
) -> Group:
    return Group(tuple(map(gates.index, some)), rows, columns, symmetric, staircase=staircase)


def _folded(gates: int, symmetry: Symmetry, folding: Folding) -> list[Group]:
    """One group for each small matrix."""
    side = symmetry.side
    # A matrix that is its own transpose for random numbers is so for all. Seeded, so that there is
    # no chance that two runs differ.
    numbers = torch.randint(2**20, (symmetry.numel,), generator=torch.Generator().manual_seed(0))
    small = symmetry.matrices(numbers.double())
    exact = torch.float32  # whatever the default
    inputs = [part.mT for part in folding.inputs(torch.eye(side, dtype=exact), -1)]
    groups: list[Group] = []
    for m, fold in zip(small, inputs, strict=True):
        rows, columns = m.shape
        units = [torch.zeros(rows, len(other), dtype=exact) for other in small]
        units[len(groups)] = torch.eye(rows, dtype=exact)
        unfold = folding.outputs(units, side, -1).mT
        maps = Maps(*(SparseMap.of(dense.numpy()) for dense in (fold, unfold, fold.mT, unfold.mT)))
        symmetric = int(rows == columns and torch.equal(m, m.mT))
        groups.append(Group(tuple(range(gates)), rows, columns, symmetric, maps))
    return groups


# ---- a layer as the kernels take it ------------------------------------------------------------


def joined_biases(
    mode: str, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the input product (G·H,), and of a GRU the hidden bias of n (H,).

    That one the reset gate scales. Both are copies. ValueError if only one of the biases is given.
    """
    if (bias_ih is None) != (bias_hh is None):
        raise ValueError("bias_ih and bias_hh should both be given or neither")
    if bias_ih is None or bias_hh is None:
        return None, None
    if not MODES[mode].separate_bias:
        return bias_ih + bias_hh, None
    side = len(bias_hh) // 3
    ahead, n = bias_hh.split([2 * side, side])
    return bias_ih + F.pad(ahead, (0, side)), n.clone()


def layer_structure(
    mode: str,
    hh: native.Product,
    ih: native.Product | None = None,
    bias: Tensor | None = None,
    bias_n: Tensor | None = None,
    state_mask: Tensor | None = None,
) -> native.Layer:
    """The structure of a layer. Valid as long as what it was made of lives."""
    return native.Layer(
        MODES[mode].native,
        ctypes.pointer(hh),
        None if ih is None else ctypes.pointer(ih),
        address(bias),
        address(bias_n),
        address(state_mask),
    )


def address(tensor: Tensor | None) -> int | None:
    """Where its numbers lie; None, which is null, if there are none."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
