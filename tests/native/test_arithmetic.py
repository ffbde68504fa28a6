"""How accurate sigmoid and tanh of the kernels are; that a product is right and repeatable."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from symrnn import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")


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
    packed = torch.empty(kernels.symrnn_packed_length(True, side, side, 4, native.Dtype.FLOAT))
    native.check(
        kernels.symrnn_pack(
            True, side, side, 4, native.Dtype.FLOAT, w.data_ptr(), side * side, side,
            native.Dtype.FLOAT, packed.data_ptr(), 2,
        )
    )  # fmt: skip
    term = native.Term(True, side, side, 0b1111, packed.data_ptr())
    product = native.Product(native.Dtype.FLOAT, 4, side, side, 1, ctypes.pointer(term))
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
