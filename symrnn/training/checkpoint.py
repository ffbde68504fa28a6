"""Checkpoints: tensors and JSON in one file, which is whole and verified or refused.

The file is a safetensors file (8 bytes of header length, little-endian; a JSON header; the
tensors' bytes), so any safetensors reader opens it. Its `__metadata__` holds

    sha256   of the whole file, as it reads with 64 zeros in this place; always the first entry
    format   "symrnn.checkpoint"
    version  "1"
    meta     the JSON text of `meta`

The writer is our own for three reasons: the digest stands in the header yet costs no second pass
over the tensors, tensors are written one by one without a copy of the model, and the file is
fsynced before it takes its name. Nothing here ever unpickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from symrnn.training.errors import UserError, describe_os_error
from symrnn.training.files import replacing, to_json

FORMAT = "symrnn.checkpoint"
VERSION = "1"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_MAX_HEADER = 100_000_000  # bytes; safetensors readers refuse more
_CHUNK = 8 << 20  # bytes hashed and written, or read, at a time
_BEFORE_DIGEST = b'{"__metadata__":{"sha256":"'
_DIGEST_START = 8 + len(_BEFORE_DIGEST)
_DIGEST_BLANK = b"0" * 64


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
    each comes back as a tensor of its own. Extra memory: one tensor's copy at a time, and only
    for tensors that are not contiguous on the CPU. Do not change them meanwhile.

    `meta` is JSON: dicts with str keys, lists, str, int, float, bool, None. NaN and infinities
    are allowed and come back; tuples and int keys are refused (see `pack_state`).

    Raises:
        CheckpointError: full disk, quota, missing folder, no permission; the former checkpoint
            is untouched and nothing is left beside it.
        TypeError, ValueError: what is to be saved cannot be: not a tensor, sparse, on the meta
            device, of a dtype safetensors has no name for, a name that is not UTF-8 or is
            `__metadata__`, `meta` that is not JSON, or a header above 100 MB.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    if not isinstance(meta, dict):
        raise TypeError(f"meta is {type(meta).__name__}; it must be a dict")
    # Wide types first: then every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header, size = _header(tensors, order, to_json(meta, "meta"))
    try:
        with replacing(path) as file:
            digest = hashlib.sha256(header)
            file.write(header)
            for name in order:
                data = _bytes_of(tensors[name])
                for start in range(0, len(data), _CHUNK):
                    digest.update(data[start : start + _CHUNK])
                    file.write(data[start : start + _CHUNK])
            file.seek(_DIGEST_START)
            file.write(digest.hexdigest().encode())
    except OSError as error:
        raise CheckpointError(_why_not_saved(path, error, size)) from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads and verifies a checkpoint that `save_checkpoint` wrote. Needs its size in memory once.

    Raises CheckpointError, each with its own message, for a path that is missing, a folder, or
    not readable; for an empty file, a pickle of `torch.save` (never opened: that would run its
    code), a file that is not safetensors, one that is but not a checkpoint of this program, one
    of another version; for a truncated or overlong file, and for any byte changed anywhere.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder; a checkpoint is one file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {describe_os_error(error)}") from error


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"tensors: name {name!r}; names are str other than '__metadata__'")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"tensors: name {name!r} cannot be written as UTF-8") from None
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensors[{name!r}] is {type(tensor).__name__}; it must be a torch.Tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"tensors[{name!r}] has layout {tensor.layout}, dtype {tensor.dtype}, device "
            f"{tensor.device}; only dense tensors that hold data can be saved"
        )
    if tensor.dtype not in _DTYPE_NAMES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPE_NAMES)
        raise ValueError(f"tensors[{name!r}] has dtype {tensor.dtype}; allowed are {allowed}")


def _header(tensors: Mapping[str, Tensor], order: list[str], meta: str) -> tuple[bytes, int]:
    """The file up to the tensors' bytes, its digest left blank, and the size of the whole file."""
    places: dict[str, list[int]] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        places[name] = [start, end]
    blank = _DIGEST_BLANK.decode()
    entries: dict[str, Any] = {
        "__metadata__": {"sha256": blank, "format": FORMAT, "version": VERSION, "meta": meta}
    }
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": places[name],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"meta and the tensors' names take {len(text)} bytes; at most {_MAX_HEADER} fit"
        )
    assert text.startswith(_BEFORE_DIGEST)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's bytes, row-major: its own memory if it is contiguous on the CPU."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a single element may come with any stride
    return flat.view(torch.uint8).numpy().data


def _why_not_saved(path: Path, error: OSError, size: int) -> str:
    if error.errno == errno.ENOENT:
        return f"{path}: cannot be written: the folder {path.parent} does not exist"
    if path.is_dir():
        return f"{path}: cannot be written: there is a folder of that name"
    try:
        former = "the former checkpoint is untouched" if path.exists() else "nothing was left there"
    except OSError:
        former = "nothing was left there"
    needs = f"it needs {size:,} bytes ({size / 2**20:.1f} MiB)"
    return f"{path}: the checkpoint was not saved: {describe_os_error(error)}; {needs}; {former}"


def _read(path: Path, file: BinaryIO) -> Checkpoint:
    size = os.fstat(file.fileno()).st_size
    head = file.read(9)
    if not head:
        raise CheckpointError(f"{path}: is empty (0 bytes); a checkpoint was never written there")
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:] != b"{" or length > _MAX_HEADER:
        raise CheckpointError(f"{path}: {_what_else(head)}")
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: is truncated: its header needs {8 + length:,} bytes, it has {size:,}"
        )
    header = head + file.read(length - 1)
    try:
        entries = json.loads(header[8:])
        metadata = entries.pop("__metadata__", {})
        known, version = metadata.get("format"), metadata.get("version")
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: is damaged: its header is not the JSON it was") from None
    if known != FORMAT:
        raise CheckpointError(
            f"{path}: is a safetensors file, but not a training checkpoint of this program "
            f"(format {known!r}, wanted {FORMAT!r})"
        )
    if version != VERSION:
        raise CheckpointError(
            f"{path}: is a checkpoint of format version {version!r}; this program reads {VERSION!r}"
        )
    sha256 = header[_DIGEST_START : _DIGEST_START + 64]
    blanked = header[:_DIGEST_START] + _DIGEST_BLANK + header[_DIGEST_START + 64 :]
    digest = hashlib.sha256(blanked)
    tensors = _read_tensors(path, file, entries, size - len(header), digest)
    if digest.hexdigest().encode() != sha256:
        raise CheckpointError(
            f"{path}: is damaged, or another program changed it: its sha256 is not the one it names"
        )
    return Checkpoint(path, tensors, json.loads(metadata["meta"]))


def _read_tensors(
    path: Path, file: BinaryIO, entries: dict[str, Any], size: int, digest: hashlib._Hash
) -> dict[str, Tensor]:
    """Reads the `size` bytes of data, feeding `digest`. Nothing is believed before it is checked:
    each tensor must begin where the one before it ended and fill its place exactly."""
    tensors: dict[str, Tensor] = dict.fromkeys(entries, torch.empty(0))
    end = 0
    try:
        places = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
        for start, stop, name in places:
            dtype, shape = _DTYPES[entries[name]["dtype"]], entries[name]["shape"]
            if start != end or any(type(n) is not int or n < 0 for n in (stop, *shape)):
                raise ValueError
            end = stop
            if stop > size:
                continue  # truncated; said below, once it is known what it should have been
            if math.prod(shape) * dtype.itemsize != stop - start:
                raise ValueError
            tensors[name] = torch.empty(shape, dtype=dtype)
            data = _bytes_of(tensors[name])
            for first in range(0, len(data), _CHUNK):
                part = data[first : first + _CHUNK]
                if file.readinto(part) != len(part):  # type: ignore[attr-defined]
                    raise ValueError
                digest.update(part)
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError):
        raise CheckpointError(f"{path}: is damaged: its header contradicts its data") from None
    if end > size:
        raise CheckpointError(
            f"{path}: is truncated: its tensors need {end:,} bytes, it has {size:,} of them"
        )
    if end < size:
        raise CheckpointError(f"{path}: is damaged: {size - end:,} bytes follow its last tensor")
    return tensors


def _what_else(head: bytes) -> str:
    """What a file is that is not safetensors, from its first 9 bytes."""
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return (
            "is a pickle as torch.save writes it, not a checkpoint of this program; it is not "
            "opened, since unpickling runs whatever code the file holds"
        )
    return "is not a checkpoint: it is no safetensors file"
