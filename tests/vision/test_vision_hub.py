"""Folders of the hub: a network comes back as it was, and its card says what its run recorded."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import symrnn.vision.hub
from symrnn import open_packed
from symrnn.files import UserError
from symrnn.hub import HubError
from symrnn.vision import create_model, fold_for_inference, from_pretrained
from symrnn.vision.hub import results_of, save_run
from symrnn.vision.models.diracnet import DiracNet, diracnet
from symrnn.vision.models.wrn import WideResNet
from symrnn.vision.saved import load_model


def same_logits(a: nn.Module, b: nn.Module, side: int = 32) -> bool:
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        return torch.equal(a.eval()(x), b.eval()(x))


@pytest.fixture(scope="module")
def saved_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder made of `finished`; not to be written to."""
    folder = tmp_path_factory.mktemp("hub") / "saved"
    save_run(finished, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn-10-1-bottleneck", {"symm": "tri", "share": "stage"}),
        ("wrn-10-1-basic", {"symm": "avg", "axes": "space", "dropout": 0.3}),
        ("resnet-18", {"num_classes": 7}),
        (
            "mobilenet-0.5",
            {"symm": "tri", "where": lambda name, _: name == "blocks.6.pointwise.weight"},
        ),
        ("vgg-11", {"symm": "tri", "where": "11"}),
        ("nin-bn", {"dropout": 0.5}),
        ("diracnet-10-1", {"symm": "tri"}),
        ("resnext-16-1-2", {"symm": "tri"}),
    ],
)
def test_a_network_of_every_family_comes_back(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = create_model(name, **options)
    assert model.save_pretrained(tmp_path) is None
    back = from_pretrained(tmp_path)
    assert type(back) is type(model)
    assert not back.training
    assert same_logits(back, model)
    assert (back.name, back.options, back.image_size) == (name, model.options, model.image_size)
    assert (back.classes, back.mean, back.std) == (None, None, None)


def test_a_run_comes_back_with_its_classes(finished: Path, saved_run: Path) -> None:
    model, meta = load_model(finished), open_packed(finished / "best.safetensors").meta
    back = from_pretrained(str(saved_run))
    assert same_logits(back, model, 8)
    assert (back.classes, back.mean, back.std) == (meta["classes"], meta["mean"], meta["std"])


def test_a_class_loads_networks_of_its_own(saved_run: Path) -> None:
    assert isinstance(WideResNet.from_pretrained(saved_run), WideResNet)
    with pytest.raises(HubError, match="holds a WideResNet, not a DiracNet"):
        DiracNet.from_pretrained(saved_run)


def test_the_numbers_are_those_of_the_run(finished: Path, saved_run: Path) -> None:
    lines = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    best = max(line["valid/accuracy"] for line in lines if "valid/accuracy" in line)
    text = (saved_run / "README.md").read_text()
    assert f"| accuracy, % | validation | {best:.2f} |" in text
    assert f"value: {best!r}\n" in text
    for fact in ("| trained on | set |", "| network | wrn-10-1-bottleneck |", "| 8×8, 4 classes |"):
        assert fact in text
    for path in saved_run.iterdir():
        assert str(finished.parent).encode() not in path.read_bytes()


def test_the_five_likeliest_are_of_the_best_epoch(tmp_path: Path) -> None:
    lines = [(50.0, 80.0, 1.0), (60.0, 90.0, 2.0), (60.0, 85.0, 3.0)]
    names = ("valid/accuracy", "valid/accuracy5", "epoch")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
    )
    results = results_of(metrics, {"accuracy": 60.0, "epoch": 2})
    assert [result.value for result in results] == [60.0, 90.0]
    assert results_of(tmp_path / "none", {"accuracy": 60.0, "epoch": 2}) == results[:1]
    assert results_of(metrics, {}) == []


def test_the_program_on_the_card_runs(
    saved_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved_run, "finished")
    create_model("wrn-10-1-basic").save_pretrained("bare")
    for folder in ("finished", "bare"):
        text = Path(folder, "README.md").read_text()
        (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(program, {})
        assert said.getvalue().strip()


def test_the_program_writes_a_folder_beside_the_run(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert symrnn.vision.hub.main([str(run_copy), "--dry-run"]) == 0
    assert 'library_name: "symrnn"' in capsys.readouterr().out
    assert symrnn.vision.hub.main([str(run_copy)]) == 0
    assert same_logits(from_pretrained(run_copy / "hub"), load_model(run_copy), 8)
    with pytest.raises(HubError, match="is there already"):
        symrnn.vision.hub.main([str(run_copy)])


def test_what_create_model_could_not_make_again_is_refused(tmp_path: Path) -> None:
    model = create_model("wrn-10-1-basic")
    folded = fold_for_inference(model)
    assert isinstance(folded, WideResNet)
    with pytest.raises(HubError, match="was not written: the model could not be read again"):
        folded.save_pretrained(tmp_path / "folder")
    with pytest.raises(HubError, match="a DiracNet that create_model did not make has no name"):
        diracnet(10, 1).save_pretrained(tmp_path / "folder")
    assert [*(tmp_path / "folder").iterdir()] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", ["a"]), ("classes", [1, 2, 3, 4]), ("mean", [0.5, 0.5]), ("std", "abc")],
)
def test_classes_and_means_that_are_none_are_refused(
    finished: Path, tmp_path: Path, name: str, value: Any
) -> None:
    model = load_model(finished)
    setattr(model, name, value)
    with pytest.raises(UserError, match=f"its {name} should be . of type"):
        model.save_pretrained(tmp_path)
