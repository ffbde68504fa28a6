"""Recurrent layers with symmetric weights: half the numbers, a nearer memory.

>>> from symrnn import SymLSTM
>>> lstm = SymLSTM(650, 650, num_layers=2, symm="avg")
"""

from symrnn.rnn import SymLSTM, SymLSTMCell
from symrnn.surgery import ParameterCount, count_parameters
from symrnn.symmetry import get_symmetry, list_symmetries

__version__ = "0.1.0"

__all__ = [
    "ParameterCount",
    "SymLSTM",
    "SymLSTMCell",
    "count_parameters",
    "get_symmetry",
    "list_symmetries",
]
