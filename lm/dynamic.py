"""Dynamic evaluation: the weights follow the text that is measured, by gradient descent.

Krause, Kahembwe, Murray and Renals, "Dynamic Evaluation of Neural Sequence Models" (2018, arXiv
1709.07432), with the update that is scaled by root-mean-square gradients and decays towards the
trained weights. A segment of the text is predicted first and learned from then, so every token is
predicted by weights that have not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from data import EncodedText, TrainBatches, stream_windows
from lm.model import LanguageModel, State
from symrnn.files import UserError

STREAMS = 100
"""Streams of the training text that the statistics are taken from, side by side."""


@dataclass(frozen=True)
class Dynamic:
    """How the weights θ follow the text. The defaults are those that the authors' program
    (benkrause/dynamic-evaluation) has, tuned for an AWD-LSTM on the Penn Treebank.

    For each segment, with the gradient g of its mean loss, θ₀ the trained weights, and r the root
    of the mean squared gradient on the training text:

        θ ← θ − lr · g / (r + epsilon) + min(decay · r / mean(r), 1) · (θ₀ − θ)

    mean(r) is the mean over the tensors of each tensor's mean, as in that program. The weights of
    symmetric matrices are their parameters, so the matrices stay symmetric; each parameter moves as
    any other does, without the factor that its rate has in training.

    segment: time steps between two updates; a gradient reaches back no further. For another
        length, lr and decay want to be scaled with it.
    """

    lr: float = 5e-5
    decay: float = 2e-3
    epsilon: float = 2e-5
    segment: int = 5

    def __str__(self) -> str:
        return (
            f"learning rate {self.lr:g}, decay {self.decay:g}, epsilon {self.epsilon:g}, "
            f"segments of {self.segment}"
        )


def gradient_scales(
    model: LanguageModel,
    text: EncodedText,
    segment: int,
    *,
    precision: Callable[[], AbstractContextManager[object]],
    update: Callable[[int], object] = lambda _: None,
) -> list[Tensor]:
    """r of each parameter: the root of its mean squared gradient, over the segments of a text.

    text: the training text, read in STREAMS streams (fewer if it is short) with carried state.
    update: is told how many tokens are done.

    Raises UserError if the text has no whole segment.
    """
    if text.tokens <= segment:
        raise UserError(
            f"the text that the statistics are taken from has {text.tokens:,} tokens: a segment "
            f"takes {segment + 1:,}"
        )
    model = model.without_dropout()  # in training mode: else cuDNN's layers have no gradient
    parameters = list(model.parameters())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    batches = TrainBatches(text.ids, min(STREAMS, text.tokens // (segment + 1)), segment)
    state: State | None = None
    for inputs, targets in batches:
        losses, state = _losses(model, inputs, targets, state, precision)
        gradients = torch.autograd.grad(losses.mean(), parameters)
        for square, gradient in zip(squares, gradients, strict=True):
            square.addcmul_(gradient, gradient)
        update(inputs.numel())
    return [square.div_(len(batches)).sqrt_() for square in squares]


def predict_dynamically(
    model: LanguageModel,
    scales: Sequence[Tensor],
    text: EncodedText,
    eos_id: int,
    settings: Dynamic,
    *,
    precision: Callable[[], AbstractContextManager[object]],
) -> Iterator[Tensor]:
    """The negative log-probabilities of a text, in nats, by a copy of ``model`` that follows it.

    scales: of :func:`gradient_scales`.

    Yields (T,) for each segment of the text, which is one stream.

    Raises UserError if the weights leave what is finite: the rate is too large.
    """
    model = model.without_dropout()  # in training mode: else cuDNN's layers have no gradient
    parameters = list(model.parameters())
    trained = [parameter.detach().clone() for parameter in parameters]
    mean = torch.stack([scale.mean() for scale in scales]).mean()
    pulls = [(settings.decay * scale / mean).clamp_(max=1.0) for scale in scales]
    rates = [settings.lr / (scale + settings.epsilon) for scale in scales]
    state: State | None = None
    read = 0
    for inputs, targets in stream_windows(text.ids, settings.segment, eos_id):
        losses, state = _losses(model, inputs, targets, state, precision)
        if not losses.isfinite().all():
            raise UserError(
                f"--dynamic-lr {settings.lr:g} is too large: the adapted model is no longer finite "
                f"after {read:,} tokens"
            )
        read += len(targets)
        gradients = torch.autograd.grad(losses.mean(), parameters)
        yield losses.detach()
        with torch.no_grad():
            for parameter, start, pull, rate, gradient in zip(
                parameters, trained, pulls, rates, gradients, strict=True
            ):
                parameter.lerp_(start, pull).addcmul_(gradient, rate, value=-1.0)


def _losses(
    model: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    state: State | None,
    precision: Callable[[], AbstractContextManager[object]],
) -> tuple[Tensor, State]:
    """inputs, targets int64 (T, B) on any device -> losses (T·B,), detached state."""
    device = model.encoder.weight.device
    with precision():
        features, state = model.features(inputs.to(device), state)
        losses = model.losses(features, targets.to(device))
    return losses, tuple(part.detach() for part in state)
