"""Torch's own threads, told to leave the cores to the kernels'.

The threads of an OpenMP team spin for some milliseconds after each of torch's operators, on the
cores that the kernels' threads want. OpenMP has a function that ends them; torch's next operator
starts them again.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

_WORTH = 1 << 23
"""Multiplications from which on it pays: to end the threads and start them takes time too."""

_SOFT = 1  # omp_pause_soft of omp.h

_forked = False  # a child has no threads, but its OpenMP counts on them: it would wait for ever


def _remember_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_fork)


def release_threads(multiplications: int) -> None:
    """End torch's threads of the calling one, if the kernels are about to multiply so much."""
    if multiplications >= _WORTH and not _forked and torch.get_num_threads() > 1:
        _pause()(_SOFT)


@functools.cache
def _pause() -> Callable[[int], int]:
    """``omp_pause_resource_all`` of the OpenMP that torch is linked with, or what does nothing."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            # A search in a library goes on in those it is linked with.
            found = ctypes.CDLL(str(folder / name))["omp_pause_resource_all"]
        except (OSError, AttributeError):
            continue
        found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
        return found
    return int
