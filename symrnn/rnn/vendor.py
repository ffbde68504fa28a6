"""PyTorch's own operators (oneDNN on a CPU, cuDNN on an NVIDIA GPU) run on expanded weights.

A CPU takes the expanded matrices as they are. cuDNN wants all weights in one buffer, at places of
its own, and copies them there on every call (with a warning) unless the tensors it is given
already lie so. :class:`_OneBuffer` lays them out, symmetric matrices expanded to where they belong.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from symrnn.rnn import reference, torch_state
from symrnn.rnn.dropout import dropout, sees_part
from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import Attributes, Backend, State
from symrnn.rnn.weights import GateMatrix, LayerWeights
from symrnn.symmetry.linear import OrbitCoordinates


def cell(x: Tensor, state: State, w: LayerWeights, attributes: Attributes) -> State:
    """A :data:`symrnn.rnn.stack.Cell`."""
    hx = state if len(state) == 2 else state[0]
    operator = MODES[attributes.mode].cell_operator
    new = operator(x, hx, w.ih.dense(), w.hh.dense(), w.bias_ih, w.bias_hh)
    return [new] if isinstance(new, Tensor) else list(new)


def run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Run`."""
    if weights[0].state_mask is not None:  # for which these operators have no argument
        return reference.BACKEND.run(input, batch_sizes, state, weights, attributes)
    if attributes.dropout > 0 and attributes.num_layers > 1 and sees_part():
        return _layer_by_layer(input, batch_sizes, state, weights, attributes)
    if torch.compiler.is_exporting():
        return _call(input, batch_sizes, state, weights, attributes)
    if torch.compiler.is_compiling():
        _make_untraced()
        found: tuple[Tensor, State] = _call_untraced(input, batch_sizes, state, weights, attributes)
        return found
    return _call(input, batch_sizes, state, weights, attributes)


BACKEND = Backend(run, cell)


def _layer_by_layer(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    """The same with our dropout between the layers, in place of the operator's."""
    single = attributes._replace(num_layers=1, dropout=0.0)
    directions = 2 if attributes.bidirectional else 1
    last: list[State] = []
    for depth in range(attributes.num_layers):
        own = slice(depth * directions, (depth + 1) * directions)
        x = dropout(input, attributes.dropout, attributes.training) if depth else input
        input, ended = run(x, batch_sizes, [part[own] for part in state], weights[own], single)
        last.append(ended)
    return input, [torch.cat(parts) for parts in zip(*last, strict=True)]


def _call(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    tensors = [tensor for w in weights for tensor in w.tensors]
    if not torch.compiler.is_exporting() and torch_state.cudnn_takes(tensors):
        flat = _in_one_buffer(weights, attributes)
    else:
        flat = [tensor for w in weights for tensor in w.dense()]
    operator = MODES[attributes.mode].operator
    hx = state if len(state) == 2 else state[0]
    common = (
        flat,
        weights[0].bias_ih is not None,
        attributes.num_layers,
        attributes.dropout,
        attributes.training,
        attributes.bidirectional,
    )
    with _no_word_of_projections(weights[0]):
        if batch_sizes is None:
            output, *last = operator(input, hx, *common, False)
        else:
            output, *last = operator(input, batch_sizes, hx, *common)
    return output, last


# torch.compile leaves the operator alone: traced, it would be taken apart into a loop.
_call_untraced: Any = None


@torch_state.constant_in_graphs
def _make_untraced() -> bool:
    """Made when a graph is, as it imports the compiler."""
    global _call_untraced
    _call_untraced = _call_untraced or torch.compiler.disable(_call)
    return True


@contextmanager
def _no_word_of_projections(first: LayerWeights) -> Iterator[None]:
    """Without the warning that oneDNN has no projections: PyTorch runs its own loop, and well."""
    if first.hr is None or torch.compiler.is_exporting():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported", UserWarning)
        yield


# ---- one buffer for cuDNN ----------------------------------------------------------------------


def _in_one_buffer(weights: Sequence[LayerWeights], attributes: Attributes) -> list[Tensor]:
    """The weights as views of one buffer laid out as cuDNN wants it; differentiable."""
    sources: list[Tensor] = []
    symmetries: list[OrbitCoordinates | None] = []
    shapes: list[tuple[int, ...]] = []
    for w in weights:
        for weight in (w.ih, w.hh, w.bias_ih, w.bias_hh, w.hr):
            if weight is None:
                continue
            symmetry = None
            if isinstance(weight, GateMatrix):
                symmetry = _writes(weight)
                source = weight.parameters if symmetry else weight.dense()
                assert source is not None
            else:
                source = weight
            sources.append(source)
            symmetries.append(symmetry)
            shapes.append(tuple(weight.shape))
    first = weights[0]
    places, total = _cudnn_layout(
        attributes.mode,
        tuple(shapes),
        first.hh.shape[1] if first.hr is None else first.hr.size(1),
        0 if first.hr is None else first.hr.size(0),
        attributes.num_layers,
        attributes.bidirectional,
        sources[0].dtype,
        sources[0].device,
    )
    views: tuple[Tensor, ...] = _OneBuffer.apply(symmetries, shapes, places, total, *sources)
    return list(views)


_cudnn_layout = lru_cache(maxsize=64)(torch_state.cudnn_layout)


def _writes(matrix: GateMatrix) -> OrbitCoordinates | None:
    """The form that writes the whole matrix where it belongs; None if it has to be assembled."""
    symmetry = matrix.symmetry
    whole = matrix.parameters is not None and matrix.rest is None
    return symmetry if whole and isinstance(symmetry, OrbitCoordinates) else None


class _OneBuffer(torch.autograd.Function):
    """Tensors, and symmetric matrices by their parameters, to views of one new buffer."""

    @staticmethod
    def forward(
        ctx: Any,
        symmetries: Sequence[OrbitCoordinates | None],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        total: int,
        *sources: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.symmetries = symmetries
        buffer = sources[0].new_empty(total)
        views = [
            buffer[place : place + math.prod(shape)].view(shape)
            for place, shape in zip(places, shapes, strict=True)
        ]
        end = 0
        for place, view in sorted(zip(places, views, strict=True), key=lambda one: one[0]):
            # Zeros fill what is nobody's: without biases cuDNN has places for them all the same.
            buffer[end:place].zero_()
            end = place + view.numel()
        buffer[end:].zero_()
        for view, symmetry, tensor in zip(views, symmetries, sources, strict=True):
            if symmetry is None:
                view.copy_(tensor)
            else:
                symmetry.write(tensor, view.unflatten(0, (-1, symmetry.side)))
        return tuple(views)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # Not once differentiable only: without cuDNN the operator has gradients of gradients.
        found = [
            gradient
            if symmetry is None
            else symmetry.adjoint(gradient.unflatten(0, (-1, symmetry.side)))
            for symmetry, gradient in zip(ctx.symmetries, gradients, strict=True)
        ]
        return None, None, None, None, *found
