"""Starting values of a network's weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from symrnn.symmetry import SymmetricTensor
from symrnn.vision.dirac import DiracConv2d


@torch.no_grad()
def initialize(model: nn.Module, fan: str) -> None:
    """Draw new starting values for a network of ReLUs, in place.

    Convolutions from a normal distribution of variance 2/fan (He et al., arXiv 1502.01852), biases
    0, batch norms 1 and 0. Of a symmetric weight the parameters are drawn as its form says: a raw
    number as an entry of a plain weight, an ``avg`` as the mean of a plain weight over the group.

    fan: "in": the numbers that go into an output, (I/groups)·h·w, and the same for linear layers,
        as the authors of Wide ResNets, DiracNets and the symmetry paper draw on CIFAR. "out": the
        numbers that an input goes into, (O/groups)·h·w, as the ResNets of ImageNet were drawn;
        linear layers as PyTorch does, uniform in ±1/√I.

    Dirac convolutions draw their own, see :class:`symrnn.vision.dirac.DiracConv2d`.
    """
    for part in model.modules():
        if isinstance(part, DiracConv2d):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d):
            numbers = part.out_channels if fan == "out" else part.in_channels
            _draw(part, numbers // part.groups * math.prod(part.kernel_size))
        elif isinstance(part, nn.Linear) and fan == "in":
            _draw(part, part.in_features)
        elif isinstance(part, nn.Linear | nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            part.bias.zero_()


def _draw(layer: nn.Conv2d | nn.Linear, fan: int) -> None:
    deviation = math.sqrt(2 / fan)

    def draw(tensor: Tensor) -> Tensor:
        return tensor.normal_(0, deviation)

    if not is_parametrized(layer, "weight"):
        draw(layer.weight)
        return
    parametrized: Any = layer.parametrizations
    form = parametrized.weight[0]
    assert isinstance(form, SymmetricTensor)
    form.initialize(parametrized.weight.original, draw)
