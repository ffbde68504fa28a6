"""The perplexity of a model on a text: every token, in one stream, the state carried over."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
    def word_perplexity(self) -> float:
        """Per word: comparable between tokenizers. Equal to ``perplexity`` for word tokens."""
        return exponential(self.nats / self.words)


def measure(
    model: LanguageModel,
    text: EncodedText,
    eos_id: int,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    each: Callable[[Tensor, Tensor], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Score ``model`` on the whole of ``text``, whose first token follows an ``<eos>``.

    precision: makes the context that the model runs in (autocast or none).
    each: called with the targets (T,) and their negative log-probabilities (T,), in nats, in order.
    stop: whether to give up, asked at every window; then Stopped is raised.
    """
    device = model.encoder.weight.device
    was_training = model.training
    model.eval()
    # As many steps at once as keep the logits at 32 MB.
    steps = min(max(2**23 // model.decoder.out_features, 16), 1024)
    nats = 0.0
    state: State | None = None
    with torch.inference_mode():
        for inputs, targets in stream_windows(text.ids, steps, eos_id):
            if stop():
                raise Stopped
            inputs, targets = inputs.to(device), targets.to(device).view(-1)
            with precision():
                logits, state = model(inputs, state)
            losses = cross_entropy(logits, targets)
            nats += losses.double().sum().item()
            if each is not None:
                each(targets, losses)
    model.train(was_training)
    return Score(nats, text.tokens, text.words)


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


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-probability of each target, in nats: at least in single precision.

    logits (T, B, V), targets int64 (T, B) or (T·B,) -> (T·B,).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


def exponential(value: float) -> float:
    """e to the power of value; infinity where that is beyond a float, NaN for NaN."""
    return math.inf if value > 700 else math.exp(value)
