"""The kernels for GPUs that have whole rows of the full matrices, run on a CPU.

As in test_cuda.py, whose cases and oracles these are; and the arithmetic of rows_schedule.h, whose
oracles are counts.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from symrnn import native
from symrnn.native.interface import Fit, Gpu, Kernel, Mode
from tests.native.test_cuda import (
    ALL_ARITHMETIC,
    EXACT,
    MODES_AND_ARITHMETIC,
    ORDERS,
    ROUNDING,
    Case,
    check,
    fit,
    same_bits,
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


# ---- who has what --------------------------------------------------------------------------------


class RowSchedule(ctypes.Structure):
    """struct RowSchedule of rows_schedule.h"""

    _fields_ = tuple((name, ctypes.c_int) for name in ("units", "gates", "batch", "own", "chunk"))


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
    ("dtype", "backward", "by_rows", "packed"),
    [
        (torch.float32, False, 1320, 1792),
        (torch.float32, True, 1320, 1792),
        (torch.bfloat16, False, 1856, 2560),
        (torch.bfloat16, True, 1920, 2560),
    ],
)
def test_by_rows_where_they_fit_packed_else(
    dtype: torch.dtype, backward: bool, by_rows: int, packed: int
) -> None:
    for side in (1, 200, 650, by_rows, by_rows + 1, packed):
        found = fit_of(Kernel.ANY, side, dtype, backward)
        assert found is not None
        assert found.kernel == (Kernel.ROWS if side <= by_rows else Kernel.PACKED)
        assert (found.units > 0) == (found.squares == 0) == (found.kernel == Kernel.ROWS)
    assert fit_of(Kernel.ANY, packed + 1, dtype, backward) is None
    assert fit_of(Kernel.ROWS, by_rows + 1, dtype, backward) is None


@needs_library
@pytest.mark.parametrize(
    ("side", "dtype", "blocks", "units", "shared"),
    [
        # Rows of 82 or 188 quads; partial sums of two or three tiles, 24 sequences, four times.
        (650, torch.float32, 82, 8, 32 * 41 * 64 + 4 * 2 * 16 * 24 * 4),
        (650, torch.bfloat16, 82, 8, 32 * 21 * 64 + 4 * 2 * 16 * 24 * 4),
        (1500, torch.bfloat16, 125, 12, 48 * 47 * 64 + 4 * 3 * 16 * 24 * 4),
        (1848, torch.bfloat16, 132, 14, 232_448),  # to the last byte
    ],
)
def test_how_an_lstm_is_laid_out(
    side: int, dtype: torch.dtype, blocks: int, units: int, shared: int
) -> None:
    found = fit_of(Kernel.ROWS, side, dtype)
    assert found is not None
    assert (found.blocks, found.units, found.columns) == (blocks, units, 24)
    assert found.shared_bytes == shared
