"""PyTorch's operators for packed layers: ``torch.ops.symrnn.packed_layers`` and ``packed_linear``.

What torch.compile, torch.export and AOTInductor put into a graph for a module of
:mod:`symrnn.rnn.packed`. They are written in C++ on PyTorch's stable ABI (operators.cpp says what
they take), so that a C++ program runs such a graph without Python: it loads the library whose path
``python -m symrnn.native.torch`` prints, and then the package.

>>> from symrnn.native.torch import load
>>> load()  # the first call on a machine compiles the library, which takes some seconds

A Python program that loads a ``.pt2`` file with such operators calls this before, or, where this
package is not installed, ``torch.ops.load_library(path)``. Packed modules do without until a graph
is made of them.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from symrnn.native.building import NotBuiltError
from symrnn.native.torch.building import build

_lock = threading.Lock()
_loaded = False


def load() -> None:
    """Have the operators, if need be compile them. Raises RuntimeError that says why it cannot."""
    global _loaded
    with _lock:
        if _loaded:
            return
        if not hasattr(torch.ops.symrnn, "packed_layers"):  # nobody else loaded some build
            torch.ops.load_library(_build())
        torch.library.register_fake("symrnn::packed_layers", _layers_shapes)
        torch.library.register_fake("symrnn::packed_linear", _linear_shape)
        _loaded = True


def _build() -> Path:
    try:
        return build()
    except NotBuiltError as error:
        raise RuntimeError(
            "symrnn's operators for torch.compile, torch.export and AOTInductor are not built: "
            f"{error}; packed modules run without them where no graph is made"
        ) from None


def _layers_shapes(
    input: Tensor, batch_sizes: Any, state: list[Tensor], weights: Any, structure: Any,
    output_size: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    h, *c = state
    output = input.new_empty((*input.shape[:-1], output_size))
    return output, h.new_empty(h.shape), h.new_empty(h.shape if c else (0,))


def _linear_shape(
    input: Tensor, weight: Any, bias: Any, structure: Any, output_size: int
) -> Tensor:
    return input.new_empty((*input.shape[:-1], output_size))
