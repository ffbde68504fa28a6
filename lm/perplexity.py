"""The perplexity of a model on a text: every token, in one stream, the state carried over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from data import Codec, EncodedText, stream_windows
from lm.model import LanguageModel, State
from symrnn.training import Stopped


@dataclass(frozen=True)
class Score:
    """How well a model predicted a text.

    nats: the negative log-probability of the whole text.
    tokens: how many tokens that is, each line's ``<eos>`` among them.
    words: how many words: what stands between white space, and the end of each line.
    """

    nats: float
    tokens: int
    words: int

    @property
    def perplexity(self) -> float:
        """Per token."""
        return exponential(self.nats / self.tokens)

    @property
    def bits(self) -> float:
        """Per token, in bits: what is published of characters."""
        return self.nats / self.tokens / math.log(2)

    @property
    def word_perplexity(self) -> float:
        """Per word: comparable between tokenizers. Equal to ``perplexity`` for word tokens."""
        return exponential(self.nats / self.words)


@dataclass(frozen=True)
class Window:
    """A stretch of a text as a model predicted it.

    features: what the decoder took, (T, H).
    targets: the tokens that were to be predicted, int64 (T,).
    nats: their negative log-probabilities, (T,), at least in single precision.
    """

    features: Tensor
    targets: Tensor
    nats: Tensor


STEPS = 1024
"""Time steps of the recurrent layers at once: long enough to keep a GPU busy."""

LOGITS = 2**23
"""How many logits there are at once, 32 MB of them: a large vocabulary is decoded in pieces."""


def measure(
    model: LanguageModel,
    text: EncodedText,
    eos_id: int,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    stop: Callable[[], bool] = lambda: False,
    update: Callable[[int], object] = lambda _: None,
) -> Score:
    """Score ``model`` on the whole of ``text``, whose first token follows an ``<eos>``.

    precision: makes the context that the model runs in (autocast or none).
    stop: whether to give up, asked at every window; then Stopped is raised.
    update: is told how many tokens each window had.
    """
    nats = 0.0
    for window in predict(model, text, eos_id, precision=precision):
        nats += window.nats.double().sum().item()
        update(len(window.targets))
        if stop():
            raise Stopped
    return Score(nats, text.tokens, text.words)


@torch.inference_mode()
def predict(
    model: LanguageModel,
    text: EncodedText,
    eos_id: int,
    *,
    precision: Callable[[], AbstractContextManager[object]],
) -> Iterator[Window]:
    """The whole of ``text``, in one stream, as ``model`` predicts it in evaluation mode."""
    device = model.encoder.weight.device
    was_training = model.training
    model.eval()
    rows = max(LOGITS // model.encoder.num_embeddings, 16)
    state: State | None = None
    try:
        for inputs, targets in stream_windows(text.ids, STEPS, eos_id):
            inputs, targets = inputs.to(device), targets.to(device)
            with precision():
                features, state = model.features(inputs, state)
                pieces = zip(features.split(rows), targets.split(rows), strict=True)
                nats = torch.cat([model.losses(*piece) for piece in pieces])
            yield Window(features.squeeze(1), targets.squeeze(1), nats)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Unknown:
    """How much of a text is ``<unk>`` to a codec: a perplexity is easily low where much is.

    count: of words, or with sentencepiece of pieces; a ``<unk>`` that stands in the text included.
    tokens: of the whole text.
    """

    count: int
    tokens: int

    @classmethod
    def of(cls, text: EncodedText, codec: Codec) -> Unknown:
        """Of a text that this codec encoded."""
        return cls(0 if codec.unk_id is None else text.count(codec.unk_id), text.tokens)

    @property
    def share(self) -> float:
        """Of all tokens, from 0 to 1."""
        return self.count / self.tokens

    def __str__(self) -> str:
        return f"{self.count:,} ({self.share:.2%} of tokens)"


def exponential(value: float) -> float:
    """e to the power of value; infinity where that is beyond a float, NaN for NaN."""
    return math.inf if value > 700 else math.exp(value)
