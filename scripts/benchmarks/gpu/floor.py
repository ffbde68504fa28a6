"""What a step of the GPU kernels must take at least: a count, not a measurement.

    python scripts/benchmarks/gpu/floor.py

One step is exchanges between multiprocessors, each of which goes through L2, and one product.
symrnn/native/schedule.h (packed) and rows_schedule.h (by rows) say who does what. Of a layer with G
gates, H units, B sequences, K of them multiplied at once, numbers of s bytes, on p blocks::

    exchanges   by rows one, packed two, of 1.0 µs each: a block writes, raises a flag that another
                polls, and that one reads
    bytes       through L2, at 4 TB/s.
        by rows: each block reads all states: p · v · B · H · s, and once more for every so many
                tiles of 16 rows as a warp multiplies at once; v vectors: 1 in the forward pass, G
                in the backward pass
        packed: 2 · partial + states, of m squares along a side, n = ⌈H / 16⌉ tiles, q gates
                together:
                partial sums m · v · B · 16 n · 4, written once and read once; v vectors: G in the
                forward pass, G / q in the backward pass
                states, written w · B · 16 n · s, w vectors: 1 forward, G backward; and read
                p · 2 · 16 ⌈n / m⌉ · o · B · s; o operands: 1 forward, q backward
    product     of the block that has most, the longer of what it reads and writes of shared memory,
                at 128 bytes a clock, and of its multiply-adds at the rate of the units; at 1.755
                GHz; ⌈B / K⌉ times
        by rows: each row once, but for what a warp holds in registers, and the sums of eight
                warps, written, added in pairs and read: 16 times a tile's. Exactly, four lanes
                take turns with what each holds: as if that were read four times
        packed: each tile twice, off the diagonal (it serves as W and as Wᵀ); each tile of the
                operand once when it is written and once for every group of strips of a warp
    floor       exchanges + bytes + product

Two layers in one launch (wavefront) are as by rows with three matrices of a gate, and their step is
one of both. Forward the tiles of two matrices are multiplied by the same states. Backward, but for
a GRU, those two are as one with twice the rows.

The exchange is what another's kernel leaves for it: cuDNN's persistent LSTM takes 1.96 µs for a
whole step (H = 768, B = 16, fp16, H100; 5.07 forward and backward; read from the FlashRNN project's
chart), of which the same count takes 0.8 for L2 and 0.2 for the weights. The rest is assumed from
what is public of the H100 and H200: the clock, 128 bytes a clock of shared memory, the dense rates
of the matrix units (which the instructions of older chips, used here, do not quite reach), some
4 TB/s of L2. Not counted: the input's part of the gates, the gradients of the weights, the
arithmetic of the cells, the launch. micro.cu measures what is assumed here.
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
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}

H200 = (132, 232_448)  # multiprocessors, bytes of shared memory a block may have

EXCHANGE = 1.0  # µs
L2 = 4e12  # bytes a second
SHARED = 128  # bytes a clock of a multiprocessor
CLOCK = 1.755e9
MULTIPLY_ADDS = {"exact": 128, "tf32": 1024, "bf16": 2048, "fp16": 2048}  # a clock, likewise
TILE = 16
CHUNK = 64  # bytes, of rows_schedule.h
WARPS = 12  # of a packed kernel's block
STRIPS = {"exact": 2}  # of the packed kernels, that a warp multiplies at once; else 3
ROW_TILES = {"exact": 2}  # of the kernels by rows, likewise; else 4, in the backward pass always 2
HELD_TILES = {4: 3, 2: 4}  # by the bytes of a number, forward, where registers hold some rows
HELD_COLUMNS = {"exact": 8}  # sequences, with rows in registers; else those of the fit


@dataclass(frozen=True)
class Floor:
    """µs of a step, and what they are the sum of."""

    kernel: Kernel
    blocks: int
    exchanges: float
    bytes: float
    product: float

    @property
    def total(self) -> float:
        return self.exchanges + self.bytes + self.product

    def terms(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("exchanges", "bytes", "product", "total")}


def layout(
    gpu: tuple[int, int],
    mode: str,
    kind: str,
    side: int,
    batch: int,
    backward: bool,
    kernel: Kernel = Kernel.ANY,
) -> Fit:
    """symrnn_fit_gpu of a layer; ValueError if it does not fit, or the kernels for CPUs are not."""
    library = native.library()
    if library is None:
        raise ValueError(native.why_not())
    found = Fit()
    dtype = DTYPES[KINDS[kind].dtype]
    status = library.symrnn_fit_gpu(
        Gpu(*gpu), kernel, Mode[mode], dtype, side, batch, backward, ctypes.byref(found)
    )
    if status != Status.OK:
        how = "" if kernel == Kernel.ANY else f" {kernel.name.lower()}"
        raise ValueError(f"{mode} H={side} B={batch} {kind} does not fit{how} (status {status})")
    return found


def floor(
    kind: str,
    side: int,
    batch: int,
    *,
    backward: bool = False,
    mode: str = "LSTM",
    gpu: tuple[int, int] = H200,
    kernel: Kernel = Kernel.ANY,
) -> Floor:
    """Of one step. ValueError as of :func:`layout`."""
    fit = layout(gpu, mode, kind, side, batch, backward, kernel)
    of = packed if fit.kernel == Kernel.PACKED else by_rows
    return of(fit, kind, side, batch, backward, GATES[mode])


def by_rows(fit: Fit, kind: str, side: int, batch: int, backward: bool, gates: int) -> Floor:
    """One exchange; each block reads all states and its own rows, but for those in registers."""
    chunks = -(-side * KINDS[kind].dtype.itemsize // CHUNK)
    vectors = gates if backward else 1
    of_matrix = fit.units if backward else gates * fit.units  # rows that are multiplied at once
    together = [-(-of_matrix // TILE)]  # tiles that are multiplied by the same states
    if fit.kernel == Kernel.WAVEFRONT:
        pair = -(-2 * of_matrix // TILE) if backward else 2 * together[0]
        together += together * 2 if backward and gates == 3 else [pair]
    tiles = sum(together)
    at_once = 2 if backward else ROW_TILES.get(kind, 4)
    stored, columns, shuffled = chunks, fit.columns, 0
    chunk = -(-gates * fit.units // 2) * 2 * CHUNK  # of all rows
    partial = 4 * TILE * columns * 4  # sums of a tile
    if fit.kernel == Kernel.ROWS and fit.shared_bytes != chunks * chunk + tiles * partial:
        at_once = tiles = 1 if backward else HELD_TILES[KINDS[kind].dtype.itemsize]
        together = [tiles]
        stored = (fit.shared_bytes - tiles * partial) // chunk  # registers hold the rest
        columns = min(columns, HELD_COLUMNS.get(kind, columns))
        shuffled = 4 * (chunks - stored) * (kind == "exact")
    passes = -(-batch // columns)
    states = sum(-(-one // at_once) for one in together) * vectors * chunks * CHUNK * batch
    rows = vectors * tiles * TILE * (stored + shuffled) * CHUNK
    sums = 16 * tiles * TILE * columns * 4
    products = vectors * tiles * TILE * side * columns
    return Floor(
        kernel=Kernel(fit.kernel),
        blocks=fit.blocks,
        exchanges=EXCHANGE,
        bytes=fit.blocks * states / L2 * 1e6,
        product=passes * max((rows + sums) / SHARED, products / MULTIPLY_ADDS[kind]) / CLOCK * 1e6,
    )


def packed(fit: Fit, kind: str, side: int, batch: int, backward: bool, gates: int) -> Floor:
    """Two exchanges, of states and of partial sums; each block reads its tiles both ways."""
    number = KINDS[kind].dtype.itemsize
    tiles = -(-side // TILE)
    width = TILE * -(-tiles // fit.squares)
    vectors, operands = (1, fit.together) if backward else (fit.together, 1)
    sums = gates // fit.together if backward else gates  # of a unit, from each square
    partial = fit.squares * sums * batch * TILE * tiles * 4
    written = (gates if backward else 1) * TILE * tiles
    states = (written + fit.blocks * 2 * width * operands) * batch * number
    clocks = max(
        max(
            share.bytes(number, fit.columns) / SHARED,
            share.products * fit.columns / MULTIPLY_ADDS[kind],
        )
        for share in shares(tiles, fit.squares, vectors, operands, STRIPS.get(kind, 3))
    )
    return Floor(
        kernel=Kernel.PACKED,
        blocks=fit.blocks,
        exchanges=2 * EXCHANGE,
        bytes=(2 * partial + states) / L2 * 1e6,
        product=-(-batch // fit.columns) * clocks / CLOCK * 1e6,
    )


class Share(NamedTuple):
    """What one block of the packed kernels multiplies in a step, in tiles.

    weights, operand: that are read of either; written: of the operand.
    """

    weights: int
    operand: int
    written: int

    def bytes(self, number: int, columns: int) -> int:
        """Of shared memory."""
        operand = (self.operand + self.written) * columns * TILE
        return (self.weights * TILE * TILE + operand) * number

    @property
    def products(self) -> int:
        """Multiply-adds, for each sequence."""
        return self.weights * TILE * TILE


def shares(tiles: int, squares: int, vectors: int, operands: int, most: int) -> list[Share]:
    """Of all blocks of a gate's matrix: those off the diagonal, and those of two triangles.

    most: strips, each a row of tiles, that a warp multiplies at once, and that share the reads of
        the operand.
    """
    ends = [tiles * k // squares for k in range(squares + 1)]
    sides = [b - a for a, b in pairwise(ends)]
    pairs = [(a, b, b, a) for i, a in enumerate(sides) for b in sides[:i]]  # strips, their lengths
    halves = [*sides, 0]
    pairs += [(a, b, a, b) for a, b in zip(halves[:-1:2], halves[1::2], strict=False)]
    found = []
    for first, second, of_first, of_second in pairs:
        strips = first * vectors, second * vectors
        size = min(-(-sum(strips) // WARPS), most)
        groups = [-(-one // size) for one in strips]
        lengths = of_first * operands, of_second * operands
        found.append(
            Share(
                weights=sum(a * b for a, b in zip(strips, lengths, strict=True)),
                operand=sum(a * b for a, b in zip(groups, lengths, strict=True)),
                written=(first + second) * operands,
            )
        )
    return found


def main() -> None:
    """Print what results/gpu/README.md has."""
    make_parser(__doc__).parse_args()
    rows = []
    sizes = [(side, 20, kind) for side, kind in product((650, 1500), ("tf32", "bf16"))]
    for side, batch, kind in [*sizes, (1500, 20, "exact"), (2048, 20, "bf16"), (768, 16, "fp16")]:
        kernels = (Kernel.ROWS, Kernel.PACKED, *([Kernel.WAVEFRONT] if side < 1500 else []))
        for kernel, backward in product(kernels, (False, True)):
            how = "backward" if backward else "forward"
            name = f"{side}, {batch}, {kind}, {kernel.name.lower()}, {how}"
            try:
                one = floor(kind, side, batch, backward=backward, kernel=kernel)
            except ValueError:
                rows.append([name, *["does not fit"] * 4])
                continue
            rows.append([name, *(f"{figure:.2f}" for figure in one.terms().values())])
    head = ["H, B, numbers, kernel", "exchanges", "bytes through L2", "product", "floor"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
