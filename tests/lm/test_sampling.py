"""Drawing a token: what may be drawn, how often, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lm.sampling import draw, truncate

INF = math.inf


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(logits: Tensor, count: int = 4000, **options: float) -> Tensor:
    generator = seeded()
    drawn = [draw(logits, generator, **options) for _ in range(count)]  # type: ignore[arg-type]
    return torch.bincount(torch.tensor(drawn), minlength=len(logits)) / count


def kept(probabilities: list[float], **options: float) -> list[int]:
    given = torch.tensor(probabilities, dtype=torch.float64)
    result = truncate(given, **options)  # type: ignore[arg-type]
    assert torch.equal(result[result > 0], given[result > 0])
    return result.nonzero().flatten().tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    wanted = (logits / temperature).softmax(0)
    found = frequencies(logits, temperature=temperature)
    deviation = (wanted * (1 - wanted) / 4000).sqrt()
    assert ((found - wanted).abs() < 4 * deviation).all()


def test_truncated_draws_are_renormalised() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    wanted = torch.tensor([0, 4 / 7, 0, 3 / 7])
    assert (frequencies(logits, top_k=2) - wanted).abs().max() < 0.03
    assert (frequencies(logits, top_p=0.7) - wanted).abs().max() < 0.03


def test_top_k_keeps_exactly_k_with_ties_too() -> None:
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2) == [1, 3]
    assert kept([0.25] * 4, top_k=3) == [0, 1, 2]
    assert kept([0.2, 0.2, 0.4, 0.2], top_k=2) == [0, 2]
    assert kept([0.5, 0.5], top_k=10) == [0, 1]


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    probabilities = [0.125, 0.5, 0.125, 0.25]
    assert kept(probabilities, top_p=0.5) == [1]  # reached exactly
    assert kept(probabilities, top_p=0.51) == [1, 3]
    assert kept(probabilities, top_p=0.75) == [1, 3]
    assert kept(probabilities, top_p=0.76) == [0, 1, 3]
    assert kept(probabilities, top_p=1.0) == [0, 1, 2, 3]
    assert kept(probabilities, top_p=1e-9) == [1]
    generator = seeded()
    for _ in range(50):
        some = torch.randn(40, generator=generator, dtype=torch.float64).softmax(0)
        places = kept(some.tolist(), top_p=0.8)
        total = some[places].sum()
        assert total >= 0.8 - 1e-12
        assert total - some[places].min() < 0.8
        assert some[places].min() >= some.sort().values[-len(places)]


def test_top_p_holds_for_what_top_k_kept() -> None:
    # Of 0.4 and 0.3 the first alone is 4/7.
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.55) == [1]
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.6) == [1, 3]


def test_temperature_0_is_the_likeliest_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    assert draw(torch.tensor([1.0, 3.0, 3.0, -INF]), generator, temperature=0) == 1
    assert torch.equal(generator.get_state(), before)


def test_extreme_temperatures() -> None:
    logits = torch.tensor([1.0, 1.001, -5.0])
    assert draw(logits, seeded(), temperature=1e-320) == 1
    assert set((frequencies(logits, 300, temperature=1e300) > 0.2).tolist()) == {True}


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 1.0}, {"top_k": 2, "top_p": 0.9}])
def test_a_token_of_probability_0_never_comes(options: dict[str, float]) -> None:
    logits = torch.tensor([-INF, 0.0, -1000.0, 0.0, -INF])
    assert frequencies(logits, 200, **options)[[0, 2, 4]].sum() == 0


def test_huge_and_half_precision_logits() -> None:
    assert draw(torch.tensor([3e38, -3e38, 0.0]), seeded()) == 0
    assert draw(torch.tensor([60000.0, -60000.0], dtype=torch.float16), seeded()) == 0
    assert draw(torch.tensor([5.0], dtype=torch.bfloat16), seeded()) == 0


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("logits", [[math.nan, 1.0], [INF, 1.0], [-INF, -INF]])
def test_logits_without_a_softmax(logits: list[float], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"the largest logit is (nan|inf|-inf)"):
        draw(torch.tensor(logits), seeded(), temperature=temperature)


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.randn(100)
    one, two = ([draw(logits, g) for _ in range(50)] for g in (seeded(1), seeded(1)))
    assert one == two
    assert one != [draw(logits, g) for g in [seeded(2)] for _ in range(50)]
