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

Indices = NDArray[np.int32]
Generator = Callable[[Indices, Indices, int], tuple[Indices, Indices]]
"""(rows, columns, side) -> (rows, columns): where each position goes; must be a bijection."""


def transpose(i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
    """Reflection in the main diagonal: (i, j) -> (j, i)."""
    return j, i


@dataclass(frozen=True)
class OrbitMap:
    """The orbits of the positions of a ``side`` × ``side`` matrix.

    Orbits are numbered by their first position in row-major order.

    generators: of the group.
    side: N.
    orbit: int64 (N²,), the orbit of every position, row-major.
    sizes: int32 (number of orbits,), how many positions each orbit has.
    """

    generators: tuple[Generator, ...]
    side: int
    orbit: Tensor
    sizes: Tensor


@lru_cache(maxsize=16)
def orbit_map(generators: tuple[Generator, ...], side: int) -> OrbitMap:
    """Compute the orbits of the group that ``generators`` generate, on a side × side matrix.

    Every position takes the smallest label among itself and where each generator sends it, until
    nothing changes; as a generator's powers return to where they began, no inverse is needed. Time
    and memory O(N²). The result is shared between callers: do not write to it.
    """
    rows, columns = np.divmod(np.arange(side * side, dtype=np.int32), np.int32(side))
    images = [_flat(generator(rows, columns, side), side) for generator in generators]
    label = np.arange(side * side, dtype=np.int32)
    changed = True
    while changed:
        before = label.copy()
        for image in images:
            np.minimum(label, label[image], out=label)
        changed = not np.array_equal(label, before)
    # An orbit's first position is the one that its label names.
    number = np.cumsum(label == np.arange(side * side), dtype=np.int64) - 1
    orbit = number[label]
    sizes = np.bincount(orbit).astype(np.int32)
    return OrbitMap(generators, side, torch.from_numpy(orbit), torch.from_numpy(sizes))


def _flat(position: tuple[Indices, Indices], side: int) -> Indices:
    return position[0] * np.int32(side) + position[1]
