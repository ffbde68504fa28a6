"""How accurate sigmoid and tanh of the kernels are; that a product is right, whatever its size."""

from __future__ import annotations

import ctypes
import functools
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from symrnn import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")


DTYPES = {native.Dtype.FLOAT: torch.float32, native.Dtype.BFLOAT16: torch.bfloat16}


def activated(library: ctypes.CDLL, kind: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
    y = np.empty_like(x)
    native.check(
        library.symrnn_activate(kind, native.Dtype.FLOAT, len(x), x.ctypes.data, y.ctypes.data)
    )
    return y


@functools.cache
def every(stride: int) -> NDArray[np.float32]:
    """Every stride-th float there is, but infinities and NaN."""
    x = np.arange(0, 2**32, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return x[np.isfinite(x)]


def units_off(y: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """The largest error, in units in the last place of the float nearest to the exact value."""
    _, exponent = np.frexp(exact)
    return float((np.abs(y - exact) / np.ldexp(1.0, np.maximum(exponent - 24, -149))).max())


@functools.cache
def exact_sigmoid() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    x = every(1009)
    normal = x[x >= -87.33]  # beyond, the exact value leaves the normal range
    return normal, 1 / (1 + np.exp(-normal.astype(np.float64)))


@functools.cache
def exact_tanh() -> NDArray[np.float64]:
    return np.tanh(every(1009).astype(np.float64))


def test_sigmoid_is_within_three_units_in_the_last_place(kernels: ctypes.CDLL) -> None:
    x = every(1009)
    normal, exact = exact_sigmoid()
    assert units_off(activated(kernels, 0, normal), exact) < 3
    tiny = activated(kernels, 0, x[x < -87.33])
    assert (tiny >= 0).all()
    assert (tiny < 1.3e-38).all()


def test_tanh_is_within_two_units_in_the_last_place(kernels: ctypes.CDLL) -> None:
    x = every(1009)
    assert units_off(activated(kernels, 1, x), exact_tanh()) < 2


def test_activations_of_special_values(kernels: ctypes.CDLL) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype=np.float32)
    sigmoid, tanh = (activated(kernels, kind, x) for kind in (0, 1))
    assert sigmoid[0] == 1
    assert 0 <= sigmoid[1] < 1.3e-38
    assert np.isnan(sigmoid[2])
    assert (sigmoid[3:] == 0.5).all()
    assert tanh[:2].tolist() == [1, -1]
    assert np.isnan(tanh[2])
    assert (np.signbit(tanh[3:]) == [False, True]).all()


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_product_is_right_and_the_same_each_time(kernels: ctypes.CDLL, batch: int) -> None:
    side = 70
    w = torch.randn(4, side, side, generator=torch.Generator().manual_seed(0))
    w = (w + w.mT).contiguous()
    product, _packed = matrices(kernels, w, 1)
    x = torch.randn(batch, side, generator=torch.Generator().manual_seed(1))

    def multiplied(threads: int) -> torch.Tensor:
        y = torch.full((batch, 4 * side), torch.nan)
        native.check(
            kernels.symrnn_multiply(product, False, batch, x.data_ptr(), y.data_ptr(), 1, threads)
        )
        return y

    exact = (x.double() @ w.double().flatten(0, 1).mT).float()
    for threads in (1, 2, 5):
        torch.testing.assert_close(multiplied(threads), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(multiplied(threads), multiplied(threads))


@pytest.mark.parametrize("batch", [1, 4, 5, 24, 25, 64])
@pytest.mark.parametrize("symmetric", [0, 1, 2])
def test_a_product_of_bfloat16(kernels: ctypes.CDLL, symmetric: int, batch: int) -> None:
    """Of rounded matrices and vectors, summed in float32."""
    side = 70
    w = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0))
    if symmetric:
        block = torch.arange(side) // (16 * symmetric)
        w = torch.where(block == block.view(-1, 1), w, w + w.mT)
    product, _packed = matrices(kernels, w, symmetric, native.Dtype.BFLOAT16)
    product.dtype = native.Dtype.BFLOAT16_BOTH
    rounded = w.bfloat16().double().flatten(0, 1)
    for transposed, matrix in ((False, rounded.mT), (True, rounded)):
        x = torch.randn(batch, len(matrix), generator=torch.Generator().manual_seed(1))
        found = [torch.full((batch, matrix.size(1)), torch.nan) for _ in range(2)]
        for y in found:
            arrays = x.data_ptr(), y.data_ptr()
            native.check(kernels.symrnn_multiply(product, transposed, batch, *arrays, 1, 2))
        exact = x.bfloat16().double() @ matrix
        torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=1e-4)
        assert torch.equal(*found)


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3.4e38])
def test_special_values_in_a_product_of_bfloat16(
    kernels: ctypes.CDLL, value: float, batch: int
) -> None:
    """As in products of PyTorch: what is beyond the largest number is infinite."""
    w = torch.full((1, 1, 1), 0.5)
    product, _packed = matrices(kernels, w, 0, native.Dtype.BFLOAT16)
    product.dtype = native.Dtype.BFLOAT16_BOTH
    x, y = torch.full((batch, 1), value), torch.zeros(batch, 1)
    native.check(kernels.symrnn_multiply(product, False, batch, x.data_ptr(), y.data_ptr(), 1, 1))
    torch.testing.assert_close(y, 0.5 * x.bfloat16().float(), equal_nan=True)


def matrices(
    kernels: ctypes.CDLL,
    w: torch.Tensor,
    symmetric: int = 0,
    dtype: native.Dtype = native.Dtype.FLOAT,
) -> tuple[native.Product, torch.Tensor]:
    """w (gates, rows, columns) packed, and the numbers that the product points to."""
    gates, rows, columns = w.shape
    length = kernels.symrnn_packed_length(symmetric, rows, columns, gates, dtype)
    packed = torch.empty(length, dtype=DTYPES[dtype])
    native.check(
        kernels.symrnn_pack(
            symmetric, rows, columns, gates, native.Dtype.FLOAT, w.data_ptr(), rows * columns,
            columns, dtype, packed.data_ptr(), 2,
        )
    )  # fmt: skip
    term = native.Term(symmetric, rows, columns, (1 << gates) - 1, packed.data_ptr())
    return native.Product(dtype, gates, rows, columns, 1, ctypes.pointer(term)), packed


@pytest.mark.parametrize("threads", [1, 3])
def test_many_vectors_are_multiplied_as_fewer_are(kernels: ctypes.CDLL, threads: int) -> None:
    """Bit for bit, however many there are: 5 and more are summed in one order, 4 in another."""
    random = torch.Generator().manual_seed(0)
    w, x = torch.randn(40, 70, generator=random), torch.randn(200, 70, generator=random)
    product, _packed = matrices(kernels, w[None])

    def multiplied(x: torch.Tensor) -> torch.Tensor:
        y = torch.full((len(x), 40), torch.nan)
        given = (product, False, len(x), x.data_ptr(), y.data_ptr(), 1, threads)
        native.check(kernels.symrnn_multiply(*given))
        return y

    few = torch.cat([multiplied(part) for part in x.split(5)])
    torch.testing.assert_close(few, x @ w.mT, rtol=1e-5, atol=1e-5)
    for count in (64, 65, 68, 128, 129, 200):
        assert torch.equal(multiplied(x[:count]), few[:count])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_many_vectors_take_the_scratch_memory_of_64(kernels: ctypes.CDLL) -> None:
    """16 shares with partial sums of 50,000 vectors of 16 would be 51 MB."""
    count, threads, room = 50_000, 16, 2**24
    w, x = torch.eye(16).mul(2), torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    product, _packed = matrices(kernels, w[None])
    y = torch.zeros(count, 16)
    multiply = functools.partial(kernels.symrnn_multiply, product, False)
    addresses = (x.data_ptr(), y.data_ptr(), 1, threads)
    native.check(multiply(64, *addresses))  # which has the threads made
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
    try:
        status = multiply(count, *addresses)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    native.check(status)
    assert torch.equal(y, 2 * x)
