"""The command line of ``symrnn.vision.train``, and the configuration that comes of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symrnn import list_symmetries
from symrnn.files import UserError
from symrnn.symmetry import check_symmetry_name
from symrnn.symmetry.tensor import AXES
from symrnn.training.command_line import number
from symrnn.vision.datasets import list_datasets
from symrnn.vision.recipes import RECIPES
from symrnn.vision.saved import PRECISIONS
from symrnn.vision.sharing import SHARE

EXAMPLE = """\
examples:
  python -m symrnn.vision.train                          the built-in pictures, in about a minute
  python -m symrnn.vision.train --data cifar10 --model wrn-16-1-bottleneck --symm tri
  python -m symrnn.vision.train --data cifar10 --epochs 15      the same schedule, shrunk
  python -m symrnn.vision.train --data my/imagenet --model resnet-50 --precision bf16
  python -m symrnn.vision.train --resume runs/cifar10-wrn-16-1-bottleneck-tri-seed1
  torchrun --nproc-per-node 2 -m symrnn.vision.train --data cifar10 --sync-bn
"""

DEFAULTS: dict[str, Any] = {
    "data": "shapes",
    "image_size": None,
    "workers": None,
    "recipe": None,
    "symm": "tri",
    "axes": "channel",
    "where": None,
    "share": "none",
    "soft_symmetry": 0.0,
    "soft_norm": 2,
    "dropout": None,
    "sync_bn": False,
    "precision": "fp32",
    "channels_last": False,
    "compile": False,
    "seed": 1,
    "device": "auto",
    "threads": None,
    "save_every": 500,
    "log_every": 50,
}
"""What an option that isn't given stands for; the recipe's numbers and the model come from the
recipe, and the recipe from the data.
"""

MACHINE = ("data", "workers", "device", "threads", "save_every", "log_every")
"""Options that say where a run happens, not what it is: a resumed run may change them."""

MARKS = ("num_classes", "pictures")
"""What else a configuration holds, of the data: how many classes, and the data's fingerprint."""


def symmetry(text: str) -> str:
    """An argparse type: the name of a symmetric form, or "none"."""
    try:
        check_symmetry_name("it", text, "none")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m symrnn.vision.train``. None stands for "not given"."""
    parser = argparse.ArgumentParser(
        prog="python -m symrnn.vision.train",
        description="Train an image network with symmetric weights.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    names = list_datasets()
    add(
        "--data",
        help=f"{', '.join(names)}, or a folder: of CIFAR's binary files, or with train/ and val/ "
        f"that hold a folder of pictures for each class ({names[0]})",
    )
    add(
        "--image-size",
        type=number(int, 1),
        metavar="PIXELS",
        help="height and width of pictures from class folders (224)",
    )
    add(
        "--workers",
        type=number(int, 0, 1024),
        help="processes that decode class folders (one for each processor, at most 16)",
    )

    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        metavar="NAME",
        help="such as wrn-16-1-bottleneck, resnet-50, mobilenet; an unknown name lists all (by the "
        f"recipe: {', '.join(recipe.model for recipe in RECIPES.values())})",
    )
    add("--symm", type=symmetry, metavar="FORM", help=f"none, {', '.join(list_symmetries())} (tri)")
    add("--axes", choices=AXES, help="of the convolutions that are symmetric (channel)")
    add(
        "--where",
        nargs="+",
        metavar="PATTERN",
        help="which of them, by name, such as 'stages.2.*.conv2' (those of the papers)",
    )
    add("--share", choices=SHARE, help="which convolutions the blocks of a stage share (none)")
    add(
        "--soft-symmetry",
        type=number(float, 0, open_low=True),
        metavar="RHO",
        help="full weights W, with RHO·‖W − Wᵀ‖ added to the loss; the model that is measured and "
        "kept has their upper triangles (implies --symm none)",
    )
    add("--soft-norm", type=int, choices=[1, 2], help="which norm that is (2)")
    add("--dropout", type=number(float, 0, 1), help="of models that have it (as in their papers)")

    add = parser.add_argument_group("recipe (each number overrides the recipe's)").add_argument
    add("--recipe", choices=list(RECIPES), help="(by the data)")
    add(
        "--epochs",
        type=number(int, 1),
        help="the recipe's schedule shrinks or grows with them: of cifar's 200 epochs with steps "
        "after 60, 120 and 160, 15 epochs with steps after 5, 9 and 12 remain",
    )
    add("--batch-size", type=number(int, 1), metavar="B", help="of all processes together")
    add(
        "--lr",
        type=number(float, 0, open_low=True),
        help="learning rate of the first epoch (imagenet's is 0.1 for each 256 of the batch)",
    )
    add(
        "--lr-divide",
        type=number(float, 1, 1_000_000),
        help="what the rate is divided by at each step",
    )
    add(
        "--lr-steps",
        type=number(int, 0),
        nargs="*",
        metavar="EPOCH",
        help="after which epochs, whatever --epochs says",
    )
    add("--momentum", type=number(float, 0, 1))
    add("--nesterov", action=argparse.BooleanOptionalAction, default=None)
    add("--weight-decay", type=number(float, 0))

    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, metavar="FOLDER", help="where the run is kept (a new one in runs/)")
    add(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the run kept there (without FOLDER: in --out) exactly where it stopped",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), help="(1)")
    add("--device", help="auto, cpu, cuda, cuda:1, … (auto)")
    add("--threads", type=number(int, 1, 1024), help="of one CPU operation (PyTorch's choice)")
    add("--precision", choices=list(PRECISIONS), help="bf16 and fp16 are autocast (fp32)")
    add(
        "--channels-last",
        action="store_true",
        default=None,
        help="keep the channels of a pixel side by side in memory, which is often faster",
    )
    add("--compile", action="store_true", default=None, help="run the model by torch.compile")
    add(
        "--sync-bn",
        action="store_true",
        default=None,
        help="batch norm over the joint batch of all processes, not over each one's part",
    )
    add("--save-every", type=number(int, 1), metavar="STEPS", help="between checkpoints (500)")
    add("--log-every", type=number(int, 1), metavar="STEPS", help="between logged points (50)")
    add("--dry-run", action="store_true", help="print configuration and counts, train nothing")
    return parser


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that stand on the command line, without those about the run's folder."""
    apart = ("out", "resume", "dry_run")
    return {k: v for k, v in vars(options).items() if v is not None and k not in apart}


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration of a new run: defaults, then the recipe, then what is given."""
    config = {**DEFAULTS, **given}
    if config["soft_symmetry"]:
        if given.get("symm", "none") != "none":
            raise UserError(
                f"--soft-symmetry wants --symm none, for it draws full weights towards symmetric "
                f"ones; got: --symm {given['symm']}"
            )
        if config["axes"] != "channel":
            raise UserError(
                f"--soft-symmetry is over the channels: leave out --axes {config['axes']}"
            )
        config["symm"] = "none"
    elif "soft_norm" in given:
        raise UserError(f"--soft-norm {given['soft_norm']} is that of --soft-symmetry: give both")
    elif config["symm"] == "none" and config["where"] is not None:
        raise UserError(
            f"--where {' '.join(config['where'])} says where symmetry is, and there is none: "
            "--symm none"
        )
    if config["recipe"] is None:
        config["recipe"] = _recipe_of(config["data"])
    recipe = RECIPES[config["recipe"]]
    numbers = asdict(recipe)
    numbers.pop("lr_batch")
    numbers["lr"] = recipe.lr_for(given.get("batch_size", recipe.batch_size))
    numbers["lr_steps"] = recipe.steps_for(given.get("epochs", recipe.epochs))
    config = {**config, **numbers, **{name: given[name] for name in numbers if name in given}}
    if config["nesterov"] and not config["momentum"]:
        raise UserError("--nesterov wants a momentum above 0: give --no-nesterov --momentum 0")
    if config["data"] not in list_datasets():
        config["data"] = str(Path(config["data"]).resolve())
    return config


def _recipe_of(data: str) -> str:
    """The name of the recipe for a data set or a folder."""
    if data in list_datasets():
        return "shapes" if data == "shapes" else "cifar"
    return "imagenet" if (Path(data) / "train").is_dir() else "cifar"


def resume_config(kept: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a run to be continued; UserError if ``given`` contradicts it."""
    lacking = {*resolve({}), *MARKS} - kept.keys()
    if lacking:
        raise UserError(
            f"{folder}: is no run of symrnn.vision.train: its configuration lacks "
            f"{', '.join(sorted(lacking))}"
        )
    if "data" in given and given["data"] not in list_datasets():
        given = {**given, "data": str(Path(given["data"]).resolve())}
    for name, value in given.items():
        if name not in MACHINE and kept.get(name) != value:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} {_shown(value)} contradicts the run in {folder}, which has "
                f"{_shown(kept.get(name))}: leave the option out to continue that run, or start "
                "another with --out"
            )
    return {**kept, **{name: given[name] for name in MACHINE if name in given}}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
