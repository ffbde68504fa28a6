"""Layers over layers, in one direction or both: the one loop, for every backend that runs a layer.

Shapes: T time, B batch, B_t the sequences that step t runs, R the sum of all B_t, I input,
H hidden, P output (the projection's size, or H), L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from symrnn.rnn.dropout import dropout
from symrnn.rnn.weights import LayerWeights


class Attributes(NamedTuple):
    """What of a recurrent module's arguments decides how its layers are run.

    mode: PyTorch's name of the kind, of :data:`symrnn.rnn.modes.MODES`.
    inference_dtype: what weights are packed as where no gradient is wanted; None: as they are.
    """

    mode: str
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    training: bool = False
    inference_dtype: torch.dtype | None = None


State = list[Tensor]
"""h, and of an LSTM c too.

Of a module h (L·D, B, P) and c (L·D, B, H); of one layer in one direction (B, P) and (B, H).
"""

Run = Callable[[Tensor, Tensor | None, State, list[LayerWeights], Attributes], tuple[Tensor, State]]
"""(input, batch_sizes, state, weights, attributes) -> (output, state).

input: (T, B, I), or (R, I) with batch_sizes (T,) as a PackedSequence holds them.
weights: one for each layer and direction, in PyTorch's order.
output: like the input, with D·P in place of I.
"""

Cell = Callable[[Tensor, State, LayerWeights, Attributes], State]
"""(input, state, weights, attributes) -> state: one step of input (B, I)."""


class Backend(NamedTuple):
    """A way to run recurrent layers, and one to run a step of a cell."""

    run: Run
    cell: Cell


Layer = Callable[[str, Tensor, Tensor | None, State, LayerWeights, bool], tuple[Tensor, State]]
"""(mode, x, batch_sizes, state, weights, reverse) -> (output, state): one layer, one direction.

x (R, I), output (R, P); see :func:`symrnn.rnn.reference.layer`.
"""


def over_layers(
    x: Tensor, attributes: Attributes, layer: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """x (R, I) through all layers and directions: the output (R, D·P).

    layer: (k, x) -> output runs the k-th, in PyTorch's order, all its steps.
    """
    for depth in range(attributes.num_layers):
        if depth > 0 and attributes.dropout > 0:
            # One mask for the whole layer, in the order in which PyTorch's CPU layers draw it.
            x = dropout(x, attributes.dropout, attributes.training)
        if attributes.bidirectional:
            x = torch.cat([layer(2 * depth, x), layer(2 * depth + 1, x)], -1)
        else:
            x = layer(depth, x)
    return x


def run_layers(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    attributes: Attributes,
    layer: Callable[[int, Tensor, State, bool], tuple[Tensor, State]],
) -> tuple[Tensor, State]:
    """As :data:`Run`, where ``layer`` takes (k, x, state, reverse) and gives (output, state)."""
    if input.size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    last: list[State] = []

    def one(k: int, x: Tensor) -> Tensor:
        reverse = attributes.bidirectional and k % 2 == 1
        output, ended = layer(k, x, [part[k] for part in state], reverse)
        last.append(ended)
        return output

    shape = input.shape[:-1]
    output = over_layers(input.flatten(0, 1) if batch_sizes is None else input, attributes, one)
    if batch_sizes is None:
        output = output.unflatten(0, shape)
    return output, [torch.stack(parts) for parts in zip(*last, strict=True)]


def by_layer(layer: Layer) -> Backend:
    """The backend that runs every layer and direction, and every cell, by ``layer``."""

    def run(
        input: Tensor,
        batch_sizes: Tensor | None,
        state: State,
        weights: list[LayerWeights],
        attributes: Attributes,
    ) -> tuple[Tensor, State]:
        def one(k: int, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, State]:
            return layer(attributes.mode, x, batch_sizes, state, weights[k], reverse)

        return run_layers(input, batch_sizes, state, attributes, one)

    def cell(input: Tensor, state: State, weights: LayerWeights, attributes: Attributes) -> State:
        return layer(attributes.mode, input, None, state, weights, False)[1]

    return Backend(run, cell)


def steps_of(x: Tensor, batch_sizes: Tensor | None, batch: int) -> list[Tensor]:
    """x (R, …) as its steps (B_t, …), first to last."""
    if batch_sizes is not None:
        return list(x.split(batch_sizes.tolist()))
    return list(x.unflatten(0, (-1, batch)).unbind()) if batch else [x]


def with_ended(new: State, old: State) -> State:
    """The new state (B_t, …), and that of the sequences which the step did not run: (B, …)."""
    return [
        torch.cat([a, b[a.size(0) :]]) if a.size(0) < b.size(0) else a
        for a, b in zip(new, old, strict=True)
    ]


def autocast_on(device_type: str) -> bool:
    """Whether autocast acts on a kind of device, "cpu" or "cuda" for two."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
