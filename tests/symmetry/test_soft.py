"""Symmetry as a constraint: the penalty entry by entry, and the triangle that is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from symrnn.symmetry.soft import asymmetry, upper

SHAPES = [(1, 3, 3), (2, 4, 4), (3, 1, 1), (2, 3, 3, 2), (1, 2, 2, 3, 3), (2, 2, 2, 1, 2, 3)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def by_hand(w: Tensor, p: int) -> list[float]:
    """One entry after the other, each pair (i, j), (j, i) twice, as vec W − vec Wᵀ has it."""
    norms = []
    for matrix in w:
        points = matrix.flatten(2) if matrix.dim() > 2 else matrix[..., None]
        side = len(points)
        differences = [
            abs(float(points[i, j, k] - points[j, i, k]))
            for i in range(side)
            for j in range(side)
            for k in range(points.size(2))
        ]
        norms.append(sum(d**p for d in differences) ** (1 / p))
    return norms


@shapes
@pytest.mark.parametrize("p", [1, 2])
def test_asymmetry_of_each_matrix(shape: tuple[int, ...], p: int) -> None:
    w = draw(shape)
    found = asymmetry(w, p)
    assert found.shape == shape[:1]
    assert found.tolist() == pytest.approx(by_hand(w, p), rel=1e-13)


def test_asymmetry_of_a_small_matrix() -> None:
    w = torch.tensor([[[1.0, 2.0], [5.0, 7.0]]])  # 2 − 5 = −3, twice
    assert asymmetry(w, 1).item() == 6
    assert asymmetry(w, 2).item() == pytest.approx(18**0.5)


@shapes
@pytest.mark.parametrize("p", [1, 2])
def test_gradient(shape: tuple[int, ...], p: int) -> None:
    w = draw(shape).requires_grad_()
    if shape[1] > 1:  # a single entry is symmetric, where the norm has a corner
        assert gradcheck(asymmetry, (w, p))


@pytest.mark.parametrize("p", [1, 2])
def test_symmetric_matrices_have_neither_penalty_nor_gradient(p: int) -> None:
    w = draw((2, 4, 4, 3))
    w = (w + w.transpose(1, 2)).requires_grad_()
    penalty = asymmetry(w, p)
    assert torch.equal(penalty, torch.zeros(2, dtype=torch.float64))
    penalty.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("p", [0, 3, 1.5, "2", float("inf"), None])
def test_other_norms_are_refused(p: object) -> None:
    with pytest.raises(ValueError, match=f"^p should be 1 or 2, got: {p!r}$"):
        asymmetry(draw((1, 2, 2)), p)  # type: ignore[arg-type]


@shapes
def test_the_upper_triangle_is_kept(shape: tuple[int, ...]) -> None:
    w = draw(shape)
    found = upper(w)
    assert found.shape == shape
    for i in range(shape[1]):
        for j in range(shape[2]):
            assert torch.equal(found[:, i, j], w[:, min(i, j), max(i, j)])
    assert asymmetry(found, 2).tolist() == [0] * shape[0]
    assert torch.equal(upper(found), found)
