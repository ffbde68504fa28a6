"""The training recipes: every number that decides how an image network is trained.

"cifar" is that of *Wide Residual Networks* (arXiv 1605.07146, section 3), which the paper on
symmetry takes over. "imagenet" is the usual one of ResNets (arXiv 1512.03385) in 100 epochs, with
Nesterov's momentum, and a learning rate in proportion to the batch (arXiv 1706.02677). "shapes" is
a short one for the built-in pictures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, by stochastic gradient descent.

    model: which is trained unless another is named.
    epochs: passes over the training set.
    batch_size: pictures of one step, over all processes together.
    lr: the learning rate of the first epoch.
    lr_batch: the batch that ``lr`` is for: with another it grows in proportion. None: it does not.
    lr_divide: what the rate is divided by after each epoch of ``lr_steps``.
    lr_steps: after which epochs.
    momentum, nesterov: of the descent.
    weight_decay: of every weight, but those of :func:`symrnn.vision.dirac.no_decay`.
    """

    model: str
    epochs: int
    batch_size: int
    lr: float
    lr_batch: int | None
    lr_divide: float
    lr_steps: tuple[int, ...]
    momentum: float
    nesterov: bool
    weight_decay: float

    def lr_for(self, batch_size: int) -> float:
        """The first learning rate with that batch."""
        return self.lr if self.lr_batch is None else self.lr * batch_size / self.lr_batch

    def steps_for(self, epochs: int) -> list[int]:
        """``lr_steps`` in a run of so many epochs: each at the same part of it, rounded up.

        >>> RECIPES["cifar"].steps_for(15)
        [5, 9, 12]
        """
        return [-(-step * epochs // self.epochs) for step in self.lr_steps]


def lr_in(epoch: int, lr: float, lr_divide: float, lr_steps: list[int]) -> float:
    """The learning rate in ``epoch``, counted from 1."""
    try:
        return lr / lr_divide ** sum(epoch > step for step in lr_steps)
    except OverflowError:  # of the divisor
        return 0.0


RECIPES = {
    "shapes": Recipe(
        model="wrn-10-1-basic",
        epochs=10,
        batch_size=64,
        lr=0.1,
        lr_batch=None,
        lr_divide=5.0,
        lr_steps=(6, 9),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
    ),
    "cifar": Recipe(
        model="wrn-16-1-bottleneck",
        epochs=200,
        batch_size=128,
        lr=0.1,
        lr_batch=None,
        lr_divide=5.0,
        lr_steps=(60, 120, 160),
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
    ),
    "imagenet": Recipe(
        model="resnet-18",
        epochs=100,
        batch_size=256,
        lr=0.1,
        lr_batch=256,
        lr_divide=10.0,
        lr_steps=(30, 60, 90),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
    ),
}
