"""ResNets for ImageNet (arXiv 1512.03385), and wide ones (arXiv 1605.07146).

The stride of a bottleneck is that of its 3×3 convolution, as in the definitions that both papers'
later counts and errors are of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from symrnn.vision.models.layers import channels, conv
from symrnn.vision.models.network import Network

DEPTHS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""How many blocks each stage has: basic ones to depth 34, bottlenecks beyond."""


class Basic(nn.Module):
    """Two 3×3 convolutions: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride).

    The 3×3 works on ``width`` channels, in ``groups``.
    """

    def __init__(
        self, inputs: int, width: int, outputs: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1×1 convolution with batch norm where the shape changes ("option B"), else nothing."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(Network):
    """A stem, stages of blocks each at half the resolution of the last, a mean, a classifier.

    Pictures (B, 3, h, w) -> logits (B, num_classes).

    stem: from pictures to ``inputs`` channels.
    block: makes one of (inputs, stage, stride), stages counted from 0.
    outputs: of each stage, the channels.  counts: of each stage, how many blocks.
    """

    def __init__(
        self,
        stem: nn.Module,
        inputs: int,
        block: Callable[[int, int, int], nn.Module],
        outputs: Sequence[int],
        counts: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        stages = []
        for stage, count in enumerate(counts):
            blocks = [block(inputs, stage, 1 if stage == 0 else 2)]
            inputs = outputs[stage]
            blocks += [block(inputs, stage, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.classifier(x.mean((2, 3)))


def imagenet_stem() -> nn.Sequential:
    """A 7×7 convolution and max-pooling, each of stride 2: (B, 3, h, w) -> (B, 64, h/4, w/4)."""
    return nn.Sequential(
        conv(3, 64, 7, stride=2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    )


def resnet(depth: int, num_classes: int, width: float = 1.0) -> ResNet:
    """resnet-D, and wrn-D-K for ImageNet.

    depth: 18, 34, 50, 101 or 152.
    width: K. Of basic blocks all channels are widened; of bottlenecks those of the 3×3, and not
        the 256 to 2048 channels that the stages end with. The stem stays as it is.
    """
    inner = [channels(base, width) for base in (64, 128, 256, 512)]
    if depth < 50:
        basic = lambda inputs, stage, stride: Basic(inputs, inner[stage], stride)  # noqa: E731
        return ResNet(imagenet_stem(), 64, basic, inner, DEPTHS[depth], num_classes)
    return bottleneck_resnet(DEPTHS[depth], num_classes, inner)


def bottleneck_resnet(
    counts: Sequence[int], num_classes: int, inner: Sequence[int], groups: int = 1
) -> ResNet:
    """A ResNet of bottlenecks whose 3×3 work on ``inner`` channels of each stage, in groups."""
    outputs = (256, 512, 1024, 2048)
    block = lambda inputs, stage, stride: Bottleneck(  # noqa: E731
        inputs, inner[stage], outputs[stage], stride, groups
    )
    return ResNet(imagenet_stem(), 64, block, outputs, counts, num_classes)
