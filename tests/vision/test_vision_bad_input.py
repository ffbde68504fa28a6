"""What a user may get wrong: exit code 2, one clear line, no traceback, and nothing harmed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutations import mutations
from run_files import DAMAGES, snapshot
from torch import nn

import symrnn.vision.train
from symrnn import list_symmetries, open_packed, save_packed
from symrnn.files import UserError
from symrnn.training import World, load_checkpoint, save_checkpoint
from symrnn.vision import create_model
from symrnn.vision.options import MARKS, resolve, resume_config
from symrnn.vision.saved import load_model

pytestmark = pytest.mark.usefixtures("no_picture")

Refused = Callable[..., str]

SMALL = (
    "--image-size 8 --workers 0 --model wrn-10-1-basic --recipe cifar --batch-size 8 --epochs 1 "
    "--threads 1"
)


# ---- pictures ------------------------------------------------------------------------------------


def no_pictures(folder: Path) -> None:
    shutil.rmtree(folder)


def an_empty_class(folder: Path) -> None:
    for file in (folder / "train" / "class1").iterdir():
        file.unlink()


def a_class_without_validation(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "class2")


def no_validation(folder: Path) -> None:
    shutil.rmtree(folder / "val")


def nothing_readable(folder: Path) -> None:
    for file in (folder / "val").glob("*/*"):
        file.write_text("no picture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_pictures, "no such folder"),
        (an_empty_class, "class1' holds no pictures"),
        (a_class_without_validation, "only in train: class2"),
        (no_validation, "lacks the folder 'val'"),
        (nothing_readable, "none of the 12 pictures in"),
    ],
)
def test_pictures(
    refused: Refused,
    pictures: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
) -> None:
    folder, out = Path(shutil.copytree(pictures, tmp_path / "set")), tmp_path / "run"
    change(folder)
    said = refused("--data", folder, "--out", out, *SMALL.split())
    assert message in said
    assert str(folder) in said
    assert not out.exists()


def test_truncated_cifar(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(bytes(3073 * 10 - 1))
    assert "data_batch_1.bin" in refused("--data", folder, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_of_a_size_that_the_model_is_not_for(refused: Refused, pictures: Path) -> None:
    wanted = "is for pictures of 32×32, and those of set are of 224×224; to train on them all the"
    options = SMALL.replace("--image-size 8 ", "").split()
    assert f"--model wrn-10-1-basic {wanted}" in refused("--data", pictures, *options)
    options = SMALL.replace("--image-size 8", "--image-size 16").split()
    assert symrnn.vision.train.main(["--data", str(pictures), *options, "--dry-run"]) == 0


def test_a_broken_picture_is_skipped_and_counted(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "set")
    for number in (1, 2):
        (folder / "train" / "class1" / f"{number}.png").write_text("no picture")
    options = ["--data", str(folder), "--out", str(tmp_path / "run"), *SMALL.split()]
    assert symrnn.vision.train.main([*options, "--epochs", "3"]) == 0
    notices = [line for line in capsys.readouterr().err.splitlines() if "notice" in line]
    # Each epoch leaves out other pictures, so the second may be found later; none is told twice.
    assert notices
    assert notices[-1].startswith("notice: 2 files could not be read and are skipped, such as ")
    assert len(notices) <= 2
    assert notices[-1].endswith("class1/1.png")


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model wrn-16-1-botleneck", "Did you mean 'wrn-16-1-bottleneck'?"),
        ("--model wrn-15-1-basic", "wrn-15-1-basic: depth should be 6n+4"),
        ("--where stem --model wrn-10-1-basic", "stem.weight of shape [16, 3, 3, 3] cannot be"),
        ("--where stage9 --model wrn-10-1-basic", "names no weight that could be made symmetric"),
        ("--share stage --model nin", "share='stage' wants a residual network"),
        ("--dropout 0.5 --model diracnet-10-1", "has no option 'dropout'"),
        ("--dropout 1", "dropout should be at least 0 and below 1, got: 1.0"),
        ("--symm skew", f"should be one of none, {', '.join(list_symmetries())}, tri:diagB"),
        ("--symm eigen:99", "'eigen:99' has rank 99"),
        ("--axes depth", "--axes: invalid choice: 'depth'"),
        ("--share all", "--share: invalid choice: 'all'"),
        ("--symm none --where stages.*", "--where stages.* says where symmetry is, and there is"),
        ("--soft-symmetry 0", "--soft-symmetry: should be a number above 0, got: '0'"),
        ("--soft-norm 1", "--soft-norm 1 is that of --soft-symmetry: give both"),
        ("--soft-symmetry 0.1 --symm avg", "--soft-symmetry wants --symm none"),
        ("--soft-symmetry 0.1 --where stem", "stem.weight of shape [16, 3, 3, 3] cannot be"),
        ("--soft-symmetry 0.1 --where stage9", "names no weight that could be made symmetric"),
        ("--soft-symmetry 0.1 --axes both", "over the channels: leave out --axes both"),
        ("--recipe adam", "--recipe: invalid choice: 'adam'"),
        ("--precision fp8", "--precision: invalid choice: 'fp8'"),
        ("--epochs 0", "--epochs: should be an integer of at least 1, got: '0'"),
        ("--batch-size 29", "batch_size should be at most the 28 training pictures of set"),
        ("--lr 0", "--lr: should be a number above 0, got: '0'"),
        ("--lr nan", "--lr: should be a number above 0, got: 'nan'"),
        (
            "--lr-divide 0.5",
            "--lr-divide: should be a number of at least 1 and at most 1000000, got: '0.5'",
        ),
        ("--lr-steps 3 x", "--lr-steps: should be an integer of at least 0, got: 'x'"),
        ("--momentum 1.5", "should be a number of at least 0 and at most 1, got: '1.5'"),
        ("--momentum 0", "--nesterov wants a momentum above 0"),
        ("--seed 4294967296", "at most 4294967295, got: '4294967296'"),
        ("--device tpu", "'tpu': there is no device of that name; allowed here are auto, cpu"),
        ("--workers -1", "--workers: should be an integer of at least 0"),
        ("--model vgg-11", "--model vgg-11 cannot be trained on pictures of 8×8"),
        ("--model resnet-18 --batch-size 1", "of 8×8 with 1 in a batch: Expected more than 1"),
        ("--resume", "--resume wants the run's folder"),
    ],
)
def test_options(
    refused: Refused,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused("--data", pictures, *SMALL.split(), *arguments.split())
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_a_network_larger_than_memory_is_not_built(
    refused: Refused, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("symrnn.vision.saved.free_memory", lambda _: 8 * 2**30)
    said = refused("--data", pictures, *SMALL.split(), "--model", "mobilenet-1000", "--dry-run")
    # Its pointwise convolutions alone have 4 bytes for each of 1000² times the 3,139,584 weights
    # of the mobilenet's, 11,695.9 GiB; depthwise ones, norms and the classifier are the rest.
    assert said == (
        "--model mobilenet-1000 is larger than memory: its weights take 11,696.1 GiB, and 8.0 GiB "
        "are free"
    )


def test_a_network_that_just_fits_into_memory_is_built(
    refused: Refused, train: Callable[..., int], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are full weights, of every block: sharing and symmetry come after these."""
    model = create_model("wrn-16-1-bottleneck", num_classes=4)
    free = 4 * sum(weight.numel() for weight in model.parameters())
    options = ["--model", "wrn-16-1-bottleneck", "--symm", "tri", "--share", "stage", "--dry-run"]
    monkeypatch.setattr("symrnn.vision.saved.free_memory", lambda _: free)
    assert train(*options) == 0
    monkeypatch.setattr("symrnn.vision.saved.free_memory", lambda _: free - 1)
    assert "wrn-16-1-bottleneck is larger than memory" in refused("--data", pictures, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda(refused: Refused) -> None:
    message = refused("--device", "cuda")
    assert "'cuda': this machine has no such device; allowed here are auto, cpu" in message


def test_no_compiler(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "--compile needs a C++ compiler" in refused("--compile", "--device", "cpu")


# ---- devices of several processes ----------------------------------------------------------------


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> World:
    """A process of a machine with two GPUs; nothing is connected."""
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return World()


def test_more_processes_than_gpus(second_of_three: World) -> None:
    with pytest.raises(UserError, match=r"more processes \(--nproc-per-node\) than .* GPUs \(2\)"):
        second_of_three.device("auto")


def test_one_gpu_for_several_processes(second_of_three: World) -> None:
    with pytest.raises(UserError, match="'cuda:1' is one GPU for 3 processes"):
        second_of_three.device("cuda:1")


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_that_holds_another_run(
    refused: Refused, run_copy: Path, pictures: Path, tmp_path: Path
) -> None:
    before = snapshot(run_copy)
    message = refused("--data", pictures, *SMALL.split(), "--out", run_copy)
    assert "holds a run already; continue it with --resume, or choose another folder" in message
    assert snapshot(run_copy) == before
    message = refused("--data", pictures, *SMALL.split(), "--out", pictures)
    assert "is not empty and holds no run" in message


def test_no_run_to_resume(refused: Refused, pictures: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refused("--resume", tmp_path / "missing")
    assert "holds no config.json" in refused("--resume", pictures)
    message = refused("--resume", tmp_path / "one", "--out", tmp_path / "two")
    assert f"leave out --out {tmp_path / 'two'}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--symm avg", "--symm avg contradicts the run in {run}, which has tri"),
        ("--soft-symmetry 0.1", "--soft-symmetry 0.1 contradicts the run in {run}, which has 0.0"),
        ("--model nin", "--model nin contradicts the run in {run}, which has wrn-10-1-bottleneck"),
        (
            "--epochs 3",
            "in {run}, which has 2, on which its schedule depends: leave the option out",
        ),
        ("--lr-steps 1 2", "--lr-steps 1 2 contradicts the run in {run}, which has 1 2 2"),
        ("--data {moved}", "the pictures of {moved} are not those that the run in {run} was"),
        ("--data {gone}", "(where the pictures are now, --data says)"),
    ],
)
def test_resuming_something_else(
    refused: Refused, run_copy: Path, pictures: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    moved = shutil.copytree(pictures, tmp_path / "moved")
    (moved / "val" / "class0" / "0.png").unlink()
    names = {"run": run_copy, "moved": moved, "gone": tmp_path / "gone"}
    before = snapshot(run_copy)
    said = refused("--resume", run_copy, *arguments.format(**names).split())
    assert message.format(**names) in said
    assert snapshot(run_copy) == before


def test_a_run_of_another_program(refused: Refused, run_copy: Path) -> None:
    (run_copy / "config.json").write_text(json.dumps({"size": "medium"}))
    assert "is no run of symrnn.vision.train" in refused("--resume", run_copy)
    (run_copy / "config.json").write_text("{")
    assert "config.json: is damaged" in refused("--resume", run_copy)


# ---- checkpoints and kept models -----------------------------------------------------------------


def another_size(path: Path) -> None:
    kept = load_checkpoint(path)
    tensors = {name: tensor.flatten()[:1] for name, tensor in kept.tensors.items()}
    save_checkpoint(path, tensors, kept.meta)


def lose_a_tensor(path: Path) -> None:
    kept = load_checkpoint(path)
    kept.tensors.pop("model/classifier.bias")
    save_checkpoint(path, kept.tensors, kept.meta)


def lose_the_state(path: Path) -> None:
    kept = load_checkpoint(path)
    save_checkpoint(path, kept.tensors, {**kept.meta, "state": 5})


CHECKPOINT_DAMAGES = {
    another_size: "not the checkpoint of this model: ",
    lose_a_tensor: "not the checkpoint of this model: classifier.bias",
    lose_the_state: "not a checkpoint that a run goes on from: ",
}


@pytest.mark.parametrize("damage", [*DAMAGES, *CHECKPOINT_DAMAGES])
def test_damaged_checkpoints(
    refused: Refused, run_copy: Path, damage: Callable[[Path], None]
) -> None:
    file = run_copy / "last.safetensors"
    damage(file)
    before = snapshot(run_copy)
    message = refused("--resume", run_copy)
    assert message.startswith(f"{file}: ")
    assert {**DAMAGES, **CHECKPOINT_DAMAGES}[damage] in message
    assert snapshot(run_copy) == before


def test_any_change_of_a_configuration(run_copy: Path) -> None:
    """It is refused, or one that could have been given."""
    config, kept = json.loads((run_copy / "config.json").read_text()), 0
    for mutated in mutations(config, 300):
        try:
            resumed = resume_config(mutated, {}, run_copy)
        except UserError:
            continue
        kept += 1
        for name in config.keys() - {*MARKS}:
            value, found = config[name], resumed[name]
            free = value is None or resolve({})[name] is None
            assert value == found or free or type(value) in (type(found), float), name
    assert 0 < kept < 60


def test_a_configuration_that_is_not_the_checkpoints(refused: Refused, run_copy: Path) -> None:
    file = run_copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "momentum": 0.5}))
    message = "not the checkpoint of this run: momentum is 0.9 in it, 0.5 in config.json"
    assert message in refused("--resume", run_copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("x", "the same entries for each parameter"),
        ({"dict": [["momentum_buffer", 3.5]]}, "0/momentum_buffer should be of type Tensor, got: "),
        (
            {"dict": [["momentum_buffer", {"tensor": "state/optimizer/state/1/momentum_buffer"}]]},
            "",
        ),
    ],
)
def test_wrong_types_in_a_checkpoint(
    refused: Refused, run_copy: Path, changed: object, message: str
) -> None:
    """A momentum that is none, or that of another weight."""
    file = run_copy / "last.safetensors"
    kept = load_checkpoint(file)
    optimizer = dict(kept.meta["state"]["dict"])["optimizer"]["dict"]
    dict(optimizer)["state"]["dict"][0][1] = changed
    save_checkpoint(file, kept.tensors, kept.meta)
    said = refused("--resume", run_copy)
    assert said.startswith(f"{file}: not a checkpoint that a run goes on from: ")
    assert message in said


def repack(path: Path, model: nn.Module, **meta: object) -> None:
    """Write a kept model anew, another one or with other entries of its meta."""
    save_packed(model, path, meta={**open_packed(path).meta, **meta})


def pack_another_form(path: Path) -> None:
    repack(path, create_model("wrn-10-1-bottleneck", "tri8", num_classes=4))


def pack_another_model(path: Path) -> None:
    repack(path, nn.Linear(3, 3))


def pack_without_a_configuration(path: Path) -> None:
    save_packed(nn.Linear(3, 3), path)


def pack_an_unknown_model(path: Path) -> None:
    repack(path, nn.Linear(3, 3), config={**open_packed(path).meta["config"], "model": "vgg-12"})


def pack_of_another_program(path: Path) -> None:
    repack(path, nn.Linear(3, 3), config={"cell": "lstm"})


def describe_another(path: Path, **changed: object) -> None:
    packed = open_packed(path)
    config = {**packed.meta["config"], **changed}
    repack(path, load_model(path), config=config)


def describe_a_wide_model(path: Path) -> None:
    describe_another(path, model="wrn-10-1000-bottleneck")


def describe_a_deep_model(path: Path) -> None:
    describe_another(path, model="wrn-9994-1-bottleneck")


def describe_many_classes(path: Path) -> None:
    describe_another(path, num_classes=2**40)


def describe_half_a_class(path: Path) -> None:
    describe_another(path, num_classes=0.5)


def describe_a_list(path: Path) -> None:
    repack(path, load_model(path), config=["wrn-10-1-bottleneck"])


PACKED_DAMAGES = {
    describe_a_wide_model: "has another size: (16, 16, 3, 3) in the file, (16000, 16000, 3, 3) in",
    describe_a_deep_model: "tensors, too few for wrn-9994-1-bottleneck",
    describe_many_classes: "classifier.weight has another size: (4, 256) in the file, (109951162",
    describe_half_a_class: "num_classes should be an int of at least 1, got: 0.5",
    describe_a_list: "not a model of symrnn.vision.train: TypeError(",
    pack_another_form: "conv2.weight has another form: tri8 of shape",
    pack_another_model: "is not of this model: ",
    pack_without_a_configuration: "not a model of symrnn.vision.train: KeyError('config')",
    pack_an_unknown_model: "not a model of symrnn.vision.train: there is no model 'vgg-12'.",
    pack_of_another_program: "not a model of symrnn.vision.train: KeyError(",
}


@pytest.mark.parametrize("damage", [*DAMAGES, *PACKED_DAMAGES])
def test_damaged_models(run_copy: Path, damage: Callable[[Path], None]) -> None:
    file = run_copy / "best.safetensors"
    damage(file)
    with pytest.raises(UserError) as error:
        load_model(run_copy)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert {**DAMAGES, **PACKED_DAMAGES}[damage] in message


def test_a_missing_model(run_copy: Path) -> None:
    (run_copy / "best.safetensors").unlink()
    with pytest.raises(UserError, match="there is no such packed model file"):
        load_model(run_copy)


# ---- while it runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1e20", "1e38"])
def test_a_diverging_run_stops(refused: Refused, pictures: Path, tmp_path: Path, rate: str) -> None:
    out = tmp_path / "run"
    options = ["--data", pictures, *SMALL.split(), "--out", out, "--save-every", 1]
    message = refused(*options, "--lr", rate)
    assert f"at learning rate {float(rate):g}: stopped; checkpoints from before: " in message
    assert "in epoch 1, after " in message
    if (out / "last.safetensors").exists():
        for tensor in load_checkpoint(out / "last.safetensors").tensors.values():
            assert tensor.isfinite().all()


def test_a_run_that_diverges_late_keeps_its_best(
    refused: Refused, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "run", symrnn.vision.train.save_best

    def then_diverge(path: Path, model: nn.Module, *more: Any, **meta: Any) -> None:
        original(path, model, *more, **meta)
        nn.init.constant_(model.classifier.bias, math.nan)  # type: ignore[arg-type]

    monkeypatch.setattr(symrnn.vision.train, "save_best", then_diverge)
    message = refused("--data", pictures, *SMALL.split(), "--epochs", 2, "--out", out)
    assert "the largest weight is nan in epoch " in message
    assert message.endswith(f"checkpoints from before: {out / 'best.safetensors'}")
    assert all(parameter.isfinite().all() for parameter in load_model(out).parameters())


@pytest.mark.parametrize("room", [1000, 200_000])
def test_a_full_disk_spares_the_last_checkpoint(
    refused: Refused, train: Callable[..., int], small_disk: Path, room: int
) -> None:
    """Whatever hits it first: a checkpoint, the metrics or TensorBoard's events."""
    out = small_disk / "run"
    train("--out", out, "--model", "mobilenet-0.1")
    wanted = open_packed(out / "best.safetensors")
    shutil.rmtree(out / "tensorboard")
    (out / "last.safetensors").unlink()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(max(free - room, 0)))
    message = refused("--resume", out, "--log-every", 1, "--save-every", 1)
    assert "the disk is full" in message
    assert open_packed(out / "best.safetensors").meta.keys() == wanted.meta.keys()
    assert not list(out.glob(".symrnn-*"))
    (small_disk / "ballast").unlink()
    # With room again, it goes on from what there is.
    assert symrnn.vision.train.main(["--resume", str(out)]) == 0
