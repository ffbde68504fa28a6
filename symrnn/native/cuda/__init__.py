"""The native kernels for NVIDIA GPUs: whether they are there, and if not, why.

>>> from symrnn.native import cuda
>>> lib = cuda.library()  # None where they are not: cuda.why_not() says why
>>> gpu = cuda.machine(0)  # None where they do not run on GPU 0: cuda.why_not(0) says why
>>> cuda.check(lib.symrnn_cuda_forward(...))

symrnn_cuda.h describes the functions; :mod:`symrnn.native.cuda.interface` has them for ctypes;
:mod:`symrnn.native.cuda.building` knows how they are compiled, and where the result is cached.

The first call on a machine compiles them for the GPUs that it finds, which takes less than a
minute; ``python -m symrnn.native.cuda`` does that ahead of time. ``SYMRNN_NATIVE_CUDA=0`` in the
environment switches them off.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from symrnn import native
from symrnn.native.cuda import building
from symrnn.native.cuda.interface import FUNCTIONS
from symrnn.native.interface import Gpu, Status
from symrnn.native.loading import AbsentError, open_library

__all__ = [
    "AbsentError",
    "architectures",
    "available",
    "check",
    "library",
    "load",
    "machine",
    "why_not",
]

# For where the library for CPUs, which has words for every status, is not.
_WORDS: dict[int, str] = {
    Status.NULL: "a pointer that must not be null is",
    Status.SIZE: "a size is out of range or does not fit another, or an address its alignment",
    Status.DTYPE: "a dtype that is unknown or not allowed here",
    Status.MODE: "an unknown kind of layer",
    Status.FIT: "a layer that does not fit this GPU, or is none that it can run",
    Status.GPU: "an error of CUDA",
}


def library() -> ctypes.CDLL | None:
    """The loaded library, its functions typed as symrnn_cuda.h declares them; None if there is
    none. The first call may compile it."""
    return _loaded()[0]


def available() -> bool:
    """Whether there is a library."""
    return library() is not None


def machine(device: int) -> Gpu | None:
    """The GPU of this number, for `symrnn_fit_gpu`; None if the kernels do not run there."""
    return _machine(device)[0]


def why_not(device: int | None = None) -> str:
    """One sentence: why there is no library, or why it does not run on a GPU; "" if it does."""
    return _loaded()[1] if device is None else _machine(device)[1]


def check(status: int) -> None:
    """Raise RuntimeError, in the library's words, for a status that is not SYMRNN_OK."""
    if status == Status.OK:
        return
    cpu, lib = native.library(), library()
    words = cpu.symrnn_message(status).decode() if cpu else _WORDS.get(status, "an unknown status")
    if status == Status.GPU and lib:
        words += f": {lib.symrnn_cuda_error().decode()}"
    raise RuntimeError(f"symrnn's CUDA kernels: {words} (status {status})")


def architectures() -> list[int]:
    """Of the GPUs at hand those that are new enough, such as [80, 90]; empty if there are none."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    versions = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    found = {10 * major + minor for major, minor in versions}
    return sorted(one for one in found if one >= building.OLDEST)


def load(path: Path) -> ctypes.CDLL:
    """The library at this path. Raises AbsentError if it is none of these sources."""
    remedy = f"remove {path} and start again"
    return open_library(path, "symrnn_cuda_", FUNCTIONS, building.fingerprint(), remedy)


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and why."""
    try:
        return _load(), ""
    except building.NotBuiltError as error:
        return None, f"symrnn's CUDA kernels are not built: {error}; mend that and start again"
    except AbsentError as error:
        return None, f"symrnn's CUDA kernels are {error}"


def _load() -> ctypes.CDLL:
    if _switched_off():
        raise AbsentError("switched off: SYMRNN_NATIVE_CUDA=0 is set")
    if torch.version.cuda is None:
        raise AbsentError("not in use: this torch is built without CUDA")
    try:
        wanted = architectures()
    except RuntimeError as error:  # torch has lost its GPUs, as in a child made by fork
        raise AbsentError(f"not in use: {str(error).splitlines()[0]}") from None
    if not wanted:
        raise AbsentError(
            "not in use: torch finds no NVIDIA GPU of compute capability 8.0 or later"
        )
    return load(building.find(wanted) or building.build(wanted))


def _switched_off() -> bool:
    return os.environ.get("SYMRNN_NATIVE_CUDA") == "0"


@functools.cache
def _machine(device: int) -> tuple[Gpu | None, str]:
    """What the library says of a GPU and "", or None and why."""
    lib, why = _loaded()
    if lib is None:
        return None, why
    gpu = Gpu()
    status = lib.symrnn_cuda_gpu(device, ctypes.byref(gpu))
    if status == Status.OK:
        return gpu, ""
    words = "it is too old, or the build has no code for it"
    if status != Status.FIT:
        words = f"{lib.symrnn_cuda_error().decode()} (status {status})"
    return None, f"symrnn's CUDA kernels do not run on GPU {device}: {words}"
