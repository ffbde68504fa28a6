"""How a layer is distributed over the thread blocks of a GPU, and layouts: schedule.h, products.h.

The oracles are counts and plain integer arithmetic in Python: that each thing is somewhere, once.
tests/native/emulate.cpp exports the functions; what fits a GPU is asked of the library itself.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_bool, c_int, c_int64
from itertools import pairwise, product

import pytest
import torch

from symrnn import native
from symrnn.native.interface import Dtype, Fit, Gpu, Kernel, Mode, Status

SIDE = 16  # of a tile
FLAG = 32  # from one to the next, in numbers
MOST_ROWS = 2**30
MOST_PARTS = 2**31 - 1
MOST_BLOCKS = 384
COLUMNS = (8, 16, 24, 32)
TOGETHER = [(1, 1), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4)]  # gates, and how many a block has
GATES = {Mode.LSTM: 4, Mode.GRU: 3, Mode.RNN_TANH: 1, Mode.RNN_RELU: 1}

# Multiprocessors, and bytes of shared memory that a block can opt in to, as NVIDIA has them:
# multiprocessors in the boards' data sheets; 227, 163 and 99 KB for compute capability 9.0, 8.0,
# and 8.6 and 8.9 in the CUDA C++ programming guide's table of technical specifications.
GPUS = {
    "H200": Gpu(132, 232448),
    "H100 SXM": Gpu(132, 232448),
    "H100 PCIe": Gpu(114, 232448),
    "A100": Gpu(108, 166912),
    "RTX 4090": Gpu(128, 101376),
    "RTX 3090": Gpu(82, 101376),
    "RTX 3060": Gpu(28, 101376),
    "L4": Gpu(58, 101376),
}


class Schedule(ctypes.Structure):
    """struct Schedule of schedule.h"""

    _fields_ = tuple(
        (name, c_int) for name in ("units", "gates", "batch", "tiles", "squares", "together")
    )


class Span(ctypes.Structure):
    _fields_ = (("first", c_int), ("last", c_int))


class StoredTile(ctypes.Structure):
    _fields_ = (("index", c_int), ("transposed", c_bool))


class Position(ctypes.Structure):
    _fields_ = (("row", c_int), ("column", c_int))


# Of each function the result, and the arguments after the schedule.
FUNCTIONS = {
    "schedule_blocks": (c_int, []),
    "schedule_first_tile": (c_int, [c_int]),
    "schedule_square_of": (c_int, [c_int]),
    "schedule_rows": (c_int, []),
    "schedule_first_row": (c_int, [c_int]),
    "schedule_block_of_row": (c_int, [c_int]),
    "schedule_part_block": (c_int, [c_int, c_int, c_int]),  # set, to, from
    "schedule_part_start": (c_int64, [c_int, c_int, c_int, c_int]),  # row, from, vector, backward
    "schedule_part_numbers": (c_int64, [c_int]),
    "schedule_exchange_numbers": (c_int64, [c_int]),
    "schedule_carry_start": (c_int64, []),
    "schedule_parts_start": (c_int64, []),
    "schedule_exchange_start": (c_int64, [c_int]),
    "schedule_workspace_bytes": (c_int64, [c_int, c_int]),  # backward, bytes of a weight
    "share_gate": (c_int, [c_int]),
    "share_side": (Span, [c_int, c_int]),  # block, side
    "share_square": (c_int, [c_int, c_int]),  # block, side
    "share_from": (c_int, [c_int, c_int]),  # block, to
    "share_tiles": (c_int, [c_int]),
    "share_step": (c_int, [c_int, c_int, c_int, c_int]),  # likewise
    "share_tile": (StoredTile, [c_int, c_int, c_int, c_int]),  # block, to, a, k
    "share_position": (Position, [c_int, c_int]),  # block, index
}


@pytest.fixture(scope="module")
def c(emulator: ctypes.CDLL) -> ctypes.CDLL:
    """The functions, called as `c.schedule_rows(schedule)`."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(emulator, name)
        function.restype, function.argtypes = result, [POINTER(Schedule), *arguments]
    emulator.schedule_packed_tile.restype = c_int64
    emulator.schedule_packed_tile.argtypes = [c_int64, c_int, c_int, c_int64, c_int64]
    return emulator


def every_schedule(most: int, batch: int = 1) -> Iterator[Schedule]:
    """Each way to distribute up to so many tiles along a side.

    Of more than 8 tiles with two numbers of gates only: each set of gates has the same squares.
    """
    for n, (gates, together) in product(range(1, most + 1), TOGETHER):
        if n > 8 and (gates, together) not in ((1, 1), (4, 2)):
            continue
        for squares in range(1, n + 1):
            yield Schedule(n * SIDE, gates, batch, n, squares, together)


def blocks_of_gate(squares: int) -> int:
    return squares * (squares - 1) // 2 + (squares + 1) // 2


def span(library: ctypes.CDLL, s: Schedule, block: int, side: int) -> range:
    found = library.share_side(s, block, side)
    return range(found.first, found.last)


# ---- who has which weights -----------------------------------------------------------------------


def test_squares_share_out_the_tiles_and_each_knows_its_own(c: ctypes.CDLL) -> None:
    for s in every_schedule(20):
        firsts = [c.schedule_first_tile(s, k) for k in range(s.squares + 1)]
        sides = [range(*ends) for ends in pairwise(firsts)]
        assert [k for side in sides for k in side] == list(range(s.tiles))
        lengths = {len(side) for side in sides}
        assert max(lengths) - min(lengths) <= 1
        for k, side in enumerate(sides):
            assert all(c.schedule_square_of(s, tile) == k for tile in side)


def test_each_tile_of_the_triangles_is_held_once(c: ctypes.CDLL) -> None:
    for s in every_schedule(20):
        blocks = c.schedule_blocks(s)
        assert blocks == blocks_of_gate(s.squares) * (s.gates // s.together)
        held: Counter[tuple[int, int, int]] = Counter()
        for block in range(blocks):
            gate = c.share_gate(s, block)
            for index in range(c.share_tiles(s, block)):
                at = c.share_position(s, block, index)
                held.update((gate + k, at.row, at.column) for k in range(s.together))
        triangle = [(row, column) for row in range(s.tiles) for column in range(row + 1)]
        assert held == Counter((g, *tile) for g in range(s.gates) for tile in triangle)


def test_each_row_of_the_whole_matrix_is_multiplied_once(c: ctypes.CDLL) -> None:
    """Of the tiles that a block uses for its sums, each is where its position says, and transposed
    exactly if it lies above the diagonal; all together are the matrix, once for each set."""
    for s in every_schedule(20):
        used: Counter[tuple[int, int, int]] = Counter()
        for block in range(c.schedule_blocks(s)):
            gate, tiles = c.share_gate(s, block), c.share_tiles(s, block)
            at = [c.share_position(s, block, index) for index in range(tiles)]
            for to in range(2):
                sums = span(c, s, block, to)
                units = span(c, s, block, c.share_from(s, block, to))
                for (a, row), (k, column) in product(enumerate(sums), enumerate(units)):
                    held = c.share_tile(s, block, to, a, k)
                    place = (at[held.index].row, at[held.index].column)
                    assert place == ((column, row) if held.transposed else (row, column))
                    assert not held.transposed or row < column
                    used[gate, row, column] += 1
                    if k > 0:
                        before = c.share_tile(s, block, to, a, k - 1).index
                        assert before + c.share_step(s, block, to, a, k - 1) == held.index
        sets = range(0, s.gates, s.together)
        assert used == Counter(product(sets, range(s.tiles), range(s.tiles)))


def test_a_sum_takes_the_part_of_each_block_that_adds_to_it_once(c: ctypes.CDLL) -> None:
    for s in every_schedule(20):
        per_gate = blocks_of_gate(s.squares)
        adding: dict[tuple[int, int, int], int] = {}  # set, square, square that the part comes from
        for block, side in product(range(c.schedule_blocks(s)), range(2)):
            tiles = span(c, s, block, side)
            if tiles:
                to = c.schedule_square_of(s, tiles[0])
                assert c.share_square(s, block, side) == to
                square = c.share_square(s, block, c.share_from(s, block, side))
                part = (block // per_gate, to, square)
                assert part not in adding
                adding[part] = block
        squares = range(s.squares)
        for part in product(range(s.gates // s.together), squares, squares):
            assert c.schedule_part_block(s, *part) == adding.pop(part)
        assert not adding


def test_the_drawing_of_the_header_is_right(c: ctypes.CDLL) -> None:
    s = Schedule(4 * SIDE, 4, 1, 4, 4, 1)
    drawing = {0: "6", 1: "06", 2: "127", 3: "3457"}
    for to, blocks in drawing.items():
        assert [c.schedule_part_block(s, 0, to, k) for k in range(to + 1)] == list(map(int, blocks))
    assert c.share_gate(s, 7) == 0
    assert c.share_gate(s, 8) == 1


# ---- who does which cells ------------------------------------------------------------------------


def test_rows_are_dealt_out_evenly_and_in_order(c: ctypes.CDLL) -> None:
    for batch in (1, 2, 7, 20):
        for s in every_schedule(9, batch):
            blocks, rows = c.schedule_blocks(s), s.tiles * batch
            assert c.schedule_rows(s) == rows
            firsts = [c.schedule_first_row(s, block) for block in range(blocks + 1)]
            assert (firsts[0], firsts[-1]) == (0, rows)
            counts = [b - a for a, b in pairwise(firsts)]
            assert min(counts) in (rows // blocks, max(counts))
            assert max(counts) <= rows // blocks + 1
            owners = [block for block, count in enumerate(counts) for _ in range(count)]
            assert [c.schedule_block_of_row(s, row) for row in range(rows)] == owners


def test_no_block_waits_for_more_others_than_it_has_threads(c: ctypes.CDLL) -> None:
    """One thread waits for one block: for those whose states it needs, and those whose parts."""
    threads, most = 384, 0
    for (gates, together), squares, batch in product(TOGETHER, range(1, 28), (1, 20)):
        for tiles in (squares, 3 * squares + 1):
            s = Schedule(tiles * SIDE, gates, batch, tiles, squares, together)
            blocks, sets = c.schedule_blocks(s), gates // together
            if blocks > MOST_BLOCKS:
                continue
            for block in range(blocks):
                states = 0
                for side in (span(c, s, block, k) for k in range(2)):
                    if side:
                        first = c.schedule_block_of_row(s, side[0] * batch)
                        last = c.schedule_block_of_row(s, side[-1] * batch + batch - 1)
                        states += last - first + 1
                rows = range(c.schedule_first_row(s, block), c.schedule_first_row(s, block + 1))
                own = {c.schedule_square_of(s, row // batch) for row in rows}
                most = max(most, states, len(own) * sets * squares)
    assert 0 < most <= threads


# ---- where things lie ----------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [0, 1])
def test_parts_do_not_overlap_and_stay_in_their_room(c: ctypes.CDLL, backward: int) -> None:
    for s in every_schedule(6, batch=3):
        vectors = s.gates // s.together if backward else s.gates
        starts = [
            c.schedule_part_start(s, row, square, vector, backward)
            for row, square in product(range(s.tiles * s.batch), range(s.squares))
            for vector in range(vectors)
        ]
        # In this order one after the other, without gaps.
        assert starts == list(range(0, len(starts) * SIDE, SIDE))
        assert c.schedule_part_numbers(s, backward) == len(starts) * SIDE


def test_flags_carry_parts_and_exchange_share_the_workspace(c: ctypes.CDLL) -> None:
    for s in (s for batch in (1, 7) for s in every_schedule(8, batch)):
        flags = (c.schedule_blocks(s) * 2 + 1) * FLAG * 4
        carry, parts = c.schedule_carry_start(s), c.schedule_parts_start(s)
        assert carry % 256 == parts % 256 == 0
        assert flags <= carry < flags + 256
        assert carry + s.batch * s.units * 4 <= parts < carry + s.batch * s.units * 4 + 256
        for backward, size in product((0, 1), (2, 4)):
            end = parts + c.schedule_part_numbers(s, backward) * 4
            exchange = c.schedule_exchange_start(s, backward)
            assert exchange % 256 == 0
            assert end <= exchange < end + 256
            end = exchange + c.schedule_exchange_numbers(s, backward) * size
            assert c.schedule_workspace_bytes(s, backward, size) == end


def exact(s: Schedule, block: int, row: int, backward: int) -> dict[str, int]:
    """What the functions should say, in integers that cannot overflow."""
    n, m, q = s.tiles, s.squares, s.together
    blocks, rows = blocks_of_gate(m) * (s.gates // q), n * s.batch
    parts = rows * m * (s.gates // q if backward else s.gates) * SIDE
    exchanged = rows * (s.gates if backward else 1) * SIDE
    carry = -(-(blocks * 2 + 1) * FLAG * 4 // 256) * 256
    parts_start = carry + -(-s.batch * s.units * 4 // 256) * 256
    exchange_start = parts_start + -(-parts * 4 // 256) * 256
    return {
        "first_tile": n * (m - 1) // m,
        "square_of": ((n - 1 + 1) * m - 1) // n,
        "rows": rows,
        "first_row": rows * block // blocks,
        "block_of_row": ((row + 1) * blocks - 1) // rows,
        "part_numbers": parts,
        "parts_start": parts_start,
        "exchange_numbers": exchanged,
        "exchange_start": exchange_start,
        "workspace_bytes": exchange_start + exchanged * 4,
    }


def test_nothing_overflows_at_the_largest_sizes(c: ctypes.CDLL) -> None:
    # As many rows as there may be, in a few units of many sequences or the other way round.
    for units, squares, (gates, together) in product(
        (1, 16, 1000, 2**14, 2**20, 2**24, 2**30), (1, 15, 64), TOGETHER
    ):
        tiles = -(-units // SIDE)
        s = Schedule(units, gates, MOST_ROWS // tiles, tiles, min(squares, tiles), together)
        rows = s.tiles * s.batch
        assert rows > MOST_ROWS - tiles
        blocks = c.schedule_blocks(s)
        for backward, block, row in product((0, 1), (1, blocks), (0, rows // 3, rows - 1)):
            found = {
                "first_tile": c.schedule_first_tile(s, s.squares - 1),
                "square_of": c.schedule_square_of(s, s.tiles - 1),
                "rows": c.schedule_rows(s),
                "first_row": c.schedule_first_row(s, block),
                "block_of_row": c.schedule_block_of_row(s, row),
                "part_numbers": c.schedule_part_numbers(s, backward),
                "parts_start": c.schedule_parts_start(s),
                "exchange_numbers": c.schedule_exchange_numbers(s, backward),
                "exchange_start": c.schedule_exchange_start(s, backward),
                "workspace_bytes": c.schedule_workspace_bytes(s, backward, 4),
            }
            assert found == exact(s, block, row, backward)


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
def test_a_packed_tile_is_where_the_library_packs_it(c: ctypes.CDLL) -> None:
    library = native.library()
    for n, gates in product((1, 2, 3, 7), (1, 3, 4)):
        side = n * SIDE
        # Each entry names its own gate, row and column.
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        low, high = torch.minimum(row, column), torch.maximum(row, column)
        gate = torch.arange(gates).view(-1, 1, 1)
        dense = ((gate * side + high) * side + low).double()
        packed = torch.full(
            (library.symrnn_packed_length(1, side, side, gates, Dtype.FLOAT),), -1.0
        ).double()
        native.check(
            library.symrnn_pack(
                1, side, side, gates, Dtype.DOUBLE, dense.data_ptr(), side * side, side,
                Dtype.DOUBLE, packed.data_ptr(), 1,
            )
        )  # fmt: skip
        seen = torch.zeros_like(packed, dtype=torch.bool)
        for g, i, j in product(range(gates), range(n), range(n)):
            if i < j:
                continue
            start = c.schedule_packed_tile(n, gates, g, i, j)
            tile = packed[start : start + SIDE * SIDE].view(SIDE, SIDE)  # stored column by column
            wanted = dense[g, i * SIDE : (i + 1) * SIDE, j * SIDE : (j + 1) * SIDE]
            assert torch.equal(tile.T, wanted)
            assert not seen[start : start + SIDE * SIDE].any()
            seen[start : start + SIDE * SIDE] = True
        assert seen.all()


# ---- what fits a GPU -----------------------------------------------------------------------------


def fit(gpu: Gpu, mode: Mode, dtype: Dtype, side: int, batch: int, backward: bool) -> Fit | None:
    found = Fit()
    status = native.library().symrnn_fit_gpu(
        gpu, Kernel.PACKED, mode, dtype, side, batch, backward, byref(found)
    )
    assert status in (Status.OK, Status.FIT)
    return found if status == Status.OK else None


def layout(found: Fit | None) -> tuple[int, ...] | None:
    if found is None:
        return None
    assert (found.kernel, found.units) == (Kernel.PACKED, 0)
    names = ("blocks", "squares", "together", "columns", "shared_bytes", "workspace_bytes")
    return tuple(getattr(found, name) for name in names)


def by_the_rule(
    gpu: Gpu, mode: Mode, dtype: Dtype, side: int, batch: int, backward: bool
) -> tuple[int, ...] | None:
    """What schedule.h says in words, done by trying everything."""
    gates, size, n = GATES[mode], 4 if dtype == Dtype.FLOAT else 2, -(-side // SIDE)
    choices = []
    for order, together in enumerate(q for q in (1, 2, 3, 4) if gates % q == 0):
        sets = gates // together
        possible = [
            m
            for m in range(1, min(n, 64) + 1)
            if blocks_of_gate(m) * sets <= min(gpu.multiprocessors, MOST_BLOCKS)
        ]
        if not possible:
            continue
        m = max(possible)
        sides = [n * (k + 1) // m - n * k // m for k in range(m)]
        below = [sides[i] * sides[j] for i in range(m) for j in range(i)]
        half = [a * (a + 1) // 2 for a in sides] + [0]
        held = max(below + [half[k] + half[k + 1] for k in range(0, m, 2)]) * together * SIDE**2
        width = max(sides) * SIDE
        blocks = blocks_of_gate(m) * sets
        parts = n * batch * m * (sets if backward else gates) * SIDE
        exchanged = n * batch * (gates if backward else 1) * SIDE
        if max(parts, exchanged) > MOST_PARTS:
            continue
        rooms = []
        for columns in COLUMNS:
            operand = 2 * width * (together if backward else 1) * columns
            if (held + operand) * size <= gpu.shared_bytes:
                rooms.append((-(-batch // columns), columns, (held + operand) * size))
        if rooms:
            _, columns, shared = min(rooms)
            start = -(-(blocks * 2 + 1) * FLAG * 4 // 256) * 256 + -(-batch * side * 4 // 256) * 256
            space = start + -(-parts * 4 // 256) * 256 + exchanged * size
            result = (blocks, m, together, columns, shared, space)
            choices.append(((held, parts, order), result))
    return min(choices)[1] if choices else None


needs_library = pytest.mark.skipif(not native.available(), reason="the kernels are not built")


@needs_library
def test_what_fits_is_what_the_rule_says() -> None:
    odd = [Gpu(1, 232448), Gpu(2, 65536), Gpu(3, 30000), Gpu(5, 101376), Gpu(13, 50000)]
    many = [Gpu(1023, 232448), Gpu(2000, 101376), Gpu(4000, 30000)]
    sizes = [1, 16, 17, 100, 200, 333, 650, 1000, 1024, 1337, 1500, 1999, 2048, 3000, 5000]
    count = 0
    for gpu, mode, dtype in product([*GPUS.values(), *odd, *many], Mode, (Dtype.FLOAT, Dtype.HALF)):
        for side, batch, backward in product(sizes, (1, 20, 49), (False, True)):
            case = (gpu, mode, dtype, side, batch, backward)
            found = layout(fit(*case))
            assert found == by_the_rule(*case), (gpu.multiprocessors, gpu.shared_bytes, case[1:])
            if found:
                blocks, squares, together, columns, shared, _ = found
                assert blocks <= gpu.multiprocessors
                assert blocks == blocks_of_gate(squares) * (GATES[mode] // together)
                assert shared <= gpu.shared_bytes
                assert columns in COLUMNS
                count += 1
    assert count > 1000


# The layout of an LSTM of 20 sequences: blocks, squares, gates together, sequences at once, bytes
# of shared memory; forward and backward. None where it does not fit.
LAYOUTS: dict[tuple[str, int, Dtype], tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = {
    ("H200", 200, Dtype.FLOAT): ((128, 8, 1, 24, 12288),) * 2,
    ("H200", 650, Dtype.FLOAT): ((128, 8, 1, 24, 55296),) * 2,
    ("H200", 1024, Dtype.FLOAT): ((128, 8, 1, 24, 98304),) * 2,
    ("H200", 1500, Dtype.FLOAT): ((128, 8, 1, 24, 196608),) * 2,
    ("H200", 2048, Dtype.FLOAT): (None, None),
    ("H200", 1500, Dtype.BFLOAT16): ((128, 8, 1, 24, 98304),) * 2,
    ("H200", 2048, Dtype.BFLOAT16): ((128, 8, 1, 24, 163840),) * 2,
    ("H100 SXM", 1500, Dtype.FLOAT): ((128, 8, 1, 24, 196608),) * 2,
    ("H100 PCIe", 1024, Dtype.FLOAT): ((100, 7, 1, 24, 122880),) * 2,
    # Few large squares or many small ones of all gates: a block holds as much. Back, where the
    # parts of the gates are one, the latter leave fewer of them.
    ("H100 PCIe", 1500, Dtype.FLOAT): ((100, 7, 1, 16, 229376), (113, 15, 4, 8, 229376)),
    ("H100 PCIe", 2048, Dtype.BFLOAT16): ((113, 15, 4, 24, 179712), (113, 15, 4, 24, 221184)),
    ("A100", 1024, Dtype.FLOAT): ((100, 7, 1, 24, 122880),) * 2,
    ("A100", 1500, Dtype.FLOAT): (None, None),
    ("A100", 1500, Dtype.HALF): ((100, 7, 1, 24, 121856),) * 2,
    ("A100", 2048, Dtype.HALF): (None, None),
    ("RTX 4090", 1024, Dtype.FLOAT): ((128, 8, 1, 24, 98304),) * 2,
    ("RTX 4090", 1500, Dtype.FLOAT): (None, None),
    ("RTX 4090", 1500, Dtype.HALF): ((128, 8, 1, 24, 98304),) * 2,
    ("RTX 4090", 2048, Dtype.HALF): (None, None),
    ("RTX 3090", 650, Dtype.FLOAT): ((82, 9, 2, 24, 66560), (82, 9, 2, 24, 81920)),
    ("RTX 3090", 1024, Dtype.FLOAT): (None, None),
    ("RTX 3090", 1024, Dtype.HALF): ((82, 9, 2, 24, 69632), (82, 9, 2, 24, 81920)),
    ("RTX 3060", 200, Dtype.FLOAT): ((26, 5, 2, 24, 27648), (26, 5, 2, 24, 36864)),
    ("RTX 3060", 650, Dtype.FLOAT): (None, None),
    ("RTX 3060", 650, Dtype.HALF): ((26, 5, 2, 24, 87552), (26, 5, 2, 24, 101376)),
    ("L4", 650, Dtype.FLOAT): ((52, 5, 1, 24, 101376),) * 2,  # to the last byte
    ("L4", 1024, Dtype.HALF): ((50, 7, 2, 8, 97280), (52, 5, 1, 8, 99840)),
    ("L4", 1500, Dtype.HALF): (None, None),
}


@needs_library
@pytest.mark.parametrize(("name", "side", "dtype"), LAYOUTS)
def test_how_an_lstm_is_laid_out(name: str, side: int, dtype: Dtype) -> None:
    for backward, wanted in enumerate(LAYOUTS[name, side, dtype]):
        found = layout(fit(GPUS[name], Mode.LSTM, dtype, side, 20, bool(backward)))
        assert (found and found[:5]) == wanted
        if found:
            assert found[0] <= GPUS[name].multiprocessors
            assert found[4] <= GPUS[name].shared_bytes


@needs_library
@pytest.mark.parametrize(
    ("mode", "dtype", "forward", "backward"),
    [
        (Mode.LSTM, Dtype.FLOAT, 1792, 1792),
        (Mode.LSTM, Dtype.BFLOAT16, 2560, 2560),
        (Mode.GRU, Dtype.FLOAT, 2048, 2032),
        (Mode.GRU, Dtype.BFLOAT16, 2944, 2896),
        (Mode.RNN_TANH, Dtype.FLOAT, 3584, 3584),
        (Mode.RNN_TANH, Dtype.BFLOAT16, 5120, 5120),
    ],
)
def test_the_largest_layer_on_an_h200(
    mode: Mode, dtype: Dtype, forward: int, backward: int
) -> None:
    """20 sequences. A GRU of more than 2032 units fits with its three gates together, and then
    there is no room for the operand of all three in the backward pass."""
    gpu = GPUS["H200"]
    for back, largest in ((False, forward), (True, backward)):
        fits = [bool(fit(gpu, mode, dtype, n, 20, back)) for n in range(1, 6000)]
        rule = [by_the_rule(gpu, mode, dtype, n, 20, back) for n in range(1, 6000, 16)]
        assert fits.index(False) == sum(fits) == largest  # whatever is smaller fits too
        assert sum(map(bool, rule)) * SIDE == largest


@needs_library
def test_one_multiprocessor_holds_whole_matrices() -> None:
    found = layout(fit(Gpu(1, 232448), Mode.LSTM, Dtype.FLOAT, 80, 8, False))
    # The triangles of 4 gates, 5 tiles along a side, and as many tiles of 8 sequences; the one
    # side's, as another square on the diagonal would have.
    assert found is not None
    assert found[:5] == (1, 1, 4, 8, 4 * (4 * 15 * 256 + 2 * 5 * 8 * 16))
    assert fit(Gpu(1, found[4]), Mode.LSTM, Dtype.FLOAT, 80, 8, False)
    assert not fit(Gpu(1, found[4] - 1), Mode.LSTM, Dtype.FLOAT, 80, 8, False)


@needs_library
def test_more_shared_memory_never_stops_a_layer_from_fitting() -> None:
    for mode, dtype, processors, side, backward in product(
        Mode, (Dtype.FLOAT, Dtype.HALF), (1, 5, 13, 28, 58, 108, 132), (64, 200, 650, 1500), (0, 1)
    ):
        fits = [
            bool(fit(Gpu(processors, room), mode, dtype, side, 20, bool(backward)))
            for room in range(0, 260_000, 2048)
        ]
        assert fits == sorted(fits)
        assert not fits[0]


@needs_library
@pytest.mark.parametrize("side", [2**17, 2**20, 2**26, 2**30, 2**30 + 1, 2**31, 2**40])
@pytest.mark.parametrize("processors", [1, 132, 2**31 - 1])
def test_what_is_far_too_large_does_not_fit(side: int, processors: int) -> None:
    for mode, dtype in product(Mode, (Dtype.FLOAT, Dtype.HALF)):
        assert not fit(Gpu(processors, 232448), mode, dtype, side, 1, True)


@needs_library
def test_so_many_sequences_that_parts_could_not_be_counted_do_not_fit() -> None:
    # Each tile of a sequence has parts of 4 gates, from 1, 2 and 3 squares.
    for side, numbers in ((16, 4 * 16), (17, 2 * 2 * 4 * 16), (48, 3 * 3 * 4 * 16)):
        most = MOST_PARTS // numbers
        assert fit(GPUS["H200"], Mode.LSTM, Dtype.FLOAT, side, most, False)
        for more in (most + 1, 2**31, 2**40):
            assert not fit(GPUS["H200"], Mode.LSTM, Dtype.FLOAT, side, more, False)


@needs_library
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"gpu": None}, Status.NULL),
        ({"fit": None}, Status.NULL),
        ({"kernel": 4}, Status.SIZE),
        ({"kernel": -1}, Status.SIZE),
        ({"mode": 4}, Status.MODE),
        ({"mode": -1}, Status.MODE),
        ({"dtype": Dtype.DOUBLE}, Status.DTYPE),
        ({"dtype": 4}, Status.DTYPE),
        ({"side": 0}, Status.SIZE),
        ({"batch": 0}, Status.SIZE),
        ({"gpu": Gpu(0, 232448)}, Status.SIZE),
        ({"gpu": Gpu(132, -1)}, Status.SIZE),
        ({"gpu": Gpu(132, 0)}, Status.FIT),
        ({"gpu": Gpu(3, 232448)}, Status.OK),
        ({}, Status.OK),
    ],
)
def test_what_makes_no_sense_is_told_and_nothing_is_written(
    changed: dict[str, object], status: Status
) -> None:
    found = Fit(blocks=77)
    given = {"gpu": GPUS["H200"], "kernel": Kernel.PACKED, "mode": Mode.LSTM}
    given |= {"dtype": Dtype.FLOAT, "side": 64, "batch": 20}
    given |= {"backward": 0, "fit": byref(found)} | changed
    assert native.library().symrnn_fit_gpu(*given.values()) == status
    assert (found.blocks == 77) == (status != Status.OK)


# ---- banks of shared memory ----------------------------------------------------------------------

LANES = range(32)


def conflicts(addresses: list[int], width: int) -> int:
    """The most words, of a phase of a warp's reads, that lie in one bank; 1 is as fast as can be.

    Shared memory has 32 banks of 4 bytes. Reads of 16 bytes are done by 8 lanes at a time, of 8
    bytes by 16; of ldmatrix 8 rows of 16 bytes. The same word may be had by many lanes.
    """
    at_once = 128 // width
    worst = 0
    for k in range(0, len(addresses), at_once):
        words = {
            address // 4 + j for address in addresses[k : k + at_once] for j in range(width // 4)
        }
        worst = max(worst, *Counter(word % 32 for word in words).values())
    return worst


# What lane n of a warp reads at once (products.h): a place of a tile or of an operand.
Reads = Callable[[int], tuple[int, int]]
FLOAT_TILES: dict[str, tuple[int, list[Reads]]] = {
    "TF32 along rows": (16, [lambda n, i=i: (n // 4 * 2 + i, n % 4 * 4) for i in range(2)]),
    "TF32 across rows": (8, [lambda n, k=k: (n % 4 * 4 + k, n // 4 * 2) for k in range(4)]),
    "exact along rows": (
        16,
        [lambda n, i=i, s=s: (n // 4 * 2 + i, s * 4) for i in range(2) for s in range(4)],
    ),
    "exact across rows": (8, [lambda n, k=k: (k, n // 4 * 2) for k in range(16)]),
    "being put there": (16, [lambda n, k=k: ((n + k) // 4, (n + k) % 4 * 4) for k in (0, 32)]),
}
FLOAT_OPERANDS: dict[str, tuple[int, list[Reads]]] = {
    "TF32": (16, [lambda n, f=f: (f + n // 4, n % 4 * 4) for f in (0, 8, 16, 24)]),
    "exact": (
        16,
        [
            lambda n, f=f, j=j, s=s: (f + n % 4 * 2 + j, s * 4)
            for f in (0, 8, 16, 24)
            for j in range(2)
            for s in range(4)
        ],
    ),
    "being put there": (16, [lambda n: (n // 4, n % 4 * 4)]),
}
TILES_OF_16_BITS: dict[str, tuple[int, list[Reads]]] = {
    "along rows": (16, [lambda n: (n % 8 + n // 8 % 2 * 8, n // 16 * 8)]),
    "across rows": (16, [lambda n: (n % 8 + n // 16 * 8, n // 8 % 2 * 8)]),
    "being put there": (8, [lambda n, k=k: ((n + k) // 4, (n + k) % 4 * 4) for k in (0, 32)]),
}
OPERANDS_OF_16_BITS: dict[str, tuple[int, list[Reads]]] = {
    "operand": (16, [lambda n, f=f: (f + n % 8, n // 8 % 2 * 8) for f in (0, 8, 16, 24)]),
    "being put there": (8, [lambda n: (n // 4, n % 4 * 4)]),
}


@pytest.mark.parametrize(
    ("function", "size", "all_reads"),
    [
        ("float_index", 4, FLOAT_TILES),
        ("float_place", 4, FLOAT_OPERANDS),
        ("index_of_16_bits", 2, TILES_OF_16_BITS),
        ("place_of_16_bits", 2, OPERANDS_OF_16_BITS),
    ],
)
def test_reads_touch_each_bank_once(
    c: ctypes.CDLL, function: str, size: int, all_reads: dict[str, tuple[int, list[Reads]]]
) -> None:
    index = getattr(c, function)
    for name, (width, reads) in all_reads.items():
        for read in reads:
            lanes = [read(lane) for lane in LANES]
            assert conflicts([index(*place) * size for place in lanes], width) == 1, name
            # What lies together in the tile lies together in memory, and at a multiple of its size.
            for row, column in lanes:
                start, numbers = index(row, column), width // size
                assert start * size % width == 0
                assert [index(row, column + k) - start for k in range(numbers)] == [*range(numbers)]


def test_without_moving_numbers_banks_would_be_touched_more_than_once() -> None:
    """The model sees conflicts where there are some."""
    width, reads = FLOAT_TILES["TF32 across rows"]
    rows = [read(lane) for read in reads[:1] for lane in LANES]
    assert conflicts([(row * 16 + column) * 4 for row, column in rows], width) > 1
    width, reads = TILES_OF_16_BITS["along rows"]
    rows = [read(lane) for read in reads for lane in LANES]
    assert conflicts([(row * 16 + column) * 2 for row, column in rows], width) > 1


@pytest.mark.parametrize("function", ["float_index", "index_of_16_bits"])
def test_each_number_of_a_tile_has_a_place_of_its_own(c: ctypes.CDLL, function: str) -> None:
    index = getattr(c, function)
    assert sorted(index(*at) for at in product(range(16), range(16))) == list(range(256))


@pytest.mark.parametrize("function", ["float_place", "place_of_16_bits"])
def test_each_number_of_an_operand_has_a_place_of_its_own(c: ctypes.CDLL, function: str) -> None:
    place = getattr(c, function)
    assert sorted(place(*at) for at in product(range(32), range(16))) == list(range(32 * 16))
