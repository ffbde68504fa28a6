"""The training recipes: every number that decides how a language model is trained.

- "zaremba": Zaremba, Sutskever and Vinyals, "Recurrent Neural Network Regularization" (2014), in
  three sizes.
- "annealed": the paper on weight symmetry was trained with it.
- "compact": the plain LSTMs that were tuned for the Penn Treebank at 10 and 24 million parameters.
  "small" is of Melis, Dyer and Blunsom, "On the State of the Art of Evaluation in Neural Language
  Models" (2018), "medium" the LSTM of Melis, Kočiský and Blunsom, "Mogrifier LSTM" (2020); both by
  the configurations in google-deepmind/lamb (experiment/on-the-state/ptb_10m_lstm_d1, and
  experiment/mogrifier, …ptb_24m_lstm_d2…/trial_833). What differs: those programs cap the input
  gate at 1 - f and add the outputs of both layers up; they draw starting values from truncated
  normal distributions, ours are uniform, of about the same variance (small's embedding: a quarter);
  the gradient is clipped before the weights decay; the perplexity is of a softmax whose temperature
  is tuned. They validate after every 100 steps (medium: 200), which they call a turn, for 1,000
  turns, and divide the rate after 26 without a better one; ours waits 26 epochs, of 414 steps
  (207), and --lr-patience 6 is about as long as theirs (25).
- "awd": Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models" (2018), with
  the numbers of their program (salesforce/awd-lstm-lm) for the Penn Treebank. Its ASGD uses the
  rate of a window one step late, and its mean leaves out the first step.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a model is built and trained.

    hidden_size, embedding_size, num_layers: of the model.
    steps: T, the time steps that a gradient reaches back.
    batch_size: B, the streams that are read side by side.
    dropout: probability, on the non-recurrent connections alone.
    init_range: every weight starts uniform in ± this.
    lr: the learning rate of the first epoch.
    schedule: "epochs" divides the rate by ``lr_divide`` each epoch after the first ``lr_after``;
        "plateau" divides it after each ``lr_patience`` epochs whose validation is no better than
        the best before; "cosine" lets it fall to zero at the end, by half a cosine.
    epochs: passes over the training text.
    clip: the largest norm of the whole gradient.
    loss: "sum" over the time steps and mean over the batch, or "mean" over both.
    tied: whether embedding and decoder share their weight; where their sizes differ the output is
        projected to the embedding's.
    input_dropout, output_dropout: after the embedding and before the decoder; None for ``dropout``.
    state_dropout, weight_dropout: of :class:`symrnn.SymLSTM`, on h and on the hidden weights.
    forget_bias: what is added to the biases of an LSTM's forget gates at the start.
    reset_state: probability that a stream's carried state is set to zeros before a step.
    optimizer: one of :data:`OPTIMIZERS`.
    momentum: of "sgd".  beta1, beta2, epsilon: of the adaptive ones ("rmsprop" has no beta1).
    weight_decay: λ; the gradient of λ/2·‖w‖² is added, with "adamw" λ·lr·w subtracted, w the
        weights: of a symmetric form the entries of its matrices.
    warmup: steps in which the rate grows to its value, from zero on.
    patience: epochs without a better validation after which the run ends; None for never.
    averaging: epochs without a better validation after which the mean of the weights after each
        step is taken, and from then on validated and saved; None for never.
    accumulate: into how many parts the batch's streams are divided, whose gradients are added up.
    last_hidden_size: of the highest of several layers, where it is not ``hidden_size``.
    fixed_masks, embedding_dropout: of :class:`lm.model.LanguageModel`.
    activation_penalty, temporal_penalty: factors α and β of what is added to the mean loss
        (:func:`lm.learner.activation_penalty`).
    non_monotone: n of NT-ASGD: the mean is taken, as with ``averaging``, once a validation is worse
        than the best of all but the n before it; None for never.
    init: one of :data:`INITS`, of :meth:`lm.model.LanguageModel.initialize`.
    random_steps: whether windows have random lengths, around ``steps``, and the rate is in
        proportion (:class:`data.RandomBatches`).
    """

    hidden_size: int
    embedding_size: int
    num_layers: int
    steps: int
    batch_size: int
    dropout: float
    init_range: float
    lr: float
    schedule: str
    lr_divide: float
    lr_after: int
    epochs: int
    clip: float
    loss: str
    tied: bool = False
    input_dropout: float | None = None
    output_dropout: float | None = None
    state_dropout: float = 0.0
    weight_dropout: float = 0.0
    forget_bias: float | None = None
    reset_state: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    lr_patience: int = 1
    warmup: int = 0
    patience: int | None = None
    averaging: int | None = None
    accumulate: int = 1
    random_steps: bool = False
    last_hidden_size: int | None = None
    fixed_masks: bool = False
    embedding_dropout: float = 0.0
    activation_penalty: float = 0.0
    temporal_penalty: float = 0.0
    non_monotone: int | None = None
    init: str = "uniform"


ADDED: dict[str, Any] = {
    field.name: field.default for field in fields(Recipe) if field.default is not MISSING
}
"""What recipes of former runs did not say, and what they did."""


def lr_in(epoch: int, lr: float, lr_divide: float, lr_after: int) -> float:
    """The learning rate in ``epoch``, counted from 1, under the schedule "epochs"."""
    try:
        return lr / lr_divide ** max(epoch - lr_after, 0)
    except OverflowError:  # of the divisor
        return 0.0


def lr_at(step: int, lr: float, warmup: int, length: int | None) -> float:
    """The learning rate of a step, counted from 1, with warm-up.

    lr: what it is without.
    length: of the whole run, in steps, if the rate falls to zero by its end; else None.
    """
    rate = lr * min(1.0, step / warmup) if warmup else lr
    if length is None:
        return rate
    done = min(max(step - 1 - warmup, 0) / max(length - warmup, 1), 1.0)
    return rate * (1 + math.cos(math.pi * done)) / 2


def _zaremba(
    size: int,
    steps: int,
    dropout: float,
    init: float,
    divide: float,
    after: int,
    epochs: int,
    clip: float,
) -> Recipe:
    return Recipe(
        hidden_size=size,
        embedding_size=size,
        num_layers=2,
        steps=steps,
        batch_size=20,
        dropout=dropout,
        init_range=init,
        lr=1.0,
        schedule="epochs",
        lr_divide=divide,
        lr_after=after,
        epochs=epochs,
        clip=clip,
        loss="sum",
    )


SIZES = {
    "small": _zaremba(200, 20, 0.0, 0.1, 2.0, 4, 13, 5.0),
    "medium": _zaremba(650, 35, 0.5, 0.05, 1.2, 6, 39, 5.0),
    "large": _zaremba(1500, 35, 0.65, 0.04, 1.15, 14, 55, 10.0),
}

_MELIS = Recipe(
    hidden_size=1194,
    embedding_size=268,
    num_layers=1,
    steps=35,
    batch_size=64,
    dropout=0.0,
    init_range=0.05,
    lr=0.00417865626514,
    schedule="plateau",
    lr_divide=10.0,
    lr_after=0,
    epochs=200,
    clip=10.0,
    loss="sum",
    tied=True,
    input_dropout=0.579891622066,
    output_dropout=0.327008873224,
    state_dropout=0.215256482363,
    forget_bias=1.0,
    reset_state=0.01,
    optimizer="adam",
    beta1=0.0,  # which makes it RMSprop, but for the bias of its first averages
    weight_decay=0.000124350262922,
    lr_patience=26,
)

COMPACT = {
    "small": _MELIS,
    "medium": replace(
        _MELIS,
        hidden_size=950,
        embedding_size=950,
        num_layers=2,
        steps=70,
        dropout=0.3069926535017156,
        lr=0.0030369099569192135,
        lr_divide=1.0,
        epochs=400,
        input_dropout=0.6275626425150355,
        output_dropout=0.6901712653612706,
        state_dropout=0.3692225400980858,
        weight_decay=0.00024908138497223704,
        averaging=50,
    ),
}

AWD = Recipe(
    hidden_size=1150,
    embedding_size=400,
    num_layers=3,
    last_hidden_size=400,
    steps=70,
    batch_size=20,
    dropout=0.25,
    init_range=0.1,
    lr=30.0,
    schedule="plateau",
    lr_divide=1.0,
    lr_after=0,
    epochs=500,
    clip=0.25,
    loss="mean",
    tied=True,
    input_dropout=0.4,
    output_dropout=0.4,
    weight_dropout=0.5,
    weight_decay=1.2e-6,
    random_steps=True,
    fixed_masks=True,
    embedding_dropout=0.1,
    activation_penalty=2.0,
    temporal_penalty=1.0,
    non_monotone=5,
    init="torch",
)

RECIPES = ("zaremba", "annealed", "compact", "awd")

INITS = ("uniform", "torch")

SCHEDULES = ("epochs", "plateau", "cosine")

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "asgd")

ENDLESS = ("epochs", "plateau")
"""The schedules whose rates do not depend on the number of epochs: such runs can be extended."""

LOSSES = ("sum", "mean")


def recipe_of(size: str, recipe: str) -> Recipe:
    """The recipe of one of :data:`SIZES` and one of :data:`RECIPES`.

    "annealed" keeps the size's widths, unrolled steps and dropout. Raises ValueError for "compact"
    and "awd" in a size that they do not have.
    """
    if recipe == "compact":
        if size not in COMPACT:
            raise ValueError(f"the recipe compact has the sizes {', '.join(COMPACT)}, got: {size}")
        return COMPACT[size]
    if recipe == "awd":
        if size != "small":
            raise ValueError(f"the recipe awd has the one size small, got: {size}")
        return AWD
    zaremba = SIZES[size]
    if recipe == "zaremba":
        return zaremba
    return replace(
        zaremba,
        init_range=0.1,
        lr=20.0,
        schedule="plateau",
        lr_divide=4.0,
        epochs=40,
        clip=0.25,
        loss="mean",
    )
