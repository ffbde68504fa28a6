"""Trained image networks: what training saves, and reading it back.

The best model of a run is a packed one (:mod:`symrnn.storage`): of symmetric weights one number per
orbit, shared ones once. Its meta holds the run's configuration, the epoch, the accuracy and the
names of the classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from symrnn import count_parameters, open_packed, save_packed
from symrnn.files import UserError
from symrnn.storage import Packed, PackedError
from symrnn.training.process import free_memory
from symrnn.vision.models.network import Network
from symrnn.vision.registry import create_model, depth_of

PRECISIONS = ("fp32", "bf16", "fp16")
"""--precision: the halves are autocast over float32 weights; fp16 with a scaled loss."""


def build_model(config: Mapping[str, Any]) -> Network:
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


def require_memory(config: Mapping[str, Any]) -> None:
    """Raise UserError if the network of ``config`` is larger than what memory is left.

    A name may say any width, and memory that is only asked for is granted until it is written to.
    So the weights are counted without storage: full ones of every block, which
    :func:`build_model` starts from, whatever the form.
    """
    with torch.device("meta"):
        plain = build_model({**config, "symm": "none", "where": None, "share": "none"})
    needed = sum(weight.nbytes for weight in plain.parameters())
    free = free_memory("cpu")
    if needed > free:
        raise UserError(
            f"--model {config['model']} is larger than memory: its weights take "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free"
        )


def load_model(path: str | os.PathLike[str]) -> Network:
    """The trained model of a file ``best.safetensors``, or of the run's folder that holds one.

    On the CPU, in evaluation mode. Its pictures (B, 3, h, w) are to be normalised by its ``mean``
    and ``std``; its ``classes`` have names. ``symrnn.open_packed(path).meta`` has its
    configuration, "epoch" and "accuracy" (percent of the validation set).

    Raises UserError if there is none, or if the file is damaged or something else.

    >>> model = fold_for_inference(load_model("runs/shapes"))
    """
    file = Path(path)
    return model_of(open_packed(file / "best.safetensors" if file.is_dir() else file))


def model_of(packed: Packed) -> Network:
    """The model of a packed file, as :func:`load_model` has it; UserError if it holds another."""
    file = packed.path
    try:
        config = packed.meta["config"]
        _check_sizes(config, packed)
        model = build_model(config)
        _describe(model, packed.meta)
    except PackedError:  # it names the file
        raise
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a model of symrnn.vision.train: {error!r}") from error
    except (UserError, ValueError) as error:
        raise UserError(f"{file}: not a model of symrnn.vision.train: {error}") from error
    packed.load_into(model)
    return model.eval()


def _describe(model: Network, meta: Mapping[str, Any]) -> None:
    """Give the model what a file says of its pictures and classes; TypeError if that is none."""
    sizes = {"classes": (model.num_classes, str), "mean": (3, float), "std": (3, float)}
    for name, (count, kind) in sizes.items():
        value = meta.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or [type(item) for item in value] != [kind] * count:
            raise TypeError(
                f"its {name} should be {count} of type {kind.__name__}, got: {value!r:.80}"
            )
        setattr(model, name, value)


def _check_sizes(config: Mapping[str, Any], packed: Packed) -> None:
    """Raise an error unless the tensors of a file have the sizes that its configuration says.

    Before a model of these sizes is built, for they may be any.
    """
    count = len(packed.tensors) + len(packed.tied)
    if depth_of(config["model"]) > count:
        raise PackedError(
            f"{packed.path}: is not of this model: it has {count} tensors, too few for "
            f"{config['model']}"
        )
    with torch.device("meta"):
        plain = build_model({**config, "symm": "none", "where": None})
    packed.check_plain(plain)


def save_best(path: Path, model: nn.Module, config: Mapping[str, Any], **meta: Any) -> None:
    """Write ``model``, which ``config`` describes, as a packed model; ``meta`` goes with it."""
    save_packed(model, path, meta={"config": dict(config), **meta})


def memory_format_of(config: Mapping[str, Any]) -> torch.memory_format:
    """How the model of ``config`` and its pictures lie in memory."""
    return torch.channels_last if config["channels_last"] else torch.contiguous_format


def counts_of(model: nn.Module) -> dict[str, str]:
    """How many parameters the model has."""
    count = count_parameters(model)
    return {
        "parameters, training": f"{count.training:,}",
        "parameters, deployed": f"{count.deployed:,}",
    }
