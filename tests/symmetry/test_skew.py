"""Symmetric matrices with planes of rotation, against singular values and written-out sums."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from symrnn import get_symmetry
from symrnn.symmetry.skew import SymmetricAndSkew

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
batches = st.sampled_from([(), (3,), (2, 0), (2, 1, 3)])


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).mul_(2).sub_(1).to(dtype)


def form(pairs: int, side: int) -> SymmetricAndSkew:
    found = get_symmetry(f"avg:skew{pairs}", side)
    assert isinstance(found, SymmetricAndSkew)
    return found


def skew_part(w: Tensor) -> Tensor:
    return (w - w.mT) / 2


@pytest.mark.parametrize(("pairs", "side"), [(1, 3), (2, 5), (3, 9)])
def test_the_matrix_is_the_sum_that_the_docstring_writes(pairs: int, side: int) -> None:
    s = form(pairs, side)
    triangle = side * (side + 1) // 2
    v = draw(s.numel)
    x, y = (part.mT for part in v[triangle:].view(2, pairs, side))
    x += 2 * torch.eye(side, pairs)  # its singular values are close: the iteration has converged
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    polar = left @ right
    expected = get_symmetry("avg", side).expand(v[:triangle])
    for a, b in zip(polar.mT, y.mT / math.sqrt(2), strict=True):
        expected = expected + torch.outer(a, b) - torch.outer(b, a)
    torch.testing.assert_close(s.expand(v), expected, rtol=0, atol=1e-12)
    big_u, big_v = s.factors(v)
    assert big_u.shape == big_v.shape == (side, pairs)
    torch.testing.assert_close(big_u.mT @ big_u, torch.eye(pairs).double(), rtol=0, atol=1e-12)
    skew = big_u @ big_v.mT - big_v @ big_u.mT
    torch.testing.assert_close(skew_part(expected), skew, rtol=0, atol=1e-12)


@given(
    pairs=st.integers(1, 5),
    side=st.integers(1, 9),
    batch=batches,
    dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
)
def test_expand_gives_a_symmetric_and_a_skew_part_of_any_dtype(
    pairs: int, side: int, batch: tuple[int, ...], dtype: torch.dtype, strided: bool
) -> None:
    s = form(pairs, side)
    v = draw(*batch, s.numel, dtype=dtype)
    w = s.expand(torch.stack([v, v], -1)[..., 0] if strided else v)
    assert (w.shape, w.dtype) == ((*batch, side, side), dtype)
    assert torch.equal(s(v), w)
    exact = s.expand(v.double())
    # Factors, their products and the sums of 2R of them are rounded; of float32 also what the eight
    # steps add up, of which each can be half as large again.
    atol = torch.finfo(dtype).eps * 8 * (pairs + 2)
    torch.testing.assert_close(w.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(("pairs", "side"), [(1, 2), (1, 6), (2, 7), (3, 6), (3, 7), (5, 4)])
def test_the_nearest_keeps_the_largest_pairs_of_singular_values(pairs: int, side: int) -> None:
    s = form(pairs, side)
    w = draw(4, side, side)
    nearest = s.expand(s.project(w))
    torch.testing.assert_close(nearest + nearest.mT, w + w.mT, rtol=0, atol=1e-14)
    u, values, vh = torch.linalg.svd(skew_part(w))
    rank = min(2 * pairs, side)
    best = u[..., :rank] * values[..., None, :rank] @ vh[..., :rank, :]
    torch.testing.assert_close(skew_part(nearest), best, rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [3, 4])
def test_no_other_matrix_of_the_form_is_nearer(side: int) -> None:
    """By brute force: descent from random parameters never comes below the projection."""
    s = form(1, side)
    w = draw(side, side)
    least = (s.expand(s.project(w)) - w).square().sum().item()
    v = draw(32, s.numel).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=0.05)
    for _ in range(400):
        distances = (s.expand(v) - w).square().sum((-1, -2))
        optimizer.zero_grad()
        distances.sum().backward()
        optimizer.step()
    assert distances.min().item() == pytest.approx(least, rel=1e-6, abs=1e-8)
    assert distances.min().item() >= least - 1e-12


@given(side=st.integers(1, 9), more=st.integers(0, 3), dtype=st.sampled_from(DTYPES))
def test_half_a_side_of_pairs_is_every_matrix(side: int, more: int, dtype: torch.dtype) -> None:
    s = form(max(side // 2, 1) + more, side)
    w = draw(2, side, side, dtype=dtype)
    v = s.project(w)
    assert (v.shape, v.dtype) == ((2, s.numel), dtype)
    # Parameters as large as the matrix's norm are rounded, and a sum of products of them.
    atol = torch.finfo(dtype).eps * 4 * (side + 4)
    torch.testing.assert_close(s.expand(v).double(), w.double(), rtol=0, atol=atol)


@pytest.mark.parametrize(("pairs", "side"), [(1, 2), (1, 5), (2, 5), (2, 8), (3, 8), (4, 8)])
def test_the_dimension_is_that_of_the_docstring(pairs: int, side: int) -> None:
    """The rank of the derivative: what the gauge takes away, 2NR - R(2R+1), is no dimension."""
    s = form(pairs, side)
    jacobian = torch.autograd.functional.jacobian(s.expand, draw(s.numel))
    rank = torch.linalg.matrix_rank(jacobian.view(side**2, s.numel))
    assert rank == side * (side + 1) // 2 + pairs * (2 * side - 2 * pairs - 1)
    assert s.numel == side * (side + 1) // 2 + 2 * side * pairs
    assert s.deployed == min(s.numel, side**2)


def test_a_symplectic_change_of_factors_is_no_change() -> None:
    s = form(2, 6)
    u, v = s.factors(draw(s.numel))
    j = torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float64).kron(torch.eye(2).double())
    h = draw(4, 4)
    m = torch.linalg.matrix_exp(j @ (h + h.mT))  # Hamiltonian: M J Mᵀ = J
    changed = torch.cat([u, v], -1) @ m
    p, q = changed[:, :2], changed[:, 2:]
    torch.testing.assert_close(p @ q.mT - q @ p.mT, u @ v.mT - v @ u.mT, rtol=0, atol=1e-12)


def test_a_step_of_y_moves_the_matrix_about_as_a_step_of_the_symmetric_part() -> None:
    """However many pairs there are and however large, they have no gain above √2 together."""
    s = form(3, 9)
    for scale in (1e-2, 1.0, 1e2):
        v = draw(s.numel) * scale
        jacobian = torch.autograd.functional.jacobian(s.expand, v).view(81, -1)
        assert torch.linalg.matrix_norm(jacobian[:, :45], 2) <= 1 + 1e-12
        assert torch.linalg.matrix_norm(jacobian[:, 45 + 27 :], 2) <= math.sqrt(2) + 1e-12


def test_a_step_of_x_moves_it_less_the_larger_x_is() -> None:
    s = form(2, 8)
    v = draw(s.numel)
    gains = []
    for scale in (1, 4, 16):
        longer = v.clone()
        longer[36 : 36 + 16] *= scale
        assert torch.allclose(s.expand(longer), s.expand(v), rtol=0, atol=1e-14)
        jacobian = torch.autograd.functional.jacobian(s.expand, longer).view(64, -1)
        gains.append(torch.linalg.matrix_norm(jacobian[:, 36 : 36 + 16], 2).item())
    assert gains[1] == pytest.approx(gains[0] / 4, rel=1e-9)
    assert gains[2] == pytest.approx(gains[0] / 16, rel=1e-9)


def test_training_starts_with_planes_as_large_as_those_of_a_plain_matrix() -> None:
    """Of many matrices the mean size of the two largest, to a tenth; and S as ``avg`` starts."""
    side, bound = 150, 0.25
    s = form(2, side)
    v = torch.full((20, s.numel), torch.nan, dtype=torch.float64)
    torch.manual_seed(5)
    s.initialize(v, lambda t: t.uniform_(-bound, bound))
    symmetric = torch.empty(20, side * (side + 1) // 2, dtype=torch.float64)
    torch.manual_seed(5)
    get_symmetry("avg", side).initialize(symmetric, lambda t: t.uniform_(-bound, bound))
    assert torch.equal(v[:, : symmetric.size(1)], symmetric)
    x, y = v[:, symmetric.size(1) :].view(20, 2, 2, side).unbind(1)
    torch.testing.assert_close(x.square().mean((1, 2)), torch.ones(20).double())
    assert y.abs().max() <= 2 * bound
    sizes = torch.linalg.svdvals(skew_part(s.expand(v)))[:, :4].mean()
    plain = torch.linalg.svdvals(skew_part(draw(20, side, side) * bound))[:, :4].mean()
    assert sizes.item() == pytest.approx(plain.item(), rel=0.1)


@pytest.mark.parametrize("fill", [torch.nn.init.zeros_, torch.nn.init.ones_])
def test_starting_values_that_are_all_the_same(fill: Any) -> None:
    s = form(2, 4)
    v = torch.empty(s.numel, requires_grad=True)
    s.initialize(v, fill)
    s.expand(v).square().sum().backward()
    assert v.grad.isfinite().all()


@pytest.mark.skipif(not torch.amp.is_autocast_available("cpu"), reason="no autocast on the CPU")
def test_autocast_leaves_the_columns_orthonormal() -> None:
    s = form(3, 20)
    v = torch.randn(s.numel)
    exact, _ = s.factors(v)
    with torch.autocast("cpu", torch.bfloat16):
        u, _ = s.factors(v)
    assert torch.equal(u, exact)
    torch.testing.assert_close(u.mT @ u, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pairs", "side"), [(1, 1), (3, 2), (2, 4)])
def test_gradients(pairs: int, side: int) -> None:
    s = form(pairs, side)
    v = draw(2, s.numel).requires_grad_()
    assert gradcheck(s.expand, v, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(s.expand, v, fast_mode=True)


def test_a_pair_of_zeros_is_no_rotation_and_has_no_gradient_that_is_not_finite() -> None:
    s = form(2, 4)
    v = torch.zeros(s.numel, requires_grad=True)
    w = s.expand(v)
    assert not w.any()
    w.sum().backward()
    assert v.grad.isfinite().all()


def test_its_eigenvalues_leave_the_real_line() -> None:
    s = form(1, 6)
    w = s.expand(s.project(skew_part(draw(6, 6))))
    assert torch.linalg.eigvals(w).imag.abs().max() > 0.1
    assert not s.own_transpose
