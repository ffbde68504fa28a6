"""Checkpoints: tensors and JSON in one file, which is whole and verified or refused."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symrnn.files.errors import UserError
from symrnn.files.verified import FileKind


class CheckpointError(UserError):
    """A checkpoint could not be written or is not one; the message names path and cause."""


_KIND = FileKind(
    key="symrnn.checkpoint",
    version=1,
    noun="checkpoint",
    title="training checkpoint",
    error=CheckpointError,
)


_MODEL = "model/"  # what the names of a model's tensors begin with


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `tensors` on the CPU in the order saved, `meta`, and its `path`."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: dict[str, Any]
) -> None:
    """Writes `tensors` and `meta` to `path`, replacing a former checkpoint in one step.

    What they may be is said at `FileKind.write`. A tied weight takes its place twice; `pack_state`
    makes JSON of tuples and int keys.

    Raises:
        CheckpointError: full disk, quota, missing folder, no permission, a header (`meta` and
            names) above 100 MB; the former checkpoint is untouched, nothing is left beside it.
        TypeError, ValueError: what is to be saved cannot be.
    """
    _KIND.write(Path(path), tensors, meta)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and verifies a checkpoint that `save_checkpoint` wrote. Needs its size in memory once.

    Raises CheckpointError, each with its own message, for a path that is missing, a folder, or
    not readable; for an empty file, a pickle of `torch.save` (never opened: that would run its
    code), a file that is not safetensors, one that is but not a checkpoint of this program, one
    of another version; for a truncated or overlong file; and if anything in it was changed.
    """
    path = Path(path)
    return Checkpoint(path, *_KIND.read(path))


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `meta` of a checkpoint alone, from its header: quick, and not verified.

    Raises CheckpointError if there is none to be read.
    """
    return _KIND.read_meta(Path(path))


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by the names that they have in a checkpoint; shared ones once."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[_MODEL + name] = tensor
    return tensors


def check_shapes(
    checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]], tied: Collection[str] = ()
) -> None:
    """Raises CheckpointError unless the checkpoint is of a model of tensors with these shapes.

    tied: those that need not be there, as each is another one too.
    """
    wanted = {_MODEL + name: tuple(shape) for name, shape in shapes.items()}
    saved = {n: tuple(t.shape) for n, t in checkpoint.tensors.items() if n.startswith(_MODEL)}
    needed = wanted.keys() - {_MODEL + name for name in tied}
    wrong = sorted((needed - saved.keys()) | (saved.keys() - wanted.keys()))
    wrong += sorted(name for name in saved.keys() & wanted.keys() if saved[name] != wanted[name])
    if wrong:
        named = ", ".join(name.removeprefix(_MODEL) for name in wrong[:3])
        raise CheckpointError(f"{checkpoint.path}: not the checkpoint of this model: {named}")


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Fills `model` from a checkpoint; CheckpointError if it holds another model."""
    tensors = model_tensors(model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # Shared tensors may be there under each of their names.
    check_shapes(checkpoint, shapes, tied=[name for name in shapes if _MODEL + name not in tensors])
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(checkpoint.tensors[name])
