"""The language model: an embedding, symmetric recurrent layers, a decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import Codec
from lm.adaptive import AdaptiveDecoder
from lm.stack import Dropout, FixedDropout, RecurrentStack, State, run_layers, states_of
from symrnn import SymGRU, SymLSTM, SymRNN, deploy, harden
from symrnn.hub import HubMixin
from symrnn.rnn import RecurrentLayer

CELLS: dict[str, type[SymLSTM] | type[SymGRU] | type[SymRNN]] = {
    "lstm": SymLSTM,
    "gru": SymGRU,
    "rnn": SymRNN,
}
"""The recurrent layers by the names that --cell has for them."""


class LanguageModel(HubMixin, nn.Module):
    """Predicts the next token; Zaremba's model with symmetric recurrent weights.

    Dropout sits after the embedding, between the layers and before the decoder: on the
    non-recurrent connections alone, unless ``state_dropout`` or ``weight_dropout`` is asked for.
    Layers that differ in size, or have fixed masks between them, are a
    :class:`lm.stack.RecurrentStack` of single ones.

    vocab_size: V.  embedding_size: E.  hidden_size: H.  num_layers: L.
    input_dropout, output_dropout: after the embedding and before the decoder, where those differ
        from ``dropout``.
    state_dropout, weight_dropout: of :class:`symrnn.SymLSTM`.
    embedding_dropout: in training the chance that a type of the vocabulary is embedded as zeros,
        wherever it stands in a call; the others are divided by 1 - p. A tied decoder keeps all.
    fixed_masks: whether the masks after the embedding, between the layers and before the decoder
        are the same at all time steps of a call.
    last_hidden_size: of the highest of several layers, where it is not H.
    tied: the decoder's weight is the embedding's. Where E is not the size of the highest layer, its
        output is projected to E, without a bias.
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
        embedding_dropout: float = 0.0,
        fixed_masks: bool = False,
        last_hidden_size: int | None = None,
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
        top = hidden_size if last_hidden_size is None else last_hidden_size
        if num_layers == 1 and top != hidden_size:
            raise ValueError(
                f"last_hidden_size={top} is that of the highest of several layers, got: one layer "
                f"of hidden_size={hidden_size}"
            )
        self.encoder = nn.Embedding(vocab_size, embedding_size)
        self.embedding_dropout = embedding_dropout
        self.fixed_masks = fixed_masks
        drop = FixedDropout if fixed_masks else Dropout
        self.input_drop = drop(dropout if input_dropout is None else input_dropout)
        self.output_drop = drop(dropout if output_dropout is None else output_dropout)
        kind = CELLS[cell]

        def layers(input_size: int, hidden_size: int, count: int) -> RecurrentLayer:
            return kind(
                input_size,
                hidden_size,
                count,
                dropout=dropout if count > 1 else 0.0,  # it acts between layers only
                symm=symm,
                symm_hh=kind.GATES if symm_hh is None else symm_hh,
                symm_ih=symm_ih,
                backend=backend,
                state_dropout=state_dropout,
                weight_dropout=weight_dropout,
            )

        # In a deployed model PyTorch's own, or one that holds packed weights.
        self.rnn: RecurrentLayer | RecurrentStack
        if num_layers > 1 and (fixed_masks or top != hidden_size):
            sizes = [embedding_size, *[hidden_size] * (num_layers - 1), top]
            if symm_ih and symm != "none" and len(set(sizes)) > 1:
                raise ValueError(
                    f"symm_ih={symm_ih!r} wants square input weights, but the layers go from "
                    f'{" to ".join(map(str, sizes))}: use symm_ih="", or one size'
                )
            each = [layers(below, size, 1) for below, size in pairwise(sizes)]
            self.rnn = RecurrentStack(each, drop(dropout))
        else:
            self.rnn = layers(embedding_size, hidden_size, num_layers)
        self.codec: Codec | None = None
        projects = tied and embedding_size != top
        features = embedding_size if projects else top
        self.projection: nn.Module = nn.Identity()
        if projects:
            self.projection = nn.Linear(top, embedding_size, bias=False)
        self.decoder: nn.Linear | AdaptiveDecoder
        if adaptive is not None:
            self.decoder = AdaptiveDecoder(top, vocab_size, adaptive)
            return
        self.decoder = nn.Linear(features, vocab_size)
        if tied:
            self.decoder.weight = self.encoder.weight

    def initialize(
        self, bound: float, forget_bias: float | None = None, init: str = "uniform"
    ) -> None:
        """Every weight starts uniform in ±bound, biases too; ``avg`` forms as the paper does.

        forget_bias: what is added to the biases of an LSTM's forget gates.
        init: "uniform" is that. With "torch" the recurrent layers start as PyTorch's, uniform in
            ±1/√H of each, and the decoder's biases as zeros.
        """

        def draw(tensor: Tensor) -> Tensor:
            return tensor.uniform_(-bound, bound)

        own = init == "torch"
        with torch.no_grad():
            draw(self.encoder.weight)
            for rnn in self.layers:
                rnn.reset_parameters(None if own else draw)
            ends = [*self.projection.named_parameters(), *self.decoder.named_parameters()]
            for name, parameter in ends:
                if own and name.endswith("bias"):
                    parameter.zero_()
                elif parameter is not self.encoder.weight:
                    draw(parameter)
            if forget_bias is not None:
                for rnn in self.layers:
                    size = rnn.hidden_size
                    for layer in range(rnn.num_layers):
                        bias = getattr(rnn, f"bias_ih_l{layer}")
                        bias[size : 2 * size] += forget_bias

    @property
    def layers(self) -> list[Any]:
        """The recurrent modules, lowest first: of a stack its single layers, else the one."""
        return [*self.rnn.layers] if isinstance(self.rnn, RecurrentStack) else [self.rnn]

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
        output, state = self.outputs(ids, state)
        return self.projection(self.output_drop(output)), state

    def outputs(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """ids int64 (T, B), state -> the highest layer's output before any dropout, state."""
        x = self.encoder(ids)
        if self.training and self.embedding_dropout:
            types = torch.ones_like(self.encoder.weight[:, :1])
            x = x * F.dropout(types, self.embedding_dropout)[ids]
        return run_layers(self.rnn, self.input_drop(x), state)

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """The negative log-probability of each target, in nats: at least in single precision.

        features (T, B, H or E), targets int64 (T, B) -> (T·B,).
        """
        if isinstance(self.decoder, AdaptiveDecoder):
            return self.decoder.losses(features, targets)
        logits = self.decoder(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    def whole_decoder(self) -> nn.Linear | AdaptiveDecoder:
        """The decoder of the highest layer's own output: with the projection, as one matrix."""
        decoder, projection = self.decoder, self.projection
        if isinstance(decoder, AdaptiveDecoder) or not isinstance(projection, nn.Linear):
            return decoder
        size, width = decoder.out_features, projection.in_features
        made = nn.Linear(width, size, device="meta", dtype=decoder.weight.dtype)
        made = made.to_empty(device=decoder.weight.device)
        with torch.no_grad():
            made.weight.copy_(decoder.weight @ projection.weight)
            made.bias.copy_(decoder.bias)
        return made

    @property
    def states(self) -> str:
        """The tensors of the state, by letter: "hc" of an LSTM, "h" of others."""
        return states_of(self.layers[0])

    def state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """The shapes of the state's tensors, for so many sequences."""
        return [shape for layer in self.layers for shape in layer.state_shapes(batch)]

    @property
    def feature_size(self) -> int:
        """How many numbers the decoder takes for each token."""
        decoder = self.decoder
        return (decoder if isinstance(decoder, nn.Linear) else decoder.softmax).in_features

    def configuration(self) -> dict[str, object]:
        """What it is made of, by the names that the configuration of a run has for it."""
        rnn, last = self.layers[0], self.layers[-1].hidden_size
        cell = next(name for name, kind in CELLS.items() if isinstance(rnn, kind | kind.PLAIN))
        return {
            "embedding_size": self.encoder.embedding_dim,
            "hidden_size": rnn.hidden_size,
            "last_hidden_size": None if last == rnn.hidden_size else last,
            "num_layers": sum(layer.num_layers for layer in self.layers),
            "dropout": self.rnn.drop.p if isinstance(self.rnn, RecurrentStack) else rnn.dropout,
            "input_dropout": self.input_drop.p,
            "output_dropout": self.output_drop.p,
            "state_dropout": getattr(rnn, "state_dropout", 0.0),
            "weight_dropout": getattr(rnn, "weight_dropout", 0.0),
            "embedding_dropout": self.embedding_dropout,
            "fixed_masks": self.fixed_masks,
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
        if self.training and self.embedding_dropout:
            raise ValueError("a scripted model has no embedding_dropout: call eval() first")
        return (_ScriptableLSTM if len(self.states) == 2 else _Scriptable)(self)

    def stream(self, batch: int = 1) -> Callable[[Tensor], Tensor]:
        """ids int64 (T, B) -> logits (T, B, V), call by call, the state inside.

        At inference, with the recurrent weights of now (:meth:`symrnn.SymLSTM.stream`).
        """
        streams = [_with_stream(layer).stream(batch) for layer in self.layers]

        def go_on(ids: Tensor) -> Tensor:
            x = self.encoder(ids)
            for stream in streams:
                x = stream(x)
            return self.decoder(self.projection(x))

        return go_on

    def without_dropout(self) -> LanguageModel:
        """A copy that is in training mode, and yet drops nothing."""
        made = copy.deepcopy(self).train()
        made.input_drop.p = made.output_drop.p = made.embedding_dropout = 0.0
        if isinstance(made.rnn, RecurrentStack):
            made.rnn.drop.p = 0.0
        for layer in made.layers:
            layer.dropout = layer.state_dropout = layer.weight_dropout = 0.0
        return made

    def hardened(self) -> LanguageModel:
        """A copy whose hidden weights have symmetric matrices, with the upper triangles of ours.

        They are in the form "tri".
        """
        made = copy.deepcopy(self)
        harden(made.rnn)
        made._replace_layers(lambda layer: _as_form(layer, "tri"))
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
        rnn = self.layers[0]
        if form is not None or not isinstance(rnn, RecurrentLayer):
            same = "plain" if isinstance(rnn, nn.RNNBase) else "packed"
            return cast(LanguageModel, deploy(self, form or same, dtype))
        made = copy.deepcopy(self).eval()
        made._replace_layers(
            lambda layer: layer if _runs_symmetric(layer, autocast) else _as_form(layer, "none")
        )
        return made

    def _replace_layers(self, make: Callable[[Any], Any]) -> None:
        if isinstance(self.rnn, RecurrentStack):
            self.rnn.layers = nn.ModuleList(map(make, self.layers))
        else:
            self.rnn = make(self.rnn)


def _runs_symmetric(layer: RecurrentLayer, autocast: bool) -> bool:
    """Whether recurrent layers, without gradients, do without expanded weights."""
    if autocast and layer.backend == "auto":
        return False
    return not layer.expands_weights(steps=2, batch=1)


def _as_form(layer: RecurrentLayer, symm: str) -> RecurrentLayer:
    """Recurrent layers with the matrices of these, or the nearest, in another form."""
    made = layer.from_plain(layer.to_plain(), symm, backend=layer.backend)
    made.inference_dtype = layer.inference_dtype
    return made


def _with_stream(layer: Any) -> Any:
    """A recurrent module that has streams, for one of PyTorch's or of ours."""
    plain = next((kind for kind in CELLS.values() if type(layer) is kind.PLAIN), None)
    return layer if plain is None else plain.from_plain(layer, "none")


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
