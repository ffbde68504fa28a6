"""Inference: weights packed once, then the kernels called past PyTorch's dispatcher.

Such a call needs the packed matrices, a sum of biases and a few structures for the kernels. They
are made once from a module's weights (:class:`PackedLayers`) and cached with it
(:mod:`symrnn.rnn.fused.cache`); a call then checks that they still stand for the parameters,
allocates its results and passes addresses.

Calls with gradients pack anew: numerical gradients (``torch.autograd.gradcheck``) are taken by
writes to single entries, which no cache sees.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symrnn import native
from symrnn.native.openmp import release_threads
from symrnn.rnn import torch_state
from symrnn.rnn.fused.cpu import linear
from symrnn.rnn.fused.packing import (
    address,
    check_numbers,
    check_shape,
    joined_biases,
    layer_structure,
    library,
    plan_of,
    prefer_huge_pages,
    source_of,
)
from symrnn.rnn.stack import Attributes, over_layers
from symrnn.rnn.weights import GateMatrix, LayerWeights

MOST_ROWS = 2048
"""Up to so many rows the kernels multiply the input too; more are one product by PyTorch.

The kernels do it faster on weights that are packed already, but hold all rows' gates as they do.
"""

_WORTH_THREADS = 1 << 16
"""Packed entries times sequences from which on more than one thread pays.

Measured with one sequence: with half of it the signals between threads take longer than what they
save.
"""

_OWN_SEQUENCES = 5
"""Of each thread; from which on the kernels (layer.cpp) give each its own for all steps."""


class _PackedLayer:
    """One layer in one direction, packed.

    like: a tensor of the dtype and device that all weights have.
    packed_dtype: of the packed weights; bfloat16, int8, or that of all other numbers.
    most_rows: up to how many the input weights are read packed; if they are int8 always.
    """

    def __init__(
        self,
        w: LayerWeights,
        like: Tensor,
        mode: str,
        packed_dtype: torch.dtype,
        most_rows: int,
        reverse: bool,
    ) -> None:
        self.mode = mode
        self.reverse = reverse
        self.most_rows = sys.maxsize if packed_dtype == torch.int8 else most_rows
        self.packed_dtype = packed_dtype
        self.ih = w.ih
        # The kernels read where they are told to: whoever has put other tensors in the place of the
        # weights must have put such as they take.
        length = w.hh.shape[0]
        biases = {"bias_ih": w.bias_ih, "bias_hh": w.bias_hh}
        suffix = w.hh.layout.name.removeprefix("weight_hh")
        named = {f"{name}{suffix}": bias for name, bias in biases.items()}
        check_numbers(weights=like, **named)
        for name, bias in named.items():
            check_shape(name, bias, length)
        self.bias, self.bias_n = joined_biases(mode, w.bias_ih, w.bias_hh)
        self.arrays: list[Any] = []  # what the structures point to
        self.entries = 0  # packed so far
        self.product = self._packed(w.hh)
        self.alone = layer_structure(mode, self.product, bias_n=self.bias_n)
        self.with_input: native.Layer | None = None
        self.w_ih: Tensor | None = None

    def _packed(self, matrix: GateMatrix) -> native.Product:
        form, symmetric, tensors = source_of(matrix)
        layout = matrix.layout
        plan = plan_of(layout.gates, layout.rows, layout.columns, form, symmetric)
        packed = plan.pack(tensors, self.packed_dtype)
        if self.most_rows:  # to be read more than once; the memory may have been others' before
            prefer_huge_pages(packed, now=True)
        self.arrays += [plan, packed]
        # Measured: int8 pays for a second thread from eight times as many entries on.
        self.entries += len(packed) // (8 if packed.dtype == torch.int8 else 1)
        return plan.product(packed)

    def operands(self, x: Tensor, rows: int) -> tuple[native.Layer, Tensor | None]:
        """The structure to run x (…, I) of so many rows, contiguous; and its input product.

        That is (R, G·H) where the kernels are not to multiply the input, else None.
        """
        if rows <= self.most_rows:
            return self.with_input or self._pack_input(), None
        return self.alone, linear(x.view(rows, -1), self._input_weights(), self.bias)

    # Not before a call needs it. If the weights changed since the hidden ones were packed, the next
    # call will see that they did.

    def _pack_input(self) -> native.Layer:
        made = layer_structure(
            self.mode, self.product, self._packed(self.ih), self.bias, self.bias_n
        )
        self.with_input = made
        return made

    def _input_weights(self) -> Tensor:
        if self.w_ih is not None:
            return self.w_ih
        w_ih = self.ih.dense().detach()
        check_shape(self.ih.layout.name, w_ih, *self.ih.shape)
        if w_ih.dtype != self.packed_dtype:
            w_ih = w_ih.to(self.packed_dtype).to(w_ih.dtype)  # the numbers that are packed
        self.w_ih = w_ih
        return w_ih


class PackedLayers:
    """All layers and directions of a module, packed.

    weights: in PyTorch's order; those of the input are read when a call first needs them.
    lasting: whether more than one call is to be made.

    plans: of calls, by the shape of their input (:mod:`symrnn.rnn.fused.plans`).
    """

    @torch.no_grad()
    def __init__(
        self, weights: Sequence[LayerWeights], attributes: Attributes, *, lasting: bool
    ) -> None:
        like = weights[0].ih.tensors[0]
        self.dtype = like.dtype
        self.count = len(weights)
        self.hidden_size = weights[0].hh.layout.rows
        packed_dtype = attributes.inference_dtype or self.dtype
        self._layers = [
            _PackedLayer(
                w,
                like,
                attributes.mode,
                packed_dtype,
                MOST_ROWS if lasting else 0,
                attributes.bidirectional and k % 2 == 1,
            )
            for k, w in enumerate(weights)
        ]
        self._forward = library().symrnn_forward
        self._has_cells = attributes.mode == "LSTM"
        self._one_direction = not attributes.bidirectional
        self._stack: PackedStack | None = None
        self.plans: dict[tuple[int, ...], Any] = {}
        self._attributes = attributes._replace(dropout=0.0, training=True)
        # In bytes, what one sequence's state of one layer and direction takes.
        self._state_bytes = self.hidden_size * self.dtype.itemsize

    def run(
        self,
        x: Tensor,
        shape: Sequence[int],
        steps: int,
        batch: int,
        lengths: int,
        hx: Sequence[Tensor] | None,
        state_shape: Sequence[int],
        dropout: float,
    ) -> tuple[Tensor, list[Tensor]]:
        """Input x (*shape, I) and the state to the output (*shape, D·H) and the new state.

        Contiguous numbers of ``dtype`` on the CPU. Nothing is checked here.

        shape: of the rows, R in all.
        lengths: the address of B_t (T,), or 0 where all are B.
        state_shape: of each part of the new state, and of ``hx``, which is zeros if None.
        dropout: between the layers.
        """
        rows = steps * batch if lengths == 0 else shape[0]
        c0 = cn = 0
        if hx is None:
            h0, hn = 0, x.new_empty(*state_shape)
        else:  # of equal tensors the faster way
            h0, hn = hx[0].data_ptr(), torch.empty_like(hx[0])
        state = [hn]
        to_h = hn.data_ptr()
        if self._has_cells:
            state.append(torch.empty_like(hn))
            cn = state[1].data_ptr()
            c0 = 0 if hx is None else hx[1].data_ptr()
        part, layers, size = batch * self._state_bytes, self._layers, self.hidden_size
        forward = self._forward

        def one(k: int, x: Tensor) -> Tensor:
            layer, output, at = layers[k], x.new_empty(*shape, size), k * part
            structure, product = layer.operands(x, rows)
            release_threads(layer.entries * rows)
            status = forward(
                structure, steps, batch, lengths, layer.reverse,
                x.data_ptr() if product is None else 0,
                0 if product is None else product.data_ptr(),
                0, h0 and h0 + at, c0 and c0 + at, output.data_ptr(), to_h + at, cn and cn + at,
                threads_for(layer.entries, steps, batch),
            )  # fmt: skip
            if status:
                native.check(status)
            return output

        if self.count == 1:  # most of the calls for which a microsecond counts
            return one(0, x), state
        attributes = self._attributes
        if dropout:
            attributes = attributes._replace(dropout=dropout)
        return over_layers(x, attributes, one), state

    def stack(self) -> PackedStack | None:
        """These layers as a stack, which shares their numbers; None of two directions."""
        if self._stack is None and self._one_direction:
            self._stack = PackedStack.of_layers(self._layers, self.dtype, self._has_cells)
        return self._stack


class PackedStack:
    """The layers of a module in one direction, packed to be run by one call of the kernels.

    layers: from the lowest on, with input weights; of an LSTM ``has_cells``.
    entries: packed, of the largest.
    alive: what the structures point to.

    address: of the array of their structures.  count: of layers.  states: 2 of an LSTM, else 1.
    """

    def __init__(
        self,
        layers: Sequence[native.Layer],
        entries: int,
        dtype: torch.dtype,
        has_cells: bool,
        alive: Any,
    ) -> None:
        self.dtype = dtype
        self.count = len(layers)
        self.states = 2 if has_cells else 1
        self._alive = alive
        self._array = (native.Layer * self.count)(*layers)
        self.address = ctypes.addressof(self._array)
        self._entries = entries
        self._advance = library().symrnn_advance

    @classmethod
    def of_layers(
        cls, layers: Sequence[_PackedLayer], dtype: torch.dtype, has_cells: bool
    ) -> PackedStack:
        """layers: from the lowest on; what of their input weights is not packed yet, is."""
        packed = [layer.with_input or layer._pack_input() for layer in layers]
        return cls(packed, max(layer.entries for layer in layers), dtype, has_cells, layers)

    @classmethod
    @torch.no_grad()
    def of(cls, weights: Sequence[LayerWeights], attributes: Attributes) -> PackedStack:
        """weights: those of each layer, from the lowest on."""
        like = weights[0].ih.tensors[0]
        packed_dtype = attributes.inference_dtype or like.dtype
        layers = [
            _PackedLayer(w, like, attributes.mode, packed_dtype, MOST_ROWS, False) for w in weights
        ]
        return cls.of_layers(layers, like.dtype, attributes.mode == "LSTM")

    def bind(self, state: Sequence[Tensor]) -> Bound:
        """To the parts of a state (L, B, H), contiguous, which calls then change in place."""
        h, c = state[0], state[1] if self.states == 2 else None
        stream = native.Stream(self.count, self._array, h.data_ptr(), address(c))
        return Bound(ctypes.addressof(stream), tuple(state), stream)

    def most_steps(self, batch: int) -> int:
        """How many a call should have, as the kernels hold all steps' gates."""
        return max(1, MOST_ROWS // batch)

    def threads_function(self, steps: int, batch: int) -> Callable[[], int] | None:
        """How many threads pay for such a call, as a function; None for one whatever torch has."""
        if self._entries * steps * batch < _WORTH_THREADS:
            return None
        return partial(threads_for, self._entries, steps, batch)

    def advance(self, bound: Bound, steps: int, batch: int, x: Tensor, output: Tensor) -> None:
        """x (T, B, I) to the output (T, B, H), and the bound state moves on. Nothing is checked.

        Contiguous numbers of the weights' dtype on the CPU.
        """
        between = None
        if self.count > 1:
            between = torch.empty_like(output)
        status = self._advance(
            bound.address, steps, batch, x.data_ptr(), address(between), output.data_ptr(),
            threads_for(self._entries, steps, batch),
        )  # fmt: skip
        if status:
            native.check(status)


class Bound(NamedTuple):
    """A stack and a state, as the kernels take them.

    alive: what lies at the address.
    """

    address: int
    state: tuple[Tensor, ...]
    alive: native.Stream


def threads_for(entries: int, steps: int, batch: int) -> int:
    """How many threads pay for a layer of so many packed entries: all of torch's, or one."""
    threads = torch.get_num_threads()
    if threads > 1:
        # What a thread does between two signals: a step, or, of enough sequences, its own ones.
        sequences = batch if batch < _OWN_SEQUENCES * threads else batch * steps
        if entries * sequences < _WORTH_THREADS:
            return 1
    return threads


def is_ready(packed: PackedLayers, input: Tensor, hx: Any, state_shape: tuple[int, ...]) -> bool:
    """Whether a call may run on packed weights: :meth:`PackedLayers.run`, as it stands.

    That is if nothing but numbers is wanted, and input and state are as they have to be.

    input: a tensor that is not empty; the size of its rows is right, and gradients are off.
    hx: None or a tuple that should hold the parts of the state.
    """
    dtype = packed.dtype
    if (
        input.dtype is not dtype
        or not input.is_cpu
        or not input.is_contiguous()
        or input.is_neg()
        or not torch_state.can_bypass_dispatcher()
    ):
        return False
    if hx is None:
        return True
    if type(hx) is not tuple or len(hx) != (2 if packed._has_cells else 1):
        return False
    for part in hx:  # a loop, which is faster than a generator
        if (
            type(part) is not Tensor
            or part.shape != state_shape
            or part.dtype is not dtype
            or not part.is_cpu
            or not part.is_contiguous()
            or part.is_neg()
        ):
            return False
    return True
