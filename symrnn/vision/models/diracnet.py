"""DiracNets (arXiv 1706.00388): plain chains, as deep as residual networks.

Those of the paper's second version, with one a and b for each channel and ReLU in place of NCReLU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from symrnn.vision.dirac import DiracConv2d
from symrnn.vision.models.layers import channels, check_depth, conv
from symrnn.vision.models.network import Network


class DiracBlock(nn.Sequential):
    """ReLU, a 3×3 Dirac convolution, batch norm: (B, inputs, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            OrderedDict(
                relu=nn.ReLU(),
                conv=DiracConv2d(inputs, outputs, 3, padding=1, bias=False),
                norm=nn.BatchNorm2d(outputs),
            )
        )


class DiracNet(Network, nn.Sequential):
    """A stem, stages of blocks with max-pooling by 2 between them, and a linear classifier.

    Pictures (B, 3, h, w) -> logits (B, num_classes).

    stem: from pictures to ``widths[0]`` channels, without a ReLU: every block starts with one.
    widths, depths: of each stage the channels and the number of blocks.
    """

    def __init__(
        self, stem: nn.Sequential, widths: Sequence[int], depths: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(OrderedDict(stem=stem))
        inputs = widths[0]
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            if number > 1:
                self.add_module(f"pool{number - 1}", nn.MaxPool2d(2))
            blocks = [DiracBlock(inputs if i == 0 else width, width) for i in range(depth)]
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
            inputs = width
        self.add_module("relu", nn.ReLU())
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("classifier", nn.Linear(inputs, num_classes))


def diracnet(depth: int, width: float, num_classes: int = 10) -> DiracNet:
    """DiracNet-depth-width for CIFAR, pictures (B, 3, 32, 32).

    depth: 6n+4 with n ≥ 1: three stages of 2n blocks, counted as wide ResNets' are.
    width: widens the stages of 16, 32 and 64 channels; DiracNet-28-10 has 36.5 million parameters.

    Raises ValueError for another depth, and a width that leaves no channel.
    """
    n = check_depth(depth, 6, 4)
    widths = [channels(base, width) for base in (16, 32, 64)]
    stem = OrderedDict(conv=conv(3, widths[0], 3), norm=nn.BatchNorm2d(widths[0]))
    return DiracNet(nn.Sequential(stem), widths, [2 * n] * 3, num_classes)


DEPTHS = {18: (4, 4, 4, 4), 34: (6, 8, 12, 6)}
"""How many blocks each stage of an ImageNet DiracNet has: the convolutions of ResNet-18 and -34."""


def diracnet_imagenet(depth: int, num_classes: int = 1000) -> DiracNet:
    """DiracNet-18 or -34 for ImageNet, pictures (B, 3, 224, 224).

    depth: 18 or 34. The first has 11,523,368 parameters, as the authors' released model prints
        (the 11.7 million that they write above it is ResNet-18's number); folded they have
        11,511,784 and 21,616,232.

    Raises ValueError for another depth.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth should be one of {', '.join(map(str, DEPTHS))}, got: {depth}")
    stem = OrderedDict(
        conv=conv(3, 64, 7, stride=2),
        norm=nn.BatchNorm2d(64),
        pool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return DiracNet(nn.Sequential(stem), (64, 128, 256, 512), DEPTHS[depth], num_classes)
