"""The language model: an embedding, symmetric recurrent layers, a decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import Codec
from lm.adaptive import AdaptiveDecoder
from symrnn import SymGRU, SymLSTM, SymRNN, deploy, harden
from symrnn.card import Card
from symrnn.hub import HubMixin
from symrnn.rnn import RecurrentLayer
from symrnn.rnn.modes import MODES
from symrnn.storage import Packed

CELLS: dict[str, type[SymLSTM] | type[SymGRU] | type[SymRNN]] = {
    "lstm": SymLSTM,
    "gru": SymGRU,
    "rnn": SymRNN,
}
"""The recurrent layers by the names that --cell has for them."""

State = tuple[Tensor, ...]
"""h, and of an LSTM c too, each (L, B, H): a tuple whatever the cell."""


class LanguageModel(HubMixin, nn.Module):
    """Predicts the next token; Zaremba's model with symmetric recurrent weights.

    Dropout sits after the embedding, between the layers and before the decoder: on the
    non-recurrent connections alone, unless ``state_dropout`` or ``weight_dropout`` is asked for.

    vocab_size: V.  embedding_size: E.  hidden_size: H.  num_layers: L.
    input_dropout, output_dropout: after the embedding and before the decoder, where those differ
        from ``dropout``.
    state_dropout, weight_dropout: of :class:`symrnn.SymLSTM`.
    tied: the decoder's weight is the embedding's. Where E is not H, the output is projected to E
        before it, without a bias.
    adaptive: the cutoffs of an adaptive softmax (:mod:`lm.adaptive`), for large vocabularies, in
        place of a decoder that is one matrix; its logits are log-probabilities.
    cell: of the recurrent layers, one of :data:`CELLS`.
    symm, symm_hh, symm_ih, backend: of those layers; all gates' hidden weights by default.

    Its attribute ``codec`` says what its tokens are: None until it is set, and of a model that was
    loaded its vocabulary. It is saved with the model (:class:`symrnn.hub.HubMixin`).
    """

    hub_kind = "language model"

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        *,
        input_dropout: float | None = None,
        output_dropout: float | None = None,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        tied: bool = False,
        adaptive: Sequence[int] | None = None,
        cell: str = "lstm",
        symm: str = "avg",
        symm_hh: str | None = None,
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if tied and adaptive is not None:
            raise ValueError("tied wants a decoder that is one matrix, not an adaptive softmax")
        if cell not in CELLS:
            raise ValueError(f"cell should be one of {', '.join(CELLS)}, got: {cell!r}")
        self.encoder = nn.Embedding(vocab_size, embedding_size)
        self.input_drop = nn.Dropout(dropout if input_dropout is None else input_dropout)
        self.output_drop = nn.Dropout(dropout if output_dropout is None else output_dropout)
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
            state_dropout=state_dropout,
            weight_dropout=weight_dropout,
        )
        self.codec: Codec | None = None
        projects = tied and embedding_size != hidden_size
        features = embedding_size if projects else hidden_size
        self.projection: nn.Module = nn.Identity()
        if projects:
            self.projection = nn.Linear(hidden_size, embedding_size, bias=False)
        self.decoder: nn.Linear | AdaptiveDecoder
        if adaptive is not None:
            self.decoder = AdaptiveDecoder(hidden_size, vocab_size, adaptive)
            return
        self.decoder = nn.Linear(features, vocab_size)
        if tied:
            self.decoder.weight = self.encoder.weight

    def initialize(self, bound: float, forget_bias: float | None = None) -> None:
        """Every weight starts uniform in ±bound, biases too; ``avg`` forms as the paper does.

        forget_bias: what is added to the biases of an LSTM's forget gates.
        """

        def draw(tensor: Tensor) -> Tensor:
            return tensor.uniform_(-bound, bound)

        with torch.no_grad():
            draw(self.encoder.weight)
            self.rnn.reset_parameters(draw)
            for parameter in (*self.projection.parameters(), *self.decoder.parameters()):
                if parameter is not self.encoder.weight:
                    draw(parameter)
            if forget_bias is not None:
                size = self.rnn.hidden_size
                for layer in range(self.rnn.num_layers):
                    bias = getattr(self.rnn, f"bias_ih_l{layer}")
                    bias[size : 2 * size] += forget_bias

    @property
    def tied(self) -> bool:
        """Whether decoder and embedding share their weight."""
        return isinstance(self.decoder, nn.Linear) and self.decoder.weight is self.encoder.weight

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids int64 (T, B), state -> logits (T, B, V), state."""
        features, state = self.features(ids, state)
        return self.decoder(features), state

    def features(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids int64 (T, B), state -> what the decoder takes (T, B, H or E), state."""
        # Layers whose state is one tensor take and give it as it is.
        single = len(self.states) == 1
        hx = state[0] if state is not None and single else state
        output, hx = self.rnn(self.input_drop(self.encoder(ids)), hx)
        return self.projection(self.output_drop(output)), (hx,) if single else hx

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """The negative log-probability of each target, in nats: at least in single precision.

        features (T, B, H or E), targets int64 (T, B) -> (T·B,).
        """
        if isinstance(self.decoder, AdaptiveDecoder):
            return self.decoder.losses(features, targets)
        logits = self.decoder(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    @property
    def states(self) -> str:
        """The tensors of the state, by letter: "hc" of an LSTM, "h" of others."""
        return MODES[self.rnn.mode].states

    def configuration(self) -> dict[str, object]:
        """What it is made of, by the names that the configuration of a run has for it."""
        rnn: nn.Module = self.rnn
        cell = next(name for name, kind in CELLS.items() if isinstance(rnn, kind | kind.PLAIN))
        return {
            "embedding_size": self.encoder.embedding_dim,
            "hidden_size": self.rnn.hidden_size,
            "num_layers": self.rnn.num_layers,
            "dropout": self.rnn.dropout,
            "input_dropout": self.input_drop.p,
            "output_dropout": self.output_drop.p,
            "state_dropout": getattr(rnn, "state_dropout", 0.0),
            "weight_dropout": getattr(rnn, "weight_dropout", 0.0),
            "tied": self.tied,
            "adaptive_softmax": getattr(self.decoder, "cutoffs", None),
            "cell": cell,
            "symm": getattr(rnn, "symm", "none"),
            "symm_hh": getattr(rnn, "symm_hh", ""),
            "symm_ih": getattr(rnn, "symm_ih", ""),
            "backend": "auto",
            "precision": "fp64" if self.encoder.weight.dtype == torch.float64 else "fp32",
        }

    def __prepare_scriptable__(self) -> nn.Module:
        return (_ScriptableLSTM if len(self.states) == 2 else _Scriptable)(self)

    def stream(self, batch: int = 1) -> Callable[[Tensor], Tensor]:
        """ids int64 (T, B) -> logits (T, B, V), call by call, the state inside.

        At inference, with the recurrent weights of now (:meth:`symrnn.SymLSTM.stream`).
        """
        rnn: Any = self.rnn
        plain = next((kind for kind in CELLS.values() if type(rnn) is kind.PLAIN), None)
        layers = (rnn if plain is None else plain.from_plain(rnn, "none")).stream(batch)
        return lambda ids: self.decoder(self.projection(layers(self.encoder(ids))))

    def without_dropout(self) -> LanguageModel:
        """A copy that is in training mode, and yet drops nothing."""
        made = copy.deepcopy(self).train()
        made.input_drop.p = made.output_drop.p = 0.0
        made.rnn.dropout = made.rnn.state_dropout = made.rnn.weight_dropout = 0.0
        return made

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

    # What stores a model imports this module: it is imported when it is asked.

    def _write_packed(self, path: Path) -> None:
        from lm.saved import save_best

        save_best(path, self, self.configuration(), self.codec)

    @classmethod
    def _of_packed(cls, packed: Packed) -> LanguageModel:
        from lm.saved import model_of

        return model_of(packed)

    def _card(self, title: str) -> Card:
        from lm.card import card_of

        return card_of(self, self.configuration(), title)

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
        self.input_drop = model.input_drop
        self.output_drop = model.output_drop
        self.rnn = model.rnn
        self.projection = model.projection
        self.decoder = model.decoder
        self.train(model.training)


class _Scriptable(_Parts):
    """A model of layers whose state is h alone."""

    def forward(
        self, ids: Tensor, state: tuple[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor]]:
        hx = None if state is None else state[0]
        output, hx = self.rnn(self.input_drop(self.encoder(ids)), hx)
        return self.decoder(self.projection(self.output_drop(output))), (hx,)


class _ScriptableLSTM(_Parts):
    """A model of layers whose state is the pair of h and c."""

    def forward(
        self, ids: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.rnn(self.input_drop(self.encoder(ids)), state)
        return self.decoder(self.projection(self.output_drop(output))), state
