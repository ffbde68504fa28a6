"""Recurrent layers with symmetric weights: half the parameters, a nearer memory.

>>> from symrnn import SymLSTM
>>> lstm = SymLSTM(650, 650, num_layers=2, symm="avg")
"""

from symrnn.deploy import deploy
from symrnn.rnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell
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
    "soft_symmetry_penalty",
    "symmetrize",
    "unsymmetrize",
]
