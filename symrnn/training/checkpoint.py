"""Checkpoints: tensors and JSON in one file, which is whole and verified or refused.

The file is what the safetensors library writes, so any safetensors reader opens it. Its
`__metadata__` holds one entry (of several the library shuffles the order, and the same state would
not make the same file): "symrnn.checkpoint", a JSON object of

    version  2
    sha256   of `meta` and of each tensor's name, dtype, shape and bytes, in the order saved
    names    the tensors' names in the order saved, where the library sorts them
    meta     as given

Nothing here ever unpickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from symrnn.training.errors import UserError, describe_os_error
from symrnn.training.files import replacing, to_json

FORMAT = "symrnn.checkpoint"
VERSION = 1

_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


class CheckpointError(UserError):
    """A checkpoint could not be written or is not one; the message names path and cause."""


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

    Tensors may be of any shape (0-dim and empty too), on any device, non-contiguous, parameters,
    or share storage: each name is written in full, so a tied weight takes its place twice, and
    each comes back as a tensor of its own. Extra memory: a copy of those tensors that are not on
    the CPU, not contiguous, or share the storage of one before. Do not change them meanwhile.

    `meta` is JSON: dicts with str keys, lists, str, int, float, bool, None. NaN and infinities
    are allowed and come back; tuples and int keys are refused (see `pack_state`).

    Raises:
        CheckpointError: full disk, quota, missing folder, no permission, a header (`meta` and
            names) above 100 MB; the former checkpoint is untouched, nothing is left beside it.
        TypeError, ValueError: what is to be saved cannot be: not a tensor, sparse, on the meta
            device, of a dtype safetensors has no name for, a name that is not UTF-8 or is
            `__metadata__`, or `meta` that is not JSON.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    if not isinstance(meta, dict):
        raise TypeError(f"meta is {type(meta).__name__}; it must be a dict")
    text = to_json(meta, "meta")
    plain = _plain(tensors)
    entry = {"version": VERSION, "sha256": _digest(plain, text), "names": list(plain), "meta": meta}
    try:
        with replacing(path) as new:
            save_file(plain, new, {FORMAT: json.dumps(entry)})
    except (OSError, SafetensorError) as error:
        size = len(text) + sum(tensor.nbytes for tensor in plain.values())
        raise CheckpointError(_why_not_saved(path, error, size)) from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and verifies a checkpoint that `save_checkpoint` wrote. Needs its size in memory once.

    Raises CheckpointError, each with its own message, for a path that is missing, a folder, or
    not readable; for an empty file, a pickle of `torch.save` (never opened: that would run its
    code), a file that is not safetensors, one that is but not a checkpoint of this program, one
    of another version; for a truncated or overlong file; and if anything in it was changed.
    """
    path = Path(path)
    try:
        with path.open("rb") as start:
            _check_start(path, start.read(9))
        # pread: tensors with memory of their own, where mmap gives views of the file.
        with safe_open(path, "pt", backend="pread") as file:
            entry = _entry(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in entry["names"]}
        intact = entry["sha256"] == _digest(tensors, json.dumps(entry["meta"]))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder; a checkpoint is one file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {describe_os_error(error)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is truncated or damaged: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError):  # what a changed header can lead to
        intact = False
    if not intact:
        raise CheckpointError(
            f"{path}: is damaged, or another program changed it: its sha256 is not the one it names"
        )
    return Checkpoint(path, tensors, entry["meta"])


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"tensors: name {name!r}; names are str other than '__metadata__'")
    if name != name.encode(errors="replace").decode():
        raise ValueError(f"tensors: name {name!r} cannot be written as UTF-8")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensors[{name!r}] is {type(tensor).__name__}; it must be a torch.Tensor")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"tensors[{name!r}] has layout {tensor.layout}, device {tensor.device}; only dense "
            "tensors that hold data can be saved"
        )
    if tensor.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise ValueError(f"tensors[{name!r}] has dtype {tensor.dtype}; allowed are {allowed}")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the library takes them: contiguous, no two in one storage; on the CPU."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        plain[name] = own
    return plain


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """The sha256 of `meta` and of the tensors, which are contiguous on the CPU."""
    described = [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()]
    sha256 = hashlib.sha256(json.dumps([meta, described]).encode())
    for tensor in tensors.values():
        flat = tensor.as_strided((tensor.numel(),), (1,))  # one element may have any stride
        sha256.update(flat.view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _why_not_saved(path: Path, error: OSError | SafetensorError, size: int) -> str:
    if isinstance(error, SafetensorError):  # the library gives the system's errno in its text only
        code = re.search(r"\(os error (\d+)\)", str(error))
        error = OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
    if error.errno == errno.ENOENT:
        return f"{path}: cannot be written: the folder {path.parent} does not exist"
    if path.is_dir():
        return f"{path}: cannot be written: there is a folder of that name"
    former = "the former checkpoint is untouched" if path.exists() else "nothing was left there"
    needs = f"it needs {size:,} bytes ({size / 2**20:.1f} MiB)"
    return f"{path}: the checkpoint was not saved: {describe_os_error(error)}; {needs}; {former}"


def _check_start(path: Path, head: bytes) -> None:
    """Refuses what is no safetensors file; `head` is its first 9 bytes."""
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes); a checkpoint was never written there")
    if head[8:] == b"{":
        return
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(
            f"{path}: is a pickle as torch.save writes it, not a checkpoint of this program; it is "
            "not opened, since unpickling runs whatever code the file holds"
        )
    raise CheckpointError(f"{path}: is not a checkpoint: it is no safetensors file")


def _entry(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The JSON object in `metadata`, of which only the version is checked."""
    if FORMAT not in metadata:
        raise CheckpointError(
            f"{path}: is a safetensors file, but not a training checkpoint of this program "
            f"(its __metadata__ has no {FORMAT!r})"
        )
    entry: dict[str, Any] = json.loads(metadata[FORMAT])
    if entry["version"] != VERSION:
        raise CheckpointError(
            f"{path}: is a checkpoint of format version {entry['version']!r}; this program reads "
            f"{VERSION!r}"
        )
    return entry
