"""The kernels of each kind of processor, for the tests that are to hold of all."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from symrnn import native


@pytest.fixture(params=["avx512", "avx2", "portable"])
def kernels(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """The library with the kernels for one processor in use."""
    library = native.library()
    assert library is not None
    before = library.symrnn_cpu()
    if library.symrnn_use_cpu(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield library
    library.symrnn_use_cpu(before)
