"""Classes of rows or columns, against sums and copies by index."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from symrnn.symmetry.sides import Classes, Mirrored, Translated

RULES = [Mirrored(), Mirrored(2), Mirrored(3), *(Translated(k) for k in (1, 2, 3, 4, 64))]


@pytest.mark.parametrize(
    ("rule", "drawn"),
    [
        (Mirrored, [(Mirrored(), 6), (Mirrored(), 7), (Mirrored(2), 8)]),
        (Translated, [(Translated(2), 6), (Translated(3), 6), (Translated(3), 7)]),
    ],
)
def test_sides_as_the_docstrings_draw_them(
    rule: type[Classes], drawn: list[tuple[Classes, int]]
) -> None:
    lines = inspect.getdoc(rule).splitlines()
    drawing = next(line for line in lines if re.fullmatch(r"[0-9 ]+", line))
    found = [" ".join(map(str, classes.of(side))) for classes, side in drawn]
    assert found == re.split(r"  +", drawing.strip())


def test_odd_middles_and_short_pieces() -> None:
    assert Mirrored(2).of(6).tolist() == [0, 1, 0, 0, 1, 0]
    assert Mirrored(2).of(7).tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert Mirrored(2).of(5).tolist() == [0, 1, 0, 1, 0]
    assert Translated(4).of(9).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]  # three pieces fill it
    assert Translated(4).of(10).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert Translated(4).of(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(side=st.integers(1, 20))
def test_class_k_has_index_k_for_its_first_member(rule: Classes, side: int) -> None:
    classes = rule.of(side).tolist()
    assert len(classes) == side
    assert [classes.index(k) for k in range(rule.count(side))] == list(range(rule.count(side)))
    assert max(classes) + 1 == rule.count(side)


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(side=st.integers(1, 12), dim=st.sampled_from([0, 1, 2, -1, -2, -3]))
def test_members_are_added_up_and_copied_along_any_dimension(
    rule: Classes, side: int, dim: int
) -> None:
    classes = torch.from_numpy(rule.of(side)).long()
    shape = [2, 3, 4]
    shape[dim] = side
    x = torch.randint(-9, 10, shape).double()  # integers: sums are exact in any order
    shape[dim] = rule.count(side)
    sums = torch.zeros(shape, dtype=torch.float64).index_add(dim, classes, x)
    assert torch.equal(rule.add(x, dim), sums)
    assert torch.equal(rule.spread(sums, side, dim), sums.index_select(dim, classes))
