"""A layer as a readable loop: the specification that every other way to run it is tested against.

One layer, one direction. Shapes: T time, B batch, I input, H hidden, P output (an LSTM's projection
size, else H). The state is h (B, P), and of an LSTM c (B, H) too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.pointwise import POINTWISE
from symrnn.rnn.stack import LayerWeights, State


def cell(mode: str, x: Tensor, state: State, w: LayerWeights) -> State:
    """One step: x (B, I) and the state to the new state."""
    from_input = F.linear(x, w.ih, w.bias_ih)
    from_hidden = F.linear(state[0], w.hh, w.bias_hh)
    h, *c = POINTWISE[mode](from_input, from_hidden, state)
    return [h if w.hr is None else F.linear(h, w.hr), *c]


def layer(
    mode: str, steps: list[Tensor], state: State, w: LayerWeights, reverse: bool
) -> tuple[list[Tensor], State]:
    """T steps of x (B_t, I), first to last, and the state to T outputs (B_t, P), state.

    Sequences are sorted by falling length, so that step t runs the first B_t of them and leaves
    the state of the others alone; ``reverse`` runs from the last step to the first.
    """
    outputs: list[Tensor] = []
    for x in reversed(steps) if reverse else steps:
        running = len(x)
        new = cell(mode, x, [part[:running] for part in state], w)
        outputs.append(new[0])
        state = [torch.cat([a, b[running:]]) for a, b in zip(new, state, strict=True)]
    return outputs[::-1] if reverse else outputs, state
