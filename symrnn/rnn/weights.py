"""The weights of a layer as a frozen value: what every backend is given.

A backend never sees the module. It reads the tensors here in whichever form it runs on: dense, or
folded; the packing of :mod:`symrnn.rnn.fused.packing` is made of them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn.dropout import dropout
from symrnn.rnn.gates import GateLayout
from symrnn.symmetry import Symmetry


@dataclass(frozen=True)
class GateMatrix:
    """A stacked gate matrix (G·H, C) by the parameters that it is stored as.

    symmetry: the form of the symmetric gates' blocks; None if there are no such gates.
    parameters: (S, numel), of the S symmetric gates; None if there are none.
    rest: ((G-S)·H, C), the blocks of the other gates; None if there are none.
    """

    layout: GateLayout
    symmetry: Symmetry | None
    parameters: Tensor | None
    rest: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """What the matrix is made of."""
        return [tensor for tensor in (self.parameters, self.rest) if tensor is not None]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.layout.gates) * self.layout.rows, self.layout.columns

    @property
    def folds(self) -> bool:
        """Whether all gates are symmetric, in a form that folds."""
        return self.symmetry is not None and self.symmetry.folding is not None and self.rest is None

    def dense(self) -> Tensor:
        """The matrix (G·H, C); contiguous, and differentiable to the parameters."""
        if self.parameters is None:
            assert self.rest is not None
            return self.rest
        assert self.symmetry is not None
        expanded = self.symmetry.expand(self.parameters)
        if self.rest is None:
            return expanded.view(-1, self.layout.columns)
        rest = self.rest.view(-1, self.layout.rows, self.layout.columns)
        blocks = dict(zip(self.layout.symmetric, expanded.unbind(), strict=True))
        blocks.update(zip(self.layout.rest, rest.unbind(), strict=True))
        return torch.cat([blocks[gate] for gate in self.layout.gates])

    def dropped(self, p: float) -> GateMatrix:
        """With each of its parameters zero by a chance of p, the others over 1 - p.

        An orbit has one parameter and falls as one, so that a symmetric matrix stays symmetric.
        """
        parameters, rest = (
            None if part is None else F.dropout(part, p) for part in (self.parameters, self.rest)
        )
        return replace(self, parameters=parameters, rest=rest)

    def folded(self) -> list[Tensor]:
        """The small matrices (G, r, c) of all gates; differentiable. Only where it folds."""
        assert self.symmetry is not None
        assert self.parameters is not None
        return self.symmetry.matrices(self.parameters)


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer in one direction.

    ih: (G·H, I).  hh: (G·H, P).  bias_ih, bias_hh: (G·H,) or None.
    hr: the projection (P, H) or None; where it is None, P = H.
    state_mask: (B, P), of one call: what h is multiplied by before ``hh``, at every step; or None.
    """

    ih: GateMatrix
    hh: GateMatrix
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None
    state_mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What the weights are made of, in PyTorch's order."""
        others = [tensor for tensor in (self.bias_ih, self.bias_hh, self.hr) if tensor is not None]
        return [*self.ih.tensors, *self.hh.tensors, *others]

    def dropped(self, h: Tensor, state_dropout: float, weight_dropout: float) -> LayerWeights:
        """As one call in training has them: hidden weights dropped, and a mask for h (B, P)."""
        hh = self.hh.dropped(weight_dropout) if weight_dropout else self.hh
        mask = dropout(torch.ones_like(h), state_dropout) if state_dropout else None
        return replace(self, hh=hh, state_mask=mask)

    def masked(self, h: Tensor) -> Tensor:
        """The h (B_t, P) that ``hh`` multiplies, of the first B_t sequences."""
        return h if self.state_mask is None else h * self.state_mask[: h.size(0)].to(h.dtype)

    def named_tensors(self) -> dict[str, Tensor]:
        """The same by the names of the module's parameters."""
        suffix = self.hh.layout.name.removeprefix("weight_hh")
        others = {"bias_ih": self.bias_ih, "bias_hh": self.bias_hh, "weight_hr": self.hr}
        return {
            **dict(zip(self.ih.layout.parameter_names, self.ih.tensors, strict=True)),
            **dict(zip(self.hh.layout.parameter_names, self.hh.tensors, strict=True)),
            **{f"{name}{suffix}": t for name, t in others.items() if t is not None},
        }

    def dense(self) -> list[Tensor]:
        """The expanded weights as PyTorch's layer lists them."""
        others = [tensor for tensor in (self.bias_ih, self.bias_hh, self.hr) if tensor is not None]
        return [self.ih.dense(), self.hh.dense(), *others]


def check_devices(weights: Sequence[LayerWeights]) -> None:
    """Raise ValueError that names the weight that is not where most are.

    PyTorch's products take a matrix of the device "meta", which has no numbers, beside tensors that
    have some, and give what happened to lie in the memory of the result.
    """
    if len({tensor.device for w in weights for tensor in w.tensors}) == 1:
        return
    named = [item for w in weights for item in w.named_tensors().items()]
    (device, _), *_ = Counter(tensor.device for _, tensor in named).most_common()
    for name, tensor in named:
        if tensor.device != device:
            raise ValueError(f"{name} should be on the device {device}, got: {tensor.device}")
