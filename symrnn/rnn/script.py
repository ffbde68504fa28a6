"""A layer in TorchScript: a scripted step in a scripted loop.

The input product of all steps is one multiplication ahead of the loop, biases included, and a step
is one multiplication and the arithmetic of its kind. TorchScript is deprecated in PyTorch from 2.11
on; this file is the only one that uses it, and compiles at the first call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.pointwise import POINTWISE
from symrnn.rnn.stack import LayerWeights, State, autocast_on


class Compiled(NamedTuple):
    """What TorchScript made for one kind; the arguments stand in :func:`compiled`."""

    step: Any
    loop: Any


@cache
def compiled(mode: str) -> Compiled:
    """The step and the loop of one kind, compiled without TorchScript's notice of deprecation."""
    pointwise = POINTWISE[mode]

    def step(
        projected: Tensor,
        state: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> list[Tensor]:
        """One step: projected x W_ihᵀ + b_ih (B, G·H) and the state to the new state."""
        from_hidden = torch.mm(state[0], w_hh.t())
        if b_hh is not None:
            from_hidden = from_hidden + b_hh
        new = pointwise(projected, from_hidden, state)
        if w_hr is not None:
            new[0] = F.linear(new[0], w_hr)
        return new

    def loop(
        steps: list[Tensor],
        state: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        reverse: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """T projected steps (B_t, G·H) to T outputs (B_t, P), state; as the reference's layer."""
        outputs: list[Tensor] = []
        for t in range(len(steps)):
            x = steps[len(steps) - 1 - t] if reverse else steps[t]
            running = x.size(0)
            if running == state[0].size(0):
                state = step(x, state, w_hh, b_hh, w_hr)
                outputs.append(state[0])
            else:
                new = step(x, [part[:running] for part in state], w_hh, b_hh, w_hr)
                outputs.append(new[0])
                state = [torch.cat([new[k], state[k][running:]]) for k in range(len(new))]
        if reverse:
            outputs.reverse()
        return outputs, state

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch.jit", DeprecationWarning)
        return Compiled(torch.jit.script(step), torch.jit.script(loop))


def layer(
    mode: str, steps: list[Tensor], state: State, w: LayerWeights, reverse: bool
) -> tuple[list[Tensor], State]:
    """One layer in one direction; the arguments of :func:`symrnn.rnn.reference.layer`."""
    w = _biases_ahead(mode, w)
    projected = F.linear(torch.cat(steps), w.ih, w.bias_ih)
    with _autocast_settled(projected, state, w) as (state, w), _pytorch_gradients():
        pieces = list(projected.split([len(x) for x in steps]))
        outputs, state = compiled(mode).loop(pieces, state, w.hh, w.bias_hh, w.hr, reverse)
    return outputs, state


def cell(mode: str, x: Tensor, state: State, w: LayerWeights) -> State:
    """One step of a cell; the arguments of :func:`symrnn.rnn.reference.cell`."""
    w = _biases_ahead(mode, w)
    projected = F.linear(x, w.ih, w.bias_ih)
    with _autocast_settled(projected, state, w) as (state, w), _pytorch_gradients():
        new: State = compiled(mode).step(projected, state, w.hh, w.bias_hh, w.hr)
    return new


def _biases_ahead(mode: str, w: LayerWeights) -> LayerWeights:
    """The weights with both biases in one, which is added ahead of the loop, where that may be.

    A GRU's reset gate scales the hidden bias of its gate n, so there the two stay apart.
    """
    if mode == "GRU" or w.bias_ih is None or w.bias_hh is None:
        return w
    return w._replace(bias_ih=w.bias_ih + w.bias_hh, bias_hh=None)


def _pytorch_gradients() -> AbstractContextManager[None]:
    """Where gradients are asked for, leave them to PyTorch.

    TorchScript makes its own otherwise, from the second call on, and those fail where a result has
    no part in the loss: a cell of which only c is used.
    """
    return torch.jit.optimized_execution(not torch.is_grad_enabled())


@contextmanager
def _autocast_settled(
    projected: Tensor, state: State, w: LayerWeights
) -> Iterator[tuple[State, LayerWeights]]:
    """The state and the weights as the scripted code is to have them.

    TorchScript compiles autocast's dtype into the code and then fails under another. So autocast
    is settled here: all is cast as ``projected`` was, and autocast is off inside.
    """
    device = projected.device.type
    if not autocast_on(device):
        yield state, w
        return
    dtype = projected.dtype
    with torch.autocast(device, enabled=False):
        cast: Any = [None if tensor is None else tensor.to(dtype) for tensor in w]
        yield [part.to(dtype) for part in state], LayerWeights(*cast)
