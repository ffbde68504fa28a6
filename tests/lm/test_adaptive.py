"""The adaptive softmax, against its sums written out, and through a run's whole life."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from resumed import KilledError, assert_same_run, dying_after

import lm.evaluate
import lm.generate
import lm.train
from data import encode_file
from lm.adaptive import AdaptiveDecoder
from lm.dynamic import Dynamic, gradient_scales, predict_dynamically
from lm.model import LanguageModel
from lm.perplexity import measure
from lm.saved import load_saved
from symrnn import open_packed, save_packed
from symrnn.files import UserError
from symrnn.training import loop

Train = Callable[..., int]

ADAPTIVE = ("--hidden-size", 16, "--adaptive-softmax", 6, 13)


def log_probability(decoder: AdaptiveDecoder, hidden: torch.Tensor, id: int) -> torch.Tensor:
    """Of one token, as the paper has it: in the head, or of its cluster and within that."""
    parts, cutoffs = decoder.softmax, decoder.softmax.cutoffs
    rank = int(decoder.ranks[id])
    head = (parts.head.weight @ hidden + parts.head.bias).log_softmax(0)
    if rank < cutoffs[0]:
        return head[rank]
    cluster = next(k for k, end in enumerate(cutoffs[1:]) if rank < end)
    narrow, wide = parts.tail[cluster][0].weight, parts.tail[cluster][1].weight
    assert narrow.shape[0] == len(hidden) // 4 ** (cluster + 1)
    within = (wide @ (narrow @ hidden)).log_softmax(0)
    return head[cutoffs[0] + cluster] + within[rank - cutoffs[cluster]]


@pytest.fixture
def decoder() -> AdaptiveDecoder:
    torch.manual_seed(4)
    made = AdaptiveDecoder(16, 11, [3, 7]).double()
    made.order_by(np.array([5, 9, 0, 9, 2, 7, 1, 1, 4, 3, 8]))
    return made


def test_tokens_are_ordered_by_how_often_they_occur(decoder: AdaptiveDecoder) -> None:
    assert decoder.ranks.tolist() == [4, 0, 10, 1, 7, 3, 8, 9, 5, 6, 2]


def test_every_probability_is_that_of_the_paper(decoder: AdaptiveDecoder) -> None:
    features = torch.randn(4, 3, 16, dtype=torch.float64)
    found = decoder(features)
    assert found.shape == (4, 3, 11)
    for t in range(4):
        for b in range(3):
            wanted = [log_probability(decoder, features[t, b], id) for id in range(11)]
            torch.testing.assert_close(found[t, b], torch.stack(wanted))
    torch.testing.assert_close(found.exp().sum(2), torch.ones(4, 3, dtype=torch.float64))
    targets = torch.arange(12).view(4, 3) % 11
    wanted_losses = -found.flatten(0, 1)[torch.arange(12), targets.flatten()]
    torch.testing.assert_close(decoder.losses(features, targets), wanted_losses)


def test_it_is_whole_precision_under_autocast(decoder: AdaptiveDecoder) -> None:
    features = torch.randn(4, 1, 16)
    targets = torch.tensor([[0], [9], [2], [5]])
    decoder = decoder.float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = decoder.losses(features.bfloat16(), targets)
    assert torch.equal(losses, decoder.losses(features.bfloat16().float(), targets))


def test_a_cluster_without_a_token_stands_still(decoder: AdaptiveDecoder) -> None:
    """Also in dynamic evaluation, whose segments rarely have them all."""
    model = LanguageModel(11, 16, 16, adaptive=[3, 7]).double()
    model.initialize(0.5)

    class Text:
        ids = np.array([0, 1, 2, 1, 0, 2, 1, 0, 1, 2, 1, 8])
        tokens = words = 12

    scales = gradient_scales(model, Text, 5, precision=nullcontext)  # type: ignore[arg-type]
    names = [name for name, _ in model.named_parameters()]
    still = [name for name, scale in zip(names, scales, strict=True) if not scale.any()]
    # The last token is in the second cluster, and none in the first.
    assert still == ["decoder.softmax.tail.0.0.weight", "decoder.softmax.tail.0.1.weight"]
    nats = predict_dynamically(
        model,
        scales,
        Text,
        0,
        Dynamic(),
        precision=nullcontext,  # type: ignore[arg-type]
    )
    assert torch.cat(list(nats)).isfinite().all()


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("adaptive") / "run"
    options = ["--batch-size", 4, "--steps", 5, "--epochs", 2, "--threads", 1, *ADAPTIVE]
    command = ["--data", corpus, *options, "--out", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("symrnn.training.Tracker.figure", lambda *_: None)
        assert lm.train.main([*map(str, command)]) == 0
    return folder


def test_a_run_orders_its_vocabulary_and_is_read_again(
    adaptive: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_saved(adaptive, torch.device("cpu"), precision="fp64")
    decoder = saved.model.decoder
    assert isinstance(decoder, AdaptiveDecoder)
    words = (corpus / "train.txt").read_text(encoding="utf-8").replace("\n", " <eos> ").split()
    counts = [words.count(saved.codec.token(id)) for id in range(21)]
    ranked = [counts[id] for id in decoder.ranks.argsort()]
    assert ranked == sorted(counts, reverse=True)

    text = encode_file(corpus / "test.txt", saved.codec)
    score = measure(saved.model, text, saved.codec.eos_id, precision=nullcontext)
    logits, _ = saved.model(
        torch.tensor([saved.codec.eos_id, *map(int, text.ids[:-1])]).view(-1, 1)
    )
    wanted = -logits[:, 0].log_softmax(1)[torch.arange(len(text)), torch.tensor(text.ids.tolist())]
    assert score.nats == pytest.approx(wanted.sum().item(), rel=1e-9)
    capsys.readouterr()
    assert lm.evaluate.main([str(adaptive), "--dynamic", "--threads", "1"]) == 0
    said = {line[:22].strip(): line[22:] for line in capsys.readouterr().out.splitlines()}
    assert float(said["nats"]) == pytest.approx(score.nats, rel=1e-5)
    assert "dynamic per token" in said
    assert load_saved(adaptive / "last.safetensors", torch.device("cpu")).meta["state"]
    assert lm.generate.main([str(adaptive), "--tokens", "9", "--threads", "1"]) == 0


def test_it_is_resumed_exactly(
    adaptive: Path, corpus: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying_after(2, loop.save_checkpoint))
        with pytest.raises(KilledError):
            train("--out", tmp_path / "run", *ADAPTIVE)
    assert lm.train.main(["--resume", str(tmp_path / "run")]) == 0
    assert_same_run(adaptive, tmp_path / "run")


def test_another_run_starts_from_it(adaptive: Path, train: Train, tmp_path: Path) -> None:
    options = ["--init-from", adaptive, "--lr", 1e-30, "--epochs", 1, "--symm", "none"]
    train("--out", tmp_path / "run", *ADAPTIVE, *options)
    former, new = (load_saved(run, torch.device("cpu")) for run in (adaptive, tmp_path / "run"))
    for name, tensor in former.model.decoder.state_dict().items():
        assert torch.equal(new.model.decoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("ranks", [torch.zeros(21, dtype=torch.int64), torch.arange(1, 22)])
def test_ranks_that_are_none_are_refused(
    adaptive: Path, tmp_path: Path, ranks: torch.Tensor
) -> None:
    saved, file = load_saved(adaptive, torch.device("cpu")), tmp_path / "best.safetensors"
    saved.model.decoder.ranks.copy_(ranks)
    save_packed(saved.model, file, meta=open_packed(adaptive / "best.safetensors").meta)
    with pytest.raises(UserError, match=r"the ranks of its adaptive softmax are no order of the"):
        load_saved(file, torch.device("cpu"))
