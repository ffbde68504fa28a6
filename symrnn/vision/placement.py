"""Where symmetry lands in a network if nothing else is said: where the symmetry paper puts it."""

from __future__ import annotations

from torch import nn

from symrnn.surgery import Where
from symrnn.symmetry.tensor import square_sides

BLOCKS = "stages.*.conv2"
"""Of residual networks the second convolution of every block: the 3×3 of a bottleneck (per group
of a ResNeXt), and the second 3×3 of a basic block.

A pattern of :func:`symrnn.symmetrize`. Where blocks share the convolution it is named once."""


def every_square_convolution(axes: str) -> Where:
    """Of plain networks every convolution that is square in ``axes``, and not of side 1 in all.

    axes: "channel": as many channels out as in, in each group. "space": the kernel. "both": both
        of these.

    So a depthwise convolution is left out over channels, and a pointwise one over space.
    """

    def where(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        try:
            return max(square_sides(module.weight.shape, axes, module.groups)) > 1
        except ValueError:
            return False

    return where
