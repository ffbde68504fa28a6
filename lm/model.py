"""The language model: an embedding, symmetric recurrent layers, a decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from symrnn import SymGRU, SymLSTM, SymRNN, deploy, harden
from symrnn.rnn import RecurrentLayer
from symrnn.rnn.modes import MODES

CELLS: dict[str, type[SymLSTM] | type[SymGRU] | type[SymRNN]] = {
    "lstm": SymLSTM,
    "gru": SymGRU,
    "rnn": SymRNN,
}
"""The recurrent layers by the names that --cell has for them."""

State = tuple[Tensor, ...]
"""h, and of an LSTM c too, each (L, B, H): a tuple whatever the cell."""


class LanguageModel(nn.Module):
    """Predicts the next token; Zaremba's model with symmetric recurrent weights.

    Dropout sits after the embedding, between the layers and before the decoder: on the
    non-recurrent connections alone.

    vocab_size: V.  embedding_size: E.  hidden_size: H.  num_layers: L.
    tied: the decoder's weight is the embedding's; wants E = H.
    cell: of the recurrent layers, one of :data:`CELLS`.
    symm, symm_hh, symm_ih, backend: of those layers; all gates' hidden weights by default.
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
        cell: str = "lstm",
        symm: str = "avg",
        symm_hh: str | None = None,
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if tied and embedding_size != hidden_size:
            raise ValueError(
                f"tied wants embedding_size = hidden_size, got: {embedding_size} and {hidden_size}"
            )
        if cell not in CELLS:
            raise ValueError(f"cell should be one of {', '.join(CELLS)}, got: {cell!r}")
        self.encoder = nn.Embedding(vocab_size, embedding_size)
        self.drop = nn.Dropout(dropout)
        layers = CELLS[cell]
        # In a deployed model PyTorch's own, or one that holds packed weights.
        self.rnn: RecurrentLayer = layers(
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,  # it acts between layers only
            symm=symm,
            symm_hh=layers.GATES if symm_hh is None else symm_hh,
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
        """ids int64 (T, B), state -> logits (T, B, V), state."""
        # Layers whose state is one tensor take and give it as it is.
        single = len(self.states) == 1
        hx = state[0] if state is not None and single else state
        output, hx = self.rnn(self.drop(self.encoder(ids)), hx)
        return self.decoder(self.drop(output)), (hx,) if single else hx

    @property
    def states(self) -> str:
        """The tensors of the state, by letter: "hc" of an LSTM, "h" of others."""
        return MODES[self.rnn.mode].states

    def __prepare_scriptable__(self) -> nn.Module:
        return (_ScriptableLSTM if len(self.states) == 2 else _Scriptable)(self)

    def stream(self, batch: int = 1) -> Callable[[Tensor], Tensor]:
        """ids int64 (T, B) -> logits (T, B, V), call by call, the state inside.

        At inference, with the recurrent weights of now (:meth:`symrnn.SymLSTM.stream`).
        """
        rnn: Any = self.rnn
        plain = next((kind for kind in CELLS.values() if type(rnn) is kind.PLAIN), None)
        layers = (rnn if plain is None else plain.from_plain(rnn, "none")).stream(batch)
        return lambda ids: self.decoder(layers(self.encoder(ids)))

    def hardened(self) -> LanguageModel:
        """A copy whose hidden weights have symmetric matrices, with the upper triangles of ours.

        They are in the form "tri".
        """
        made = copy.deepcopy(self)
        harden(made.rnn)
        kind = type(made.rnn)
        made.rnn = kind.from_plain(made.rnn.to_plain(), "tri", backend=made.rnn.backend)
        made.rnn.inference_dtype = self.rnn.inference_dtype
        return made

    def deployed(
        self, form: str | None = None, *, dtype: torch.dtype | None = None, autocast: bool = False
    ) -> LanguageModel:
        """This model for inference: a copy, in evaluation mode, which gives the same numbers.

        form: as of :func:`symrnn.deploy`: "packed" holds what the native kernels read and nothing
            else, "plain" has PyTorch's own layers with constant weights, for whatever knows no
            others. None is what runs fastest here: the symmetric weights are expanded once instead
            of every call, but not where they are packed once, or folded, and never expanded.
        dtype: as of :func:`symrnn.deploy`; only where form is not None.
        autocast: whether it is to run under that; only where form is None.
        """
        if form is not None or not isinstance(self.rnn, RecurrentLayer):
            rnn: nn.Module = self.rnn
            same = "plain" if isinstance(rnn, nn.RNNBase) else "packed"
            return cast(LanguageModel, deploy(self, form or same, dtype))
        made = copy.deepcopy(self).eval()
        if not self._runs_symmetric(autocast):
            made.rnn = self.rnn.from_plain(self.rnn.to_plain(), "none", backend=self.rnn.backend)
            made.rnn.inference_dtype = self.rnn.inference_dtype
            made.rnn.eval()
        return made

    def _runs_symmetric(self, autocast: bool) -> bool:
        """Whether the recurrent layers, without gradients, do without expanded weights."""
        if autocast and self.rnn.backend == "auto":
            return False
        return not self.rnn.expands_weights(steps=2, batch=1)


# ---- torch.jit.script --------------------------------------------------------------------------


class _Parts(nn.Module):
    """The parts of a language model, shared with it, for TorchScript.

    That knows no tuple of open length, so each length has a class of its own.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.drop = model.drop
        self.rnn = model.rnn
        self.decoder = model.decoder
        self.train(model.training)


class _Scriptable(_Parts):
    """A model of layers whose state is h alone."""

    def forward(
        self, ids: Tensor, state: tuple[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor]]:
        hx = None if state is None else state[0]
        output, hx = self.rnn(self.drop(self.encoder(ids)), hx)
        return self.decoder(self.drop(output)), (hx,)


class _ScriptableLSTM(_Parts):
    """A model of layers whose state is the pair of h and c."""

    def forward(
        self, ids: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.rnn(self.drop(self.encoder(ids)), state)
        return self.decoder(self.drop(output)), state
