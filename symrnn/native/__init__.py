"""The native kernels for CPUs: whether they are there, and if not, why.

>>> from symrnn import native
>>> lib = native.library()  # None where they are not: native.why_not() says why
>>> native.check(lib.symrnn_activate(0, native.Dtype.FLOAT, x.numel(), x.data_ptr(), y.data_ptr()))

symrnn.h describes the functions; :mod:`symrnn.native.interface` has their structures for ctypes;
:mod:`symrnn.native.building`, for setup.py, knows how they are compiled. Nothing else does.

**Threads**: each call takes the number of threads: pass ``torch.get_num_threads()``, and
``torch.set_num_threads`` is respected. The library has threads of its own, which spin for some
microseconds after a call and then sleep, so that torch's own threads have the cores;
:mod:`symrnn.native.openmp` sees to it that the kernels have them in training. A call never waits
for a thread that the system does not run, as on a busy machine. In children made by fork they are
started anew.

**Processors**: the library has kernels for AVX-512, AVX2 and any processor, and takes the best
that runs here. The environment variable ``SYMRNN_CPU`` (avx512, avx2 or portable), read when the
library is loaded, forces one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from symrnn.native import building
from symrnn.native.interface import (
    FUNCTIONS,
    Dtype,
    Fit,
    Gpu,
    Kernel,
    Layer,
    Map,
    Mode,
    Product,
    Skew,
    Status,
    Stream,
    Term,
)
from symrnn.native.loading import AbsentError, open_calls, open_library

__all__ = [
    "Dtype",
    "Fit",
    "Gpu",
    "Kernel",
    "Layer",
    "Map",
    "Mode",
    "Product",
    "Skew",
    "Status",
    "Stream",
    "Term",
    "address_of",
    "available",
    "calls",
    "check",
    "library",
    "notice",
    "users_frame",
    "why_not",
]

PATH = building.FOLDER / building.LIBRARY

_KERNELS = ("avx512", "avx2", "portable")
_AGAIN = (
    "install symrnn again (pip install -e . in a clone, else pip install --force-reinstall "
    "--no-deps --no-cache-dir SOURCES, with the folder or the sdist that it was installed from)"
)


def library() -> ctypes.CDLL | None:
    """The loaded library, its functions typed as symrnn.h declares them; None if there is none.

    Raises ValueError if the environment's ``SYMRNN_CPU`` names no kernels, and RuntimeError if it
    names some that do not run here.
    """
    return _loaded()[0]


def available() -> bool:
    """Whether there is a library. Raises as :func:`library` does."""
    return library() is not None


def why_not() -> str:
    """One sentence: why there is no library, and what to do about it; "" if there is one."""
    return _loaded()[1]


@functools.cache
def calls() -> Any:
    """The extension module that makes small calls in C (python/calls.cpp); None where it is not."""
    return open_calls(building.FOLDER / building.CALLS, building.calls_fingerprint())


def address_of(function: Any) -> int:
    """Where a function of the library lies."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


_noticed = False
_notice_lock = threading.Lock()


def notice() -> None:
    """Warn, once in a process, that there is no library; no word if there is one."""
    global _noticed
    if available():
        return
    with _notice_lock:
        if _noticed:
            return
        _noticed = True
    warnings.warn(why_not(), UserWarning, stacklevel=users_frame())


def check(status: int) -> None:
    """Raise RuntimeError, in the library's words, for a status that is not SYMRNN_OK."""
    if status == 0:
        return
    lib = library()
    words = lib.symrnn_message(status).decode() if lib else "there is no library"
    raise RuntimeError(f"symrnn's native kernels: {words} (status {status})")


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library and "", or None and why."""
    try:
        return _load(PATH), ""
    except AbsentError as error:
        return None, f"symrnn's native kernels are {error}"


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise AbsentError(f"not built: {_reason(path)}; mend that and {_AGAIN}")
    lib = open_library(path, "symrnn_", FUNCTIONS, building.fingerprint(), _AGAIN)
    _choose_kernels(lib)
    return lib


def _reason(path: Path) -> str:
    """What the build left for us to say."""
    try:
        return path.with_name(building.REASON).read_text().strip()
    except OSError:
        return f"{path} is missing"


def _choose_kernels(lib: ctypes.CDLL) -> None:
    name = os.environ.get("SYMRNN_CPU", "")
    if not name:
        return
    if name not in _KERNELS:
        raise ValueError(f"SYMRNN_CPU should be one of {', '.join(_KERNELS)}, got: {name!r}")
    if lib.symrnn_use_cpu(name.encode()):
        raise RuntimeError(
            f"SYMRNN_CPU={name}: this processor, or this build, does not have these kernels"
        )


def users_frame() -> int:
    """The stacklevel, seen from the caller, of the first frame outside symrnn and torch."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("symrnn", "torch"):
            break
        frame = frame.f_back
        level += 1
    return level
