"""Calls of packed layers for one shape of input, checked and made in C where that can be had.

A step of a small layer takes less time than Python takes to check and to make the call. So what
has to hold is noted once, as a plan, and python/calls.cpp of :mod:`symrnn.native` goes through it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from symrnn import native
from symrnn.rnn import torch_state
from symrnn.rnn.fused.cache import Sources
from symrnn.rnn.fused.inference import Bound, PackedStack
from symrnn.rnn.fused.packing import library

MOST_ROWS = 64
"""Up to so many rows (steps times sequences) a call has a plan."""

MOST_PLANS = 16
"""So many a module has, each for one shape of input."""

_NO_CHECKS: tuple[Any, ...] = (Tensor, (), ())
_NO_SOURCES: tuple[Any, ...] = ((), 0, 0, 0, 0, 0)


class Shapes(NamedTuple):
    """The shapes of one call: of input, output, and each part of the state."""

    x: tuple[int, ...]
    output: tuple[int, ...]
    state: tuple[int, ...]


def call_plan(
    stack: PackedStack, sources: Sources, shapes: Shapes, steps: int, batch: int, is_cell: bool
) -> Any:
    """A call of a module without gradients; None if calls cannot be made so.

    That is an object whose call(parameters, x, hx) gives the result, or None where anything is not
    as it was.
    """
    guards = (torch.is_grad_enabled, False, *torch_state.GUARDS)
    return _plan(
        stack, guards, shapes, steps, batch, is_cell, _NO_CHECKS, (), sources.noted(), sources
    )


def packed_plan(
    stack: PackedStack, sources: Sources, shapes: Shapes, steps: int, batch: int, is_cell: bool
) -> Any:
    """As :func:`call_plan`, of a module that holds packed weights and so no parameters.

    Gradients may be on, if the input and the state want none.
    """
    return _plan(
        stack, torch_state.GUARDS, shapes, steps, batch, is_cell, _NO_CHECKS, (), sources.noted(),
        sources, "requires_grad", False,
    )  # fmt: skip


def step_plan(stack: PackedStack, bound: Bound, shapes: Shapes, batch: int) -> Any:
    """A step of a stream: an object whose step(x, out) gives the output, or None as above."""
    checks = _tensor(shapes.output, stack.dtype, "requires_grad", False)
    return _plan(
        stack, torch_state.GUARDS, shapes, 1, batch, False, checks, bound.state, _NO_SOURCES, bound
    )


def _plan(
    stack: PackedStack,
    guards: tuple[Any, ...],
    shapes: Shapes,
    steps: int,
    batch: int,
    is_cell: bool,
    out: tuple[Any, ...],
    state: tuple[Tensor, ...],
    sources: tuple[Any, ...],
    alive: Any,
    *more: Any,
) -> Any:
    """more: names and values, in turn, of attributes that the input and the state must have."""
    calls = native.calls()
    if calls is None:
        return None
    # Not of inference mode, whose tensors could not be given to autograd later.
    with torch.inference_mode(False):
        like_output, like_state = (
            torch.empty(shape, dtype=stack.dtype) for shape in (shapes.output, shapes.state)
        )
    h, c = ([part.data_ptr() for part in state] + [0, 0])[:2]
    return calls.Plan(
        guards,
        _tensor(shapes.x, stack.dtype, *more),
        _tensor(shapes.state, stack.dtype, *more),
        out,
        torch.empty_like,
        like_output,
        like_state,
        stack.threads_function(steps, batch),
        (
            *(
                native.address_of(library().symrnn_advance),
                stack.address,
                stack.count,
                stack.states,
            ),
            *(is_cell, steps, batch, like_output.nbytes, like_state.nbytes, h, c),
        ),
        sources,
        (alive, stack, state),
    )


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, *more: Any) -> tuple[Any, ...]:
    attributes = ("shape", shape, "dtype", dtype, "is_cpu", True, *more)
    return Tensor, attributes, ("is_contiguous", True, "is_neg", False)
