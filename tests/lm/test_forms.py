"""Every symmetric form in the language model: trained, measured, sampled from; raw ones slower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lm.evaluate
import lm.generate
from data import TrainBatches, open_corpus
from lm.model import CELLS, LanguageModel
from lm.saved import load_saved
from symrnn import count_parameters, get_symmetry, list_symmetries
from symrnn.training import load_checkpoint

FORMS = [*list_symmetries(), "tri:diag3", "avg:diag4", "avg:skew2", "eigen:3"]
FAMILIES = [
    "tri", "avg", "avg:full", "avg:diag4", "avg:skew2", "tri4", "avg8", "block16", "chunk4:rows",
    "eigen:3", "ldl",
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "symm"),
    [("lstm", symm) for symm in FORMS]
    + [(cell, symm) for cell in CELLS if cell != "lstm" for symm in FAMILIES],
)
def test_every_form_is_trained(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cell: str,
    symm: str,
) -> None:
    """By a few steps, from which a matrix of that form comes."""
    monkeypatch.setattr("symrnn.training.loop.Tracker", Silent)
    start = LanguageModel(21, 8, 8, cell=cell, symm=symm)
    torch.manual_seed(1)
    start.initialize(0.1)
    options = ["--cell", cell, "--symm", symm, "--steps", 20, "--epochs", 1, "--lr", 0.3]
    assert train("--out", tmp_path / "run", *options) == 0

    saved = load_saved(tmp_path / "run", torch.device("cpu"))
    assert saved.meta["valid_perplexity"] < 23  # of 21 words, all alike
    s, gates = get_symmetry(symm, 8), CELLS[cell].GATES
    count = count_parameters(saved.model)
    assert count.recurrent == 2 * len(gates) * s.deployed
    assert count.training - count.deployed == 2 * len(gates) * (s.numel - s.deployed)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        before, after = (getattr(model.rnn, name).detach() for model in (start, saved.model))
        assert after.shape == (len(gates) * 8, 8)
        assert not torch.allclose(after, before, atol=1e-4)
        blocks = after.double().view(-1, 8, 8)
        torch.testing.assert_close(s.expand(s.project(blocks)), blocks, rtol=0, atol=1e-6)


class Silent:
    """In place of the tracker: opening TensorBoard's files takes longer than a few steps."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _nothing(self, *_: object) -> None: ...

    scalars = figure = hparams = text = flush = _nothing


@pytest.mark.parametrize("symm", FAMILIES)
def test_each_family_is_evaluated_and_generated_from(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], symm: str
) -> None:
    """With the same numbers by every backend, the folded products among them."""
    run = tmp_path / "run"
    train("--out", run, "--symm", symm, "--epochs", 1, "--init-range", 0.3, "--precision", "fp64")
    saved = load_saved(run, torch.device("cpu"))
    backends = ["auto", "reference", "script", "vendor"]
    if saved.model.rnn.folds:
        backends.append("folded")
    assert saved.model.rnn.folds == (symm in ("tri4", "avg8", "block16", "chunk4:rows"))
    capsys.readouterr()
    texts, nats = set(), []
    for backend in backends:
        lm.generate.main([str(run), "--tokens", "30", "--threads", "1", "--backend", backend])
        texts.add(capsys.readouterr().out)
        lm.evaluate.main([str(run), "--threads", "1", "--backend", backend])
        nats.append(float(capsys.readouterr().out.split("nats                  ")[1].split()[0]))
    assert len(texts) == 1
    assert nats == pytest.approx([nats[0]] * len(nats), abs=2e-4)


@pytest.mark.parametrize(("symm", "cell"), [("tri8", "lstm"), ("avg4", "gru"), ("chunk2", "rnn")])
def test_training_by_folded_products_is_training(
    train: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    symm: str,
    cell: str,
) -> None:
    tensors = {}
    for backend in ("vendor", "folded"):
        run = tmp_path / backend
        options = f"--symm {symm} --cell {cell} --backend {backend} --precision fp64 --lr 0.3"
        train("--out", run, *options.split(), "--dropout", 0.3)
        tensors[backend] = load_checkpoint(run / "last.safetensors").tensors
        assert load_saved(run, torch.device("cpu")).meta["config"]["backend"] == backend
    for name, tensor in tensors["vendor"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensors["folded"][name], tensor, rtol=0, atol=1e-10)
    capsys.readouterr()
    for program in (lm.evaluate.main, lm.generate.main):
        assert program([str(tmp_path / "folded"), "--backend", "folded", "--threads", "1"]) == 0
    assert "perplexity per token" in capsys.readouterr().out


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("symm", ["tri", "tri8", "block16", "chunk4", "avg8", "ldl"])
def test_raw_orbit_forms_learn_at_a_rate_divided_by_the_mean_orbit(
    train: Callable[..., int], corpus: Path, tmp_path: Path, cell: str, symm: str
) -> None:
    """Two epochs of one window each, at two rates, against the update written out."""
    options = f"--symm {symm} --cell {cell} --steps 100 --epochs 2 --lr 0.5 --lr-after 1"
    options += " --lr-divide 4 --clip 1000 --init-range 0.2 --precision fp64"
    train("--out", tmp_path / "run", *options.split())
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").tensors

    batches = TrainBatches(open_corpus(corpus).train.ids, 4, 100)
    assert len(batches) == 1
    inputs, targets = batches[0]
    torch.manual_seed(1)
    model = LanguageModel(21, 8, 8, cell=cell, symm=symm).double()
    model.initialize(0.2)
    raw = symm.startswith(("tri", "block", "chunk"))
    orbit = 64 / get_symmetry(symm, 8).numel
    for rate in (0.5, 0.125):
        log_p = model(inputs)[0].log_softmax(2)
        loss: torch.Tensor = -log_p.gather(2, targets[..., None]).sum() / 4
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(
                model.named_parameters(), gradients, strict=True
            ):
                slower = orbit if raw and "weight_hh" in name else 1.0
                parameter.sub_(rate / slower * gradient)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[f"model/{name}"], parameter.data, rtol=0, atol=1e-9)
