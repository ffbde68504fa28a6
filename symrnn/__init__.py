"""Recurrent layers with symmetric weights: half the parameters, a nearer memory.

>>> from symrnn import SymLSTM
>>> lstm = SymLSTM(650, 650, num_layers=2, symm="avg")

What a name stands for is imported when it is first asked for, so that ``symrnn.runtime`` runs
models where PyTorch is not, or is not worth its second of loading. Operators that programs of
``torch.export`` name are there once ``symrnn.rnn`` is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from symrnn.deployment import deploy
    from symrnn.rnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell
    from symrnn.runtime_file import save_runtime
    from symrnn.storage import PackedError, load_packed, open_packed, save_packed
    from symrnn.surgery import (
        ParameterCount,
        count_parameters,
        harden,
        parameter_groups,
        soft_symmetry_penalty,
        symmetrize,
        unsymmetrize,
    )
    from symrnn.symmetry import draw_symmetries, draw_symmetry, get_symmetry, list_symmetries

__version__ = "0.1.0"

_NAMES = {
    "deployment": ["deploy"],
    "rnn": ["SymGRU", "SymGRUCell", "SymLSTM", "SymLSTMCell", "SymRNN", "SymRNNCell"],
    "runtime_file": ["save_runtime"],
    "storage": ["PackedError", "load_packed", "open_packed", "save_packed"],
    "surgery": [
        "ParameterCount",
        "count_parameters",
        "harden",
        "parameter_groups",
        "soft_symmetry_penalty",
        "symmetrize",
        "unsymmetrize",
    ],
    "symmetry": ["draw_symmetries", "draw_symmetry", "get_symmetry", "list_symmetries"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
# Those that `symrnn.native`, without an import of it, finds too.
_SUBMODULES = (*_NAMES, "files", "layers", "native", "runtime")

__all__ = [
    "PackedError",
    "ParameterCount",
    "SymGRU",
    "SymGRUCell",
    "SymLSTM",
    "SymLSTMCell",
    "SymRNN",
    "SymRNNCell",
    "count_parameters",
    "deploy",
    "draw_symmetries",
    "draw_symmetry",
    "get_symmetry",
    "harden",
    "list_symmetries",
    "load_packed",
    "open_packed",
    "parameter_groups",
    "save_packed",
    "save_runtime",
    "soft_symmetry_penalty",
    "symmetrize",
    "unsymmetrize",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(importlib.import_module(f"symrnn.{_MODULES[name]}"), name)
    elif name in _SUBMODULES:
        found = importlib.import_module(f"symrnn.{name}")
    else:
        raise AttributeError(f"module 'symrnn' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
