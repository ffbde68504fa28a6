"""Recurrent layers with symmetric weights."""

from symrnn.rnn.cells import SymGRUCell, SymLSTMCell, SymRNNCell
from symrnn.rnn.dispatch import list_backends
from symrnn.rnn.layer import RecurrentLayer
from symrnn.rnn.layers import SymGRU, SymLSTM, SymRNN

__all__ = [
    "RecurrentLayer",
    "SymGRU",
    "SymGRUCell",
    "SymLSTM",
    "SymLSTMCell",
    "SymRNN",
    "SymRNNCell",
    "list_backends",
]
