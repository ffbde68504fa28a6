"""The linear forms, against groups written as operations on whole matrices and closed by force."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from symrnn import get_symmetry, list_symmetries
from symrnn.symmetry.linear import OrbitCoordinates

OTHERS = ("avg:skew8", "eigen", "ldl")
LINEAR = [name for name in list_symmetries() if name not in OTHERS] + ["tri:diag2", "avg:diag3"]
MINIMAL = [name for name in LINEAR if name != "avg:full"]  # as many numbers as orbits
# Of chunks, which differ in their number alone, three where many examples are drawn.
SOME = [
    name
    for name in LINEAR
    if not name.startswith("chunk") or name in ("chunk2", "chunk4:rows", "chunk64")
]

# Side 1, odd ones, and those that neither 4 nor a number of chunks divides, are among these.
sides = st.integers(1, 9)
batches = st.sampled_from([(), (3,), (2, 0), (2, 1, 3)])
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def strided(t: Tensor) -> Tensor:
    """The same numbers, two places apart in memory."""
    return torch.stack([t, t], -1)[..., 0]


layouts = st.sampled_from([torch.Tensor.contiguous, strided])


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).mul_(2).sub_(1).to(dtype)


def close(found: Tensor, exact: Tensor, terms: int = 1) -> None:
    """Equal but for the roundings of a sum of ``terms`` numbers of size 1 and of six operations.

    Each rounding is half of eps, relative; the mean of an orbit, or its sum over the root of its
    size and that over the root again, takes less than all of them.
    """
    atol = torch.finfo(found.dtype).eps * (terms + 6) / 2
    torch.testing.assert_close(found.double(), exact.double(), rtol=0, atol=atol)


# The groups, by what generates them: each maps matrices (..., N, N) to matrices.


def transpose(w: Tensor) -> Tensor:
    return w.mT


def antitranspose(w: Tensor) -> Tensor:
    return w.flip(-1, -2).mT


def mirror(w: Tensor, dim: int) -> Tensor:
    return w.flip(dim)


def mirror_of_the_first_half(w: Tensor, dim: int) -> Tensor:
    """An odd side's middle belongs to the half."""
    half = (w.size(dim) + 1) // 2
    return torch.cat(
        [w.narrow(dim, 0, half).flip(dim), w.narrow(dim, half, w.size(dim) - half)], dim
    )


def translation(w: Tensor, pieces: int, dim: int) -> Tensor:
    """By a K-th of the side; rounded up where it is none, and the last piece comes short."""
    side = w.size(dim)
    if side % pieces == 0:
        return w.roll(side // pieces, dim)
    distance = side // pieces + 1
    onward = [i + distance if i + distance < side else i % distance for i in range(side)]
    return w.index_select(dim, torch.tensor(onward))


def transpose_outside(w: Tensor, block: int) -> Tensor:
    """Each block along the diagonal is put back."""
    moved = w.mT.clone()
    for start in range(0, w.size(-1), block):
        inside = slice(start, start + block)
        moved[..., inside, inside] = w[..., inside, inside]
    return moved


Generators = tuple[Callable[[Tensor], Tensor], ...]
BLOCK: Generators = (partial(mirror, dim=-1), partial(mirror, dim=-2))
GENERATORS: dict[str, Generators] = {
    "tri": (transpose,),
    "tri4": (transpose, antitranspose),
    "tri8": (transpose, antitranspose, partial(mirror, dim=-1)),
    "block4": BLOCK,
    "block16": (*BLOCK, *(partial(mirror_of_the_first_half, dim=dim) for dim in (-1, -2))),
}
GENERATORS |= {"avg": GENERATORS["tri"], "avg:full": GENERATORS["tri"]}
GENERATORS |= {"avg4": GENERATORS["tri4"], "avg8": GENERATORS["tri8"]}
for name, block in (("tri:diag2", 2), ("avg:diag3", 3), ("tri:diag16", 16), ("avg:diag16", 16)):
    GENERATORS[name] = (partial(transpose_outside, block=block),)
for k in (2, 4, 8, 16, 32, 64):
    GENERATORS[f"chunk{k}"] = (partial(translation, pieces=k, dim=-1),)
    GENERATORS[f"chunk{k}:rows"] = (partial(translation, pieces=k, dim=-2),)


@cache
def mean_matrix(name: str, side: int) -> Tensor:
    """The mean over the whole group as a matrix (N², N²) on flattened matrices.

    The group's elements are found as what they make of the grid of positions: the generators are
    applied to every such grid until no new one comes.
    """
    grid = torch.arange(side**2).view(side, side)
    found, to_do = {tuple(grid.flatten().tolist())}, [grid]
    while to_do:
        image = to_do.pop()
        for generator in GENERATORS[name]:
            further = generator(image)
            key = tuple(further.flatten().tolist())
            if key not in found:
                found.add(key)
                to_do.append(further)
    images = torch.tensor(list(found))
    mean = torch.zeros(side**2, side**2, dtype=torch.float64)
    share = torch.full(images.shape, 1 / len(images), dtype=torch.float64)
    return mean.index_put((torch.arange(side**2).expand_as(images), images), share, accumulate=True)


def group_mean(name: str, w: Tensor) -> Tensor:
    return (w.double().flatten(-2) @ mean_matrix(name, w.size(-1)).mT).view_as(w)


def orbit_sizes(name: str, side: int) -> Tensor:
    """For every position of the matrix (N, N) the size of its orbit: the mean spreads 1 evenly."""
    return (1 / mean_matrix(name, side).diagonal()).round().view(side, side)


def largest_orbit(name: str, side: int) -> int:
    return int(orbit_sizes(name, side).max())


def expand_matrix(name: str, side: int) -> Tensor:
    """``expand`` as a matrix (N², numel), from its values on the unit vectors."""
    s = get_symmetry(name, side)
    return s.expand(torch.eye(s.numel, dtype=torch.float64)).reshape(s.numel, side**2).mT


def test_every_linear_form_is_checked_here() -> None:
    assert sorted(GENERATORS) == sorted(LINEAR)


@pytest.mark.parametrize("name", SOME)
@given(side=sides, batch=batches, dtype=dtypes, layout=layouts)
def test_every_generator_leaves_the_expanded_matrix_as_it_is(
    name: str,
    side: int,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
) -> None:
    s = get_symmetry(name, side)
    v = draw(*batch, s.numel, dtype=dtype)
    w = s.expand(layout(v))
    assert (w.shape, w.dtype) == ((*batch, side, side), dtype)
    for generator in GENERATORS[name]:
        assert torch.equal(generator(w), w)
    assert torch.equal(w, s.expand(v))
    assert torch.equal(w, s(v))


@pytest.mark.parametrize("name", [name for name in SOME if name in MINIMAL])
@given(side=sides, batch=batches, dtype=dtypes)
def test_projecting_undoes_expanding(
    name: str, side: int, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    s = get_symmetry(name, side)
    v = draw(*batch, s.numel, dtype=dtype)
    close(s.project(s.expand(v)), v, largest_orbit(name, side))


@pytest.mark.parametrize("name", SOME)
@given(side=sides, batch=batches, dtype=dtypes, layout=layouts)
def test_the_nearest_matrix_is_the_mean_over_the_group(
    name: str,
    side: int,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
) -> None:
    s = get_symmetry(name, side)
    w = draw(*batch, side, side, dtype=dtype)
    v = s.project(layout(w))
    assert (v.shape, v.dtype) == ((*batch, s.numel), dtype)
    close(s.expand(v), group_mean(name, w), largest_orbit(name, side))
    assert torch.equal(v, s.project(w))
    assert torch.equal(v, s.right_inverse(w))


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in LINEAR for side in ([1, 2, 3, 4, 7, 8] if name in SOME else [4, 7])],
)
def test_expanding_what_was_projected_is_an_orthogonal_projection(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    project = s.project(torch.eye(side**2, dtype=torch.float64).view(-1, side, side)).mT
    both = expand_matrix(name, side) @ project  # (N², N²), W to the nearest symmetric matrix
    tolerance = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(both, mean_matrix(name, side), **tolerance)
    torch.testing.assert_close(both @ both, both, **tolerance)
    torch.testing.assert_close(both, both.mT, **tolerance)


@pytest.mark.parametrize("name", LINEAR)
@given(side=sides)
def test_there_is_a_number_for_every_dimension_of_the_space(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    assert torch.linalg.matrix_rank(expand_matrix(name, side)) == s.deployed
    assert s.numel == (side**2 if name == "avg:full" else s.deployed)
    # The trace of a projection is the dimension of what it projects on.
    assert s.deployed == round(mean_matrix(name, side).trace().item())


COUNTS: dict[str, tuple[int, Callable[[int], int]]] = {
    # what divides the side, and how many numbers there are then
    "tri": (1, lambda n: n * (n + 1) // 2),
    "tri4": (2, lambda n: n * (n + 2) // 4),
    "tri8": (2, lambda n: (n // 2) * (n // 2 + 1) // 2),
    "block4": (2, lambda n: (n // 2) ** 2),
    "block16": (4, lambda n: (n // 4) ** 2),
    **{f"chunk{k}": (k, lambda n, k=k: n * n // k) for k in (2, 4, 8, 16, 32, 64)},
    **{f"tri:diag{b}": (b, lambda n, b=b: (n * (n + 1) + n * (b - 1)) // 2) for b in (2, 3, 16)},
}


@pytest.mark.parametrize("name", MINIMAL)
def test_the_counts_are_the_published_ones(name: str) -> None:
    divisor, count = COUNTS[name.replace("avg", "tri").removesuffix(":rows")]
    for times in (1, 2, 3, 5):
        side = times * divisor
        s = get_symmetry(name, side)
        assert s.numel == s.deployed == count(side)


def test_an_over_complete_form_trains_the_full_matrix() -> None:
    s = get_symmetry("avg:full", 50)
    assert (s.numel, s.deployed) == (2500, 1275)


def test_the_learning_rate_of_a_raw_number_wants_the_mean_orbit_size_taken_out() -> None:
    assert get_symmetry("tri", 50).lr_scale == pytest.approx(1275 / 2500)
    assert get_symmetry("tri8", 50).lr_scale == pytest.approx(325 / 2500)
    assert get_symmetry("chunk16", 32).lr_scale == pytest.approx(1 / 16)
    for name in ("avg", "avg4", "avg8", "avg:full"):
        assert get_symmetry(name, 50).lr_scale == 1


@pytest.mark.parametrize(
    ("raw", "orthonormal"),
    [("tri", "avg"), ("tri4", "avg4"), ("tri8", "avg8"), ("tri:diag3", "avg:diag3")],
)
@given(side=sides, batch=batches)
def test_two_coordinate_systems_of_one_space(
    raw: str, orthonormal: str, side: int, batch: tuple[int, ...]
) -> None:
    """An orthonormal coordinate is the raw one times the root of the size of its orbit."""
    tri, avg = get_symmetry(raw, side), get_symmetry(orthonormal, side)
    sizes = tri.project(orbit_sizes(orthonormal, side))
    v = draw(*batch, tri.numel)
    close(avg.expand(v * sizes.sqrt()), tri.expand(v))
    close(avg.project(tri.expand(v)), v * sizes.sqrt(), terms=8)


@pytest.mark.parametrize("name", ["avg", "avg4", "avg8", "avg:diag3"])
@given(side=sides, batch=batches)
def test_orthonormal_coordinates_keep_lengths_and_angles(
    name: str, side: int, batch: tuple[int, ...]
) -> None:
    s = get_symmetry(name, side)
    a, b = draw(*batch, s.numel), draw(*batch, s.numel)
    products = (s.expand(a) * s.expand(b)).sum((-1, -2))
    torch.testing.assert_close(products, (a * b).sum(-1), rtol=0, atol=1e-13)
    identity = torch.eye(s.numel, dtype=torch.float64)
    close(expand_matrix(name, side).mT @ expand_matrix(name, side), identity, terms=8)


def test_small_matrices_as_the_docstrings_draw_them() -> None:
    v, r = torch.arange(1.0, 7.0), math.sqrt(0.5)
    tri = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    avg = torch.tensor([[1.0, 2 * r, 3 * r], [2 * r, 4, 5 * r], [3 * r, 5 * r, 6]])
    assert torch.equal(get_symmetry("tri", 3).expand(v), tri)
    torch.testing.assert_close(get_symmetry("avg", 3).expand(v), avg, rtol=1e-6, atol=0)
    w = torch.arange(9.0)
    mean = torch.tensor([[0.0, 2, 4], [2, 4, 6], [4, 6, 8]])
    assert torch.equal(get_symmetry("avg:full", 3).expand(w), mean)
    letters = OrbitCoordinates.__doc__.split("tri:diag2\n\n")[1].splitlines()[:5]
    drawn = [[ord(letter) - ord("a") for letter in line.split()[:5]] for line in letters]
    assert get_symmetry("tri:diag2", 5).expand(torch.arange(17)).tolist() == drawn


@pytest.mark.parametrize("name", ["tri:diag{}", "avg:diag{}"])
def test_one_block_is_every_matrix_and_blocks_of_one_are_the_symmetric_form(name: str) -> None:
    for side in (1, 2, 5):
        for block in (side, side + 1, 10**6):
            free = get_symmetry(name.format(block), side)
            w = draw(side, side)
            assert torch.equal(free.project(w), w.flatten())
            assert torch.equal(free.expand(w.flatten()), w)
    one, plain = get_symmetry(name.format(1), 7), get_symmetry(name[:3], 7)
    v = draw(28)
    assert torch.equal(one.expand(v), plain.expand(v))


def test_a_free_block_rotates() -> None:
    """Its units have complex eigenvalues, as no symmetric matrix has."""
    s = get_symmetry("avg:diag2", 6)
    w = s.expand(s.project(torch.tensor([[0.0, 1], [-1, 0]]).repeat(3, 3)))
    assert torch.linalg.eigvals(w).imag.abs().max() > 0.9
    assert not s.own_transpose
    assert get_symmetry("avg:diag1", 6).own_transpose


@pytest.mark.parametrize("name", LINEAR)
def test_a_matrix_of_side_1_is_one_number(name: str) -> None:
    s = get_symmetry(name, 1)
    assert s.expand(torch.tensor([3.0])).tolist() == [[3.0]]
    assert s.project(torch.tensor([[3.0]])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in LINEAR for side in ([1, 4, 5] if name in SOME else [5])],
)
def test_gradients(name: str, side: int) -> None:
    """Backwards, forwards and of many vectors at once; and those of the gradients.

    These along a random direction (fast_mode), where an entry that is wrong shows as well.
    """
    s = get_symmetry(name, side)
    v = draw(2, s.numel).requires_grad_()
    w = draw(2, side, side).requires_grad_()
    for function, argument in [(s.expand, v), (s.project, w)]:
        assert gradcheck(function, argument, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, argument, fast_mode=True)


@pytest.mark.parametrize("name", LINEAR)
def test_the_gradient_of_expand_is_the_sum_over_the_orbit(name: str) -> None:
    """Weighted as ``expand`` weights it: the adjoint, the transposed matrix."""
    s = get_symmetry(name, 6)
    v = torch.zeros(s.numel, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(36.0, dtype=torch.float64).view(6, 6)
    (s.expand(v) * weights).sum().backward()
    exact = expand_matrix(name, 6).mT @ weights.flatten()
    torch.testing.assert_close(v.grad, exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_both_ways_under_vmap(name: str) -> None:
    s = get_symmetry(name, 5)
    v, w = draw(4, s.numel), draw(4, 5, 5)
    assert torch.equal(torch.func.vmap(s.expand)(v), s.expand(v))
    assert torch.equal(torch.func.vmap(s.project)(w), s.project(w))
