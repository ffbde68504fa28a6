"""MobileNet, the first version (arXiv 1704.04861): depthwise 3×3 and pointwise 1×1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from symrnn.vision.models.layers import channels, conv
from symrnn.vision.models.network import Network

# Of each block, the channels it ends with and the stride of its depthwise convolution: Table 1.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class Separable(nn.Sequential):
    """Depthwise 3×3, pointwise 1×1: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.pointwise = conv(inputs, outputs, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()


class MobileNet(Network):
    """A 3×3 stem, thirteen separable convolutions, the mean over space, a classifier.

    Pictures (B, 3, h, w) -> logits (B, num_classes).

    width: the paper's α, which multiplies every number of channels.
    stride: of the stem.
    """

    def __init__(self, width: float, stride: int, num_classes: int) -> None:
        super().__init__()
        inputs = channels(32, width)
        self.stem = nn.Sequential(conv(3, inputs, 3, stride), nn.BatchNorm2d(inputs), nn.ReLU())
        self.blocks = nn.Sequential()
        for base, block_stride in BLOCKS:
            outputs = channels(base, width)
            self.blocks.append(Separable(inputs, outputs, block_stride))
            inputs = outputs
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(x.mean((2, 3)))


def mobilenet(width: float, num_classes: int) -> MobileNet:
    """mobilenet for CIFAR: a stem of stride 1, so that pictures of 32×32 end as 2×2."""
    return MobileNet(width, 1, num_classes)


def mobilenet_imagenet(width: float, num_classes: int) -> MobileNet:
    """mobilenet for ImageNet, as in the paper: pictures of 224×224 end as 7×7."""
    return MobileNet(width, 2, num_classes)
