"""Int8 products, bit for bit as symrnn.h describes them, by every processor's kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from symrnn import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")

Floats = NDArray[np.float32]


def aligned(size: int) -> NDArray[np.int8]:
    room = np.full(size + 64, 77, np.int8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


class Matrices:
    """G matrices W (rows, columns), packed; Q and the scales, as they are packed.

    symmetric: as symrnn.h has it: 0, or the side in tiles of the free blocks.
    """

    def __init__(self, library: ctypes.CDLL, w: Floats, symmetric: int, threads: int = 1) -> None:
        self.library, self.symmetric, self.shape = library, symmetric, w.shape
        gates, rows, columns = w.shape
        w = np.ascontiguousarray(w)
        shape = (symmetric, rows, columns, gates)
        self.packed = aligned(library.symrnn_packed_length(*shape, native.Dtype.INT8))
        native.check(
            library.symrnn_pack(
                *shape, native.Dtype.FLOAT, w.ctypes.data, rows * columns, columns,
                native.Dtype.INT8, self.packed.ctypes.data, threads,
            )
        )  # fmt: skip
        high, wide = -(-rows // 16), -(-columns // 16)
        places = [
            (g, panel, k)
            for panel in range(high)
            for g in range(gates)
            for k in range(panel // symmetric * symmetric if symmetric else 0, wide)
        ]
        tiles, rest = np.split(self.packed, [256 * len(places)])
        scale, sums = np.split(rest, [64 * gates * high])
        self.scale: Floats = scale.view(np.float32).reshape(gates, 16 * high)
        self.q = np.zeros((gates, 16 * high, 16 * wide), np.int64)
        # A tile is [column / 4][row][column % 4].
        by_row = tiles.reshape(-1, 4, 16, 4).swapaxes(1, 2).reshape(-1, 16, 16)
        for (g, panel, k), tile in zip(places, by_row, strict=True):
            here, there = (slice(16 * t, 16 * t + 16) for t in (panel, k))
            self.q[(g, there, here) if symmetric else (g, here, there)] = tile
            if symmetric and k // symmetric > panel // symmetric:
                self.q[g, here, there] = tile.T
        assert (sums.view(np.int32).reshape(gates, -1) == self.q.sum(2)).all()
        assert abs(self.q).max() <= 127

    def reference(self, x: Floats) -> Floats:
        """x (B, columns) to W·x (B, G, rows), as symrnn.h says."""
        _, rows, columns = self.shape
        one, most = np.float32(1), np.float32(127)
        z = np.zeros((len(x), self.q.shape[2]), np.float32)
        z[:, :columns] = x
        products = []
        for q, scale in zip(self.q, self.scale, strict=True):
            scaled = z * (scale if self.symmetric else one)
            largest = np.abs(scaled).max(1, keepdims=True)
            tiny = largest < np.float32(1e-30)
            inverse = np.where(tiny, np.float32(0), most / np.where(tiny, one, largest))
            u = np.rint(scaled * inverse).astype(np.int64)
            sums = (u @ q.T).astype(np.float32)
            products.append(sums * (scale * (largest / most)))
        return np.stack(products, 1)[:, :, :rows]

    def multiply(self, x: Floats, threads: int) -> Floats:
        gates, rows, columns = self.shape
        every = (1 << gates) - 1
        term = native.Term(self.symmetric, rows, columns, every, self.packed.ctypes.data)
        product = native.Product(native.Dtype.INT8, gates, rows, columns, 1, ctypes.pointer(term))
        y = np.full((len(x), gates, rows), np.nan, np.float32)
        native.check(
            self.library.symrnn_multiply(
                product, False, len(x), x.ctypes.data, y.ctypes.data, 1, threads
            )
        )
        return y

    def unpacked(self) -> Floats:
        w = np.full(self.shape, np.nan, np.float32)
        gates, rows, columns = self.shape
        native.check(
            self.library.symrnn_unpack(
                self.symmetric, rows, columns, gates, native.Dtype.INT8,
                self.packed.ctypes.data, w.ctypes.data,
            )
        )  # fmt: skip
        return w


def draw(seed: int, gates: int, rows: int, columns: int, symmetric: int = 1) -> Floats:
    """Rows of different sizes, as training makes them; if square symmetric but for free blocks."""
    random = np.random.default_rng(seed)
    w = random.normal(size=(gates, rows, columns)) * np.exp(random.normal(size=(gates, rows, 1)))
    if rows == columns:
        w = np.where(is_free(rows, symmetric), w, w + w.swapaxes(1, 2))
    return w.astype(np.float32)


def is_free(side: int, symmetric: int) -> NDArray[np.bool_]:
    """Which entries are in a free block: of 1, whose tiles may be symmetric, none."""
    block = np.arange(side) // (16 * symmetric) if symmetric > 1 else np.arange(side)
    return block[:, None] == block[None, :]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("symmetric", "rows", "columns"),
    [(1, n, n) for n in (1, 5, 16, 17, 33, 130, 650)]
    + [(2, 33, 33), (2, 130, 130), (3, 80, 80), (9, 33, 33)]
    + [(0, 1, 1), (0, 33, 33), (0, 17, 40), (0, 40, 650)],
)
def test_every_bit_is_as_described(
    kernels: ctypes.CDLL, symmetric: int, rows: int, columns: int, threads: int
) -> None:
    m = Matrices(kernels, draw(rows, 3, rows, columns, symmetric or 1), symmetric, threads)
    random = np.random.default_rng(1)
    for batch in (1, 2, 3, 4, 6, 21) if rows < 500 else (1, 5):
        x = random.normal(size=(batch, columns)).astype(np.float32)
        x[0, 0] = 0
        x[-1] *= 1e-3  # each vector has a scale of its own
        assert np.array_equal(m.multiply(x, threads), m.reference(x))


@pytest.mark.parametrize("symmetric", [1, 3, 0])
def test_the_largest_sums_are_exact(kernels: ctypes.CDLL, symmetric: int) -> None:
    """All weights and all numbers at 127, of either sign: what saturates would show."""
    n = 130
    for weight_sign, x_sign in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        m = Matrices(kernels, np.full((1, n, n), weight_sign, np.float32), symmetric)
        assert (abs(m.q[0, :n, :n]) == 127).all()
        x = np.full((1, n), x_sign, np.float32)
        y = m.multiply(x, 2)
        assert np.array_equal(y, m.reference(x))
        np.testing.assert_allclose(y, weight_sign * x_sign * n, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [1, 2, 0])
def test_weights_are_near(symmetric: int) -> None:
    """Off by half a unit, and no bits are wasted."""
    library = native.library()
    assert library is not None
    w = draw(0, 4, 70, 70, symmetric or 1)
    w[1] = 0
    w[2, 3] = w[2, :, 3] = 0
    if symmetric == 2:
        w[3, 5] = w[3, 32:, 5] = 0  # a row of zeros whose column is none
    m = Matrices(library, w, symmetric)
    side = m.scale[:, :70]
    unit = side[:, :, None] * (side[:, None, :] if symmetric else 1)
    back = m.unpacked()
    assert (abs(back - w) <= 0.501 * unit).all()
    assert not back[1].any()
    assert not back[2, 3].any()
    if symmetric:
        mirrored = back == back.swapaxes(1, 2)
        assert (mirrored | is_free(70, symmetric)).all()
        size = abs(m.q[0, :70, :70])
        assert (np.maximum(size.max(0), size.max(1)) > 100).all()
    threads = [Matrices(library, w, symmetric, n).packed for n in (2, 5)]
    assert all(np.array_equal(m.packed, other) for other in threads)


@pytest.mark.parametrize("symmetric", [1, 2, 0])
def test_special_numbers(kernels: ctypes.CDLL, symmetric: int) -> None:
    n = 40
    m = Matrices(kernels, draw(2, 2, n, n), symmetric)
    x = np.random.default_rng(0).normal(size=(6, n)).astype(np.float32)
    right = m.reference(x)
    x[0, 3], x[2, 5], x[3, 39] = np.nan, np.inf, -np.inf
    x[4] = 0
    x[5] = 1e-38
    y = m.multiply(x, 2)
    assert np.isnan(y[[0, 2, 3]]).all()
    assert np.array_equal(y[1], right[1])
    assert not y[4:].any()
    w = draw(2, 2, n, n)
    w[1, 4, 7] = w[1, 7, 4] = np.nan  # loud, and in its own matrix alone
    broken = Matrices(kernels, w, symmetric)
    y = broken.multiply(x[1:2], 1)[0]
    assert np.isnan(y[1, 4])
    assert np.array_equal(y[0], right[1, 0])


def test_what_int8_cannot_do() -> None:
    library = native.library()
    assert library is not None
    m = Matrices(library, draw(0, 1, 5, 5), 1)
    term = native.Term(1, 5, 5, 1, m.packed.ctypes.data)
    product = native.Product(native.Dtype.INT8, 1, 5, 5, 1, ctypes.pointer(term))
    x = np.zeros(5, np.float32)
    given = (1, x.ctypes.data, x.ctypes.data, 1, 1)
    assert library.symrnn_multiply(product, True, *given) == native.Status.DTYPE
    size = library.symrnn_packed_length
    assert size(0, 1, 65536, 1, native.Dtype.INT8) > 0
    assert size(0, 1, 65537, 1, native.Dtype.INT8) == -native.Status.SIZE
    assert size(0, 1, 1, 1, 5) == -native.Status.DTYPE
