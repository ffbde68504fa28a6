"""Orbits of the entries of a square matrix under a group of index permutations.

A symmetry is a group acting on the positions (i, j) of an N×N matrix. It is given by a few
*generators*, each a map of positions to positions; the positions that the group carries into one
another form an *orbit*, and the entries of an orbit are the same number. Everything a linear
symmetry does follows from the orbit map computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn.symmetry.sides import Classes

Indices = NDArray[np.int32]
Generator = Callable[[Indices, Indices, int], tuple[Indices, Indices]]
"""(rows, columns, side) -> (rows, columns): where each position goes; must be a bijection."""


def transpose(i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
    """Reflection in the main diagonal: (i, j) -> (j, i)."""
    return j, i


def antitranspose(i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
    """Reflection in the other diagonal: (i, j) -> (N-1-j, N-1-i)."""
    last = np.int32(side - 1)
    return last - j, last - i


@dataclass(frozen=True)
class Along:
    """A generator that makes rows, or columns, of one class equal: each goes to the class's next.

    classes: of one side's indices; a mirror swaps the two of a class, a translation moves on.
    axis: "rows" or "columns".
    """

    classes: Classes
    axis: str

    def __call__(self, i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
        following = _next_of_class(self.classes.of(side))
        return (following[i], j) if self.axis == "rows" else (i, following[j])


def _next_of_class(classes: NDArray[np.int32]) -> Indices:
    """For each index the next one of its class, for the last the first: (N,)."""
    by_class = np.argsort(classes, kind="stable").astype(np.int32)
    ordered = classes[by_class]
    first = np.searchsorted(ordered, ordered)
    following = np.arange(1, len(classes) + 1)
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    target = np.empty_like(by_class)
    target[by_class] = by_class[np.where(is_last, first, following)]
    return target


@dataclass(frozen=True)
class OrbitMap:
    """The orbits of the positions of a ``side`` × ``side`` matrix.

    Orbits are numbered by their first position in row-major order.

    generators: of the group.
    side: N.
    orbit: int64 (N²,), the orbit of every position, row-major.
    sizes: int32 (number of orbits,), how many positions each orbit has.
    own_transpose: whether (i, j) and (j, i) are always of one orbit.
    """

    generators: tuple[Generator, ...]
    side: int
    orbit: Tensor
    sizes: Tensor
    own_transpose: bool


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is shared must serve those who train, whoever comes first
def orbit_map(generators: tuple[Generator, ...], side: int) -> OrbitMap:
    """Compute the orbits of the group that ``generators`` generate, on a side × side matrix.

    Every position takes the smallest label among itself and where each generator sends it, until
    nothing changes. As a generator's powers return to where they began, no inverse is needed. Time
    and memory O(N²). The result is shared between callers: do not write to it.
    """
    rows, columns = np.divmod(np.arange(side * side, dtype=np.int32), np.int32(side))
    images = [_flat(generator(rows, columns, side), side) for generator in generators]
    label: Indices = np.arange(side * side, dtype=np.int32)
    changed = True
    while changed:
        before = label.copy()
        for image in images:
            np.minimum(label, label[image], out=label)
        label = label[label]  # a label names a position of the orbit: leaps along long cycles
        changed = not np.array_equal(label, before)
    # An orbit's first position is the one that its label names.
    number = np.cumsum(label == np.arange(side * side), dtype=np.int64) - 1
    orbit = number[label]
    sizes = np.bincount(orbit).astype(np.int32)
    square = orbit.reshape(side, side)
    own_transpose = np.array_equal(square, square.T)
    return OrbitMap(
        generators, side, torch.from_numpy(orbit), torch.from_numpy(sizes), own_transpose
    )


def _flat(position: tuple[Indices, Indices], side: int) -> Indices:
    return position[0] * np.int32(side) + position[1]
