"""A layer as a readable loop: the specification that every other backend is tested against.

One layer, one direction. Shapes: T time, B batch, B_t the sequences that step t runs, R the sum of
all B_t, I input, H hidden, P output (an LSTM's projection size, else H). The state is h (B, P), and
of an LSTM c (B, H) too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import State, by_layer, steps_of, with_ended
from symrnn.rnn.weights import LayerWeights


def layer(
    mode: str, x: Tensor, batch_sizes: Tensor | None, state: State, w: LayerWeights, reverse: bool
) -> tuple[Tensor, State]:
    """x (R, I), step after step, and the state to the output (R, P) and the last state.

    Sequences are sorted by falling length, so that step t runs the first B_t of them and leaves
    the state of the others alone; ``reverse`` runs from the last step to the first.
    """
    hh, from_input = w.hh.dense(), F.linear(x, w.ih.dense(), w.bias_ih)
    steps = steps_of(from_input, batch_sizes, state[0].size(0))
    outputs: list[Tensor] = []
    for x_t in reversed(steps) if reverse else steps:
        old = [part[: x_t.size(0)] for part in state]
        from_hidden = F.linear(w.masked(old[0]), hh, w.bias_hh)
        h, *c = MODES[mode].pointwise(x_t, from_hidden, old)
        h = h if w.hr is None else F.linear(h, w.hr)
        outputs.append(h)
        state = with_ended([h, *c], state)
    return torch.cat(outputs[::-1] if reverse else outputs), state


BACKEND = by_layer(layer)
