"""One table of the kinds of recurrent layers: gates, states, arithmetic, and the names others give.

A step multiplies twice, W_ih·x + b_ih and W_hh·h + b_hh; the rest is done entry by entry, by the
functions here. Shapes: B batch, H hidden, G gates; gates stand side by side in PyTorch's order.
These functions are Python and TorchScript at once, which is why a state is a list: TorchScript has
no tuple of open length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symrnn import native


def lstm(x: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
    """Gates i, f, g, o; state h and c, each (B, H)."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru(x: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
    """Gates r, z, n; state h. The reset gate scales the hidden part of n, its bias included."""
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = h.chunk(3, -1)
    r = (x_r + h_r).sigmoid()
    z = (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return [(1 - z) * n + z * state[0]]


def rnn_tanh(x: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One gate, which is the new h."""
    return [(x + h).tanh()]


def rnn_relu(x: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One gate, which is the new h."""
    return [torch.relu(x + h)]


Pointwise = Callable[[Tensor, Tensor, list[Tensor]], list[Tensor]]
"""(x, h, state) -> state: W_ih·x + b_ih (B, G·H), W_hh·h + b_hh (B, G·H), and h or h and c."""


class Mode(NamedTuple):
    """A kind of recurrent layer.

    gates: their letters in PyTorch's order.
    states: what a step passes to the next, "h" or "hc".
    pointwise: the arithmetic of a step.
    operator, cell_operator: PyTorch's own, for a stack of layers and for a step.
    native: its number in symrnn.h.
    saves_cells: whether the backward pass needs one more number of each unit and step: an LSTM's
        cell state, a GRU's hidden part of n.
    separate_bias: whether the hidden bias cannot be added ahead of the recurrent product, because a
        GRU's reset gate scales that of n.
    """

    gates: str
    states: str
    pointwise: Pointwise
    operator: Any
    cell_operator: Any
    native: int
    saves_cells: bool = False
    separate_bias: bool = False


MODES: dict[str, Mode] = {
    "LSTM": Mode(
        "ifgo", "hc", lstm, torch.lstm, torch.lstm_cell, native.Mode.LSTM, saves_cells=True
    ),
    "GRU": Mode(
        "rzn", "h", gru, torch.gru, torch.gru_cell, native.Mode.GRU,
        saves_cells=True, separate_bias=True,
    ),
    "RNN_TANH": Mode(
        "h", "h", rnn_tanh, torch.rnn_tanh, torch.rnn_tanh_cell, native.Mode.RNN_TANH
    ),
    "RNN_RELU": Mode(
        "h", "h", rnn_relu, torch.rnn_relu, torch.rnn_relu_cell, native.Mode.RNN_RELU
    ),
}  # fmt: skip
"""By the mode of PyTorch's module, ``nn.LSTM(…).mode``."""
