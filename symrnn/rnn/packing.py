"""How the gates' matrices of a layer are packed for the native kernels.

Some matrices are packed together: those of the symmetric gates, of which each pair of equal entries
is stored once; those of the others; or, of forms that fold, the small matrices of all gates, with
the sparse maps that fold what they are multiplied by and unfold what comes of it. symrnn.h calls
one such group a term of a product.

Shapes: R rows (vectors to be multiplied), G gates, H the rows of one gate's matrix, C its columns;
r rows and c columns of a small matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from symrnn import native
from symrnn.rnn.gates import GateMatrix
from symrnn.symmetry import Symmetry, get_symmetry
from symrnn.symmetry.folding import Folding

DTYPES: dict[torch.dtype, native.Dtype] = {
    torch.float32: native.Dtype.FLOAT,
    torch.float64: native.Dtype.DOUBLE,
    torch.bfloat16: native.Dtype.BFLOAT16,
    torch.float16: native.Dtype.HALF,
}
"""The types of packed numbers.

On a CPU bfloat16 is packed from float32 and multiplied in float32, and there is no float16.
"""


def library() -> ctypes.CDLL:
    """The native library; RuntimeError that says why there is none."""
    found = native.library()
    if found is None:
        raise RuntimeError(f'backend="fused" cannot run here: {native.why_not()}')
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


def matrices_of(
    matrix: GateMatrix, owner: nn.Module, symmetry: Symmetry | None, *, folded: bool = True
) -> list[Tensor]:
    """The matrices of each group (gates of the group, r, c), in the order of :class:`Plan`.

    Differentiable to the parameters of ``owner``, which keeps its gates as ``matrix`` says.

    folded: whether forms that fold are to be given as their small matrices.
    """
    free, rest = matrix.free(owner), matrix.plain(owner)
    blocks = (-1, matrix.rows, matrix.columns)
    if free is None or symmetry is None:
        return [matrix.build(free, rest, symmetry).view(blocks)]
    if folded and rest is None and symmetry.folding is not None:
        return symmetry.matrices(free)
    if not symmetry.own_transpose:
        return [matrix.build(free, rest, symmetry).view(blocks)]
    expanded = symmetry.expand(free)
    return [expanded] if rest is None else [expanded, rest.view(blocks)]


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
    """What is done around the product by a small matrix; the adjoints serve the way back."""

    inputs: SparseMap
    outputs: SparseMap
    inputs_adjoint: SparseMap
    outputs_adjoint: SparseMap


@dataclass(frozen=True)
class Group:
    """Matrices that are packed together, one of each of some gates.

    gates: their places among all gates.
    rows, columns: r and c; zero where there is nothing (the odd half of a vector of one number).
    symmetric: whether the matrices are their own transposes, and packed as such.
    maps: of a folded product, else None.
    """

    gates: tuple[int, ...]
    rows: int
    columns: int
    symmetric: bool
    maps: Maps | None = None

    @property
    def is_empty(self) -> bool:
        return self.rows * self.columns == 0

    @property
    def length(self) -> int:
        """How many numbers the packed matrices have: a multiple of 256."""
        if self.is_empty:
            return 0
        length: int = library().symrnn_packed_length(
            self.symmetric, self.rows, self.columns, len(self.gates)
        )
        native.check(-length if length < 0 else 0)
        return length


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

    @property
    def length(self) -> int:
        """How many numbers all packed matrices have."""
        return sum(group.length for group in self.groups)

    def shapes(self) -> list[tuple[int, int, int]]:
        """Of the matrices of each group."""
        return [(len(group.gates), group.rows, group.columns) for group in self.groups]

    def pack(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The packed numbers of all groups, one after another: ``dtype`` (length,).

        matrices: those of each group, all float32 or all float64, and ``dtype`` the same; or of
            float32 bfloat16.

        Raises ValueError for others, and for any that have not the shapes of this plan.
        """
        shapes = [tuple(m.shape) for m in matrices]
        if shapes != self.shapes():
            raise ValueError(f"matrices should have shapes {self.shapes()}, got: {shapes}")
        check_numbers(**{f"matrices[{k}]": m for k, m in enumerate(matrices)})
        source = matrices[0].dtype
        allowed = [source, torch.bfloat16] if source == torch.float32 else [source]
        if dtype not in allowed:
            names = " or ".join(map(str, allowed))
            raise ValueError(f"dtype should be {names} for matrices of {source}, got: {dtype}")
        # PyTorch aligns what it allocates to 64 bytes, and every group is a multiple of that long.
        packed = torch.empty(self.length, dtype=dtype, device="cpu")
        place = packed.data_ptr()
        for group, of_group in zip(self.groups, matrices, strict=True):
            if group.is_empty:
                continue
            rows = of_group if of_group.stride(2) == 1 else of_group.contiguous()
            status = library().symrnn_pack(
                group.symmetric,
                group.rows,
                group.columns,
                len(group.gates),
                DTYPES[source],
                rows.data_ptr(),
                rows.stride(0),
                rows.stride(1),
                DTYPES[dtype],
                place,
                torch.get_num_threads(),
            )
            native.check(status)
            place += group.length * packed.element_size()
        return packed

    def product(self, packed: Tensor) -> native.Product:
        """The packed matrices as the kernels take them. Valid as long as plan and tensor live."""
        groups = [group for group in self.groups if not group.is_empty]
        terms = (native.Term * len(groups))()
        place = packed.data_ptr()
        for term, group in zip(terms, groups, strict=True):
            term.symmetric = group.symmetric
            term.rows, term.columns = group.rows, group.columns
            term.gates = sum(1 << gate for gate in group.gates)
            term.packed = place
            place += group.length * packed.element_size()
            if group.maps is not None:
                for name, map in zip(Maps._fields, group.maps, strict=True):
                    setattr(term, name, ctypes.pointer(map.structure()))
        return native.Product(
            DTYPES[packed.dtype], self.gates, self.rows, self.columns, len(terms), terms
        )

    def multiply(self, x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """x (R, C) times the transposed matrices: (R, G, H), in plain operators."""
        inputs = [x] if self.folding is None else self.folding.inputs(x, -1)
        if len(inputs) < len(matrices):
            inputs = inputs * len(matrices)
        products = [
            (part @ m.flatten(0, 1).mT).unflatten(1, m.shape[:2])
            for part, m in zip(inputs, matrices, strict=True)
        ]
        if self.folding is not None:
            return self.folding.outputs(products, self.rows, -1)
        by_gate = {
            gate: y
            for group, product in zip(self.groups, products, strict=True)
            for gate, y in zip(group.gates, product.unbind(1), strict=True)
        }
        return torch.stack([by_gate[gate] for gate in range(self.gates)], 1)

    def gradients(self, d_y: Tensor, x: Tensor) -> list[Tensor]:
        """The gradients of the matrices from that of the product, d_y (R, G, H), and x (R, C)."""
        if self.folding is not None:
            d_products = self.folding.outputs_adjoint(d_y, -1)
            inputs = self.folding.inputs(x, -1)
        elif len(self.groups) == 1:
            d_products, inputs = [d_y], [x]
        else:
            d_products = [d_y[:, list(group.gates)] for group in self.groups]
            inputs = [x] * len(self.groups)
        return [
            torch.ops.symrnn.matmul(d.flatten(1).mT, part, None).view(shape)
            for d, part, shape in zip(d_products, inputs, self.shapes(), strict=True)
        ]


@lru_cache(maxsize=64)
def plan_of(gates: str, rows: int, columns: int, symm: str, symmetric: str) -> Plan:
    """How the matrix of these gates is packed.

    gates: all of the layer, by letter, in its order.  rows, columns: H and C.
    symm: the form of the matrices of the ``symmetric`` gates, which are square; anything if there
        are none.
    """
    all_plain = Plan(len(gates), rows, columns, (_group(gates, gates, rows, columns, False),))
    if not symmetric:
        return all_plain
    # Whatever PyTorch is about (tracing it may be), these are numbers of our own.
    with _disable_current_modes(), torch.device("cpu"), torch.inference_mode(False):
        symmetry = get_symmetry(symm, rows)
        folding = symmetry.folding
        if folding is not None and symmetric == gates:
            small = _folded(len(gates), symmetry, folding)
            return Plan(len(gates), rows, columns, tuple(small), folding)
    if not symmetry.own_transpose:
        return all_plain
    groups = [_group(gates, symmetric, rows, columns, True)]
    rest = "".join(gate for gate in gates if gate not in symmetric)
    if rest:
        groups.append(_group(gates, rest, rows, columns, False))
    return Plan(len(gates), rows, columns, tuple(groups))


def _group(gates: str, some: str, rows: int, columns: int, symmetric: bool) -> Group:
    return Group(tuple(map(gates.index, some)), rows, columns, symmetric)


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
        symmetric = rows == columns and torch.equal(m, m.mT)
        groups.append(Group(tuple(range(gates)), rows, columns, symmetric, maps))
    return groups
