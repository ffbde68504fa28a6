"""Wide ResNets for CIFAR (arXiv 1605.07146), and the pre-activation ResNets that they widen.

Pre-activation (arXiv 1603.05027): batch norm and ReLU stand before a convolution, so that nothing
but additions lies on the way from the stem to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from symrnn.vision.models.layers import channels, check_depth, conv
from symrnn.vision.models.network import Network


class Basic(nn.Module):
    """Two 3×3 convolutions: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride).

    The shortcut is a 1×1 convolution of the first ReLU's output where the number of channels
    changes, and x itself elsewhere.

    dropout: between the two, as the paper places it.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(width, width, 3)
        self.shortcut = conv(inputs, width, 1, stride) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)))
        y = self.conv2(self.dropout(y))
        return x + y


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1: (B, inputs, h, w) -> (B, 4·width, h/stride, w/stride).

    The 3×3 works on ``width`` channels, in ``groups``; the shortcut as in :class:`Basic`.

    dropout: before the 3×3.
    early: whether the first 1×1 has the stride, and not the 3×3.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        dropout: float = 0.0,
        groups: int = 1,
        early: bool = False,
    ) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, 1, stride if early else 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(width, width, 3, 1 if early else stride, groups)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.shortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)))
        y = F.relu(self.norm3(self.conv2(self.dropout(y))))
        return x + self.conv3(y)


class WideResNet(Network):
    """A 3×3 stem, three stages of n blocks, batch norm, ReLU, the mean over space, a classifier.

    Pictures (B, 3, h, w) -> logits (B, num_classes).

    block: makes one of (inputs, width, stride).  expansion: its output channels per width.
    width: K; the stages' blocks have 16K, 32K and 64K channels, rounded down.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        expansion: int,
        n: int,
        width: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = conv(3, 16, 3)
        inputs = 16
        stages = []
        for base, stride in ((16, 1), (32, 2), (64, 2)):
            inner = channels(base, width)
            blocks = [block(inputs, inner, stride)]
            inputs = expansion * inner
            blocks += [block(inputs, inner, 1) for _ in range(n - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        x = F.relu(self.norm(x))
        return self.classifier(x.mean((2, 3)))


def wide_resnet(
    depth: int, width: float, block: str, num_classes: int, *, dropout: float = 0.0
) -> WideResNet:
    """wrn-D-K-basic or wrn-D-K-bottleneck.

    depth: D = 6n+4, for either block, as the symmetry paper counts (wrn-16 has stages of two
        blocks). Only with basic blocks is it the number of convolutions.
    block: "basic" or "bottleneck"; the latter's stages end with 64K, 128K and 256K channels.
    dropout: inside the blocks, 0 ≤ dropout < 1; the paper has 0.3 where it has any.
    """
    n = check_depth(depth, 6, 4)
    kind: type[Basic] | type[Bottleneck] = {"basic": Basic, "bottleneck": Bottleneck}[block]
    return WideResNet(partial(kind, dropout=dropout), kind.expansion, n, width, num_classes)


def preactivation_resnet(depth: int, num_classes: int) -> WideResNet:
    """resnet-164 and its kin: bottleneck blocks of width 1.

    depth: 9n+2, three convolutions in each of 3n blocks; 164 and 1001 in the paper
        (arXiv 1603.05027), in whose code, as in ShaResNet's, the first 1×1 of a block has the
        stride.
    """
    block = partial(Bottleneck, early=True)
    return WideResNet(block, Bottleneck.expansion, check_depth(depth, 9, 2), 1, num_classes)
