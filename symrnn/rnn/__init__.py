"""Recurrent layers with symmetric weights."""

from symrnn.rnn.backends import list_backends
from symrnn.rnn.cell import SymGRUCell, SymLSTMCell, SymRNNCell
from symrnn.rnn.gru import SymGRU
from symrnn.rnn.layer import RecurrentLayer
from symrnn.rnn.lstm import SymLSTM
from symrnn.rnn.rnn import SymRNN

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
