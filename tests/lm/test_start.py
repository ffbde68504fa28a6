"""Models that start from the weights of another one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lm.train
from lm.model import LanguageModel
from lm.saved import load_saved
from lm.start import start_from
from symrnn import get_symmetry
from symrnn.training import load_checkpoint, loop

Train = Callable[..., int]


def weights_of(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.rnn.to_plain().named_parameters()}


def started(run: Path, **options: object) -> tuple[LanguageModel, LanguageModel, str]:
    """The saved model, one that starts from it, and what is said."""
    saved = load_saved(run, torch.device("cpu"))
    torch.manual_seed(2)
    model = LanguageModel(len(saved.codec), 8, 8, **options)  # type: ignore[arg-type]
    said = start_from(model, run, saved.codec)
    return saved.model, model, said


@pytest.mark.parametrize("options", [{"symm": "none"}, {"symm": "avg"}, {"symm": "tri"}])
def test_a_form_that_holds_the_matrices_has_them_exactly(
    finished: Path, options: dict[str, object]
) -> None:
    source, model, said = started(finished, **options)
    ids = torch.arange(20).view(10, 2)
    torch.testing.assert_close(model(ids)[0], source(ids)[0], rtol=1e-5, atol=1e-6)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, weights_of(source)[name], rtol=1e-6, atol=1e-7)
    assert re.fullmatch(r".*best.safetensors, recurrent weights moved by 0.00% of their norm", said)


@pytest.mark.parametrize("symm", ["avg", "tri8", "block4"])
def test_others_have_the_nearest(train: Train, tmp_path: Path, symm: str) -> None:
    train("--out", tmp_path / "run", "--symm", "none", "--epochs", 1)
    source, model, said = started(tmp_path / "run", symm=symm, tied=False)
    form, former, new = get_symmetry(symm, 8), weights_of(source), weights_of(model)
    moved = 0.0
    for name, weight in former.items():
        wanted = weight
        if name.startswith("weight_hh"):
            blocks = weight.view(4, 8, 8)
            wanted = torch.stack([form.expand(form.project(b)) for b in blocks]).view(32, 8)
        torch.testing.assert_close(new[name], wanted, rtol=1e-5, atol=1e-6)
        moved += (wanted - weight).square().sum().item()
    whole = sum(weight.square().sum().item() for weight in former.values())
    assert f"moved by {(moved / whole) ** 0.5:.2%} of" in said
    assert torch.equal(model.decoder.weight, source.decoder.weight)
    assert torch.equal(model.encoder.weight, source.encoder.weight)


def test_tied_weights_become_two_but_two_not_one(
    gru_run: Path, train: Train, tmp_path: Path
) -> None:
    source, model, _ = started(gru_run, cell="gru", symm="none")
    assert torch.equal(model.decoder.weight, source.encoder.weight)
    assert model.decoder.weight is not model.encoder.weight
    _, model, _ = started(gru_run, cell="gru", symm="avg", tied=True)
    assert model.decoder.weight is model.encoder.weight
    assert torch.equal(model.decoder.bias, source.decoder.bias)


@pytest.mark.parametrize("tied", [True, False])
def test_a_projection_before_the_decoder_comes_along(
    train: Train, tmp_path: Path, tied: bool
) -> None:
    """Or goes into the decoder, which is then a matrix of its own."""
    run = tmp_path / "run"
    train("--out", run, "--epochs", 1, "--embedding-size", 6, "--tied")
    saved = load_saved(run, torch.device("cpu"))
    model = LanguageModel(len(saved.codec), 6, 8, tied=tied)
    start_from(model, run, saved.codec)
    ids = torch.arange(20).view(10, 2)
    torch.testing.assert_close(model(ids)[0], saved.model(ids)[0], rtol=1e-5, atol=1e-6)


def test_a_run_begins_there_and_is_resumed_without_it(
    train: Train, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of almost nothing it stays what it was."""
    first = tmp_path / "first"
    assert train("--out", first, "--init-from", finished, "--lr", 1e-30, "--epochs", 1) == 0
    assert "starts from      " in capsys.readouterr().out
    former = load_saved(finished, torch.device("cpu"))
    found = load_saved(first, torch.device("cpu"))
    assert found.meta["valid_perplexity"] == pytest.approx(
        former.meta["valid_perplexity"], rel=1e-5
    )

    second = tmp_path / "second"
    assert train("--out", second, "--init-from", first, "--epochs", 1) == 0
    for file in first.glob("*.safetensors"):
        file.unlink()
    assert lm.train.main(["--resume", str(second), "--epochs", "2"]) == 0


def test_a_run_killed_before_its_first_checkpoint_begins_there_again(
    train: Train, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--init-from", finished, "--epochs", 1, "--symm", "block4"]
    train("--out", tmp_path / "straight", *options)

    class KilledError(Exception):
        pass

    def dying(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying)
        with pytest.raises(KilledError):
            train("--out", tmp_path / "run", *options)
    assert lm.train.main(["--resume", str(tmp_path / "run")]) == 0
    straight, run = (
        load_checkpoint(tmp_path / name / "last.safetensors").tensors
        for name in ("straight", "run")
    )
    for name, tensor in straight.items():
        assert torch.equal(tensor, run[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hidden-size 6", "its model has another hidden size: 8, not 6"),
        ("--embedding-size 6", "its model has another embedding size: 8, not 6"),
        ("--layers 1", "its model has another number of layers: 2, not 1"),
        ("--cell gru", "its model has another kind of layers: SymLSTM, not SymGRU"),
        ("--tied", "its decoder and embedding share no weights, as --tied asks for"),
        ("--adaptive-softmax 7", "its model has another adaptive softmax: none, not 7"),
        ("--vocab-size 9", "its model has another vocabulary size: 21, not 9"),
        (
            "--data {other}",
            "its model has another vocabulary than the corpus, of the same 21 types",
        ),
    ],
)
def test_a_model_that_does_not_fit(
    refused: Callable[..., str],
    corpus: Path,
    finished: Path,
    tmp_path: Path,
    options: str,
    message: str,
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in corpus.glob("*.txt"):
        (other / file.name).write_text(file.read_text(encoding="utf-8").replace("w", "v"), "utf-8")
    arguments = ["--data", corpus, "--hidden-size", 8, "--batch-size", 4, "--out", tmp_path / "run"]
    said = refused(
        "train", *arguments, "--init-from", finished, *options.format(other=other).split()
    )
    assert said == f"--init-from {finished}: {message}"
    assert not (tmp_path / "run").exists()


def test_no_model_to_start_from(refused: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    said = refused("train", "--data", corpus, "--batch-size", 4, "--init-from", missing)
    assert f"{missing}: there is no such" in said
