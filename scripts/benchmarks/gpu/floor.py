"""What a step of the GPU kernels must take at least: a count, not a measurement.

    python scripts/benchmarks/gpu/floor.py

One step is two exchanges between multiprocessors, each of which goes through L2, and one product;
symrnn/native/schedule.h says who does what. Of a call whose layout has m blocks along a side, q
gates together, K sequences multiplied at once, and n = ⌈H / 16⌉ tiles along a side::

    exchanges   2 × 2.0 µs: a block writes, raises a flag that another polls, and that one reads
    partial     sums: blocks · 2 · v · B · 16 ⌈n / m⌉ · 4 bytes, written once and read once;
                v vectors: q in the forward pass, 1 in the backward pass
    states      blocks · 2 · 16 ⌈n / m⌉ · o · B · bytes of a number, read;
                o operands: 1 in the forward pass, q in the backward pass
    bytes       (2 · partial + states) / 4 TB/s
    product     of the block with most tiles, the longer of reading each tile twice (it serves as W
                and as Wᵀ) at 128 bytes a clock, and of 2 · 256 · K multiply-adds a tile at the rate
                of the units; ⌈B / K⌉ times; at 1.755 GHz
    floor       exchanges + bytes + product

Assumed, from what is public of the H100 and H200: the clock, 128 bytes a clock of shared memory,
the dense rates of the matrix units (which the instructions of older chips, used here, do not quite
reach), some 2 µs from a write to its sight elsewhere, some 4 TB/s of L2. Not counted: the input's
part of the gates, the gradients of the weights, the arithmetic of the cells, the launch.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import make_parser, table

from symrnn import native
from symrnn.native import Dtype, Fit, Gpu, Kernel, Mode, Status


class Kind(NamedTuple):
    """A kind of arithmetic: the dtype of all numbers, and how products of float32 are rounded."""

    dtype: torch.dtype
    rounding: str = "ieee"


KINDS = {
    "tf32": Kind(torch.float32, "tf32"),
    "bf16": Kind(torch.bfloat16),
    "exact": Kind(torch.float32),
    "fp16": Kind(torch.float16),
}
DTYPES = {
    torch.float32: Dtype.FLOAT,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.HALF,
}

H200 = (132, 232_448)  # multiprocessors, bytes of shared memory a block may have

EXCHANGES = 2 * 2.0  # µs
L2 = 4e12  # bytes a second
SHARED = 128  # bytes a clock of a multiprocessor
CLOCK = 1.755e9
MULTIPLY_ADDS = {"exact": 128, "tf32": 1024, "bf16": 2048, "fp16": 2048}  # a clock, likewise
TILE = 16


@dataclass(frozen=True)
class Floor:
    """µs of a step, and what they are the sum of."""

    blocks: int
    squares: int
    together: int
    exchanges: float
    bytes: float
    product: float

    @property
    def total(self) -> float:
        return self.exchanges + self.bytes + self.product

    def terms(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("exchanges", "bytes", "product", "total")}


def layout(
    gpu: tuple[int, int], mode: str, kind: str, side: int, batch: int, backward: bool
) -> Fit:
    """symrnn_fit of a layer; ValueError if it does not fit, or there are no kernels for CPUs."""
    library = native.library()
    if library is None:
        raise ValueError(native.why_not())
    found = Fit()
    dtype = DTYPES[KINDS[kind].dtype]
    status = library.symrnn_fit_gpu(
        Gpu(*gpu), Kernel.PACKED, Mode[mode], dtype, side, batch, backward, ctypes.byref(found)
    )
    if status != Status.OK:
        raise ValueError(f"{mode} H={side} B={batch} {kind} does not fit (status {status})")
    return found


def most_tiles(tiles: int, squares: int) -> int:
    """Those of the block that has the most of one gate's matrix."""
    ends = [tiles * k // squares for k in range(squares + 1)]
    sides = [b - a for a, b in pairwise(ends)] + [0]
    off = [a * b for i, a in enumerate(sides[:-1]) for b in sides[:i]]
    halves = [side * (side + 1) // 2 for side in sides]
    on = [halves[k] + halves[k + 1] for k in range(0, squares, 2)]
    return max(off + on)


def floor(
    kind: str,
    side: int,
    batch: int,
    *,
    backward: bool = False,
    mode: str = "LSTM",
    gpu: tuple[int, int] = H200,
) -> Floor:
    """Of one step. ValueError as of :func:`layout`."""
    fit = layout(gpu, mode, kind, side, batch, backward)
    number = KINDS[kind].dtype.itemsize
    tiles = -(-side // TILE)
    width = TILE * -(-tiles // fit.squares)
    vectors, operands = (1, fit.together) if backward else (fit.together, 1)
    partial = fit.blocks * 2 * vectors * batch * width * 4
    states = fit.blocks * 2 * width * operands * batch * number
    held = most_tiles(tiles, fit.squares) * fit.together
    reading = held * TILE * TILE * number * 2 / SHARED
    multiplying = held * TILE * TILE * 2 * fit.columns / MULTIPLY_ADDS[kind]
    passes = -(-batch // fit.columns)
    return Floor(
        blocks=fit.blocks,
        squares=fit.squares,
        together=fit.together,
        exchanges=EXCHANGES,
        bytes=(2 * partial + states) / L2 * 1e6,
        product=passes * max(reading, multiplying) / CLOCK * 1e6,
    )


def main() -> None:
    """Print what results/gpu/README.md has."""
    make_parser(__doc__).parse_args()
    rows = []
    for side, kind in product((650, 1500), ("tf32", "bf16")):
        one = floor(kind, side, 20)
        figures = (one.exchanges, one.bytes, one.product, one.total)
        rows.append([f"{side}, {kind}", *(f"{figure:.2f}" for figure in figures)])
    print(table(["H, numbers", "two exchanges", "bytes through L2", "product", "floor"], rows))


if __name__ == "__main__":
    main()
