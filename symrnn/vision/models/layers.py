"""What the families' files share: a convolution, and checks of depths and widths."""

from __future__ import annotations

from torch import nn

MOST_DEPTH, MOST_WIDTH = 10_000, 1_000
"""Beyond what anybody trains; so that a slip of the pen is told at once."""


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A size×size convolution that keeps h and w at stride 1; no bias, since batch norm has one."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def channels(base: int, width: float) -> int:
    """base × width, rounded down as the papers' code does; ValueError if none or far too many."""
    if width > MOST_WIDTH:
        raise ValueError(f"width should be at most {MOST_WIDTH}, got: {width:g}")
    number = int(base * width)
    if number < 1:
        raise ValueError(f"width should leave at least one of {base} channels, got: {width}")
    return number


def check_depth(depth: int, step: int, offset: int) -> int:
    """The n ≥ 1 of depth = step·n + offset; ValueError, with the nearest depths, for another."""
    if depth > MOST_DEPTH:
        raise ValueError(f"depth should be at most {MOST_DEPTH}, got: {depth}")
    n, rest = divmod(depth - offset, step)
    if n >= 1 and rest == 0:
        return n
    below, above = (step * k + offset for k in (n, n + 1))
    near = f"{below} or {above}" if n >= 1 else f"{step + offset}"
    raise ValueError(
        f"depth should be {step}n+{offset} with n ≥ 1, got: {depth}; the nearest is {near}"
    )
