"""symrnn.vision.export: files that give the network's numbers where this library is not."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import symrnn.export
import symrnn.vision.export
from symrnn import deploy, open_packed
from symrnn.files import run_program
from symrnn.vision import create_model, fold_for_inference
from symrnn.vision.export import program_of
from symrnn.vision.saved import load_model

BATCHES = (1, 2, 7)
"""None of which is the example's."""


def export(*arguments: object) -> int:
    return symrnn.vision.export.main([str(argument) for argument in arguments])


def assert_same_numbers(run: Callable[[Tensor], Any], model: nn.Module, side: int = 8) -> None:
    for batch in BATCHES:
        images = torch.randn(batch, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(run(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "pt2"])
def test_each_kind_of_file_gives_the_numbers_at_any_batch(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    path, model = tmp_path / f"model{symrnn.export.KINDS[kind]}", load_model(finished)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert export(finished, "--to", kind, "--out", path) == 0
    out, err = capfd.readouterr()
    assert "images float32 (batch, 3, 8, 8)" in out
    assert "largest difference" in out
    assert err == ""

    if kind == "pt2":
        extra = {"symrnn.json": ""}
        program = torch.export.load(path, extra_files=extra)
        about = json.loads(extra["symrnn.json"])
        assert program.graph_signature.user_inputs == ("images",)
        assert_same_numbers(program.module(), model)
    else:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(file.metadata()["symrnn"])
        made = create_model(about["model"], num_classes=about["num_classes"])
        plain = fold_for_inference(made)
        assert {name: w.shape for name, w in plain.state_dict().items()} == {
            name: w.shape for name, w in weights.items()
        }
        plain.load_state_dict(weights)
        assert_same_numbers(plain, model)

    meta = open_packed(finished / "best.safetensors").meta
    assert about["inputs"] == {"images": {"dtype": "float32", "axes": ["batch", 3, 8, 8]}}
    assert about["outputs"] == {"logits": {"dtype": "float32", "axes": ["batch", 4]}}
    assert (about["model"], about["symm"]) == ("wrn-10-1-bottleneck", "tri")
    for name in ("accuracy", "classes", "mean", "std"):
        assert about[name] == meta[name]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn-16-0.5-bottleneck", {"symm": "block4", "axes": "channel", "share": "stage"}),
        ("diracnet-10-0.25", {"symm": "avg", "share": "none"}),
        ("mobilenet-0.25", {"symm": "tri", "share": "none"}),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "onnx"])
def test_networks_of_each_kind_leave(
    name: str, options: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    """With batch norm, shared and Dirac convolutions, forms that fold and groups."""
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    model = create_model(name, num_classes=4, **options).eval()
    config = {"image_size": 16, "num_classes": 4, "model": name, **options}
    program = program_of(model, {"config": config})
    done = symrnn.export.export(program, kind, tmp_path / "model")
    assert done.size == (tmp_path / "model").stat().st_size
    assert done.difference is not None
    assert done.difference < 1e-4
    if kind == "onnx":
        run = symrnn.export.FILES["onnx"][1](program, tmp_path / "model")
        assert run is not None
        assert_same_numbers(lambda images: run((images,))[0], model, side=16)


def test_a_file_with_other_numbers_is_refused(finished: Path, tmp_path: Path) -> None:
    model = load_model(finished)
    program = program_of(model, open_packed(finished / "best.safetensors").meta)
    program.deployed.get_submodule("stages.0.0.conv2").weight[0, 0, 1, 1] += 1e-2  # type: ignore[operator, index]
    message = r"at batch \d its logits differs from the model's by"
    with pytest.raises(symrnn.export.RefusedError, match=message):
        symrnn.export.export(program, "plain", tmp_path / "model")
    assert [*tmp_path.iterdir()] == []


def test_a_network_that_is_deployed_already_is_the_same(finished: Path) -> None:
    folded = fold_for_inference(load_model(finished))
    once, twice = deploy(folded, "plain"), deploy(deploy(folded, "plain"), "plain")
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name])


def test_bad_arguments_are_errors(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    without: Callable[..., None],
) -> None:
    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            run_program(functools.partial(export, *arguments))
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]

    monkeypatch.chdir(tmp_path)
    assert refused().startswith("no checkpoint given, and there is no trained run in ./runs")
    assert "invalid choice: 'coreml'" in refused(finished, "--to", "coreml")
    assert "the folder none does not exist" in refused(finished, "--out", "none/model.safetensors")
    without("onnx")
    assert refused(finished, "--to", "onnx").startswith("--to onnx needs the onnx package")
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_writes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    assert export(finished, "--out", path, "--dry-run") == 0
    assert f"would be written      {path}" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] == []
