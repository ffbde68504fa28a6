"""Orbit maps, against orbits found one position at a time."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from symrnn import get_symmetry, list_symmetries
from symrnn.symmetry.linear import OrbitCoordinates
from symrnn.symmetry.orbits import (
    Generator,
    Indices,
    TransposeOutside,
    antitranspose,
    find_orbits,
    transpose,
)


def mirror(i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
    return i, side - 1 - j


def shift(i: Indices, j: Indices, side: int) -> tuple[Indices, Indices]:
    """A translation by one column: of order ``side``, and not its own inverse."""
    return i, (j + 1) % side


GROUPS: dict[str, tuple[Generator, ...]] = {
    "identity": (),
    "transpose": (transpose,),
    "antitranspose": (antitranspose,),
    "both": (transpose, antitranspose),
    "square": (transpose, antitranspose, mirror),
    "transpose outside blocks": (TransposeOutside(2),),
    "translation": (shift,),
    "translation and transpose": (shift, transpose),
}


def orbits_one_by_one(generators: tuple[Generator, ...], side: int) -> list[set[tuple[int, int]]]:
    """The orbits in the order of their first positions, each found by walking from there."""
    seen: set[tuple[int, int]] = set()
    orbits = []
    for start in np.ndindex(side, side):
        if start in seen:
            continue
        orbit, open_ends = {start}, [start]
        while open_ends:
            i, j = open_ends.pop()
            for generator in generators:
                row, column = generator(np.array([i]), np.array([j]), side)
                image = (int(row[0]), int(column[0]))
                if image not in orbit:
                    orbit.add(image)
                    open_ends.append(image)
        seen |= orbit
        orbits.append(orbit)
    return orbits


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("group", GROUPS)
def test_orbits_are_those_of_the_group_numbered_by_first_position(group: str, side: int) -> None:
    expected = orbits_one_by_one(GROUPS[group], side)
    found = find_orbits(GROUPS[group], side)
    assert found.side == side
    assert (found.orbit.array.dtype, found.sizes.array.dtype) == (np.int32, np.int32)
    assert found.sizes.array.tolist() == [len(orbit) for orbit in expected]
    number = {position: k for k, orbit in enumerate(expected) for position in orbit}
    assert found.orbit.array.tolist() == [number[p] for p in np.ndindex(side, side)]


@pytest.mark.parametrize("side", [1, 2, 5])
def test_reflections_move_positions_as_they_move_the_matrix(side: int) -> None:
    rows, columns = np.divmod(np.arange(side**2, dtype=np.int32), np.int32(side))
    grid = np.arange(side**2).reshape(side, side)
    moved = {transpose: grid.T, antitranspose: grid[::-1, ::-1].T}
    for reflection, expected in moved.items():
        i, j = reflection(rows, columns, side)
        assert np.array_equal(grid[i, j].reshape(side, side), expected)


def drawings() -> dict[str, list[list[str]]]:
    """The letters that get_symmetry's docstring draws for side 4, by name."""
    after = get_symmetry.__doc__.split("equal letters are one number::")[1]
    lines = [line.strip() for line in after.splitlines() if re.search(r"\S   ", line)]
    titles, *rows = (re.split(r"  +", line) for line in lines)
    letters = zip(*[[cell.split() for cell in row] for row in rows], strict=True)
    drawn = zip(titles, map(list, letters), strict=True)
    return {name: letters for title, letters in drawn for name in title.split(", ")}


def test_the_drawings_show_every_kind_of_linear_form() -> None:
    kinds = {re.sub(r"chunk\d+", "chunk2", name) for name in list_symmetries()}
    # Of blocks, and of those that are not linear, the classes' docstrings have a drawing.
    others = {"avg:full", "tri:diag16", "avg:diag16", "avg:skew8", "eigen", "ldl"}
    assert set(drawings()) == kinds - others


@pytest.mark.parametrize("name", drawings())
def test_orbits_of_side_4_as_they_are_drawn(name: str) -> None:
    orbit = get_symmetry(name, 4).orbits.orbit.array.reshape(4, 4)
    assert drawings()[name] == [["abcdefghijklmnop"[k] for k in row] for row in orbit]


@pytest.mark.parametrize("orthonormal", [False, True])
@given(group=st.sampled_from(sorted(GROUPS)), side=st.integers(1, 7))
def test_forms_hold_for_any_group(orthonormal: bool, group: str, side: int) -> None:
    s = OrbitCoordinates(group, find_orbits(GROUPS[group], side), orthonormal=orthonormal)
    w = torch.randn(side, side, dtype=torch.float64)
    mean = torch.empty_like(w)
    for orbit in orbits_one_by_one(GROUPS[group], side):
        rows, columns = zip(*orbit, strict=True)
        mean[list(rows), list(columns)] = w[list(rows), list(columns)].mean()
    torch.testing.assert_close(s.expand(s.project(w)), mean, rtol=0, atol=1e-14)
    v = torch.randn(s.numel, dtype=torch.float64)
    torch.testing.assert_close(s.project(s.expand(v)), v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", [1, 4, 7])
def test_which_blocks_are_free(side: int) -> None:
    free = {name: find_orbits(group, side).free_block for name, group in GROUPS.items()}
    expected = {"transpose": 1, "transpose outside blocks": 2}
    assert free == {name: expected.get(name) for name in GROUPS}


def test_one_map_is_shared_by_all_who_ask() -> None:
    assert find_orbits((transpose,), 5).orbit is find_orbits((transpose,), 5).orbit
