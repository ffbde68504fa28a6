"""Orbits of the entries of a square matrix under a group of index permutations.

A symmetry is a group acting on the positions (i, j) of an N×N matrix. It is given by a few
*generators*, each a map of positions to positions; the positions that the group carries into one
another form an *orbit*, and the entries of an orbit are the same number. Everything a linear
symmetry does follows from the orbit map computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn.symmetry.folding import Folding
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
class TransposeOutside:
    """Reflection in the main diagonal outside the blocks of B × B along it, which stay as they are.

    block: B ≥ 1; the last block is smaller where B does not divide N. With B = 1 it is
        :func:`transpose`.
    """

    block: int

    def __call__(self, i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
        inside = i // self.block == j // self.block
        return np.where(inside, i, j), np.where(inside, j, i)


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


_MOST_SIDE = 46340
"""The largest N whose N² positions int32 can number."""


class Constant:
    """An int32 array that never changes, as a tensor on every device that it is asked for on.

    No module holds these tensors, as a buffer or otherwise: what walks a module (averages of its
    state, broadcasts, ``to_empty``) must not find them. All modules of one form and side read them.
    """

    def __init__(self, array: Indices) -> None:
        self.array = array

    def on(self, device: torch.device, *, wide: bool = False) -> Tensor:
        """The array there, int32 or (wide) int64, made at the first call; do not write to it."""
        # An attribute each: torch.compile looks into a dict once, and would miss what is added.
        name = f"{'int64' if wide else 'int32'}_{device.type}_{device.index}"
        self._make(name, device, wide)
        tensor: Tensor = getattr(self, name)
        return tensor

    def _make(self, name: str, device: torch.device, wide: bool) -> None:
        if name in vars(self):
            return
        # Converted here: no kernel runs on a stream that the caller does not know of.
        array = self.array.astype(np.int64) if wide else self.array
        # A thread of its own has none of the modes that the caller may be in: no inference mode,
        # whose tensors cannot train, no transform, fake tensors or default device.
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(lambda: torch.from_numpy(array).to(device)).result()
        vars(self).setdefault(name, made)

    # Run where the rest is traced: torch.compiler.assume_constant_result, which imports the
    # compiler, sets this mark and no more.
    _make._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Orbits:
    """The orbits of the positions of a ``side`` × ``side`` matrix.

    Orbits are numbered by their first position in row-major order.

    generators: of the group.
    side: N.
    orbit: (N²,), the orbit of every position, row-major.
    sizes: (number of orbits,), how many positions each orbit has.
    own_transpose: whether (i, j) and (j, i) are always of one orbit.
    """

    generators: tuple[Generator, ...]
    side: int
    orbit: Constant
    sizes: Constant
    own_transpose: bool
    _parts: dict[Folding, Constant] = field(default_factory=dict, repr=False)

    @property
    def free_block(self) -> int | None:
        """The side B of the blocks along the diagonal whose entries are orbits of their own.

        Where an orbit is that, or outside the blocks a pair mirrored in the diagonal: 1 of
        symmetric matrices. None of all other groups.
        """
        if self.generators == (transpose,):
            return 1
        match self.generators:
            case (TransposeOutside(block),):
                return block
        return None

    def part(self, folding: Folding) -> Constant:
        """(r, c), the orbits of the positions that a folding makes its small matrices of."""
        if folding not in self._parts:  # never so in a trace: a form asks when it is made
            rows, columns = folding.part(self.side)
            part = self.orbit.array.reshape(self.side, self.side)[rows[:, None], columns]
            self._parts.setdefault(folding, Constant(part))
        return self._parts[folding]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies hold what the map follows from."""
        return find_orbits, (self.generators, self.side)


_in_use: WeakValueDictionary[tuple[Any, ...], Orbits] = WeakValueDictionary()
_making = Lock()


# The latest few live on, so that a form made anew at every step finds its own.
@lru_cache(maxsize=16)
def find_orbits(generators: tuple[Generator, ...], side: int) -> Orbits:
    """The orbits of the group that ``generators`` generate, on a side × side matrix.

    Shared between all who ask, for as long as one of them lives. Raises ValueError for a side
    whose N² positions int32 cannot number.
    """
    if side > _MOST_SIDE:
        raise ValueError(f"side should be at most {_MOST_SIDE:,}, got: {side:,}")
    with _making:
        found = _in_use.get((generators, side))
        if found is None:
            found = _in_use[generators, side] = _compute(generators, side)
        return found


def _compute(generators: tuple[Generator, ...], side: int) -> Orbits:
    """Every position takes the smallest label among itself and where each generator sends it.

    Until nothing changes. As a generator's powers return to where they began, no inverse is needed.
    Time and memory O(N²).
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
    number = np.cumsum(label == np.arange(side * side), dtype=np.int32) - np.int32(1)
    orbit = number[label]
    sizes = np.bincount(orbit).astype(np.int32)
    square = orbit.reshape(side, side)
    own_transpose = np.array_equal(square, square.T)
    return Orbits(generators, side, Constant(orbit), Constant(sizes), own_transpose)


def _flat(position: tuple[Indices, Indices], side: int) -> Indices:
    return position[0] * np.int32(side) + position[1]
