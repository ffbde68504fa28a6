"""Layers over layers, in one direction or both: what backends that run one layer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LayerWeights(NamedTuple):
    """The expanded weights of one layer in one direction, G gates stacked as PyTorch stacks them.

    ih: (G·H, I).  hh: (G·H, P).  bias_ih, bias_hh: (G·H,) or None.  hr: (P, H) or None; where it
    is None, P = H.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None


class StackOptions(NamedTuple):
    """What of a recurrent module's arguments decides how its layers are run.

    mode: PyTorch's name of the kind: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
    """

    mode: str
    num_layers: int
    bidirectional: bool
    dropout: float
    training: bool


State = list[Tensor]
"""h, and of an LSTM c too.

Of a module h (L·D, B, P) and c (L·D, B, H), for L layers in D directions; of one layer in one
direction (B, P) and (B, H).
"""

Backend = Callable[[Tensor, Tensor | None, State, list[Any], StackOptions], tuple[Tensor, State]]
"""(input, batch_sizes, state, weights, options) -> (output, state).

input: (T, B, I), or (sum of B_t, I) with batch_sizes (T,) as a PackedSequence holds them.
weights: LayerWeights, for the folded backend FoldedWeights, one for each layer and direction, in
    PyTorch's order.
output: like the input, with D·P in place of I.
"""

Layer = Callable[[str, list[Tensor], State, Any, bool], tuple[list[Tensor], State]]
"""(mode, steps, state, weights, reverse) -> (outputs, state).

See :func:`symrnn.rnn.reference.layer`.
"""


def autocast_on(device_type: str) -> bool:
    """Whether autocast acts on a kind of device, "cpu" or "cuda" for two."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def over_layers(
    x: Tensor,
    state: State,
    options: StackOptions,
    layer: Callable[[int, Tensor, State], tuple[Tensor, State]],
) -> tuple[Tensor, State]:
    """x (R, I) through all layers and directions: the output (R, D·P) and the new state.

    layer: (k, x, state) -> (output, state) runs the k-th, in PyTorch's order, all its steps.
    """
    directions = 2 if options.bidirectional else 1
    last: list[State] = []
    for depth in range(options.num_layers):
        if depth > 0 and options.dropout > 0:
            x = F.dropout(x, options.dropout, options.training)
        sides = []
        for k in range(directions * depth, directions * (depth + 1)):
            output, ended = layer(k, x, [part[k] for part in state])
            sides.append(output)
            last.append(ended)
        x = sides[0] if directions == 1 else torch.cat(sides, -1)
    return x, [torch.stack(parts) for parts in zip(*last, strict=True)]


def stacked(layer: Layer) -> Backend:
    """The backend that runs every layer and direction by ``layer``."""

    def run(
        input: Tensor,
        batch_sizes: Tensor | None,
        state: State,
        weights: list[Any],
        options: StackOptions,
    ) -> tuple[Tensor, State]:
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        steps = input.unbind() if batch_sizes is None else input.split(batch_sizes.tolist())
        steps = list(steps)
        directions = 2 if options.bidirectional else 1
        last: list[State] = []
        for depth in range(options.num_layers):
            if depth > 0 and options.dropout > 0:
                steps = _dropped(steps, batch_sizes, options)
            sides = []
            for direction in range(directions):
                k = directions * depth + direction
                outputs, ended = layer(
                    options.mode, steps, [part[k] for part in state], weights[k], direction == 1
                )
                sides.append(outputs)
                last.append(ended)
            steps = [torch.cat(side, dim=-1) for side in zip(*sides, strict=True)]
        output = torch.stack(steps) if batch_sizes is None else torch.cat(steps)
        return output, [torch.stack(parts) for parts in zip(*last, strict=True)]

    return run


def _dropped(
    steps: list[Tensor], batch_sizes: Tensor | None, options: StackOptions
) -> list[Tensor]:
    # One mask for the whole layer, drawn in the order in which PyTorch's own CPU layers draw it.
    joined = torch.stack(steps) if batch_sizes is None else torch.cat(steps)
    joined = F.dropout(joined, options.dropout, options.training)
    return list(joined.unbind() if batch_sizes is None else joined.split(batch_sizes.tolist()))
