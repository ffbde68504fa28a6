"""What a step of each kind does with its two products: the arithmetic entry by entry.

A step multiplies twice, W_ih·x + b_ih and W_hh·h + b_hh, and all the rest is here. Shapes: B batch,
H hidden, G gates; gates stand side by side in PyTorch's order. These functions are Python and
TorchScript at once, which is why a state is a list: TorchScript has no tuple of open length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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

POINTWISE: dict[str, Pointwise] = {
    "LSTM": lstm,
    "GRU": gru,
    "RNN_TANH": rnn_tanh,
    "RNN_RELU": rnn_relu,
}
"""By the mode of PyTorch's module, ``nn.LSTM(…).mode``."""
