"""The files of a run, the packed best model and the checkpoint, as everybody may read them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lm.evaluate
import lm.generate
from lm.model import LanguageModel
from lm.saved import build_model, load_saved
from symrnn import count_parameters, load_packed, open_packed, save_packed
from symrnn.files import UserError
from symrnn.storage import is_packed
from symrnn.training import CheckpointError, load_checkpoint, model_tensors, save_checkpoint


def said(capsys: pytest.CaptureFixture[str], file: Path) -> list[str]:
    """What evaluate and generate say of a file, but for its name and the times."""
    capsys.readouterr()
    lm.evaluate.main([str(file), "--threads", "1"])
    lm.generate.main([str(file), "--threads", "1", "--tokens", "40"])
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith(("checkpoint ", "time ", "tokens per"))]


@pytest.fixture(scope="module", params=["none", "avg", "tri8", "eigen:3"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, whose best model is therefore its last."""
    folder = tmp_path_factory.mktemp("one") / "run"
    options = f"--hidden-size 8 --batch-size 4 --epochs 1 --threads 1 --symm {request.param}"
    corpus: Path = request.getfixturevalue("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("symrnn.training.Tracker.figure", lambda *_: None)
        lm.train.main(["--data", str(corpus), "--out", str(folder), *options.split()])
    return folder


def test_any_safetensors_reader_gets_the_free_numbers_of_the_best_model(run: Path) -> None:
    best = run / "best.safetensors"
    model = build_model(open_packed(best).meta["config"], 21)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = safetensors.torch.load_file(best)
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    last = load_checkpoint(run / "last.safetensors").tensors
    for name, tensor in tensors.items():
        assert torch.equal(tensor, last[f"model/{name}"])


def test_the_best_models_file_is_as_small_as_counted(run: Path) -> None:
    content = (run / "best.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little")
    symm = open_packed(run / "best.safetensors").meta["config"]["symm"]
    # 21 words of 8 numbers in and out; 2 layers of 4 gates with 64 input weights and 16 biases.
    rest = 21 * 8 + 21 * 9 + 2 * 4 * (64 + 16)
    numbers = rest + 2 * 4 * {"none": 64, "avg": 36, "tri8": 10, "eigen:3": 27}[symm]
    assert len(content) == 8 + header + 4 * numbers
    model = load_saved(run, torch.device("cpu")).model
    assert count_parameters(model).deployed == numbers


def test_the_best_model_tells_what_it_is(run: Path) -> None:
    assert is_packed(run / "best.safetensors")
    assert not is_packed(run / "last.safetensors")
    meta = open_packed(run / "best.safetensors").meta
    assert meta.keys() == {"config", "codec", "epoch", "valid_perplexity"}
    assert meta["config"] == load_checkpoint(run / "last.safetensors").meta["config"]
    assert meta["codec"] == load_checkpoint(run / "last.safetensors").meta["codec"]
    assert meta["epoch"] == 1


def test_best_and_last_are_read_alike(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = said(capsys, run / "best.safetensors")
    assert any(line.startswith("nats ") for line in wanted)
    assert said(capsys, run) == wanted
    assert said(capsys, run / "last.safetensors") == wanted
    # What kind a file is stands in it, not in its name.
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    shutil.copy(run / "last.safetensors", swapped / "best.safetensors")
    assert said(capsys, swapped) == wanted


def test_a_packed_model_fills_an_equal_and_a_plain_one(run: Path) -> None:
    saved = load_saved(run, torch.device("cpu"))
    symm, vocabulary = saved.config["symm"], len(saved.codec)
    same = LanguageModel(vocabulary, 8, 8, symm=symm).eval()
    load_packed(same, run / "best.safetensors")
    plain = LanguageModel(vocabulary, 8, 8, symm="none").eval()
    load_packed(plain, run / "best.safetensors")
    ids = torch.randint(vocabulary, (30, 3))
    wanted, _ = saved.model(ids)
    assert torch.equal(same(ids)[0], wanted)
    assert torch.equal(plain(ids)[0], wanted)
    for name, weight in plain.rnn.named_parameters():
        assert torch.equal(weight, getattr(saved.model.rnn, name)), name


def test_tied_weights_are_kept_once(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--out", tmp_path / "run", "--tied", "--epochs", 1)
    kept = open_packed(tmp_path / "run" / "best.safetensors")
    assert kept.tied == {"decoder.weight": "encoder.weight"}
    assert "decoder.weight" not in kept.tensors
    model = load_saved(tmp_path / "run", torch.device("cpu")).model
    assert model.decoder.weight is model.encoder.weight
    wanted = said(capsys, tmp_path / "run" / "last.safetensors")
    assert said(capsys, tmp_path / "run" / "best.safetensors") == wanted


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_a_model_is_read_in_the_precision_asked_for(finished: Path, precision: str) -> None:
    model = load_saved(finished, torch.device("cpu"), precision=precision).model
    wanted = torch.float64 if precision == "fp64" else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    kept = open_packed(finished / "best.safetensors").tensors
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name].to(wanted))


CONFIG: dict[str, Any] = {
    **{"embedding_size": 8, "hidden_size": 8, "num_layers": 2, "dropout": 0.0, "tied": False},
    **{"cell": "lstm", "symm": "avg", "symm_hh": "ifgo", "symm_ih": "", "precision": "fp32"},
}
"""Of a model with three words, whose file takes 6 kB."""


def write_model(path: Path, kind: str, **changed: object) -> None:
    """A file with a right checksum whose configuration says what it is not."""
    model = LanguageModel(3, 8, 8)
    meta = {
        "config": {**CONFIG, **changed},
        "codec": {"kind": "word", "tokens": ["<eos>", "a", "b"]},
    }
    if kind == "packed":
        save_packed(model, path, meta=meta)
    else:
        save_checkpoint(path, model_tensors(model), meta)


@pytest.mark.parametrize(
    ("changed", "packed", "checkpoint"),
    [
        (
            {"hidden_size": 20_000},
            "rnn.weight_hh_l0 has another size: (32, 8) in the file, (80000, 20000) in the model",
            "not the checkpoint of this model: decoder.weight, rnn.bias_hh_l0, rnn.bias_hh_l1",
        ),
        (
            {"embedding_size": 2**40},
            "encoder.weight has another size: (3, 8) in the file, (3, 1099511627776) in the model",
            "not the checkpoint of this model: encoder.weight, rnn.weight_ih_l0",
        ),
        (
            {"num_layers": 3},
            "is not of this model: the file lacks rnn.weight_ih_l2, rnn.weight_hh_l2, rnn.bias_ih_",
            "not the checkpoint of this model: rnn.bias_hh_l2, rnn.bias_ih_l2, rnn.weight_hh_l2_",
        ),
    ],
)
def test_sizes_that_a_file_merely_claims_are_compared_before_they_are_allocated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, object],
    packed: str,
    checkpoint: str,
) -> None:
    def build_on_meta(config: dict[str, Any], vocab_size: int) -> LanguageModel:
        model = build_model(config, vocab_size)
        assert model.decoder.weight.is_meta
        return model

    monkeypatch.setattr("lm.saved.build_model", build_on_meta)
    for kind, message in {"packed": packed, "checkpoint": checkpoint}.items():
        write_model(tmp_path / kind, kind, **changed)
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / kind}: {message}")):
            load_saved(tmp_path / kind, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": 10**9}, "its num_layers are 1000000000, but it has "),
        ({"hidden_size": 2**70}, ""),
        ({"hidden_size": -8}, "hidden_size must be greater than zero"),
        ({"hidden_size": 8.0}, "its hidden_size should be of type int, got: 8.0"),
        ({"hidden_size": True}, "its hidden_size should be of type int, got: True"),
        ({"num_layers": "2"}, "its num_layers should be of type int, got: '2'"),
        ({"dropout": None}, "its dropout should be of type int or float, got: None"),
        ({"tied": 1}, "its tied should be of type bool, got: 1"),
        ({"adaptive_softmax": 2}, "its adaptive_softmax should be integers, got: 2"),
        ({"adaptive_softmax": [1.5]}, "its adaptive_softmax should be integers, got: [1.5]"),
        ({"adaptive_softmax": [3]}, "the cutoffs of an adaptive softmax should rise from 1 or"),
        ({"symm": ["avg"]}, "its symm should be of type str, got: ['avg']"),
        ({"symm": "even"}, "its symm should be one of none, tri, "),
        ({"symm_hh": "xy"}, "symm_hh should name gates of 'ifgo'"),
        ({"precision": "fp8"}, "its precision should be one of fp32, bf16, fp64, got: 'fp8'"),
    ],
)
def test_a_configuration_that_describes_no_model(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    for kind in ("packed", "checkpoint"):
        write_model(tmp_path / "m", kind, **changed)
        with pytest.raises(CheckpointError) as error:
            load_saved(tmp_path / "m", torch.device("cpu"))
        assert str(error.value).startswith(f"{tmp_path / 'm'}: not a language model: {message}")


def test_an_outcome_of_another_type(tmp_path: Path) -> None:
    write_model(tmp_path / "m", "packed")
    meta = open_packed(tmp_path / "m").meta
    for name, wanted in (("epoch", "int"), ("valid_perplexity", "int or float")):
        save_packed(LanguageModel(3, 8, 8), tmp_path / "m", meta={**meta, name: "3"})
        with pytest.raises(
            CheckpointError, match=f"its {name} should be of type {wanted}, got: '3"
        ):
            load_saved(tmp_path / "m", torch.device("cpu"))
