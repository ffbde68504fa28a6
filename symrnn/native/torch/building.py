"""Compiles PyTorch's operators (operators.cpp) into a shared library, in a folder of the user's.

They are compiled when torch.compile or torch.export first meets a packed layer, or ahead of time
(``python -m symrnn.native.torch``), with the C++ compiler of the kernels and the headers of the
torch at hand; that takes some seconds. The operators stand on PyTorch's stable ABI: the library
serves every torch from 2.10 on. It is linked with the kernels rather than made of them, so that a
process has one copy and one team of threads: ``_kernels.so`` is looked for where it is installed,
and then beside the library itself.

Where it is cached::

    ~/.cache/symrnn/kernels/1f0c…/libsymrnn_torch.so

in a folder for each version of the sources, flags and place of the kernels.
:mod:`symrnn.native.cached` says which folders are trusted. Environment: ``CXX``, ``CXXFLAGS`` and
``LDFLAGS`` as for the kernels (symrnn/native/building.py), and ``SYMRNN_CACHE`` as in
symrnn/native/cuda/building.py.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from symrnn.native import building
from symrnn.native.building import (
    NotBuiltError,
    compile_library,
    compiler,
    fingerprint_of,
    from_environment,
)
from symrnn.native.cached import build_once, cache

FOLDER = Path(__file__).resolve().parent
KERNELS = building.FOLDER / building.LIBRARY
NAME = "libsymrnn_torch.so"

TARGET = 0x020A000000000000
"""The torch whose stable ABI is used, 2.10, as TORCH_TARGET_VERSION."""

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TARGET:#x}")


def sources() -> list[Path]:
    """The files to compile."""
    return sorted(FOLDER.glob("*.cpp"))


def fingerprint() -> str:
    """A number, in hex, that changes with the sources, the flags and the place of the kernels."""
    if not sources():
        raise NotBuiltError(f"there are no sources in {FOLDER}")
    given = [*from_environment("CXXFLAGS"), *from_environment("LDFLAGS")]
    header = building.FOLDER / "symrnn.h"
    return fingerprint_of([header, *sources()], [*FLAGS, *given, str(KERNELS)])


def build() -> Path:
    """The library, compiled if it is not there yet. Raises NotBuiltError."""
    if not KERNELS.exists():
        raise NotBuiltError(f"they call the native kernels, and there are no {KERNELS}")
    target = cache() / fingerprint() / NAME
    what = "the operators of PyTorch for packed layers, once; this takes some seconds"
    return build_once(target, compiler, what, _build)


def _build(command: Sequence[str], target: Path, scratch: Path) -> tuple[Path, str]:
    torch = torch_folder()
    compile_with = [*command, *FLAGS, "-isystem", str(torch / "include")]
    compile_with += from_environment("CXXFLAGS")
    # Not the folder of torch: whoever loads the operators has loaded some torch before.
    places = [f"-Wl,-rpath,{KERNELS.parent}", f"-Wl,-rpath,{_BESIDE}"]
    # By its name alone, so that it is looked for in those places.
    kernels = [str(KERNELS)] if _IS_MAC else [f"-L{KERNELS.parent}", f"-l:{KERNELS.name}"]
    needed = [*kernels, f"-L{torch / 'lib'}", "-ltorch_cpu"]
    linked, said = compile_library(
        scratch,
        compile_with,
        [*command, *FLAGS, "-shared"],
        sources(),
        stamp=("symrnn_torch_sources", target.parent.name),
        link_last=[*places, *needed, *from_environment("LDFLAGS")],
    )
    return linked, f"{shlex.join(compile_with)}\n\n{said}"


_IS_MAC = sys.platform == "darwin"
_BESIDE = "@loader_path" if _IS_MAC else "$ORIGIN"


def torch_folder() -> Path:
    """Where torch is installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotBuiltError("there is no torch, whose headers they are compiled with")
    return Path(spec.origin).parent
