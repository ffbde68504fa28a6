"""Folded products, against products by the whole matrix."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from symrnn import get_symmetry, list_symmetries

NAMES = [*list_symmetries(), "eigen:1"]
CHUNKS = [2, 4, 8, 16, 32, 64]
# How many multiplications are left of N², where N can be divided.
COSTS = {
    "tri4": Fraction(1, 2),
    "avg4": Fraction(1, 2),
    "tri8": Fraction(1, 4),
    "avg8": Fraction(1, 4),
    "block4": Fraction(1, 4),
    "block16": Fraction(1, 16),
    **{f"chunk{k}": Fraction(1, k) for k in CHUNKS},
    **{f"chunk{k}:rows": Fraction(1, k) for k in CHUNKS},
}
FOLDING = list(COSTS)
SOME_CHUNKS = ["chunk2", "chunk4:rows", "chunk64"]

sides = st.integers(1, 13)
leads = st.sampled_from([(), (3,), (2, 0), (2, 1, 3)])


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).mul_(2).sub_(1).to(dtype)


def by_hand(w: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,...j->...i", w, x)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith("chunk") or name in SOME_CHUNKS]
)
@given(side=sides, lead=leads, strided=st.booleans())
def test_folding_equals_the_product_by_the_whole_matrix(
    name: str, side: int, lead: tuple[int, ...], strided: bool
) -> None:
    s = get_symmetry(name, side)
    v, x = draw(s.numel), draw(*lead, side)
    if strided:
        v, x = torch.stack([v, v], -1)[..., 0], torch.stack([x, x], -1)[..., 0]
    folded = s.fold(x, v)
    assert folded.shape == x.shape
    torch.testing.assert_close(folded, by_hand(s.expand(v), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FOLDING)
def test_folding_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    s = get_symmetry(name, 12)
    v, x = draw(s.numel, dtype=dtype), draw(5, 12, dtype=dtype)
    folded = s.fold(x, v)
    assert folded.dtype == dtype
    exact = by_hand(s.expand(v.double()), x.double())
    # A handful of roundings by eps/2, of sums of 12 products none of which is above 1. The sums
    # inside a product of matrices are kept in float32.
    atol = 4 * torch.finfo(dtype).eps * 12
    torch.testing.assert_close(folded.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("side", [4, 11])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", FOLDING)
def test_channels_fold_along_any_dimension(name: str, dim: int, side: int) -> None:
    """As a convolution's lie ahead of its space."""
    s = get_symmetry(name, side)
    shape = [2, 3, 4]
    shape[dim] = side
    x, v = draw(*shape), draw(s.numel)
    inputs = s.folding.inputs(x, dim)
    products = [
        by_hand(m, part.movedim(dim, -1)).movedim(-1, dim)
        for m, part in zip(s.matrices(v), inputs, strict=True)
    ]
    found = s.folding.outputs(products, side, dim)
    expected = by_hand(s.expand(v), x.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FOLDING)
def test_small_matrices_of_many_vectors_at_once(name: str) -> None:
    s = get_symmetry(name, 6)
    v = draw(2, 3, s.numel)
    for k, together in enumerate(s.matrices(v)):
        assert together.shape[:2] == (2, 3)
        for a in range(2):
            for b in range(3):
                assert torch.equal(together[a, b], s.matrices(v[a, b])[k])


@pytest.mark.parametrize("name", FOLDING)
def test_cost_where_the_side_can_be_divided(name: str) -> None:
    for side in (64, 192):
        s = get_symmetry(name, side)
        assert s.folding.cost(side) == COSTS[name]
        assert sum(m.numel() for m in s.matrices(draw(s.numel))) == side**2 * COSTS[name]


@pytest.mark.parametrize(
    ("name", "side", "multiplications"),
    [
        ("tri4", 7, 4 * 4 + 3 * 3),
        ("tri8", 7, 4 * 4),
        ("block4", 7, 4 * 4),
        ("block16", 6, 2 * 2),
        ("block16", 9, 3 * 3),
        ("chunk4", 10, 10 * 3),
        ("chunk4:rows", 10, 3 * 10),
        ("chunk64", 10, 10),
        ("tri4", 1, 1),
    ],
)
def test_cost_where_it_cannot(name: str, side: int, multiplications: int) -> None:
    cost = get_symmetry(name, side).folding.cost(side)
    assert cost == pytest.approx(multiplications / side**2)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FOLDING)))
def test_what_has_nothing_to_save_does_not_fold(name: str) -> None:
    s = get_symmetry(name, 4)
    assert s.folding is None
    with pytest.raises(ValueError, match=rf"^{name} does not fold$"):
        s.matrices(draw(s.numel))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        (name, side)
        for name in NAMES  # chunks differ in their number alone
        for side in ([5] if name.startswith("chunk") and name not in SOME_CHUNKS else [1, 4, 5])
    ],
)
def test_gradients(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    x, v = draw(2, side).requires_grad_(), draw(s.numel).requires_grad_()
    assert gradcheck(s.fold, (x, v), check_forward_ad=True)
    assert gradgradcheck(s.fold, (x, v), fast_mode=True)
