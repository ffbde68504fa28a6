"""A safetensors file that notices any change: tensors and JSON, whole and verified or refused.

The file is what the safetensors library writes, so any safetensors reader opens it. Its
`__metadata__` holds one entry (of several the library shuffles the order, and the same contents
would not make the same file), a JSON object of

    version  the version of the kind of file
    sha256   of `meta` and of each tensor's name, dtype, shape and bytes, in the order saved
    names    the tensors' names in the order saved, where the library sorts them
    meta     as given

The entry's key tells the kind of file. Nothing here ever unpickles.
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
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from symrnn.files.atomic import replacing, to_json
from symrnn.files.errors import UserError, describe_os_error

_METADATA = "__metadata__"
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


@dataclass(frozen=True)
class FileKind:
    """A kind of verified file.

    key: of its entry in `__metadata__`.
    version: which is written, and the only one that is read.
    noun: what errors call such a file.
    title: what they call it where another program's may be meant.
    error: what is raised for a file that cannot be written, or is not one.
    """

    key: str
    version: int
    noun: str
    title: str
    error: type[UserError]

    def write(self, path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Writes `tensors` and `meta` to `path`, replacing a former file in one step.

        Tensors may be of any shape (0-dim and empty too), on any device, non-contiguous,
        parameters, or share storage: each name is written in full, and each comes back as a tensor
        of its own. Extra memory: a copy of those tensors that are not on the CPU, not contiguous,
        or share the storage of one before. Do not change them meanwhile.

        `meta` is JSON: dicts with str keys, lists, str, int, float, bool, None. NaN and infinities
        are allowed and come back; tuples and int keys are refused.

        Raises:
            error: full disk, quota, missing folder, no permission, a header (`meta` and names)
                above 100 MB; the former file is untouched, nothing is left beside it.
            TypeError, ValueError: what is to be saved cannot be: sparse, on the meta device, of a
                dtype safetensors has no name for, a name that is not UTF-8 or is `__metadata__`,
                or `meta` that is not JSON.
        """
        for name, tensor in tensors.items():
            _check_tensor(name, tensor)
        if not isinstance(meta, dict):
            raise TypeError(f"meta is {type(meta).__name__}; it must be a dict")
        text = to_json(meta, "meta")
        plain = _plain(tensors)
        entry = {
            "version": self.version,
            "sha256": _digest(plain, text),
            "names": list(plain),
            "meta": meta,
        }
        library = self._library(path)
        try:
            with replacing(path) as new:
                library.torch.save_file(plain, new, {self.key: json.dumps(entry)})
        except (OSError, library.SafetensorError) as error:
            size = len(text) + sum(tensor.nbytes for tensor in plain.values())
            raise self.error(self._why_not_saved(path, _os_error(error), size)) from error

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, on the CPU and in the order saved, and `meta`; needs the size in memory.

        Raises `error`, with a message for each, for a path that is missing, a folder, not readable,
        or too large for the memory; for an empty file, a pickle of `torch.save` (never opened: that
        would run its code), a file that is not safetensors, one that is but of another kind or
        version; for a truncated or overlong file; and if anything in it was changed.
        """
        library = self._library(path)
        try:
            with path.open("rb") as start:
                self._check_start(path, start.read(9))
            # pread: tensors with memory of their own, where mmap gives views of the file.
            with library.safe_open(path, "pt", backend="pread") as file:
                entry = self._entry(path, file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in entry["names"]}
                nothing_else = sorted(file.keys()) == sorted(entry["names"])
            meta: dict[str, Any] = entry["meta"]
            intact = nothing_else and entry["sha256"] == _digest(tensors, json.dumps(meta))
        except FileNotFoundError:
            raise self.error(f"{path}: there is no such {self.noun} file") from None
        except IsADirectoryError:
            raise self.error(f"{path}: is a folder; a {self.noun} is one file") from None
        except OSError as error:
            raise self.error(f"{path}: cannot be read: {describe_os_error(error)}") from error
        except library.SafetensorError as error:
            raise self.error(
                f"{path}: is truncated or damaged: {_how_short(path) or error}"
            ) from error
        except MemoryError:
            raise self._too_little_memory(path) from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if "allocate memory" in str(error):  # PyTorch's have no kind of their own
                raise self._too_little_memory(path) from None
            intact = False  # what a changed header can lead to
        if not intact:
            raise self.error(
                f"{path}: is damaged, or another program changed it: "
                "its sha256 is not the one it names"
            )
        return tensors, meta

    def read_meta(self, path: Path) -> dict[str, Any]:
        """`meta` alone, from the header, for a look at a file that may be large: not verified.

        Raises `error` if there is none to be read.
        """
        library = self._library(path)
        refused = (OSError, MemoryError, library.SafetensorError, KeyError, TypeError, ValueError)
        try:
            with library.safe_open(path, "pt") as file:
                meta: dict[str, Any] = self._entry(path, file.metadata() or {})["meta"]
        except refused as error:
            raise self.error(f"{path}: its header cannot be read: {error}") from error
        return meta

    def is_at(self, path: Path) -> bool:
        """Whether there is such a file, of any version, as far as its header tells."""
        library = self._library(path)
        try:
            with library.safe_open(path, "pt") as file:
                return self.key in (file.metadata() or {})
        except (OSError, MemoryError, library.SafetensorError):
            return False  # `read` has words for it

    def _library(self, path: Path) -> ModuleType:
        """The safetensors package; models train and run without it."""
        try:
            import safetensors.torch
        except ImportError as error:
            raise self.error(
                f"{path}: a {self.noun} needs the safetensors package, which is not installed: "
                "pip install safetensors"
            ) from error
        except OSError as error:
            raise self.error(
                f"{path}: the safetensors package cannot be loaded: {describe_os_error(error)}"
            ) from error
        return safetensors

    def _too_little_memory(self, path: Path) -> UserError:
        return self.error(
            f"{path}: cannot be read: the memory is too small for the {self.noun}, of "
            f"{path.stat().st_size:,} bytes"
        )

    def _why_not_saved(self, path: Path, error: OSError, size: int) -> str:
        if error.errno == errno.ENOENT:
            return f"{path}: cannot be written: the folder {path.parent} does not exist"
        if path.is_dir():
            return f"{path}: cannot be written: there is a folder of that name"
        former = (
            f"the former {self.noun} is untouched" if path.exists() else "nothing was left there"
        )
        needs = f"it needs {size:,} bytes ({size / 2**20:.1f} MiB)"
        why = describe_os_error(error)
        return f"{path}: the {self.noun} was not saved: {why}; {needs}; {former}"

    def _check_start(self, path: Path, head: bytes) -> None:
        """Refuses what is no safetensors file; `head` is its first 9 bytes."""
        if not head:
            raise self.error(f"{path}: is empty (0 bytes); a {self.noun} was never written there")
        if head[8:] == b"{":
            return
        if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise self.error(
                f"{path}: is a pickle as torch.save writes it, not a {self.noun} of this program; "
                "it is not opened, since unpickling runs whatever code the file holds"
            )
        raise self.error(f"{path}: is not a {self.noun}: it is no safetensors file")

    def _entry(self, path: Path, metadata: dict[str, str]) -> dict[str, Any]:
        """The JSON object in `metadata`, of which only the version is checked."""
        if self.key not in metadata:
            raise self.error(
                f"{path}: is a safetensors file, but not a {self.title} of this program "
                f"(its __metadata__ has no {self.key!r})"
            )
        entry: dict[str, Any] = json.loads(metadata[self.key])
        if entry["version"] != self.version:
            raise self.error(
                f"{path}: is a {self.noun} of format version {entry['version']!r}; this program "
                f"reads {self.version!r}"
            )
        return entry


def _check_tensor(name: str, tensor: Tensor) -> None:
    if name == _METADATA:
        raise ValueError(f"tensors: a name may be any but {_METADATA!r}")
    if name != name.encode(errors="replace").decode():
        raise ValueError(f"tensors: name {name!r} cannot be written as UTF-8")
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


def _os_error(error: Exception) -> OSError:
    """The system's error; the library gives its errno in the text of its own only."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))


def _how_short(path: Path) -> str | None:
    """How much of a file that safetensors refuses is missing; None if it lacks nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        told = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(told - 8)) if told <= size else {}
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != _METADATA]
            told += max(ends, default=0)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError):
            return None  # the header itself is damaged
    return f"it ends after {size:,} of {told:,} bytes" if size < told else None
