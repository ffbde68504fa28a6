"""The language model: an embedding, a symmetric LSTM, a decoder."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from symrnn import SymLSTM

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Predicts the next token; Zaremba's model with symmetric recurrent weights.

    Dropout sits after the embedding, between the layers and before the decoder: on the
    non-recurrent connections alone.

    vocab_size: V.  embedding_size: E.  hidden_size: H.  num_layers: L.
    tied: the decoder's weight is the embedding's; wants E = H.
    symm, symm_hh, symm_ih, backend: of :class:`symrnn.SymLSTM`.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        *,
        tied: bool = False,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if tied and embedding_size != hidden_size:
            raise ValueError(
                f"tied wants embedding_size = hidden_size, got: {embedding_size} and {hidden_size}"
            )
        self.encoder = nn.Embedding(vocab_size, embedding_size)
        self.drop = nn.Dropout(dropout)
        self.rnn = SymLSTM(
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,  # it acts between layers only
            symm=symm,
            symm_hh=symm_hh,
            symm_ih=symm_ih,
            backend=backend,
        )
        self.decoder = nn.Linear(hidden_size, vocab_size)
        if tied:
            self.decoder.weight = self.encoder.weight

    def initialize(self, bound: float) -> None:
        """Every weight starts uniform in ±bound, biases too; ``avg`` forms as the paper does."""

        def draw(tensor: Tensor) -> Tensor:
            return tensor.uniform_(-bound, bound)

        with torch.no_grad():
            draw(self.encoder.weight)
            self.rnn.reset_parameters(draw)
            if self.decoder.weight is not self.encoder.weight:
                draw(self.decoder.weight)
            draw(self.decoder.bias)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids int64 (T, B), state h and c, each (L, B, H) -> logits (T, B, V), state."""
        output, state = self.rnn(self.drop(self.encoder(ids)), state)
        return self.decoder(self.drop(output)), state

    def deployed(self) -> LanguageModel:
        """This model for inference: the symmetric weights expanded once instead of every call.

        A copy, in evaluation mode, which gives the same numbers.
        """
        made = copy.deepcopy(self)
        made.rnn = SymLSTM.from_lstm(self.rnn.to_lstm(), "none", backend=self.rnn.backend)
        return made.eval()
