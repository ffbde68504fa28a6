"""Recurrent layers with symmetric weights."""

from symrnn.rnn.backends import list_backends
from symrnn.rnn.cell import SymLSTMCell
from symrnn.rnn.lstm import SymLSTM

__all__ = ["SymLSTM", "SymLSTMCell", "list_backends"]
