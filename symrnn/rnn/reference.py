"""The LSTM as a readable loop: the specification that every other way to run it is tested against.

One layer, one direction. Shapes: T time, B batch, I input, H hidden, P output (projection size,
or H without projection); gates in the order i, f, g, o.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.stack import LayerWeights


def cell(x: Tensor, h: Tensor, c: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
    """One step: x (B, I), h (B, P), c (B, H) -> h (B, P), c (B, H)."""
    gates = F.linear(x, w.ih, w.bias_ih) + F.linear(h, w.hh, w.bias_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    if w.hr is not None:
        h = F.linear(h, w.hr)
    return h, c


def layer(
    steps: list[Tensor], h: Tensor, c: Tensor, w: LayerWeights, reverse: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """T steps of x (B_t, I), first to last; h (B, P), c (B, H) -> T outputs (B_t, P), h, c.

    Sequences are sorted by falling length, so that step t runs the first B_t of them and leaves
    the state of the others alone; ``reverse`` runs from the last step to the first.
    """
    outputs: list[Tensor] = []
    for x in reversed(steps) if reverse else steps:
        running = len(x)
        h_new, c_new = cell(x, h[:running], c[:running], w)
        outputs.append(h_new)
        h, c = torch.cat([h_new, h[running:]]), torch.cat([c_new, c[running:]])
    return outputs[::-1] if reverse else outputs, h, c
