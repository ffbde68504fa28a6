"""The forms that store factors, against singular values and textbook elimination."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from symrnn import get_symmetry

FACTORED = ["eigen", "eigen:1", "ldl"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

batches = st.sampled_from([(), (3,), (2, 0), (2, 1, 3)])
dtypes = st.sampled_from(DTYPES)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).mul_(2).sub_(1).to(dtype)


def symmetric(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    w = draw(*shape)
    return ((w + w.mT) / 2).to(dtype)


@pytest.mark.parametrize("name", FACTORED)
@given(side=st.integers(1, 13), batch=batches, dtype=dtypes, strided=st.booleans())
def test_the_expanded_matrix_is_exactly_symmetric(
    name: str, side: int, batch: tuple[int, ...], dtype: torch.dtype, strided: bool
) -> None:
    s = get_symmetry(name, side)
    v = draw(*batch, s.numel, dtype=dtype)
    v = torch.stack([v, v], -1)[..., 0] if strided else v
    w = s.expand(v)
    assert (w.shape, w.dtype) == ((*batch, side, side), dtype)
    assert torch.equal(w, w.mT)
    assert torch.equal(s(v), w)


@pytest.mark.parametrize("name", FACTORED)
@given(side=st.integers(1, 13), batch=batches, dtype=dtypes)
def test_only_the_symmetric_part_is_projected(
    name: str, side: int, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    s = get_symmetry(name, side)
    w = draw(*batch, side, side, dtype=dtype)
    v = s.project(w)
    assert (v.shape, v.dtype) == ((*batch, s.numel), dtype)
    assert torch.equal(v, s.project((w + w.mT) / 2))
    assert torch.equal(v, s.right_inverse(w.mT.contiguous().mT))


@pytest.mark.parametrize("name", FACTORED)
def test_many_matrices_are_projected_as_one_by_one(name: str) -> None:
    s = get_symmetry(name, 5)
    w = draw(2, 3, 5, 5)
    for a in range(2):
        for b in range(3):
            alone = s.expand(s.project(w[a, b]))
            torch.testing.assert_close(s.expand(s.project(w))[a, b], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize("name", FACTORED)
def test_gradients(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    v = draw(2, s.numel).requires_grad_()
    assert gradcheck(s.expand, v, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(s.expand, v, fast_mode=True)


# eigen


def test_eigen_as_the_docstring_draws_it() -> None:
    a, b, c, value = 2.0, 3.0, 5.0, -7.0
    found = get_symmetry("eigen:1", 3).expand(torch.tensor([a, b, c, value]))
    drawn = [[a * a, a * b, a * c], [a * b, b * b, b * c], [a * c, b * c, c * c]]
    assert torch.equal(found, value * torch.tensor(drawn))


def test_eigen_keeps_vectors_row_by_row_and_then_values() -> None:
    s = get_symmetry("eigen:2", 3)
    vectors, values = draw(3, 2), draw(2)
    found = s.expand(torch.cat([vectors.flatten(), values]))
    torch.testing.assert_close(found, vectors @ values.diag() @ vectors.mT, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "side", "rank"),
    [("eigen", 1, 1), ("eigen", 2, 1), ("eigen", 7, 3), ("eigen", 8, 4), ("eigen:8", 8, 8)],
)
def test_rank_and_count_of_eigen(name: str, side: int, rank: int) -> None:
    s = get_symmetry(name, side)
    assert (s.name, s.rank, s.numel) == (name, rank, side * rank + rank)
    assert torch.linalg.matrix_rank(s.expand(draw(s.numel))) == rank
    # Of what is deployed there is never more than a triangle.
    assert s.deployed == min(s.numel, side * (side + 1) // 2)


@given(data=st.data(), side=st.integers(1, 13), batch=batches)
def test_eigen_is_the_best_of_its_rank(
    data: st.DataObject, side: int, batch: tuple[int, ...]
) -> None:
    """What is lost has the norm of the singular values that are left out."""
    rank = data.draw(st.integers(1, side))
    s = get_symmetry(f"eigen:{rank}", side)
    w = symmetric(*batch, side, side)
    lost = torch.linalg.matrix_norm(w - s.expand(s.project(w)))
    left_out = np.linalg.svd(w.numpy(), compute_uv=False)[..., rank:]
    torch.testing.assert_close(lost, torch.from_numpy(left_out).norm(dim=-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigen_reproduces_a_symmetric_matrix_of_its_rank(dtype: torch.dtype) -> None:
    vectors = draw(5, 9, 3)
    w = (vectors * torch.tensor([1.0, -1.0, 0.5]).double() @ vectors.mT).to(dtype)
    s = get_symmetry("eigen:4", 9)
    found = s.expand(s.project(w))
    # Rounding to ``dtype`` adds noise of other ranks; the decomposition is exact to about N
    # roundings of the largest eigenvalue, and each factor of the product adds another.
    largest = float(torch.linalg.eigvalsh(w.double()).abs().max())
    atol = (9 + 4) * torch.finfo(dtype).eps * largest
    torch.testing.assert_close(found.double(), w.double(), rtol=0, atol=atol)


def test_eigen_takes_eigenvalues_of_either_sign_by_magnitude() -> None:
    w = torch.diag(torch.tensor([1.0, -4.0, 3.0, -2.0]))
    expected = torch.diag(torch.tensor([0.0, -4.0, 3.0, 0.0]))
    s = get_symmetry("eigen", 4)
    assert torch.equal(s.expand(s.project(w)), expected)
    assert s.project(w)[-2:].tolist() == [-4.0, 3.0]


@given(side=st.integers(1, 13))
def test_eigen_starts_with_orthonormal_vectors(side: int) -> None:
    s = get_symmetry("eigen", side)
    vectors = s.project(draw(side, side))[: side * s.rank].view(side, s.rank)
    identity = torch.eye(s.rank, dtype=torch.float64)
    torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=0, atol=1e-13)


def test_eigen_keeps_the_gradient_of_the_nearest_matrix() -> None:
    w = symmetric(5, 5).requires_grad_()
    s = get_symmetry("eigen", 5)
    assert gradcheck(lambda w: s.expand(s.project(w)), w)


# ldl


def test_ldl_as_the_docstring_draws_it() -> None:
    d, e, a = 2.0, 3.0, 5.0
    found = get_symmetry("ldl", 2).expand(torch.tensor([d, e, a]))
    assert found.tolist() == [[d, d * a], [d * a, d * a * a + e]]


def test_ldl_keeps_the_diagonal_and_then_the_rows_below() -> None:
    s = get_symmetry("ldl", 3)
    found = s.expand(torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0, 13.0]))
    lower = torch.tensor([[1.0, 0, 0], [7, 1, 0], [11, 13, 1]])
    assert torch.equal(found, lower @ torch.diag(torch.tensor([2.0, 3, 5])) @ lower.mT)
    assert s.numel == s.deployed == 6


def textbook(w: Tensor) -> Tensor:
    """The parameters of w (N, N), one pivot after the other."""
    rest, columns, pivots = w.clone(), [], []
    for k in range(len(w)):
        pivots.append(rest[k, k])
        columns.append(rest[:, k] / rest[k, k])
        rest = rest - torch.outer(columns[-1], columns[-1]) * pivots[-1]
    lower = torch.stack(columns, -1)
    rows = [lower[i, :i] for i in range(len(w))]
    return torch.cat([torch.stack(pivots), *rows])


@pytest.mark.parametrize("signs", ["positive", "either"])
@pytest.mark.parametrize("side", [1, 2, 31, 32, 33, 64, 65, 70])
def test_ldl_in_blocks_finds_the_factors_of_the_textbook(side: int, signs: str) -> None:
    """Of positive definite matrices, and of others with a diagonal that outweighs their rows."""
    w = draw(side, side)
    w = w @ w.mT + torch.eye(side, dtype=torch.float64)
    if signs == "either":
        size = w.abs().sum(-1)
        w = w + torch.diag(torch.where(torch.arange(side) % 2 == 0, size, -2 * size))
    found = get_symmetry("ldl", side).project(w)
    torch.testing.assert_close(found, textbook(w), rtol=1e-10, atol=1e-11)
    if signs == "positive":
        cholesky = torch.linalg.cholesky(w)
        pivots = cholesky.diagonal().square()
        torch.testing.assert_close(found[:side], pivots, rtol=1e-11, atol=0)


@given(side=st.integers(1, 40), batch=batches)
def test_ldl_reproduces_random_symmetric_matrices(side: int, batch: tuple[int, ...]) -> None:
    w = symmetric(*batch, side, side)
    s = get_symmetry("ldl", side)
    # A pivot is at least √eps, so the entries of a later step grow to 1/√eps at the most, and
    # lose √eps by rounding. Of random matrices hardly any comes near.
    atol = torch.finfo(torch.float64).eps ** 0.5
    torch.testing.assert_close(s.expand(s.project(w)), w, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ldl_reproduces_a_matrix_that_needs_no_pivoting(dtype: torch.dtype) -> None:
    w = (symmetric(4, 40, 40) / 64 + torch.eye(40)).to(dtype)
    s = get_symmetry("ldl", 40)
    found = s.expand(s.project(w))
    # The factors are near the identity and its few roundings: of d, L, the product and the mean.
    atol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), w.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, 4, 33])
def test_ldl_of_a_matrix_of_zeros(side: int, dtype: torch.dtype) -> None:
    s = get_symmetry("ldl", side)
    w = torch.zeros(2, side, side, dtype=dtype)
    assert torch.equal(s.project(w), torch.zeros(2, s.numel, dtype=dtype))
    assert torch.equal(s.expand(s.project(w)), w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "w",
    [
        [[0.0, 1.0], [1.0, 0.0]],
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]],
    ],
)
def test_ldl_of_matrices_without_such_factors(w: list[list[float]], dtype: torch.dtype) -> None:
    """A vanishing pivot is taken as √eps, which changes its entry by that and one rounding."""
    s = get_symmetry("ldl", len(w))
    for scale in (1.0, 2.0**-10, 2.0**10):
        matrix = torch.tensor(w, dtype=dtype) * scale
        smallest = torch.finfo(dtype).eps ** 0.5
        found = s.expand(s.project(matrix)) / scale
        assert found.isfinite().all()
        error = float((found - matrix / scale).abs().max())
        assert 0.5 * smallest < error < 1.5 * smallest


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ldl_keeps_the_sign_of_a_pivot_that_is_too_small(sign: float) -> None:
    smallest = torch.finfo(torch.float64).eps ** 0.5
    w = torch.tensor([[0.75 * sign * smallest, 1.0], [1.0, 0.0]], dtype=torch.float64)
    s = get_symmetry("ldl", 2)
    assert s.project(w)[0].item() == sign * smallest
    error = float((s.expand(s.project(w)) - w).abs().max())
    assert error == pytest.approx(0.25 * smallest, rel=1e-6)
