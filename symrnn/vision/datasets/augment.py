"""Changing pictures at random: whole batches of them at once, or the boxes to cut out of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels from the upper left corner."""


def flip_and_crop(
    images: Tensor, chosen: Tensor, flip: Tensor, top: Tensor, left: Tensor, pad: int
) -> Tensor:
    """Pictures of a set, each shifted and mirrored by itself, without a loop over them.

    What comes out is the picture chosen[b], extended by ``pad`` pixels on every side as a mirror
    would (the pixels at the edge are not doubled), of which the window at (top[b], left[b]) of the
    picture's own size is cut out, and that is flipped from left to right if flip[b].

    images: (N, C, H, W), any type; H and W above ``pad``. Not copied: only the window is read.
    chosen, flip, top, left: int64 (B,), on the same device: from 0 to N - 1, 0 or 1, and twice
        from 0 to 2·pad.

    Returns (B, C, H, W), of the images' type.
    """
    _, channels, height, width = images.shape
    device = images.device
    rows = _mirrored(top[:, None] + torch.arange(height, device=device) - pad, height)  # (B, H)
    columns = torch.arange(width, device=device)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    columns = _mirrored(left[:, None] + columns - pad, width)  # (B, W)
    # First whole rows, as a copy of many bytes each; of those the columns, a few at a time.
    planes = chosen[:, None] * channels + torch.arange(channels, device=device)  # (B, C)
    lines = planes[:, :, None] * height + rows[:, None, :]  # (B, C, H)
    picked = images.reshape(-1, width).index_select(0, lines.flatten()).view(*lines.shape, width)
    return picked.gather(3, columns[:, None, None, :].expand_as(picked))


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places from 1 - size to 2·size - 2 on a line, brought into 0 to size - 1 by mirrors there."""
    return size - 1 - (size - 1 - places.abs()).abs()


class Normalise:
    """Bytes (B, C, H, W) to float32: as numbers from 0 to 1, less the mean, over the deviation.

    mean, std: of each channel, for numbers from 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean, self.std = (
            torch.tensor(numbers, dtype=torch.float32, device=device).view(-1, 1, 1)
            for numbers in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """A part of a picture, as Szegedy et al. 2014 (arXiv 1409.4842, section 6) train on.

    Its area is uniform from 8 to 100 % of the picture's, its ratio of width to height from 3/4 to
    4/3, uniform in the logarithm, its place uniform among those inside, all in whole pixels. Where
    ten draws fit none into a narrow picture, it is the largest in the middle within that ratio.
    """
    for _ in range(10):
        area = random.uniform(0.08, 1) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(width - w + 1))
            upper = int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def central_box(width: int, height: int, size: int) -> Box:
    """The part of a picture that is evaluated, a square in its middle.

    That of side ``size`` after the shorter side was scaled to size · 256/224, rounded: 87.5 % of
    the shorter side.
    """
    side = min(width, height) * size / round(size * 256 / 224)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side
