"""How parameters are drawn: one by one, or from a full matrix drawn as a plain layer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from symrnn import get_symmetry, list_symmetries

BOUND = 0.25
VARIANCE = BOUND**2 / 3
RAW = [name for name in list_symmetries() if name.startswith(("tri", "block", "chunk"))]
MEANS = ["avg", "avg4", "avg8", "avg:diag2"]
EIGEN = ["eigen", "eigen:1", "eigen:6"]


def uniform(t: Tensor) -> Tensor:
    return t.uniform_(-BOUND, BOUND)


def started(
    name: str, side: int, *batch: int, draw: Callable[[Tensor], Tensor] = uniform
) -> Tensor:
    """Free numbers from the seed 5."""
    s = get_symmetry(name, side)
    v = torch.full((*batch, s.numel), torch.nan, dtype=torch.float64)
    torch.manual_seed(5)
    assert s.initialize(v, draw) is None
    return v


def drawn(*shape: int) -> Tensor:
    """What a plain layer's draw gives with the seed 5."""
    torch.manual_seed(5)
    return uniform(torch.empty(shape, dtype=torch.float64))


def check_uniform(entries: Tensor, variance: float) -> None:
    """Mean and variance within five standard errors."""
    count = entries.numel()
    assert abs(entries.mean().item()) < 5 * (variance / count) ** 0.5
    # The variance of a sample's variance is at most (kurtosis - 1) σ⁴/n, and the kurtosis of a
    # mean of uniform numbers at most 3.
    assert entries.var().item() == pytest.approx(variance, abs=5 * variance * (2 / count) ** 0.5)


@pytest.mark.parametrize("name", [*RAW, "ldl", "avg:full"])
def test_every_number_is_drawn_as_a_plain_layer_draws_an_entry(name: str) -> None:
    v = started(name, 16, 500)
    check_uniform(v, VARIANCE)
    assert v.abs().max() <= BOUND
    assert v.abs().max() > 0.99 * BOUND
    below = (v < BOUND / 2).double().mean().item()
    assert below == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / v.numel()) ** 0.5)
    assert torch.equal(v, drawn(*v.shape))


@pytest.mark.parametrize("name", RAW)
def test_so_is_every_entry_of_the_expanded_matrix(name: str) -> None:
    w = get_symmetry(name, 8).expand(started(name, 8, 4000))
    for entries in w.flatten(1).mT:
        check_uniform(entries, VARIANCE)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_the_group_varies_as_a_mean_over_the_orbit(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    w = s.expand(started(name, side, 4000))
    # Which entries are one number tells the size of the orbit.
    numbers = s.expand(torch.rand(s.numel, dtype=torch.float64)).flatten()
    sizes = (numbers[:, None] == numbers).sum(-1)
    assert len(sizes.unique()) > 1
    for entries, size in zip(w.flatten(1).mT, sizes.tolist(), strict=True):
        check_uniform(entries, VARIANCE / size)


@pytest.mark.parametrize("name", [*MEANS, "avg:full", *EIGEN])
def test_the_matrix_is_the_nearest_to_a_full_one_drawn_as_a_plain_layers(name: str) -> None:
    s = get_symmetry(name, 6)
    nearest = s.expand(s.project(drawn(3, 6, 6)))
    torch.testing.assert_close(s.expand(started(name, 6, 3)), nearest, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", EIGEN)
def test_eigen_starts_from_the_best_of_its_rank_of_the_symmetric_part(name: str) -> None:
    s = get_symmetry(name, 6)
    full = drawn(6, 6)
    u, values, vh = torch.linalg.svd((full + full.mT) / 2)
    best = u[:, : s.rank] * values[: s.rank] @ vh[: s.rank]
    torch.testing.assert_close(s.expand(started(name, 6)), best, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", [*list_symmetries(), "eigen:3"])
def test_parameters_start_without_a_trace_in_their_gradient(name: str) -> None:
    s = get_symmetry(name, 6)
    v = torch.nn.Parameter(torch.empty(s.numel))
    s.initialize(v, uniform)
    assert v.isfinite().all()
    assert v.requires_grad
    assert v.grad_fn is None
