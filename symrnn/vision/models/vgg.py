"""VGG networks (arXiv 1409.1556) with batch norm: 3×3 convolutions in five stages."""

from __future__ import annotations

from torch import nn

from symrnn.vision.models.layers import conv
from symrnn.vision.models.network import Chain

DEPTHS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""How many convolutions each stage has: the paper's A, B, D and E."""


def features(depth: int) -> Chain:
    """The convolutions, each with batch norm and ReLU, and 2×2 max-pooling between the stages.

    (B, 3, h, w) -> (B, 512, h/16, w/16).
    """
    layers = Chain()
    inputs = 3
    for stage, (count, outputs) in enumerate(
        zip(DEPTHS[depth], (64, 128, 256, 512, 512), strict=True)
    ):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers.extend([conv(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()])
            inputs = outputs
    return layers


def vgg(depth: int, num_classes: int) -> Chain:
    """vgg-11, -13, -16 or -19 for CIFAR: a single linear layer on the mean over space.

    Pictures (B, 3, h, w) -> logits (B, num_classes).
    """
    made = features(depth)
    made.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)])
    return made


def vgg_imagenet(depth: int, num_classes: int, *, dropout: float = 0.5) -> Chain:
    """vgg-D-imagenet: the paper's three fully connected layers, on 7×7 positions.

    Pictures (B, 3, h, w) -> logits (B, num_classes).

    dropout: after the first two of them, 0 ≤ dropout < 1.
    """
    made = features(depth)
    made.extend([nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(7), nn.Flatten()])
    made.extend([nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(dropout)])
    made.extend([nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout)])
    made.append(nn.Linear(4096, num_classes))
    return made
