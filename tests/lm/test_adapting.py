"""Dynamic evaluation and the continuous cache, against double loops in float64."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from numpy import array

import lm.evaluate
from data import EncodedText, encode_file
from lm.cache import Cache, ContinuousCache
from lm.dynamic import Dynamic, gradient_scales, predict_dynamically
from lm.model import LanguageModel
from lm.perplexity import Window, measure, predict
from lm.saved import load_saved


class Text:
    """The ids of a text, as an EncodedText has them."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = array(ids)
        self.tokens = self.words = len(ids)


def draw_text(tokens: int, types: int, seed: int) -> EncodedText:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(types, (tokens,), generator=generator).tolist()
    return Text(ids)  # type: ignore[return-value]


def make_model(cell: str, symm: str, tied: bool = False) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(7, 4, 4, 2, 0.5, cell=cell, symm=symm, tied=tied, backend="reference")
    model.initialize(0.9)
    return model.double()


def steps_of(model: LanguageModel, ids: list[int], before: int) -> list[tuple[int, int]]:
    """Inputs and targets of a stream."""
    return list(zip([before, *ids], ids, strict=False))


def segment_gradients(
    model: LanguageModel, steps: list[tuple[int, int]], state: object
) -> tuple[list[torch.Tensor], list[float], object]:
    """Of a segment, token by token: the gradients of its mean loss, its losses, the new state."""
    losses = []
    for token, target in steps:
        logits, state = model(torch.tensor([[token]]), state)
        losses.append(-logits[0, 0].log_softmax(0)[target])
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    detached = tuple(part.detach() for part in state)  # type: ignore[attr-defined]
    return list(gradients), [loss.item() for loss in losses], detached


# ---- dynamic evaluation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "symm", "tied"),
    [("lstm", "avg", False), ("gru", "none", True), ("lstm", "tri8", True)],
)
def test_the_weights_follow_the_text_as_the_paper_has_it(cell: str, symm: str, tied: bool) -> None:
    """Every number of every parameter, one after the other."""
    model = make_model(cell, symm, tied)
    train, text = draw_text(16, 7, 1), draw_text(23, 7, 2)
    settings = Dynamic(lr=0.01, decay=0.3, epsilon=0.003, segment=5)
    scales = gradient_scales(model, train, settings.segment, precision=nullcontext)

    # Sixteen tokens are two streams of eight, so there is one window: the mean of both streams.
    oracle = make_model(cell, symm, tied).eval()
    streams = []
    for start in (0, 8):
        steps = steps_of(oracle, train.ids[start + 1 : start + 6].tolist(), int(train.ids[start]))
        streams.append(segment_gradients(oracle, steps, None)[0])
    wanted = [((a + b) / 2).square().sqrt() for a, b in zip(*streams, strict=True)]
    for scale, other in zip(scales, wanted, strict=True):
        torch.testing.assert_close(scale, other, rtol=1e-10, atol=1e-14)

    mean = sum(scale.mean().item() for scale in wanted) / len(wanted)
    start = [parameter.detach().clone() for parameter in oracle.parameters()]
    nats: list[float] = []
    state: object = None
    steps = steps_of(oracle, text.ids.tolist(), 0)
    for place in range(0, len(steps), 5):
        gradients, losses, state = segment_gradients(oracle, steps[place : place + 5], state)
        nats += losses
        for parameter, gradient, trained, scale in zip(
            oracle.parameters(), gradients, start, wanted, strict=True
        ):
            flat, former = parameter.detach().view(-1), parameter.detach().clone().view(-1)
            for i in range(len(flat)):
                r = scale.view(-1)[i].item()
                down = 0.01 * gradient.reshape(-1)[i].item() / (r + 0.003)
                pull = min(0.3 * r / mean, 1.0) * (trained.view(-1)[i] - former[i]).item()
                flat[i] = former[i] - down + pull

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = list(predict_dynamically(model, scales, text, 0, settings, precision=nullcontext))
    assert [len(part) for part in found] == [5, 5, 5, 5, 3]
    assert torch.cat(found).tolist() == pytest.approx(nats, rel=1e-9)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_at_a_rate_of_zero_it_is_the_model_itself() -> None:
    model, text = make_model("lstm", "avg"), draw_text(50, 7, 5)
    scales = gradient_scales(model, text, 5, precision=nullcontext)
    still = predict_dynamically(model, scales, text, 0, Dynamic(lr=0.0), precision=nullcontext)
    wanted = measure(model, text, 0, precision=nullcontext).nats
    assert torch.cat(list(still)).sum().item() == pytest.approx(wanted, rel=1e-12)


def test_a_model_that_learns_from_a_repetition_gets_better_at_it() -> None:
    text = Text([1, 2, 3, 4, 5, 6] * 40)
    model = make_model("lstm", "avg")
    scales = gradient_scales(model, text, 5, precision=nullcontext)  # type: ignore[arg-type]
    nats = torch.cat(
        list(
            predict_dynamically(
                model,
                scales,
                text,
                0,
                Dynamic(lr=0.02),
                precision=nullcontext,  # type: ignore[arg-type]
            )
        )
    )
    assert nats[-60:].mean() < 0.5 * nats[:60].mean()


# ---- the cache -----------------------------------------------------------------------------------


def cached_nats(window: Window, settings: Cache) -> list[float]:
    """The paper's sums, term by term."""
    nats = []
    for t, target in enumerate(window.targets.tolist()):
        first = max(t - settings.size, 0)
        weights = [
            math.exp(settings.theta * float(window.features[t] @ window.features[i]))
            for i in range(first, t)
        ]
        found = sum(
            weight
            for weight, i in zip(weights, range(first, t), strict=True)
            if window.targets[i] == target
        )
        model = math.exp(-window.nats[t].item())
        share = settings.share if weights else 0.0
        nats.append(-math.log((1 - share) * model + share * (found / sum(weights) if found else 0)))
    return nats


@pytest.mark.parametrize("size", [1, 6, 200])
@pytest.mark.parametrize("theta", [0.0, 1.3])
def test_the_cache_is_the_papers_sum(
    monkeypatch: pytest.MonkeyPatch, size: int, theta: float
) -> None:
    """However the text is cut into windows, and those into blocks."""
    model, text = make_model("lstm", "avg"), draw_text(90, 7, 4)
    (whole,) = predict(model, text, 0, precision=nullcontext)
    settings = Cache(size, theta, 0.2)
    wanted = cached_nats(whole, settings)
    for steps, scores in ((1024, 2**22), (40, 2**22), (13, 30), (1, 1)):
        monkeypatch.setattr("lm.perplexity.STEPS", steps)
        monkeypatch.setattr("lm.cache.SCORES", scores)
        cache = ContinuousCache(settings)
        windows = predict(model, text, 0, precision=nullcontext)
        found = torch.cat([cache(window) for window in windows])
        assert found.tolist() == pytest.approx(wanted, rel=1e-10)


def test_the_ends_of_lambda() -> None:
    model, text = make_model("gru", "none"), draw_text(40, 7, 4)
    (window,) = predict(model, text, 0, precision=nullcontext)
    assert torch.equal(ContinuousCache(Cache(9, 1.0, 0.0))(window), window.nats)
    alone = ContinuousCache(Cache(9, 0.0, 1.0))(window)
    assert alone[0] == window.nats[0]  # nothing is cached yet
    last = window.targets[-10:].tolist()
    assert alone[-1].item() == pytest.approx(-math.log(last[:-1].count(last[-1]) / 9))


# ---- the program ---------------------------------------------------------------------------------


def test_the_static_number_stands_beside_both(
    finished: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "best.safetensors").read_bytes()
    options = ["--cache", "50", "--cache-theta", "0.3", "--cache-lambda", "0.25"]
    options += ["--dynamic", "--dynamic-lr", "0.001", "--dynamic-segment", "7", "--threads", "1"]
    capsys.readouterr()
    assert lm.evaluate.main([str(finished), "--precision", "fp64", *options]) == 0
    said = {line[:22].strip(): line[22:] for line in capsys.readouterr().out.splitlines()}
    assert (finished / "best.safetensors").read_bytes() == before

    saved = load_saved(finished, torch.device("cpu"), precision="fp64")
    text = encode_file(corpus / "test.txt", saved.codec)
    train = encode_file(corpus / "train.txt", saved.codec)
    windows = list(predict(saved.model, text, saved.codec.eos_id, precision=nullcontext))
    static = sum(window.nats.sum().item() for window in windows)
    assert float(said["nats"]) == pytest.approx(static, rel=1e-6)
    cache = ContinuousCache(Cache(50, 0.3, 0.25))
    cached = sum(cache(window).sum().item() for window in windows)
    assert float(said["cache per token"]) == pytest.approx(math.exp(cached / text.tokens), rel=1e-5)
    settings = Dynamic(lr=0.001, segment=7)
    scales = gradient_scales(saved.model, train, 7, precision=nullcontext)
    parts = predict_dynamically(
        saved.model, scales, text, saved.codec.eos_id, settings, precision=nullcontext
    )
    nats = sum(part.sum().item() for part in parts)
    assert float(said["dynamic per word"]) == pytest.approx(math.exp(nats / text.words), rel=1e-5)
    assert said["cache"] == "50 steps, theta 0.3, lambda 0.25"
    assert said["dynamic"] == "learning rate 0.001, decay 0.002, epsilon 2e-05, segments of 7"


def test_the_statistics_may_be_of_another_text(
    finished: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dynamic(*options: object) -> str:
        capsys.readouterr()
        assert lm.evaluate.main([str(finished), "--dynamic", *map(str, options)]) == 0
        return next(x for x in capsys.readouterr().out.splitlines() if x.startswith("dynamic per"))

    wanted = dynamic("--dynamic-lr", 0.01)
    for data in (corpus, corpus / "train.txt"):
        assert dynamic("--dynamic-lr", 0.01, "--dynamic-statistics", data) == wanted
    other = dynamic("--dynamic-lr", 0.01, "--dynamic-statistics", corpus / "valid.txt")
    assert other != wanted


def test_a_vocabulary_of_any_size_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = make_model("lstm", "avg"), draw_text(100, 7, 6)
    (whole,) = predict(model, text, 0, precision=nullcontext)
    monkeypatch.setattr("lm.perplexity.LOGITS", 20 * 7)
    (pieces,) = predict(model, text, 0, precision=nullcontext)
    torch.testing.assert_close(pieces.nats, whole.nats, rtol=1e-12, atol=1e-12)
