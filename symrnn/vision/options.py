"""The command line of ``symrnn.vision.train``, and the configuration that comes of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symrnn.files import UserError
from symrnn.symmetry.tensor import AXES
from symrnn.training.command_line import (
    RUN_DEFAULTS,
    SOFT_DEFAULTS,
    add_run_options,
    add_symmetry_options,
    check_configuration,
    check_soft_symmetry,
    continued,
    known_or_path,
    number,
)
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
    **SOFT_DEFAULTS,
    "dropout": None,
    "sync_bn": False,
    "precision": "fp32",
    "channels_last": False,
    **RUN_DEFAULTS,
}
"""What an option that isn't given stands for; the recipe's numbers and the model come from the
recipe, and the recipe from the data.
"""

MARKS = ("num_classes", "pictures")
"""What else a configuration holds, of the data: how many classes, and the data's fingerprint."""


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
        type=known_or_path(names),
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
    add_symmetry_options(add, "tri", "weights")
    add("--axes", choices=AXES, help="of the convolutions that are symmetric (channel)")
    add(
        "--where",
        nargs="+",
        metavar="PATTERN",
        help="which of them, by name, such as 'stages.2.*.conv2' (those of the papers)",
    )
    add("--share", choices=SHARE, help="which convolutions the blocks of a stage share (none)")
    add(
        "--dropout",
        type=number(float, 0, 1),
        help="of models that have it (0; of vgg-D-imagenet 0.5)",
    )

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
    add_run_options(add)
    add("--precision", choices=list(PRECISIONS), help="bf16 and fp16 are autocast (fp32)")
    add(
        "--channels-last",
        action="store_true",
        default=None,
        help="keep the channels of a pixel side by side in memory, which is often faster",
    )
    add(
        "--sync-bn",
        action="store_true",
        default=None,
        help="batch norm over the joint batch of all processes, not over each one's part",
    )
    return parser


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration of a new run: defaults, then the recipe, then what is given."""
    config = {**DEFAULTS, **given}
    check_soft_symmetry(given)
    if config["soft_symmetry"]:
        if config["axes"] != "channel":
            raise UserError(
                f"--soft-symmetry is over the channels: leave out --axes {config['axes']}"
            )
        config["symm"] = "none"
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
    return config


def _recipe_of(data: str) -> str:
    """The name of the recipe for a data set or a folder."""
    if data in list_datasets():
        return "shapes" if data == "shapes" else "cifar"
    return "imagenet" if (Path(data) / "train").is_dir() else "cifar"


def resume_config(config: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a run to be continued; UserError if ``given`` contradicts it."""
    config = {"keep": DEFAULTS["keep"], **config}  # what former runs do not have
    check_configuration(
        config,
        folder,
        program="symrnn.vision.train",
        parser=make_parser(),
        resolve=resolve,
        defaults=DEFAULTS,
        marks=MARKS,
    )
    return continued(config, given, folder)
