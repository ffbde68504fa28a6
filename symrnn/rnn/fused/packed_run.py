"""Layers whose packed weights are a module's own tensors: their calls past PyTorch's dispatcher.

The same as ``torch.ops.symrnn.packed_layers`` (native/torch/operators.cpp), where no graph is made:
it needs nothing but the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from symrnn import native
from symrnn.rnn.fused.inference import MOST_ROWS, PackedStack, threads_for
from symrnn.rnn.fused.operators import check_lengths
from symrnn.rnn.fused.packing import library, prefer_huge_pages
from symrnn.rnn.fused.structure import Reader
from symrnn.rnn.modes import MODES


class PackedRun:
    """The layers of a module on the tensors that it holds, for calls past PyTorch's dispatcher.

    structure, weights: as ``torch.ops.symrnn.packed_layers`` takes them.

    plans: of calls, by the shape of their input (:mod:`symrnn.rnn.fused.plans`).
    stack: the layers as a stack; None of two directions.
    """

    def __init__(self, structure: Tensor, weights: Sequence[Tensor]) -> None:
        reader = Reader(structure)
        mode, self._depth, self._directions, self._side, biases = (reader.next() for _ in range(5))
        gates, self._has_cells = _GATES[mode], mode == native.Mode.LSTM
        each = 2 + (biases if mode != native.Mode.GRU else 2 * biases)
        self._layers: list[native.Layer] = []
        self._entries: list[int] = []
        for k in range(0, len(weights), each):
            some = weights[k : k + each]
            for numbers in some[:2]:
                prefer_huge_pages(numbers, now=True)  # they may have come from a file
            self._layers.append(reader.layer(mode, gates, self._side, *some))
            packed = sum(len(numbers) for numbers in some[:2])
            self._entries.append(packed // 8 if some[0].dtype == torch.int8 else packed)
        self._reader = reader
        self.dtype = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        self.plans: dict[tuple[int, ...], Any] = {}
        self.stack: PackedStack | None = None
        if self._directions == 1:
            self.stack = PackedStack(
                self._layers, max(self._entries), self.dtype, self._has_cells, reader
            )
        self._forward = library().symrnn_forward

    def run(
        self, input: Tensor, batch_sizes: Tensor | None, state: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """A :data:`symrnn.rnn.stack.Run` of numbers of ``dtype`` on the CPU."""
        batch, side, item = state[0].size(1), self._side, self.dtype.itemsize
        shape, rows = input.shape[:-1], math.prod(input.shape[:-1])
        if batch == 0:
            output = input.new_empty(*shape, self._directions * side)
            return output, [torch.empty_like(part) for part in state]
        steps = check_lengths(batch_sizes, rows, batch)
        # The state is copied, and then moves on in place.
        new = [part.clone(memory_format=torch.contiguous_format) for part in state]
        lengths = None if batch_sizes is None else batch_sizes.contiguous()
        chunks = list(_chunks(steps, batch, None if lengths is None else lengths.tolist()))
        x = input.contiguous()
        for depth in range(self._depth):
            outputs = []
            for way in range(self._directions):
                k = depth * self._directions + way
                output = x.new_empty(*shape, side)
                h, c = (part[k].data_ptr() for part in (new if self._has_cells else [*new, *new]))
                columns = x.size(-1)
                for first, count, own, row in reversed(chunks) if way else chunks:
                    status = self._forward(
                        self._layers[k], count, own,
                        0 if lengths is None else lengths.data_ptr() + 8 * first, way,
                        x.data_ptr() + row * columns * item, 0, 0, h, c,
                        output.data_ptr() + row * side * item, h, c,
                        threads_for(self._entries[k], count, own),
                    )  # fmt: skip
                    native.check(status)
                outputs.append(output)
            x = outputs[0] if self._directions == 1 else torch.cat(outputs, -1)
        return x, new


def _chunks(
    steps: int, batch: int, lengths: Sequence[int] | None
) -> Iterator[tuple[int, int, int, int]]:
    """Steps that one call of the kernels runs: the first, their number, its sequences and row."""
    first = row = rows = 0
    for t in range(steps):
        size = batch if lengths is None else lengths[t]
        if t > first and rows + size > MOST_ROWS:
            yield first, t - first, batch if lengths is None else lengths[first], row
            first, row, rows = t, row + rows, 0
        rows += size
    yield first, steps - first, batch if lengths is None else lengths[first], row


_GATES = {mode.native: len(mode.gates) for mode in MODES.values()}
