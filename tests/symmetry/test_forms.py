"""The forms that ``get_symmetry`` knows, against ½(W + Wᵀ) written out."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize

from symrnn import get_symmetry, list_symmetries
from symrnn.symmetry import check_symmetry_name

FORMS = ["tri", "avg", "avg:full"]
MINIMAL = ["tri", "avg"]  # as many numbers as orbits

sides = st.sampled_from([1, 2, 3, 4, 5, 8, 13])
batches = st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 0)])
# How far from exact a few roundings may lead, of numbers of size 1.
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
ROUNDING = {
    torch.float64: 1e-14,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING[a.dtype])


def dense_expand(name: str, side: int) -> Tensor:
    """``expand`` as a matrix (N², numel), from its values on the unit vectors."""
    s = get_symmetry(name, side)
    return s.expand(torch.eye(s.numel, dtype=torch.float64)).reshape(s.numel, side**2).T


def test_names() -> None:
    assert set(FORMS) <= set(list_symmetries())
    for name in FORMS:
        assert get_symmetry(name, 4).name == name
    with pytest.raises(ValueError, match=r"^symm should be one of none, tri, .*, got: 'both'$"):
        check_symmetry_name("symm", "both", "none")
    with pytest.raises(ValueError, match=r"^name should be one of tri, .*, got: 'both'$"):
        get_symmetry("both", 4)


@pytest.mark.parametrize("name", FORMS)
@given(side=sides, batch=batches, dtype=dtypes)
def test_expand_and_project_are_mean_and_nearest(
    name: str, side: int, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    s = get_symmetry(name, side)
    v, w = draw(*batch, s.numel, dtype=dtype), draw(*batch, side, side, dtype=dtype)
    expanded = s.expand(v)
    assert (expanded.shape, expanded.dtype) == ((*batch, side, side), dtype)
    assert torch.equal(expanded, expanded.mT)
    projected = s.project(w)
    assert (projected.shape, projected.dtype) == ((*batch, s.numel), dtype)
    nearest = s.expand(projected)
    close(nearest, (w + w.mT) / 2)
    close(s.expand(s.project(nearest)), nearest)
    if name in MINIMAL:
        close(s.project(expanded), v)
    assert torch.equal(s(v), expanded)
    assert torch.equal(s.right_inverse(w), projected)


@pytest.mark.parametrize("name", FORMS)
@given(side=sides)
def test_the_map_is_an_orthogonal_projection_of_the_right_rank(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    orbits = side * (side + 1) // 2
    expand = dense_expand(name, side)
    assert torch.linalg.matrix_rank(expand) == s.deployed == orbits
    assert s.numel == (side**2 if name == "avg:full" else orbits)
    project = s.project(torch.eye(side**2, dtype=torch.float64).reshape(-1, side, side)).T
    both = expand @ project  # (N², N²), W to the nearest symmetric matrix
    close(both @ both, both)
    close(both, both.T)
    a, b = draw(side, side), draw(side, side)
    through_a, through_b = s.expand(s.project(a)), s.expand(s.project(b))
    close((through_a * b).sum() / side, (a * through_b).sum() / side)


def test_small_matrices_as_the_docstrings_draw_them() -> None:
    v, r = torch.arange(1.0, 7.0), math.sqrt(0.5)
    tri = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    avg = torch.tensor([[1.0, 2 * r, 3 * r], [2 * r, 4, 5 * r], [3 * r, 5 * r, 6]])
    close(get_symmetry("tri", 3).expand(v), tri)
    close(get_symmetry("avg", 3).expand(v), avg)
    w = torch.arange(9.0)
    mean = torch.tensor([[0.0, 2, 4], [2, 4, 6], [4, 6, 8]])
    close(get_symmetry("avg:full", 3).expand(w), mean)
    assert get_symmetry("avg", 1).expand(torch.tensor([3.0])).tolist() == [[3.0]]


@given(side=sides, batch=batches)
def test_avg_keeps_lengths_and_angles(side: int, batch: tuple[int, ...]) -> None:
    s = get_symmetry("avg", side)
    a, b = draw(*batch, s.numel), draw(*batch, s.numel)
    dots = (s.expand(a) * s.expand(b)).sum((-1, -2))
    torch.testing.assert_close(dots, (a * b).sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
@given(side=sides, batch=batches)
def test_fold_is_the_product_with_the_transposed_matrix(
    name: str, side: int, batch: tuple[int, ...]
) -> None:
    s = get_symmetry(name, side)
    x, v = draw(*batch, side), draw(s.numel)
    folded = s.fold(x, v)
    assert folded.shape == x.shape
    by_hand = torch.einsum("ij,...j->...i", s.expand(v), x)
    torch.testing.assert_close(folded, by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize("name", FORMS)
def test_gradients_of_first_and_second_order(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    v = draw(2, s.numel).requires_grad_()
    w = draw(2, side, side).requires_grad_()
    x = draw(3, side).requires_grad_()
    one = draw(s.numel).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(s.expand, (v,))
        assert check(s.project, (w,))
        assert check(s.fold, (x, one))


@pytest.mark.parametrize("name", FORMS)
def test_starting_values(name: str) -> None:
    """tri draws each number; avg takes the mean of a full matrix, which avg:full keeps whole."""
    s = get_symmetry(name, 4)
    v = torch.empty(3, s.numel)
    torch.manual_seed(5)
    assert s.initialize(v, lambda t: t.uniform_(-0.5, 0.5)) is None
    torch.manual_seed(5)
    if name == "tri":
        assert torch.equal(v, torch.empty(3, 10).uniform_(-0.5, 0.5))
    else:
        w = torch.empty(3, 4, 4).uniform_(-0.5, 0.5)
        close(s.expand(v), (w + w.mT) / 2)
        assert name == "avg" or torch.equal(v, w.flatten(1))


@pytest.mark.parametrize("name", FORMS)
def test_as_a_parametrization(name: str) -> None:
    layer = nn.Linear(5, 5)
    before = layer.weight.detach().clone()
    s = get_symmetry(name, 5)
    parametrize.register_parametrization(layer, "weight", s)
    close(layer.weight, (before + before.mT) / 2)
    assert layer.parametrizations.weight.original.numel() == s.numel
    assigned = torch.randn(5, 5)
    layer.weight = assigned
    close(layer.weight, (assigned + assigned.mT) / 2)
    layer(torch.randn(2, 5)).sum().backward()
    assert layer.parametrizations.weight.original.grad.shape == (s.numel,)
    assert sorted(layer.state_dict()) == ["bias", "parametrizations.weight.original"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_copies_and_pickles_are_small_equal_and_stay_on_their_device(
    name: str, device: str
) -> None:
    s = get_symmetry(name, 300).to(device)
    pickled = pickle.dumps(s)
    assert len(pickled) < 4000  # the map alone has 90,000 entries
    file = io.BytesIO()
    torch.save(s, file)
    file.seek(0)
    copies = [copy.deepcopy(s), pickle.loads(pickled), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is type(s)
        assert (other.name, other.side, other.numel, other.deployed) == (
            s.name, s.side, s.numel, s.deployed,
        )  # fmt: skip
        assert other.orbit.device == other.sizes.device == torch.device(device)
        assert repr(other) == repr(s)
        if device == "cpu":
            v = torch.randn(s.numel)
            assert torch.equal(other(v), s(v))
    file.seek(0)
    elsewhere = torch.load(file, weights_only=False, map_location="meta")
    assert elsewhere.orbit.device.type == "meta"


@pytest.mark.parametrize("name", FORMS)
def test_it_has_no_state_and_outlives_a_stay_on_the_meta_device(name: str) -> None:
    s, fresh = get_symmetry(name, 6), get_symmetry(name, 6)
    assert s.state_dict() == {}
    assert list(s.parameters()) == []
    s.load_state_dict({})
    s.to("meta").to_empty(device="cpu").to(torch.float16)
    assert torch.equal(s.orbit, fresh.orbit)
    assert torch.equal(s.sizes, fresh.sizes)
    assert s.orbit.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("triangle", 4), ValueError, ["'triangle'", *FORMS]),
        (("", 4), ValueError, ["''", *FORMS]),
        (("none", 4), ValueError, ["'none'", *FORMS]),
        (("avg", 0), ValueError, ["side", "at least 1", "0"]),
        (("avg", -1), ValueError, ["side", "at least 1", "-1"]),
        (("avg", 2.0), TypeError, ["side", "int", "float"]),
        (("avg", True), TypeError, ["side", "int", "bool"]),
        (("avg", "4"), TypeError, ["side", "int", "str"]),
    ],
)
def test_errors_of_get_symmetry(
    arguments: tuple[Any, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        get_symmetry(*arguments)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("name", FORMS)
def test_errors_of_shapes_name_what_came_and_what_was_wanted(name: str) -> None:
    s = get_symmetry(name, 3)
    n = s.numel
    wrong: list[tuple[Any, tuple[Tensor, ...], tuple[int, ...]]] = [
        (s.expand, (torch.zeros(n + 1),), (n + 1, n)),
        (s.expand, (torch.zeros(()),), (n,)),
        (s.project, (torch.zeros(3, 4),), (3, 4)),
        (s.project, (torch.zeros(4, 4),), (4, 3)),
        (s.project, (torch.zeros(3),), (3,)),
        (s.fold, (torch.zeros(4), torch.zeros(n)), (4, 3)),
        (s.fold, (torch.zeros(()), torch.zeros(n)), (3,)),
        (s.fold, (torch.zeros(3), torch.zeros(n - 1)), (n - 1, n)),
        (s.fold, (torch.zeros(3), torch.zeros(2, n)), (2, n)),
    ]
    for method, arguments, numbers in wrong:
        with pytest.raises(ValueError, match="has shape") as raised:
            method(*arguments)
        assert [k for k in numbers if str(k) not in str(raised.value)] == []
