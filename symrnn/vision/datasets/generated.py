"""The built-in set "shapes": ten classes of small pictures, made from a seed in about a second.

Six outlines (disk, ring, square, triangle, cross, star) and four textures (stripes, checks, dots,
ripples) of random place, size, turn and colours, on blotches and noise. A class has no colour and
no place of its own, and what is figure in one picture is of the colour of the ground in another,
so that no linear function of the pixels tells the classes apart.

The pictures are the same on every machine: whole numbers, and of real ones only what IEEE 754
rounds exactly, but for the sine and cosine of one angle in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symrnn.vision.datasets.dataset import random_numbers
from symrnn.vision.datasets.resident import Part

Field = NDArray[np.floating[Any]]
"""float32 (n, 32, 32): a number for each pixel of n pictures; or (n, 1, 1): for each picture."""

SIDE = 32
TRAIN, VAL = 5000, 1000
SEED = 0


def generate_shapes(seed: int = SEED, train: int = TRAIN, val: int = VAL) -> tuple[Part, Part]:
    """The two parts, each with as many pictures of every class as the numbers allow."""
    return _part(random_numbers(seed, 0), train), _part(random_numbers(seed, 1), val)


def _part(random: np.random.Generator, size: int) -> Part:
    labels = (np.arange(size) % len(CLASSES)).astype(np.uint8)
    figure = np.empty((size, 1, SIDE, SIDE), dtype=np.float32)  # 1 within, 0 without
    for label, draw in enumerate(CLASSES.values()):
        x, y, scale = _turned(random, int((labels == label).sum()))
        # What draw gives is the distance to the figure's edge, negative within.
        figure[labels == label, 0] = np.clip(0.5 - draw(x, y, scale), 0, 1)

    def drawn(low: float, high: float, *shape: int) -> Field:
        return random.uniform(low, high, size=(size, *shape)).astype(np.float32)

    colour = drawn(70, 185, 3, 1, 1)
    contrast = drawn(-1, 1, 3, 1, 1)
    contrast *= drawn(80, 140, 1, 1, 1) / np.abs(contrast).max(1, keepdims=True)
    images = colour + contrast * (figure - 0.5)
    images += _smoothed(drawn(-20, 20, 3, 5, 5))
    images += random.integers(-35, 36, size=images.shape, dtype=np.int8)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def _turned(random: np.random.Generator, n: int) -> tuple[Field, Field, Field]:
    """Coordinates in pixels about a random centre, turned at random; and sizes, 7 to 11 pixels."""
    angle = random.uniform(0, 2 * np.pi, size=n)
    centre = random.uniform(-4, 4, size=(2, n)) + (SIDE - 1) / 2
    scale = random.uniform(7, 11, size=n)
    cos, sin, cx, cy, scale = (
        values.astype(np.float32)[:, None, None]
        for values in (np.cos(angle), np.sin(angle), *centre, scale)
    )
    places = np.arange(SIDE, dtype=np.float32)
    x, y = places[None, None, :] - cx, places[None, :, None] - cy
    return x * cos + y * sin, y * cos - x * sin, scale


def _smoothed(grid: Field) -> Field:
    """Values at a few points (..., k, k), joined by straight lines to (..., 32, 32)."""
    for axis in (-2, -1):
        intervals = grid.shape[axis] - 1
        places = np.arange(SIDE) * intervals
        left, rest = places // SIDE, (places % SIDE / SIDE).astype(np.float32)
        grid = np.moveaxis(grid, axis, -1)
        grid = grid[..., left] * (1 - rest) + grid[..., left + 1] * rest
        grid = np.moveaxis(grid, -1, axis)
    return grid


# ---- outlines and textures: from coordinates to the distance from the edge, in pixels ------------


def _disk(x: Field, y: Field, scale: Field) -> Field:
    return np.sqrt(x * x + y * y) - scale


def _ring(x: Field, y: Field, scale: Field) -> Field:
    return np.abs(np.sqrt(x * x + y * y) - scale) - scale / 4


def _square(x: Field, y: Field, scale: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - scale * 0.85


def _triangle(x: Field, y: Field, scale: Field) -> Field:
    return _beyond_lines(x, y, 3)[2] - scale * 0.65


def _cross(x: Field, y: Field, scale: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    long, wide = scale * 1.15, scale * 0.35
    return np.minimum(np.maximum(x - long, y - wide), np.maximum(x - wide, y - long))


def _star(x: Field, y: Field, scale: Field) -> Field:
    # Within a five-pointed star a point is on the inner side of at least four of its five lines.
    return _beyond_lines(x, y, 5)[3] - scale * 0.45


def _stripes(x: Field, y: Field, scale: Field) -> Field:
    return _wave(x, scale)


def _checks(x: Field, y: Field, scale: Field) -> Field:
    across, along = _wave(x, scale), _wave(y, scale)
    return np.maximum(np.minimum(across, along), -np.maximum(across, along))


def _dots(x: Field, y: Field, scale: Field) -> Field:
    across, along = _wave(x, scale) + scale / 5, _wave(y, scale) + scale / 5
    return np.sqrt(across * across + along * along) - scale / 4


def _ripples(x: Field, y: Field, scale: Field) -> Field:
    return _wave(np.sqrt(x * x + y * y), scale)


def _beyond_lines(x: Field, y: Field, sides: int) -> Field:
    """How far out in each of so many directions, evenly spread, from least to most."""
    angles = 2 * np.pi * np.arange(sides) / sides
    out = [x * float(np.cos(a)) + y * float(np.sin(a)) for a in angles]
    return np.sort(out, axis=0)


def _wave(x: Field, scale: Field) -> Field:
    """A triangular wave, whose slopes are 1 and -1 and whose period is 0.8 of the scale."""
    half = scale * 0.4
    phase = np.abs(x) % (2 * half)
    return np.abs(phase - half) - half / 2


CLASSES: dict[str, Callable[[Field, Field, Field], Field]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "ripples": _ripples,
}
"""Each class with what draws it."""
