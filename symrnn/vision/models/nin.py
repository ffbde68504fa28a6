"""Network in Network (arXiv 1312.4400) for CIFAR, with and without batch norm."""

from __future__ import annotations

from torch import nn

from symrnn.vision.models.network import Chain


def nin(norm: bool, num_classes: int, *, dropout: float = 0.0) -> Chain:
    """nin, and with ``norm`` nin-bn: three times a large convolution and two 1×1.

    Pictures (B, 3, h, w) -> logits (B, num_classes). It ends in the mean over space and a linear
    layer, as its definition in the Wide ResNet authors' code does (1,007,242 parameters with batch
    norm), where the paper's last 1×1 convolution gives the classes themselves.

    norm: batch norm after every convolution.
    dropout: after the first two stages, 0 ≤ dropout < 1; 0.5 in the paper.
    """
    made = Chain()

    def layer(inputs: int, outputs: int, size: int) -> None:
        made.append(nn.Conv2d(inputs, outputs, size, padding=size // 2))
        if norm:
            made.append(nn.BatchNorm2d(outputs))
        made.append(nn.ReLU())

    layer(3, 192, 5)
    layer(192, 160, 1)
    layer(160, 96, 1)
    made.extend([nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)])
    layer(96, 192, 5)
    layer(192, 192, 1)
    layer(192, 192, 1)
    made.extend([nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)])
    layer(192, 192, 3)
    layer(192, 192, 1)
    layer(192, 192, 1)
    made.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, num_classes)])
    return made
