"""The LSTM in TorchScript: a scripted cell in a scripted loop.

The input product of all steps is one multiplication ahead of the loop, and a step is one
multiplication and the gate arithmetic. TorchScript is deprecated in PyTorch from 2.11 on; this
file is the only one that uses it, and compiles at the first call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.stack import LayerWeights


def cell(
    projected: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, w_hr: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step: projected x W_ihᵀ + b (B, 4·H), h (B, P), c (B, H) -> h (B, P), c (B, H)."""
    gates = torch.addmm(projected, h, w_hh.t())
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if w_hr is not None:
        h = F.linear(h, w_hr)
    return h, c


def loop(
    steps: list[Tensor], h: Tensor, c: Tensor, w_hh: Tensor, w_hr: Tensor | None, reverse: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """T projected steps (B_t, 4·H) -> T outputs (B_t, P), h, c; as the reference's layer."""
    outputs: list[Tensor] = []
    for t in range(len(steps)):
        x = steps[len(steps) - 1 - t] if reverse else steps[t]
        running = x.size(0)
        if running == h.size(0):
            h, c = cell(x, h, c, w_hh, w_hr)
            outputs.append(h)
        else:
            h_new, c_new = cell(x, h[:running], c[:running], w_hh, w_hr)
            outputs.append(h_new)
            h = torch.cat([h_new, h[running:]])
            c = torch.cat([c_new, c[running:]])
    if reverse:
        outputs.reverse()
    return outputs, h, c


@cache
def compiled(function: Any) -> Any:
    """``function`` compiled by TorchScript, without its notice of deprecation."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch.jit", DeprecationWarning)
        return torch.jit.script(function)


def layer(
    steps: list[Tensor], h: Tensor, c: Tensor, w: LayerWeights, reverse: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One layer in one direction; the arguments of :func:`symrnn.rnn.reference.layer`."""
    projected = F.linear(torch.cat(steps), w.ih, _sum(w.bias_ih, w.bias_hh))
    with _autocast_settled(projected, h, c, w) as (h, c, w_hh, w_hr):
        pieces = list(projected.split([len(x) for x in steps]))
        return compiled(loop)(pieces, h, c, w_hh, w_hr, reverse)


def step(x: Tensor, h: Tensor, c: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
    """One step of a cell: x (B, I), h (B, H), c (B, H) -> h, c."""
    projected = F.linear(x, w.ih, _sum(w.bias_ih, w.bias_hh))
    with _autocast_settled(projected, h, c, w) as (h, c, w_hh, w_hr):
        return compiled(cell)(projected, h, c, w_hh, w_hr)


@contextmanager
def _autocast_settled(
    projected: Tensor, h: Tensor, c: Tensor, w: LayerWeights
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """h, c, w.hh and w.hr as the scripted code is to have them.

    TorchScript compiles autocast's dtype into the code and then fails under another. So autocast
    is settled here: all is cast as ``projected`` was, and autocast is off inside.
    """
    device = projected.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        yield h, c, w.hh, w.hr
        return
    dtype = projected.dtype
    with torch.autocast(device, enabled=False):
        yield h.to(dtype), c.to(dtype), w.hh.to(dtype), None if w.hr is None else w.hr.to(dtype)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b
