"""Drawing the next token from a model's logits."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    logits: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """One token, drawn from softmax(logits / temperature) cut down to its likeliest tokens.

    logits: (V,), any float type and device; -inf for a token that is never drawn.
    generator: of the CPU; exactly one number is drawn from it, none at temperature 0.
    temperature: 0 takes the likeliest token, the one of least id where several are.
    top_k, top_p: of :func:`truncate`.

    Raises ValueError for logits of which there is no softmax: NaN, +inf, or all -inf.
    """
    logits = logits.detach().to("cpu", torch.float64)
    highest = logits.max()
    if not highest.isfinite():  # max passes NaN on
        raise ValueError(f"the largest logit is {highest.item()}; there is no next token")
    if temperature == 0:
        return int((logits == highest).nonzero()[0])
    # Differences first: dividing by a tiny temperature then gives -inf at worst, never inf - inf.
    probabilities = ((logits - highest) / temperature).softmax(0)
    likely = truncate(probabilities, top_k=top_k, top_p=top_p)
    heights = likely.cumsum(0)
    place = torch.rand((), generator=generator, dtype=torch.float64) * heights[-1]
    # The first token that rises above the place: never one of probability 0.
    return int(torch.searchsorted(heights, place, right=True))


def truncate(
    probabilities: Tensor, *, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The probabilities (V,), with 0 for all but the likeliest tokens; not scaled to sum to 1.

    top_k: keep so many (all, if there are fewer).
    top_p: keep the fewest whose probabilities sum to at least this share of the sum; with top_k,
        of what that kept.

    Of equal probabilities those of least id are kept, so that top_k keeps exactly k.
    """
    if top_k is None and top_p is None:
        return probabilities
    ordered, ids = probabilities.sort(descending=True, stable=True)
    ordered, ids = ordered[:top_k], ids[:top_k]
    if top_p is not None:
        sums = ordered.cumsum(0)
        # How many sums fall short of the share; the next token reaches it.
        count = int(torch.searchsorted(sums, top_p * sums[-1])) + 1
        ordered, ids = ordered[:count], ids[:count]
    return torch.zeros_like(probabilities).scatter(0, ids, ordered)
