"""Which cases scripts/gpu_check.py compares with float64, and how far off they may be.

The whole grid has more than a thousand. Chosen are those with which each value, and each pair of
values named in :data:`PAIRS`, occurs, in the order that tells the most first.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

SIDES = (650, 1500, 200, 64, 1024, 2048, 7, 1)  # H; of equals, what comes first is taken first
BATCHES = (20, 1, 64, 4, 128)
STEPS = (35, 2, 200, 1)
PAIRS = (("side", "kind"), ("batch", "kind"), ("steps", "reverse"), ("side", "batch"))
MANY_STEPS, FEW_UNITS = 200, 4096  # so many steps only of so few H · B: the reference is a loop


class Kind(NamedTuple):
    """A kind of arithmetic: the dtype of all numbers, and how products of float32 are rounded."""

    dtype: torch.dtype
    rounding: str = "ieee"


KINDS = {
    "tf32": Kind(torch.float32, "tf32"),
    "bf16": Kind(torch.bfloat16),
    "exact": Kind(torch.float32),
    "fp16": Kind(torch.float16),
}

# The largest ‖found − exact‖ / ‖exact‖, of results and of gradients. Why these:
# exact  float32 has 24 bits, 6e-8; sums of 2048 products in any order lose a decimal place or two,
#        gradients are sums over all steps and sequences of what has come back through them
# tf32   11 bits: each factor is off by up to 5e-4, which averages out in a sum; what a step gets
#        wrong is damped by the gates, not added up
# bf16   8 bits: each number that is stored is off by up to 4e-3, the gates before and after they
#        are activated among them, and the gradients once more
# fp16   as tf32 of all numbers, not of products only
LIMITS = {
    "exact": (1e-5, 5e-5),
    "tf32": (3e-3, 3e-3),
    "bf16": (3e-2, 3e-2),
    "fp16": (5e-3, 5e-3),
}


def limit(kind: str, quantity: str) -> float:
    """How far off may be what is called so; gradients are called d_…"""
    of_results, of_gradients = LIMITS[kind]
    return of_gradients if quantity.startswith("d_") else of_results


def draws(side: int, batch: int, steps: int) -> int:
    """How many layers and inputs are drawn for a case, of which the errors are taken together.

    Of a few numbers the terms may cancel, and what is left is nothing to be measured by.
    """
    wanted = -(-FEW_NUMBERS // (side * batch))
    return min(wanted, 8 if steps >= MANY_STEPS else 32)


FEW_NUMBERS = 256  # H · B


class Case(NamedTuple):
    side: int
    batch: int
    steps: int
    kind: str
    reverse: bool

    @property
    def name(self) -> str:
        way = "backwards" if self.reverse else "forwards"
        return f"LSTM H={self.side} B={self.batch} T={self.steps} {self.kind} {way}"


# Whatever else is chosen: the sizes that there are goals for.
START = (
    Case(650, 20, 35, "tf32", False),
    Case(1500, 20, 35, "bf16", True),
    Case(1500, 20, 35, "tf32", False),
    Case(650, 20, 35, "bf16", True),
    Case(1500, 20, 35, "exact", False),
)


def allowed(case: Case) -> bool:
    return case.steps < MANY_STEPS or case.side * case.batch <= FEW_UNITS


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    """The pairs that occur in it."""
    values = case._asdict()
    return {(a, values[a], b, values[b]) for a, b in PAIRS}


def grid(
    sides: tuple[int, ...] = SIDES,
    batches: tuple[int, ...] = BATCHES,
    steps: tuple[int, ...] = STEPS,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> Iterator[Case]:
    """All cases that are allowed."""
    ways = (False, True)
    return filter(
        allowed, (Case(*case) for case in itertools.product(sides, batches, steps, kinds, ways))
    )


def chosen(*of: Any) -> list[Case]:
    """Of the cases of :func:`grid` those of :data:`START`, and others until all pairs occur.

    The next is always one that has the most pairs not yet seen; of equals that whose values were
    chosen least, and of equals again the first.
    """
    left = list(grid(*of))
    missing = set().union(*map(pairs_of, left))
    seen: Counter[tuple[str, Any]] = Counter()
    cases: list[Case] = []

    def take(case: Case) -> None:
        nonlocal missing
        cases.append(case)
        missing -= pairs_of(case)
        seen.update(case._asdict().items())

    for case in START:
        if case in left:
            take(case)

    def worth(case: Case) -> tuple[int, int]:
        return len(pairs_of(case) & missing), -sum(seen[one] for one in case._asdict().items())

    while missing:
        take(max(left, key=worth))
    return cases
