"""The kernels for GPUs that have whole rows of the full matrices, run on a CPU.

As in test_cuda.py, whose cases and oracles these are; and the arithmetic of rows_schedule.h, whose
oracles are counts.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch

from symrnn import native
from symrnn.native.interface import Fit, Gpu, Kernel, Mode
from tests.native.test_cuda import (
    ALL_ARITHMETIC,
    EXACT,
    GATES,
    MODES_AND_ARITHMETIC,
    ORDERS,
    ROUNDING,
    Case,
    Results,
    check,
    fit,
    same_bits,
    tolerance,
)

H200 = Gpu(132, 232_448)
needs_library = pytest.mark.skipif(not native.available(), reason="the kernels are not built")


def rows(*arguments: Any, **options: Any) -> Case:
    return Case(*arguments, kernel=Kernel.ROWS, **options)


# ---- what is computed ----------------------------------------------------------------------------

SIZES = [1, 7, 15, 17, 33, 64, 66, 130]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("side", SIZES)
def test_every_mode_and_size(emulator: ctypes.CDLL, mode: Mode, side: int) -> None:
    """Exactly, and in one of the other kinds of arithmetic, which take turns.

    Even sizes from the first step on, odd ones from the last. Initial states are not aligned.
    """
    for dtype, tf32 in (EXACT, ROUNDING[(SIZES.index(side) + mode) % 3]):
        check(rows(mode, side, 3, 2, dtype, tf32, side % 2 == 1, order=side % 6), emulator)


@pytest.mark.parametrize("batch", [1, 3, 8, 20, 24, 25, 32, 64])
def test_every_batch(emulator: ctypes.CDLL, batch: int) -> None:
    """In one pass and in several, in every arithmetic; on few multiprocessors and on more."""
    for k, (dtype, tf32) in enumerate(ALL_ARITHMETIC):
        mode, processors = list(Mode)[(batch + k) % 4], (3, 13)[(batch + k // 2) % 2]
        check(rows(mode, 40, batch, 2, dtype, tf32, gpu=Gpu(processors, 232_448)), emulator)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("absent", ["with_state", "with_bias", "with_output"])
@pytest.mark.parametrize("mode", Mode)
def test_what_is_not_given_counts_as_zeros(
    emulator: ctypes.CDLL, mode: Mode, absent: str, steps: int
) -> None:
    check(replace(rows(mode, 18, 3, steps), **{absent: False}), emulator)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_the_state_is_masked_before_the_matrices_and_there_alone(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """In one pass over the sequences and in two, with an initial state and without."""
    for batch, with_state in ((3, True), (33, False)):
        check(
            rows(mode, 33, batch, 3, dtype, tf32, with_mask=True, with_state=with_state), emulator
        )


@pytest.mark.parametrize("mode", Mode)
def test_masked_as_on_a_cpu(emulator: ctypes.CDLL, mode: Mode) -> None:
    case = rows(mode, 40, 9, 3, with_mask=True, reverse=True)
    found, wanted = case.both(emulator), case.on_the_cpu()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("mode", Mode)
def test_a_mask_of_ones_is_none(emulator: ctypes.CDLL, mode: Mode) -> None:
    case = rows(mode, 18, 3, 2, with_mask=True)
    assert case.mask is not None
    case.mask.fill_(1)
    assert same_bits(case.both(emulator), rows(mode, 18, 3, 2).both(emulator))


@pytest.mark.parametrize("processors", [1, 2, 5])
def test_a_block_of_many_rows_multiplies_them_in_several_groups(
    emulator: ctypes.CDLL, processors: int
) -> None:
    for mode, (dtype, tf32) in product((Mode.LSTM, Mode.GRU), (EXACT, ROUNDING[1])):
        check(rows(mode, 35, 9, 2, dtype, tf32, gpu=Gpu(processors, 232_448)), emulator)


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_the_same_bits_in_whatever_order_and_memory(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    case = rows(mode, 40, 33, 3, dtype, tf32)
    wanted = case.both(emulator)
    for order in ORDERS:
        other = replace(case, order=order, left_behind=(255, 0, 0x4F)[order % 3])
        assert same_bits(other.both(emulator), wanted), order


# ---- with a part of the rows in registers --------------------------------------------------------


@dataclass
class Holding(Case):
    """Each pass by rows on a GPU so small that registers have to hold some of them.

    columns: how many sequences its shared memory has room for.
    """

    kernel: Kernel = Kernel.ROWS
    columns: int = 8

    def forward(self, emulator: ctypes.CDLL) -> Results:
        self.gpu = self.small(False)
        return super().forward(emulator)

    def backward(self, emulator: ctypes.CDLL, forward: Results) -> Results:
        self.gpu = self.small(True)
        return super().backward(emulator, forward)

    def small(self, backward: bool) -> Gpu:
        """With as few multiprocessors as can be, and as little shared memory."""
        gates, number = GATES[self.mode], self.dtype.itemsize
        tiles = (
            1 if backward else 3 if number == 4 else 4
        )  # of 16 rows, that are multiplied at once
        processors = -(-self.side // (16 if backward else tiles * 16 // gates))
        for room in range(0, 64 << 10, 1 << 10):
            gpu = Gpu(processors, 4 * tiles * 16 * self.columns * 4 + room)
            found = fit(gpu, self.mode, self.dtype, self.side, self.batch, backward, Kernel.ROWS)
            if found is not None:
                break
        assert found is not None
        every = -(-self.side * number // 64) * 64 * gates * found.units
        assert (
            found.shared_bytes < every + 4 * -(-gates * found.units // 16) * 16 * self.columns * 4
        )
        assert found.columns == (self.columns if self.batch > 8 else 8)
        return gpu


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("side", [33, 100])
def test_rows_in_registers_of_every_mode_and_size(
    emulator: ctypes.CDLL, mode: Mode, side: int
) -> None:
    """All of them. Exactly, and in one of the other kinds of arithmetic, which take turns."""
    for dtype, tf32 in (EXACT, ROUNDING[(side + mode) % 3]):
        check(Holding(mode, side, 3, 2, dtype, tf32, reverse=side == 33, order=mode), emulator)


@pytest.mark.parametrize("mode", [Mode.LSTM, Mode.GRU])
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_rows_in_registers_are_multiplied_in_the_order_of_those_in_shared_memory(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """So where all are, the bits are the same. In two passes or in one, under a mask."""
    if mode == Mode.LSTM:
        side, steps, columns = 66, 2, 8
    else:
        side, steps, columns = 264 // dtype.itemsize, 1, 24
    case = mode, side, 9, steps, dtype, tf32
    found = Holding(*case, with_mask=True, columns=columns).both(emulator)
    assert same_bits(found, rows(*case, with_mask=True).both(emulator))


FORWARD, BACKWARD = False, True


@pytest.mark.parametrize(
    ("backward", "mode", "side", "dtype", "tf32"),
    [
        # A chunk of 16 or 32 units more than eight warps hold, and a part of another.
        (FORWARD, Mode.LSTM, 530, torch.float32, True),
        (FORWARD, Mode.GRU, 530, torch.float32, False),
        (FORWARD, Mode.LSTM, 550, torch.bfloat16, False),
        (BACKWARD, Mode.LSTM, 402, torch.float32, True),
        (BACKWARD, Mode.GRU, 530, torch.float32, False),
        (BACKWARD, Mode.LSTM, 802, torch.bfloat16, False),
    ],
)
def test_some_rows_in_registers_and_some_in_shared_memory(
    emulator: ctypes.CDLL, backward: bool, mode: Mode, side: int, dtype: torch.dtype, tf32: bool
) -> None:
    case = Holding(mode, side, 2, 1, dtype, tf32)
    expected = case.expected()
    if backward:
        forward = case.forward_arrays()
        for name, values in forward.items():
            values.copy_(expected[name])
        found = case.backward(emulator, forward)
    else:
        found = case.forward(emulator)
    for name, values in found.items():
        wanted = expected[name]
        error = (values.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error < tolerance(case), (name, float(error))


# ---- who has what --------------------------------------------------------------------------------


class RowSchedule(ctypes.Structure):
    """struct RowSchedule of rows_schedule.h"""

    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in ("units", "gates", "batch", "own", "chunk", "matrices", "held")
    )


class Span(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int), ("last", ctypes.c_int))


def spans(library: ctypes.CDLL, name: str, s: RowSchedule, count: int) -> list[range]:
    function = getattr(library, name)
    function.restype = Span
    found = [function(ctypes.byref(s), k) for k in range(count)]
    return [range(one.first, one.last) for one in found]


def test_units_and_chunks_are_shared_out_once_and_each_warp_waits_for_who_computes_them(
    emulator: ctypes.CDLL,
) -> None:
    for units, own, chunk in product((1, 15, 40, 97, 650), (1, 3, 8, 14), (16, 32)):
        s = RowSchedule(units, 4, 3, own, chunk)
        blocks = spans(emulator, "rows_units_of", s, -(-units // own))
        assert [k for one in blocks for k in one] == list(range(units))
        assert all(blocks)
        chunks = spans(emulator, "rows_chunks_of", s, 8)
        assert [k for one in chunks for k in one] == list(range(-(-units // chunk)))
        for mine, producers in zip(chunks, spans(emulator, "rows_producers", s, 8), strict=True):
            needed = {k // own for k in range(mine.start * chunk, mine.stop * chunk) if k < units}
            assert set(producers) == needed


@pytest.mark.parametrize("held", [0, 1, 2, 3, 4, 12])
def test_each_chunk_is_held_by_its_warp_or_has_a_place_in_shared_memory(
    emulator: ctypes.CDLL, held: int
) -> None:
    for count in (1, 7, 8, 9, 16, 31, 32, 33, 94, 100):
        s = RowSchedule(count * 16 - 5, 4, 3, 12, 16, 1, held)
        stored = emulator.rows_stored_chunks(ctypes.byref(s))
        found = [emulator.rows_chunk_of_stored(ctypes.byref(s), k) for k in range(stored)]
        for warp, chunks in enumerate(spans(emulator, "rows_chunks_of", s, 8)):
            first = emulator.rows_first_stored(ctypes.byref(s), warp)
            rest = [*chunks[held:]]
            assert found[first : first + len(rest)] == rest
            found[first : first + len(rest)] = [-1] * len(rest)
        assert set(found) <= {-1}


def test_each_element_of_the_exchange_has_a_place(emulator: ctypes.CDLL) -> None:
    s = RowSchedule(37, 4, 3, 5, 16)
    place = emulator.rows_exchange_offset
    found = [
        place(ctypes.byref(s), vector, b, unit)
        for vector, b, unit in product(range(4), range(3), range(48))
    ]
    assert sorted(found) == list(range(4 * 3 * 48))


def test_rows_are_read_without_bank_conflicts_from_any_row_on(emulator: ctypes.CDLL) -> None:
    place = emulator.rows_shard_quad
    assert sorted(place(*at) for at in product(range(16), range(4))) == list(range(64))
    for first, i, phase in product(range(16), range(2), range(4)):
        lanes = range(8 * phase, 8 * phase + 8)  # of 16 bytes, so many are read at once
        quads = [place(first + lane // 4 * 2 + i, lane % 4) for lane in lanes]
        assert len({quad % 8 for quad in quads}) == 8


def test_each_sum_has_a_place_and_a_warp_reads_them_from_different_banks(
    emulator: ctypes.CDLL,
) -> None:
    place = emulator.rows_sum_index
    found = [place(3, row, column) for row, column in product(range(32), range(24))]
    assert sorted(found) == list(range(32 * 24))
    for first in range(12):  # four units of eight sequences
        banks = Counter(place(3, first + lane // 8, lane % 8) % 32 for lane in range(32))
        assert len(banks) == 32


# ---- what fits -----------------------------------------------------------------------------------


def fit_of(kernel: Kernel, side: int, dtype: torch.dtype, backward: bool = False) -> Fit | None:
    return fit(H200, Mode.LSTM, dtype, side, 20, backward, kernel)


@needs_library
@pytest.mark.parametrize(
    ("dtype", "backward", "by_rows", "at_most", "packed"),
    [
        # Forward also with registers, as far as blocks have 12 units or 16: 132 of them.
        (torch.float32, False, 12 * 132, 12 * 132, 1792),
        (torch.float32, True, 1320, 12 * 132, 1792),
        (torch.bfloat16, False, 16 * 132, 16 * 132, 2560),
        (torch.bfloat16, True, 1920, 16 * 132, 2560),
    ],
)
def test_by_rows_where_they_fit_packed_else(
    dtype: torch.dtype, backward: bool, by_rows: int, at_most: int, packed: int
) -> None:
    """In a backward pass by rows no further than shared memory goes, if they may be packed."""
    for side in (1, 200, 650, by_rows, by_rows + 1, packed):
        found = fit_of(Kernel.ANY, side, dtype, backward)
        assert found is not None
        assert found.kernel == (Kernel.ROWS if side <= by_rows else Kernel.PACKED)
        assert (found.units > 0) == (found.squares == 0) == (found.kernel == Kernel.ROWS)
    assert fit_of(Kernel.ANY, packed + 1, dtype, backward) is None
    assert fit_of(Kernel.ROWS, at_most, dtype, backward) is not None
    assert fit_of(Kernel.ROWS, at_most + 1, dtype, backward) is None


@needs_library
@pytest.mark.parametrize(
    ("side", "dtype", "blocks", "units", "shared"),
    [
        # Rows of 82 or 188 quads; partial sums of two or three tiles, 24 sequences, four times.
        (650, torch.float32, 82, 8, 32 * 41 * 64 + 4 * 2 * 16 * 24 * 4),
        (650, torch.bfloat16, 82, 8, 32 * 21 * 64 + 4 * 2 * 16 * 24 * 4),
        (1500, torch.bfloat16, 125, 12, 48 * 47 * 64 + 4 * 3 * 16 * 24 * 4),
        (1848, torch.bfloat16, 132, 14, 232_448),  # to the last byte
        # Of 94 chunks eight warps hold four each, and 62 are in shared memory; or two each of 64.
        (1321, torch.float32, 111, 12, 48 * (83 - 32) * 64 + 4 * 3 * 16 * 24 * 4),
        (1500, torch.float32, 125, 12, 48 * (94 - 32) * 64 + 4 * 3 * 16 * 24 * 4),
        (2048, torch.bfloat16, 128, 16, 64 * (64 - 16) * 64 + 4 * 4 * 16 * 24 * 4),
    ],
)
def test_how_an_lstm_is_laid_out(
    side: int, dtype: torch.dtype, blocks: int, units: int, shared: int
) -> None:
    found = fit_of(Kernel.ROWS, side, dtype)
    assert found is not None
    assert (found.blocks, found.units, found.columns) == (blocks, units, 24)
    assert found.shared_bytes == shared


@needs_library
def test_rows_in_registers_are_multiplied_in_as_few_passes_as_fit() -> None:
    # Backward registers hold three chunks of a warp: of 1584 units 75 of 99 are left, and beside
    # these there is room for the sums of 8 sequences, not for those of 24.
    stored, sums = 48 * 75 * 64, 4 * 16 * 4
    assert stored + 8 * sums <= H200.shared_bytes < stored + 24 * sums
    for batch, backward, columns in (
        *((1, False, 8), (8, False, 8), (9, False, 24), (20, False, 24), (64, False, 24)),
        *((8, True, 8), (20, True, 8)),
    ):
        found = fit(H200, Mode.LSTM, torch.float32, 1584, batch, backward, Kernel.ROWS)
        assert found is not None
        assert found.columns == columns


@needs_library
def test_what_only_rows_in_registers_fit_is_not_packed() -> None:
    """The only matrix of an RNN: packed for few multiprocessors it is cut into few squares."""
    fits = {
        kernel: fit(Gpu(4, 20_000), Mode.RNN_TANH, torch.float32, 112, 1, True, kernel)
        for kernel in (Kernel.ANY, Kernel.ROWS, Kernel.PACKED)
    }
    assert fits[Kernel.PACKED] is None
    assert fits[Kernel.ANY] is not None
    assert fits[Kernel.ANY].kernel == Kernel.ROWS
