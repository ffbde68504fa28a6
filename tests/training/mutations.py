"""JSON that somebody changed: the same changes in every run of the suite."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

deep: list[Any] = []
for _ in range(300):
    deep = [deep]

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 3.5, 1e308, math.nan, math.inf, 10**30),
    *("", "x", "auto", "none", "1", "\0", "\ud800"),
    *([], [1], ["a"], {}, {"a": 1}, {"tensor": "x"}, {"tuple": [1]}, deep),
]
"""What somebody may write where something else stood."""


def mutations(value: Any, count: int) -> Iterator[Any]:
    """So many copies of a JSON object, each with one place changed, lost, moved or renamed."""
    generator = random.Random(1)
    places = [place for place in _places(value) if place]
    for _ in range(count):
        mutated = copy.deepcopy(value)
        *way, last = generator.choice(places)
        parent = _at(mutated, way)
        change = generator.choice(("set", "set", "set", "lose", "move", "rename"))
        if change == "set":
            parent[last] = copy.deepcopy(generator.choice(VALUES))
        elif change == "move":
            parent[last] = copy.deepcopy(_at(value, generator.choice(places)))
        elif change == "rename" and isinstance(parent, dict):
            parent[f"{last}_"] = parent.pop(last)
        else:
            del parent[last]
        yield mutated


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*place, key))


def _at(value: Any, place: Any) -> Any:
    for key in place:
        value = value[key]
    return value
