"""The continuous cache: what the model said lately is likelier to be said again.

Grave, Joulin and Usunier, "Improving Neural Language Models with a Continuous Cache" (2017, arXiv
1612.04426), their linear interpolation:

    p(w) = (1 − λ) · p_model(w) + λ · p_cache(w)
    p_cache(w) ∝ Σᵢ 1{w = xᵢ₊₁} · exp(θ hₜ·hᵢ)

over the last ``size`` time steps i before t, where hᵢ is what the decoder took at step i and xᵢ₊₁
the token that followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.perplexity import Window
from symrnn.files import UserError
from symrnn.training.process import free_memory

SCORES = 2**22
"""How many products hₜ·hᵢ there are at once."""


@dataclass(frozen=True)
class Cache:
    """How a cache is mixed with the model.

    theta: how much likeness of the states counts: at 0 all that is cached counts alike.
    share: λ, of the cache in the probabilities, from 0 to 1.

    The defaults are those of Merity, Keskar and Socher (2018) for the Penn Treebank, with a size of
    500, where h has 400 numbers. Other models want others, tuned on a validation text.
    """

    size: int
    theta: float = 1.0
    share: float = 0.1

    def __str__(self) -> str:
        return f"{self.size:,} steps, theta {self.theta:g}, lambda {self.share:g}"


class ContinuousCache:
    """A cache along one text: ``cache(window)`` for each window of it, in order."""

    def __init__(self, settings: Cache) -> None:
        self.settings = settings
        self._features: Tensor | None = None  # of the last steps, at most ``size``
        self._tokens: Tensor | None = None

    def __call__(self, window: Window) -> Tensor:
        """The negative log-probabilities (T,) of the window's targets, with the cache."""
        rows = max(SCORES // self.settings.size, 1)
        parts = zip(
            window.features.split(rows), window.targets.split(rows), window.nats.split(rows),
            strict=True,
        )  # fmt: skip
        return torch.cat([self._mix(*part) for part in parts])

    def _mix(self, features: Tensor, targets: Tensor, nats: Tensor) -> Tensor:
        size, theta, share = self.settings.size, self.settings.theta, self.settings.share
        queries = features.to(nats.dtype)
        keys, tokens = queries, targets
        if self._features is not None and self._tokens is not None:
            keys = torch.cat([self._features, queries])
            tokens = torch.cat([self._tokens, targets])
        self._features, self._tokens = keys[-size:], tokens[-size:]
        # The number of steps from each cached state (column) to each query (row).
        steps = torch.arange(len(queries), device=keys.device).view(-1, 1)
        steps = steps + (len(keys) - len(queries)) - torch.arange(len(keys), device=keys.device)
        scores = (theta * queries @ keys.T).masked_fill((steps < 1) | (steps > size), -math.inf)
        found = scores.masked_fill(tokens != targets.view(-1, 1), -math.inf)
        # With nothing cached yet the model stands alone.
        empty = (steps < 1).all(1)
        cached = found.logsumexp(1) - scores.logsumexp(1)
        mixed = torch.logaddexp(_log(1 - share) - nats, _log(share) + cached)
        return torch.where(empty, nats, -mixed)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def require_memory(size: int, hidden_size: int, number: int, device: torch.device) -> None:
    """Raise UserError if a cache of ``size`` steps is larger than what memory the device has left.

    hidden_size: H.  number: the bytes of one of the numbers.
    """
    # Twice, while old and new states are joined; a token takes 8 bytes.
    needed = 2 * size * (hidden_size * number + 8)
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"--cache {size} is larger than memory: its states of {hidden_size} numbers take "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"
        )
