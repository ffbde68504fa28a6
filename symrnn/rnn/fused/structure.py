"""What lies in packed numbers, as a tensor: for models and programs that hold nothing else.

A plan is made of a form by its name, and holds the form. Whoever loads packed weights wants
neither: a "structure" is an int32 tensor with all that the kernels must know. Its format stands in
native/torch/operators.cpp, which reads it where there is no Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn import native
from symrnn.rnn.fused.packed import PackedLayer
from symrnn.rnn.fused.packing import DTYPES, Plan, SparseMap, address, check_shape, library
from symrnn.rnn.modes import MODES

_SKEW = -1  # in the place of Group.symmetric


def structure_of_layers(
    layers: Sequence[PackedLayer], mode: str, directions: int, hidden_size: int
) -> Tensor:
    """The structure of the layers of a module."""
    depth, biases = len(layers) // directions, layers[0].bias is not None
    head = [MODES[mode].native, depth, directions, hidden_size, int(biases)]
    return _structure(head, [m.plan for layer in layers for m in (layer.hh, layer.ih)])


def structure_of_matrix(plan: Plan) -> Tensor:
    """The structure of the one matrix of a linear layer."""
    return _structure([plan.rows], [plan])


def _structure(head: Sequence[int], plans: Sequence[Plan]) -> Tensor:
    groups = [[group for group in plan.groups if not group.is_empty] for plan in plans]
    end = len(head) + sum(2 + 6 * len(some) for some in groups)
    maps: dict[int, tuple[int, NDArray[np.int32]]] = {}  # each once: plans of one form share them

    def place(map: SparseMap) -> int:
        nonlocal end
        if id(map) not in maps:
            sizes = np.array([map.columns, len(map.start) - 1], np.int32)
            numbers = np.concatenate([sizes, map.start, map.index, map.scale.view(np.int32)])
            maps[id(map)] = end, numbers
            end += len(numbers)
        return maps[id(map)][0]

    numbers = [*head]
    for plan, some in zip(plans, groups, strict=True):
        numbers += [plan.columns, len(some)]
        for group in some:
            gates = sum(1 << gate for gate in group.gates)
            around = [0, 0]
            if group.maps is not None:
                around = [place(group.maps.inputs), place(group.maps.outputs)]
            symmetric = _SKEW if group.skew else group.symmetric
            numbers += [symmetric, group.rows, group.columns, gates, *around]
    parts = [np.array(numbers, np.int32), *(array for _, array in maps.values())]
    return torch.from_numpy(np.concatenate(parts))


class Reader:
    """Reads a structure into the kernels' structures, which point to tensors and to one another.

    What they point to is held by the reader.
    """

    def __init__(self, structure: Tensor) -> None:
        self._numbers = structure.numpy()
        self._at = 0
        self._address = structure.data_ptr()
        self._held: list[Any] = [structure]

    def next(self) -> int:
        """The next number."""
        self._at += 1
        return int(self._numbers[self._at - 1])

    def product(self, gates: int, rows: int, numbers: Tensor) -> native.Product:
        """The next product, with its packed numbers."""
        _check_dense("packed weights", numbers)
        columns, count = self.next(), self.next()
        terms: list[native.Term] = []
        skew = None
        place, dtype = numbers.data_ptr(), numbers.dtype
        for _ in range(count):
            symmetric, r, c, of, before, after = (self.next() for _ in range(6))
            own = torch.float32 if symmetric == _SKEW and dtype == torch.int8 else dtype
            if symmetric == _SKEW:
                skew = ctypes.pointer(native.Skew(c // 2, of, place))
            else:
                term = native.Term(symmetric, r, c, of, place)
                if before:
                    term.inputs = ctypes.pointer(self._map(before))
                if after:
                    term.outputs = ctypes.pointer(self._map(after))
                terms.append(term)
            length = library().symrnn_packed_length(
                max(symmetric, 0), r, c, of.bit_count(), DTYPES[own]
            )
            native.check(-length if length < 0 else 0)
            place += length * own.itemsize
        if place != numbers.data_ptr() + numbers.nbytes:
            raise ValueError(f"packed weights of {numbers.nbytes} bytes are not of this structure")
        array = (native.Term * len(terms))(*terms)
        self._held += [numbers, array]
        return native.Product(DTYPES[dtype], gates, rows, columns, len(terms), array, skew)

    def layer(
        self, mode: int, gates: int, rows: int, hh: Tensor, ih: Tensor, *biases: Tensor
    ) -> native.Layer:
        """The next layer in one direction."""
        products = [ctypes.pointer(self.product(gates, rows, numbers)) for numbers in (hh, ih)]
        dtype = torch.float64 if hh.dtype == torch.float64 else torch.float32
        for bias, length in zip(biases, (gates * rows, rows), strict=False):
            _check_dense("biases", bias)
            check_shape("bias", bias, length)
            if bias.dtype != dtype:
                raise ValueError(f"bias should be {dtype}, got: {bias.dtype}")
        self._held += biases
        return native.Layer(mode, *products, *map(address, biases))

    def _map(self, at: int) -> native.Map:
        rows = int(self._numbers[at + 1])
        count = int(self._numbers[at + 2 + rows])
        places = [at + 2, at + 3 + rows, at + 3 + rows + count]
        arrays = (self._address + 4 * place for place in places)
        return native.Map(int(self._numbers[at]), rows, *arrays)


def _check_dense(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless numbers can be read at the tensor's address."""
    if not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(f"{name} should be contiguous and on the device cpu")
