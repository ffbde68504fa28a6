"""Trained image networks: what training keeps, and reading it back.

The best model of a run is a packed one (:mod:`symrnn.storage`): symmetric weights as their free
numbers, shared ones once. Its meta holds the run's configuration, the epoch, the accuracy and the
names of the classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symrnn import count_parameters, open_packed, save_packed
from symrnn.files import UserError
from symrnn.training import Checkpoint, CheckpointError
from symrnn.vision import create_model

MODEL = "model/"
"""What the names of the model's tensors begin with in a checkpoint."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""--precision: the halves are autocast over float32 weights; fp16 with a scaled loss."""


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The model that a training configuration describes, on the CPU, with new starting values.

    Raises UserError for an unknown name, options that it has not, and weights that cannot be
    symmetric in that form.
    """
    options = {} if config["dropout"] is None else {"dropout": config["dropout"]}
    # Of full weights it says where a soft penalty is, of which the model knows nothing.
    where = None if config["symm"] == "none" else config["where"]
    try:
        return create_model(
            config["model"],
            config["symm"],
            config["share"],
            config["num_classes"],
            axes=config["axes"],
            where=where,
            **options,
        )
    except (TypeError, ValueError, RuntimeError) as error:  # the last where memory is too small
        raise UserError(str(error)) from error


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The trained model of a file ``best.safetensors``, or of the run's folder that holds one.

    On the CPU, in evaluation mode. Its pictures (B, 3, h, w) are to be normalised as those of its
    training set. ``symrnn.open_packed(path).meta`` has its configuration, "epoch", "accuracy"
    (percent of the validation set) and "classes".

    Raises UserError if there is none, or if the file is damaged or something else.

    >>> model = fold_for_inference(load_model("runs/shapes"))
    """
    file = Path(path)
    file = file / "best.safetensors" if file.is_dir() else file
    kept = open_packed(file)
    try:
        model = build_model(kept.meta["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a model of symrnn.vision.train: {error!r}") from error
    except UserError as error:
        raise UserError(f"{file}: not a model of symrnn.vision.train: {error}") from error
    kept.load_into(model)
    return model.eval()


def save_best(path: Path, model: nn.Module, config: Mapping[str, Any], **meta: Any) -> None:
    """Write ``model``, which ``config`` describes, as a packed model; ``meta`` goes with it."""
    save_packed(model, path, meta={"config": dict(config), **meta})


def precision_of(
    config: Mapping[str, Any], device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context in which the model of ``config`` runs on ``device``."""
    if config["precision"] == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, PRECISIONS[config["precision"]])


def memory_format_of(config: Mapping[str, Any]) -> torch.memory_format:
    """How the model of ``config`` and its pictures lie in memory."""
    return torch.channels_last if config["channels_last"] else torch.contiguous_format


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by the names they have in a checkpoint; shared ones once."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[MODEL + name] = tensor
    return tensors


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Fill ``model`` from a checkpoint; CheckpointError if it holds another model."""
    mine = model_tensors(model)
    kept = {n: tensor for n, tensor in checkpoint.tensors.items() if n.startswith(MODEL)}
    wrong = sorted(mine.keys() ^ kept.keys())
    wrong += [n for n in mine.keys() & kept.keys() if mine[n].shape != kept[n].shape]
    if wrong:
        named = ", ".join(name.removeprefix(MODEL) for name in wrong[:3])
        raise CheckpointError(f"{checkpoint.path}: not the checkpoint of this model: {named}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(kept[name])


def print_counts(model: nn.Module) -> None:
    """Print how many parameters the model has."""
    count = count_parameters(model)
    print(f"parameters, training  {count.training:,}")
    print(f"parameters, deployed  {count.deployed:,}")
