"""Sharing of spatial convolutions between the blocks of a stage: ShaResNet (arXiv 1702.08782).

A stage's blocks see pictures of one size, and ShaResNet lets them look for the same spatial
patterns: they use one convolution, ``conv2`` here, the second of a basic block and the 3×3 of a
bottleneck. Each block keeps its own batch norms and all else.

The convolution is one module that stands in several blocks, so that its weight is one parameter:
counted, decayed, symmetrised and saved to the optimizer's state once. Its gradient is the sum over
the blocks.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from symrnn.deployment import MAKE_PLAIN

SHARE = ("none", "stage", "sharesnet")


class Strided(nn.Module):
    """A shared convolution at a stride of its own: (B, I, h, w) -> (B, O, h/stride, w/stride).

    It uses the whole weight, also of a form that folds.

    conv: the convolution, whose weight, bias, padding, dilation and groups are used.
    """

    def __init__(self, conv: nn.Conv2d, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = conv
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        return F.conv2d(
            x, conv.weight, conv.bias, self.stride, conv.padding, conv.dilation, conv.groups
        )

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


def _make_plain(part: Strided) -> None:
    """Turn a strided use of a convolution into a convolution of its weight, in place."""
    conv = part.conv
    made = copy.deepcopy(conv, {id(tensor): tensor for tensor in conv.parameters()})
    made.stride = part.stride
    part.__dict__ = {**vars(made), "training": part.training}
    part.__class__ = nn.Conv2d  # type: ignore[assignment]


MAKE_PLAIN[Strided] = _make_plain


def check_share(share: str) -> None:
    """Raise ValueError unless ``share`` is one of :data:`SHARE`."""
    if share not in SHARE:
        raise ValueError(f"share should be one of {', '.join(SHARE)}, got: {share!r}")


def share_convolutions(model: nn.Module, share: str, image_size: int) -> None:
    """Let blocks of each stage use one ``conv2``, in place.

    model: a residual network, whose ``stages`` hold blocks with a ``conv2``.
    share: which blocks of a stage.

        - "none": no two.
        - "stage": all of them, as the symmetry paper (arXiv 1812.11027) combines sharing with
          symmetry. The strided 3×3 of a bottleneck is among them, at its own stride.
        - "sharesnet": as ShaResNet was published. In networks for CIFAR all but the first of each
          stage; in those for ImageNet all whose ``conv2`` has stride 1: every basic block, and of
          bottlenecks all but those that halve the resolution.
    image_size: 32 for a network for CIFAR, 224 for one for ImageNet.

    Raises ValueError for another share, and for a network without blocks to share between.
    """
    check_share(share)
    if share == "none":
        return
    stages: Any = getattr(model, "stages", None)
    if stages is None:
        raise ValueError(
            f"share={share!r} wants a residual network, with blocks that could share; "
            f"{type(model).__name__} has none"
        )
    for stage in stages:
        blocks = list(stage)
        if share == "sharesnet":
            blocks = [
                block
                for i, block in enumerate(blocks)
                if (i > 0 if image_size == 32 else max(block.conv2.stride) == 1)
            ]
        _share(blocks)


def _share(blocks: list[Any]) -> None:
    """Let blocks use the ``conv2`` of the first with stride 1, the others theirs no more."""
    owner = next((block for block in blocks if max(block.conv2.stride) == 1), None)
    if owner is None:
        return
    shared = owner.conv2
    for block in blocks:
        stride = block.conv2.stride
        block.conv2 = shared if stride == shared.stride else Strided(shared, stride)
