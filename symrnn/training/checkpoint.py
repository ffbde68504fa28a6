"""Checkpoints: tensors and JSON in one file, which is whole and verified or refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

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
