"""Whole training runs: what they reach, what they leave behind, and every way to run them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import symrnn.vision.datasets
import symrnn.vision.train
from symrnn import count_parameters, open_packed, symmetrize
from symrnn.training import load_checkpoint
from symrnn.training.command_line import given
from symrnn.vision import create_model
from symrnn.vision.accuracy import measure
from symrnn.vision.datasets import open_dataset
from symrnn.vision.dirac import no_decay
from symrnn.vision.learner import make_optimizer
from symrnn.vision.options import make_parser, resolve
from symrnn.vision.recipes import RECIPES, Recipe, lr_in
from symrnn.vision.saved import load_model

pytestmark = pytest.mark.usefixtures("no_picture")


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def value_of(folder: Path, name: str) -> float:
    """The last value of a scalar."""
    return [line[name] for line in lines_of(folder) if name in line][-1]


def config(*arguments: str) -> dict[str, Any]:
    return resolve(given(make_parser().parse_args(arguments)))


# ---- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "recipe", "batch", "epochs", "decay", "rates"),
    [
        # Zagoruyko and Komodakis 2016, section 3.
        ("cifar10", "cifar", 128, 200, 5e-4, {1: 0.1, 61: 0.02, 121: 4e-3, 161: 8e-4, 200: 8e-4}),
        ("imagenet", "imagenet", 256, 100, 1e-4, {30: 0.1, 31: 0.01, 61: 1e-3, 91: 1e-4}),
    ],
)
def test_the_papers_recipes(
    tmp_path: Path,
    data: str,
    recipe: str,
    batch: int,
    epochs: int,
    decay: float,
    rates: dict[int, float],
) -> None:
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    made = config("--data", str(tmp_path / data) if data == "imagenet" else data)
    assert (made["recipe"], made["batch_size"], made["epochs"]) == (recipe, batch, epochs)
    assert (made["momentum"], made["nesterov"], made["weight_decay"]) == (0.9, True, decay)
    for epoch, rate in rates.items():
        found = lr_in(epoch, made["lr"], made["lr_divide"], made["lr_steps"])
        assert found == pytest.approx(rate)


def test_a_rate_too_small_for_a_number() -> None:
    assert lr_in(52, 1.0, 1e6, [*range(51)]) == 1e-306
    assert lr_in(53, 1.0, 1e6, [*range(52)]) == 0.0


def test_the_schedule_shrinks_with_the_epochs() -> None:
    assert config("--recipe", "cifar")["lr_steps"] == [60, 120, 160]
    assert config("--recipe", "cifar", "--epochs", "15")["lr_steps"] == [5, 9, 12]
    assert config("--recipe", "imagenet", "--epochs", "10")["lr_steps"] == [3, 6, 9]
    assert config("--recipe", "cifar", "--epochs", "15", "--lr-steps", "3")["lr_steps"] == [3]
    assert config("--recipe", "cifar", "--lr-steps")["lr_steps"] == []


def test_the_rate_of_imagenet_grows_with_the_batch() -> None:
    assert config("--recipe", "imagenet", "--batch-size", "1024")["lr"] == pytest.approx(0.4)
    assert config("--recipe", "imagenet", "--batch-size", "64", "--lr", "0.1")["lr"] == 0.1
    assert config("--recipe", "cifar", "--batch-size", "256")["lr"] == 0.1


OVERRIDES = {
    "model": "nin",
    "epochs": "9",
    "batch_size": "30",
    "lr": "0.7",
    "lr_divide": "3.0",
    "lr_steps": "7",
    "momentum": "0.5",
    "weight_decay": "0.25",
}


def test_each_number_of_a_recipe_can_be_overridden() -> None:
    unnamed = {"lr_batch", "nesterov"}  # how lr is scaled; and a flag, below
    assert OVERRIDES.keys() == {field.name for field in fields(Recipe)} - unnamed
    plain = config("--recipe", "cifar")
    for name, text in OVERRIDES.items():
        made = config("--recipe", "cifar", "--" + name.replace("_", "-"), text)
        assert str(made[name]).strip("[]") == text
        changed = {key for key in made if made[key] != plain[key]}
        assert changed == ({name, "lr_steps"} if name == "epochs" else {name})
    assert not config("--recipe", "cifar", "--no-nesterov")["nesterov"]


def test_without_options_a_symmetric_model_on_the_builtin_pictures() -> None:
    made = config()
    assert (made["data"], made["recipe"], made["symm"]) == ("shapes", "shapes", "tri")
    assert made["model"] == RECIPES["shapes"].model
    assert (made["seed"], made["device"], made["precision"]) == (1, "auto", "fp32")


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        symrnn.vision.train.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "  python -m symrnn.vision.train " in text
    assert "  torchrun --nproc-per-node 2 -m symrnn.vision.train " in text
    assert all(len(line) <= 100 for line in text.splitlines())


# ---- the optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("symm", ["none", "tri", "avg", "tri8"])
def test_weights_of_every_form_decay_alike(symm: str) -> None:
    model = create_model("wrn-10-1-basic", symm=symm)
    options = {"lr": 0.5, "weight_decay": 0.1, "momentum": 0.0, "nesterov": False}
    optimizer = make_optimizer(model, options)
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    before = [layer.weight.detach().clone() for layer in convolutions]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, weight in zip(convolutions, before, strict=True):
        torch.testing.assert_close(layer.weight, weight * (1 - 0.5 * 0.1))


def test_what_dirac_spares_does_not_decay() -> None:
    model = create_model("diracnet-10-1", symm="tri")
    spared = no_decay(model)
    options = {"lr": 0.5, "weight_decay": 0.1, "momentum": 0.0, "nesterov": False}
    optimizer = make_optimizer(model, options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert spared
    for name, parameter in model.named_parameters():
        kept = 1 if id(parameter) in spared else 0.95
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_avg_follows_the_path_of_the_averaged_full_matrix() -> None:
    """Momentum, Nesterov and decay included; the oracle keeps a full weight and averages it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Flatten(), nn.LazyLinear(3))
    pictures, labels = torch.randn(6, 4, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    model(pictures)
    full = [parameter.detach().clone() for parameter in model.parameters()]
    full[0] = (full[0] + full[0].transpose(0, 1)) / 2
    symmetrize(model, "avg", where="0")
    options = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9, "nesterov": True}
    optimizer = make_optimizer(model, options)
    speeds = [torch.zeros_like(weight) for weight in full]
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()
        optimizer.step()

        w, v, b = (weight.clone().requires_grad_() for weight in full)
        symmetric = (w + w.transpose(0, 1)) / 2
        logits = F.linear(F.conv2d(pictures, symmetric, padding=1).flatten(1), v, b)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), (w, v, b))
        for weight, speed, gradient in zip(full, speeds, gradients, strict=True):
            gradient = gradient + 0.05 * weight
            speed.mul_(0.9).add_(gradient)
            weight -= 0.1 * (gradient + 0.9 * speed)
    torch.testing.assert_close(model[0].weight.detach(), full[0])


# ---- runs ----------------------------------------------------------------------------------------

EXTRAS = ("matplotlib", "pooch", "tensorboard", "tqdm")


@pytest.mark.parametrize("packages", [EXTRAS, ["matplotlib"]])
def test_without_what_is_no_necessity(
    train: Callable[..., int],
    tmp_path: Path,
    with_picture: None,
    without: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    packages: Sequence[str],
) -> None:
    """That there are no curves or figures is said at the start, and all else is done."""
    without(*packages)
    out = tmp_path / "run"
    assert train("--out", out) == 0
    output = capsys.readouterr()
    assert output.err.count("notice: ") == 1
    assert "(pip install 'symrnn[train]'): " in output.err
    assert value_of(out, "epoch") == 2
    assert (out / "tensorboard").exists() == ("tensorboard" not in packages)


def test_what_a_run_leaves_behind(
    train: Callable[..., int],
    tmp_path: Path,
    with_picture: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert train("--out", out, "--log-every", 2, "--save-every", 2) == 0
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
        "tensorboard",
    }
    lines = lines_of(out)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [2, 4, 6]  # of twice 28 // 8 = 3
    names = {"train/loss", "train/accuracy", "learning_rate", "images_per_second"}
    assert all(line.keys() == {"step", "time", *names} for line in training)
    valid = [line for line in lines if "valid/loss" in line]
    assert [(line["epoch"], line["step"]) for line in valid] == [(1, 3), (2, 6)]

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert {*names, "valid/accuracy", "train/epoch_loss", "hparam/best_accuracy"} <= set(
        events.Tags()["scalars"]
    )
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time"):
                assert any(
                    event.step == line["step"] and event.value == pytest.approx(value)
                    for event in events.Scalars(name)
                ), name
    pictures = events.Images("symmetric filter")
    assert [picture.step for picture in pictures] == [3, 6]
    assert all(picture.encoded_image_string[1:4] == b"PNG" for picture in pictures)
    assert "environment/text_summary" in events.Tags()["tensors"]

    report = capsys.readouterr().out
    assert report.splitlines()[0] == f"the run is kept in {out}"
    assert report.splitlines()[1] == "pictures         set: train 28, valid 12; 4 classes"
    assert report.splitlines()[6].startswith("epoch   1/2  lr 0.05 ")
    best = max(valid, key=lambda line: line["valid/accuracy"])
    assert f"best model            epoch {best['epoch']:.0f}, {out}/best.safetensors" in report
    assert f"best accuracy         {best['valid/accuracy']:.2f} %" in report
    assert f"last accuracy         {valid[-1]['valid/accuracy']:.2f} %" in report
    assert "parameters, training  " in report
    assert "peak memory           " in report


def test_bright_and_dark_pictures_are_told_apart(
    train: Callable[..., int], tmp_path: Path, pictures: Path
) -> None:
    out = tmp_path / "run"
    train("--out", out, "--epochs", 25, "--symm", "avg", "--share", "stage")
    meta = open_packed(out / "best.safetensors").meta
    assert meta["accuracy"] > 90
    assert meta["classes"] == ["class0", "class1", "class2", "class3"]
    # The kept model is the one that was measured.
    dataset = open_dataset(str(pictures), device=torch.device("cpu"), image_size=8, workers=0)
    score = measure(load_model(out), dataset, batch_size=5)
    assert score.accuracy == pytest.approx(meta["accuracy"])
    assert score.accuracy5 is None
    line = next(line for line in lines_of(out) if line.get("epoch") == meta["epoch"])
    assert score.loss == pytest.approx(line["valid/loss"], rel=1e-5)


def test_without_arguments_it_trains_on_the_builtin_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which there are fewer here, and one epoch."""
    shapes = functools.partial(symrnn.vision.datasets.generate_shapes, train=40, val=20)
    monkeypatch.setattr("symrnn.vision.datasets.generate_shapes", shapes)
    monkeypatch.chdir(tmp_path)
    assert symrnn.vision.train.main(["--epochs", "1", "--batch-size", "20"]) == 0
    report = capsys.readouterr().out
    assert "the run is kept in runs/shapes-wrn-10-1-basic-tri-seed1\n" in report
    assert "best accuracy  " in report


def test_top_five_of_a_hundred_classes(pictures: Path) -> None:
    dataset = open_dataset(str(pictures), device=torch.device("cpu"), image_size=8, workers=0)
    dataset.classes = tuple(map(str, range(100)))
    ranking = torch.zeros(100)
    ranking[[50, 51, 0, 52, 1]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])

    class Constant(nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return ranking.expand(len(pictures), 100)

    score = measure(Constant(), dataset, batch_size=5)
    assert (score.accuracy, score.accuracy5) == (0, pytest.approx(50))  # classes 0 and 1, of 4
    nats = ranking.exp().sum().log().item() - (3 + 1 + 0 + 0) / 4
    assert score.loss == pytest.approx(nats)


def test_a_dry_run_writes_nothing(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--dry-run") == 0
    assert train("--dry-run", "--symm", "avg:full", "--out", tmp_path / "out") == 0
    assert list(tmp_path.iterdir()) == []
    text = capsys.readouterr().out
    assert "batch_size       8" in text.splitlines()
    for symm in ("tri", "avg:full"):
        count = count_parameters(create_model("wrn-10-1-bottleneck", symm, num_classes=4))
        assert f"parameters, training  {count.training:,}\n" in text
        assert f"parameters, deployed  {count.deployed:,}\n" in text


def test_without_out_each_run_gets_a_folder_of_its_own(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        train("--epochs", 1)
    name = "set-wrn-10-1-bottleneck-tri-seed1"
    folders = [tmp_path / "runs" / name, tmp_path / "runs" / f"{name}-2"]
    first, second = (open_packed(folder / "best.safetensors") for folder in folders)
    for name, tensor in first.tensors.items():  # and the same seed gives the same run
        assert torch.equal(tensor, second.tensors[name])
    train("--epochs", 1, "--soft-symmetry", 0.01, "--share", "stage")
    assert (tmp_path / "runs" / "set-wrn-10-1-bottleneck-soft0.01-stage-seed1").exists()


@pytest.mark.parametrize("norm", [1, 2])
def test_soft_symmetry_keeps_a_symmetric_model(
    train: Callable[..., int], tmp_path: Path, norm: int
) -> None:
    out = tmp_path / "run"
    train("--out", out, "--soft-symmetry", 0.1, "--soft-norm", norm, "--share", "stage")
    model = load_model(out)
    plain = create_model("wrn-10-1-bottleneck", share="stage", num_classes=4)
    state = {
        name.removeprefix("model/"): tensor
        for name, tensor in load_checkpoint(out / "last.safetensors").tensors.items()
    }
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and name.endswith("conv2"):
            assert torch.equal(layer.weight, layer.weight.transpose(0, 1))
            trained = state[f"{name}.weight"]
            assert not torch.equal(trained, trained.transpose(0, 1))
    symmetric = create_model("wrn-10-1-bottleneck", "tri", "stage", num_classes=4)
    assert count_parameters(model) == count_parameters(symmetric)
    assert count_parameters(model).deployed < count_parameters(plain).deployed


def test_soft_symmetry_of_chosen_weights(train: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("--out", out, "--epochs", 1, "--soft-symmetry", 0.1, "--where", "stages.[12].*.conv2")
    weights = [load_model(out).get_submodule(f"stages.{n}.0.conv2").weight for n in range(3)]
    assert [torch.equal(w, w.transpose(0, 1)) for w in weights] == [False, True, True]


def test_the_soft_penalty_draws_towards_symmetry(train: Callable[..., int], tmp_path: Path) -> None:
    def asymmetry(rho: float) -> float:
        out = tmp_path / f"{rho}"
        train("--out", out, "--soft-symmetry", rho, "--weight-decay", 0)
        tensors = load_checkpoint(out / "last.safetensors").tensors
        weight = tensors["model/stages.0.0.conv2.weight"]
        return (weight - weight.transpose(0, 1)).norm().item()

    assert asymmetry(5) < 0.9 * asymmetry(1e-9)


@pytest.mark.parametrize(
    "arguments",
    [
        "--precision bf16 --channels-last",
        "--precision fp16",
        "--channels-last --symm block4",
        "--share stage",
        "--share sharesnet --model wrn-16-1-bottleneck --symm none",
        "--axes both --symm avg4",
        "--axes space",
        "--where stages.2.*.conv2 stages.1.0.conv2 --symm eigen",
        "--model diracnet-10-1 --symm tri",
        "--model nin --dropout 0.5",
        "--model mobilenet-0.25 --symm none --momentum 0 --no-nesterov",
        "--model resnext-16-1-4",
        "--sync-bn --lr-steps 1 2",
    ],
)
def test_ways_to_train(
    train: Callable[..., int], tmp_path: Path, pictures: Path, arguments: str
) -> None:
    assert train("--out", tmp_path / "run", "--epochs", 1, *arguments.split()) == 0
    assert math.isfinite(value_of(tmp_path / "run", "valid/loss"))
    kept = open_packed(tmp_path / "run" / "best.safetensors")
    floats = {tensor.dtype for tensor in kept.tensors.values() if tensor.is_floating_point()}
    assert floats == {torch.float32}
    dataset = open_dataset(str(pictures), device=torch.device("cpu"), image_size=8, workers=0)
    score = measure(load_model(tmp_path / "run"), dataset, batch_size=8)
    logged = value_of(tmp_path / "run", "valid/loss")
    half = "bf16" in arguments or "fp16" in arguments
    assert score.loss == pytest.approx(logged, rel=3e-2 if half else 1e-5)


@pytest.mark.gpu
def test_a_run_on_a_gpu(train: Callable[..., int], tmp_path: Path, pictures: Path) -> None:
    assert train("--out", tmp_path / "run", "--epochs", 1, "--device", "cuda") == 0
    dataset = open_dataset(str(pictures), device=torch.device("cpu"), image_size=8, workers=0)
    score = measure(load_model(tmp_path / "run"), dataset, batch_size=8)
    assert score.loss == pytest.approx(value_of(tmp_path / "run", "valid/loss"), rel=1e-2)


def test_a_compiled_run_is_the_plain_one(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The usual back end would take half a minute to compile C++.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    options = ["--epochs", 1, "--share", "stage"]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        assert train("--out", tmp_path / name, *options, *more) == 0
    plain, compiled = (value_of(tmp_path / n, "valid/loss") for n in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)
