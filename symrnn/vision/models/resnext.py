"""ResNeXts (arXiv 1611.05431): bottlenecks whose 3×3 convolution falls into groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from symrnn.vision.models import resnet, wrn
from symrnn.vision.models.layers import channels, check_depth, conv


def resnext(depth: int, width: float, cardinality: int, num_classes: int) -> wrn.WideResNet:
    """resnext-D-K-C: wrn-D-K-bottleneck with its 3×3 convolutions in C groups, for CIFAR.

    The symmetry paper names its resnext-16-2-4 without saying what the numbers are; with depth
    D = 6n+4, widening K and cardinality C it has the 0.57 million parameters of its table, and 0.53
    when each group is symmetric.

    Raises ValueError if C does not divide the channels of every stage.
    """
    _check_groups(cardinality, [channels(base, width) for base in (16, 32, 64)])
    block = partial(wrn.Bottleneck, groups=cardinality)
    n = check_depth(depth, 6, 4)
    return wrn.WideResNet(block, wrn.Bottleneck.expansion, n, width, num_classes)


def resnext_cifar(
    depth: int, cardinality: int, group_width: int, num_classes: int
) -> resnet.ResNet:
    """resnext-D-CxWd for CIFAR: resnext-29-8x64d, resnext-29-16x64d of the ResNeXt paper.

    depth: 9n+2.  cardinality: C groups.
    group_width: W, of the first stage; the stages' 3×3 have C·W, 2·C·W and 4·C·W channels, and the
        stages end with 256, 512 and 1024.
    """
    n = check_depth(depth, 9, 2)
    inner = [cardinality * group_width * 2**stage for stage in range(3)]
    _check_groups(cardinality, inner)
    outputs = (256, 512, 1024)
    stem = nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
    block = lambda inputs, stage, stride: resnet.Bottleneck(  # noqa: E731
        inputs, inner[stage], outputs[stage], stride, cardinality
    )
    return resnet.ResNet(stem, 64, block, outputs, [n] * 3, num_classes)


def resnext_imagenet(
    depth: int, cardinality: int, group_width: int, num_classes: int
) -> resnet.ResNet:
    """resnext-D-CxWd for ImageNet: resnext-50-32x4d; the depth D is 50, 101 or 152."""
    inner = [cardinality * group_width * 2**stage for stage in range(4)]
    _check_groups(cardinality, inner)
    return resnet.bottleneck_resnet(resnet.DEPTHS[depth], num_classes, inner, cardinality)


def _check_groups(cardinality: int, inner: Sequence[int]) -> None:
    """ValueError unless C divides the channels of every stage's 3×3, at least one a group."""
    for stage, width in enumerate(inner, 1):
        if cardinality < 1 or width < 1 or width % cardinality:
            raise ValueError(
                f"cardinality should divide the {width} channels of stage {stage}'s 3×3, at least "
                f"one in each group, got: {cardinality}"
            )
