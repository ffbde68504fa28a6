"""What the tests of packed models share: the operators, compiled once for the run of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from symrnn import native
from symrnn.native import building
from symrnn.native.torch import building as operators_building
from symrnn.native.torch import load


@pytest.fixture(scope="session")
def operators(shared_folder: Path) -> Iterator[SimpleNamespace]:
    """``torch.ops.symrnn`` with the operators of packed layers, and the library's path."""
    if not native.available():
        pytest.skip(native.why_not())
    try:
        building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYMRNN_CACHE", str(shared_folder / "kernels"))
        load()
        yield SimpleNamespace(ops=torch.ops.symrnn, path=operators_building.build())


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
