"""The training recipes: every number that decides how a language model is trained.

Zaremba, Sutskever and Vinyals, "Recurrent Neural Network Regularization" (2014), in three sizes;
and the annealed recipe, with which the paper on weight symmetry was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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
        "plateau" divides it after each epoch whose validation is no better than the best before.
    epochs: passes over the training text.
    clip: the largest norm of the whole gradient.
    loss: "sum" over the time steps and mean over the batch, or "mean" over both.
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


def lr_in(epoch: int, lr: float, lr_divide: float, lr_after: int) -> float:
    """The learning rate in ``epoch``, counted from 1, under the schedule "epochs"."""
    try:
        return lr / lr_divide ** max(epoch - lr_after, 0)
    except OverflowError:  # of the divisor
        return 0.0


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

RECIPES = ("zaremba", "annealed")

SCHEDULES = ("epochs", "plateau")

ENDLESS = ("epochs", "plateau")
"""The schedules whose rates do not depend on the number of epochs: such runs can be extended."""

LOSSES = ("sum", "mean")


def recipe_of(size: str, recipe: str) -> Recipe:
    """The recipe of one of :data:`SIZES` and one of :data:`RECIPES`.

    "annealed" keeps the size's widths, unrolled steps and dropout.
    """
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
