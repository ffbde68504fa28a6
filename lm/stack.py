"""Recurrent layers one above the other, each a module of its own.

For what the layers of one module cannot have: hidden sizes that differ, and dropout between them by
masks that are fixed over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symrnn.rnn.dropout import dropout
from symrnn.rnn.modes import MODES

State = tuple[Tensor, ...]
"""h, and of an LSTM c too, each (L, B, H): a tuple whatever the cell. Of a stack that of its lowest
module, then that of the next, and so on."""


class Dropout(nn.Dropout):
    """``nn.Dropout`` for the streams of a batch (:func:`symrnn.rnn.dropout.part_of_batch`).

    (..., B, F) -> (..., B, F).
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.dropout(input, self.p, self.training)
        return dropout(input, self.p, self.training)


class FixedDropout(Dropout):
    """Dropout by one mask for all time steps of a call, drawn anew at each (variational dropout).

    Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks" (2016). (T, B, F) -> (T, B, F): the mask is (B, F), and what stays is over 1 - p.
    """

    def forward(self, input: Tensor) -> Tensor:
        return input * super().forward(torch.ones_like(input[:1]))


class RecurrentStack(nn.Module):
    """Recurrent modules in their order: the output of each, after a dropout, is the next's input.

    layers: of this library, lowest first.
    drop: what is between them.
    """

    def __init__(self, layers: Sequence[nn.Module], drop: nn.Dropout) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.drop = drop

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """input (T, B, I), state -> the highest output (T, B, H), state."""
        after: list[Tensor] = []
        for k, layer in enumerate(self.layers):
            count = len(states_of(layer))
            own = None if state is None else state[k * count : (k + 1) * count]
            input, new = run_layers(layer, self.drop(input) if k else input, own)
            after += new
        return input, tuple(after)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ValueError("TorchScript takes recurrent layers of one module, not a stack of several")


def run_layers(layers: Any, input: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Call a recurrent module, or a stack, with a tuple for its state whatever the cell."""
    if isinstance(layers, RecurrentStack):
        output, after = layers(input, state)
        return output, after
    single = len(states_of(layers)) == 1
    output, hx = layers(input, state[0] if single and state is not None else state)
    return output, (hx,) if single else hx


def states_of(layers: Any) -> str:
    """The tensors of a recurrent module's state, by letter."""
    return MODES[layers.mode].states
