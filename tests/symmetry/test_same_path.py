"""avg takes, number for number, the path that averaging a full matrix takes under SGD."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from symrnn import SymLSTM, get_symmetry

STEPS = 50
SIDE = 6
CLIP = 0.05

Model = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[], list[Tensor]]]
"""The module, its output for an input (T, B, N), and its expanded matrices."""


def lstm(symm: str) -> Model:
    torch.manual_seed(3)
    model = SymLSTM(SIDE, SIDE, 2, symm=symm, symm_ih="ig", dtype=torch.float64)
    names = [f"weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)]
    return model, lambda x: model(x)[0], lambda: [getattr(model, name) for name in names]


def linear(symm: str) -> Model:
    torch.manual_seed(3)
    layer = nn.Linear(SIDE, SIDE, dtype=torch.float64)
    parametrize.register_parametrization(layer, "weight", get_symmetry(symm, SIDE))
    return layer, layer, lambda: [layer.weight]


def path(model: Model) -> tuple[list[list[Tensor]], list[float]]:
    """The expanded matrices after every step, and the gradient's norm before clipping."""
    module, run, matrices = model
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    generator = torch.Generator().manual_seed(4)
    passed, norms = [[w.detach().clone() for w in matrices()]], []
    for _ in range(STEPS):
        x = torch.randn(5, 4, SIDE, dtype=torch.float64, generator=generator)
        target = torch.randn(5, 4, SIDE, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (run(x) - target).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(module.parameters(), CLIP).item())
        optimizer.step()
        passed.append([w.detach().clone() for w in matrices()])
    return passed, norms


@pytest.mark.parametrize("build", [lstm, linear])
def test_avg_and_avg_full_pass_the_same_matrices_at_every_step(
    build: Callable[[str], Model],
) -> None:
    small, norms = path(build("avg"))
    full, full_norms = path(build("avg:full"))
    assert min(norms) > CLIP  # clipping shortened every step
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(full_norms), rtol=1e-10, atol=0)
    for a, b in zip(small, full, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    moved = max(
        (w - start).abs().max().item() for w, start in zip(small[-1], small[0], strict=True)
    )
    assert moved > 0.1


def test_tri_takes_another_path() -> None:
    """So the comparison above can fail: a raw number's gradient is the sum over its orbit."""
    raw, _ = path(linear("tri"))
    full, _ = path(linear("avg:full"))
    assert (raw[-1][0] - full[-1][0]).abs().max() > 1e-3
