"""Compiles the CUDA kernels into one shared library, in a folder of the user's; without torch.

As with the kernels for CPUs (symrnn/native/building.py) the library has a plain C interface,
symrnn_cuda.h, and knows neither Python nor torch: it has NVIDIA's runtime library in itself, and
one build serves every version of both. It is made of all the .cu files beside this one, each
compiled by itself, when a GPU first needs it or ahead of time (``python -m symrnn.native.cuda``).

Where it is cached::

    ~/.cache/symrnn/kernels/1f0c…/     a folder for each version of the sources and flags:
        sm_90.so                       the library for a GPU of compute capability 9.0,
        sm_90.txt                      and the compiler's report on it;
        sm_80-sm_90.so                 another one, for two kinds of GPUs

A library that is there is taken whichever nvcc made it, also where there is none; the report's
first line says which it was. All of it may be removed at any time.

What folders are trusted, :mod:`symrnn.native.cached` says.

Environment:

- ``CUDACXX`` is the compiler, with arguments if need be; else nvcc in ``$CUDA_HOME/bin`` or
  ``$CUDA_PATH/bin``, on PATH, or in /usr/local/cuda/bin.
- ``NVCCFLAGS`` come after the flags below. Others make another library.
- ``SYMRNN_CACHE`` is the folder, in place of ~/.cache/symrnn/kernels. Others may read what we put
  there, as the image of a container wants it; ~/.cache/symrnn/kernels is ours alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from symrnn.native.building import (
    NotBuiltError,
    command_from,
    compile_library,
    fingerprint_of,
    from_environment,
    run,
)
from symrnn.native.cached import build_once, cache, refuse_untrusted

FOLDER = Path(__file__).resolve().parent
SHARED_HEADERS = ("layout.h", "rows_schedule.h", "schedule.h", "symrnn.h")  # from the folder above

OLDEST = 80  # the first whose matrix units take TF32 and bfloat16
DEFAULT = "/usr/local/cuda/bin/nvcc"
FLAGS = (
    *("-std=c++17", "-O3", "--expt-relaxed-constexpr"),
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=-v",  # the report
)


def sources() -> list[Path]:
    """The files to compile."""
    return sorted(FOLDER.glob("*.cu"))


def headers() -> list[Path]:
    """The files that those include."""
    shared = (FOLDER.parent / name for name in SHARED_HEADERS)
    return [*sorted(FOLDER.glob("*.h")), *(path for path in shared if path.exists())]


def fingerprint() -> str:
    """A number, in hex, that changes with the sources and flags; NotBuiltError without sources."""
    if not sources():
        raise NotBuiltError(f"there are no sources in {FOLDER}")
    return fingerprint_of(headers() + sources(), [*FLAGS, *from_environment("NVCCFLAGS")])


def nvcc() -> list[str]:
    """The command of NVIDIA's compiler. Raises NotBuiltError where there is none."""
    given = command_from("CUDACXX")
    if given:
        return given
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in (*(f"{home}/bin/nvcc" for home in homes), "nvcc", DEFAULT):
        found = shutil.which(place)
        if found:
            return [found]
    raise NotBuiltError(
        "no nvcc was found: neither in CUDACXX, $CUDA_HOME/bin, $CUDA_PATH/bin and PATH, "
        f"nor at {DEFAULT}"
    )


def find(architectures: Collection[int]) -> Path | None:
    """The smallest library at hand that runs on all these architectures, such as 90; else None.

    Needs no compiler, and writes nothing. Raises NotBuiltError as :func:`fingerprint` and
    :func:`cache` do, and where the library is not to be trusted.
    """
    folder = cache() / fingerprint()
    try:
        found = list(folder.glob("sm_*.so"))
    except OSError:  # a folder that cannot be read: build() has words for it
        return None
    for path in sorted(found, key=lambda path: len(path.stem)):
        built = [int(name.removeprefix("sm_")) for name in path.stem.split("-")]
        if all(any(runs_on(one, wanted) for one in built) for wanted in architectures):
            refuse_untrusted(path)
            return path
    return None


def runs_on(built: int, gpu: int) -> bool:
    """Whether code for one architecture runs on a GPU: those of its generation from it on."""
    return built // 10 == gpu // 10 and built <= gpu


def build(architectures: Collection[int]) -> Path:
    """The library for exactly these architectures, compiled if it is not there yet.

    Another process that builds the same is waited for. Raises NotBuiltError, also where the folder
    or the library is not to be trusted.
    """
    wanted = sorted(set(architectures))
    if not wanted or wanted[0] < OLDEST:
        raise NotBuiltError(f"architectures should be {OLDEST} or more, got: {wanted}")
    name = "-".join(f"sm_{one}" for one in wanted)
    return build_once(
        cache() / fingerprint() / f"{name}.so",
        nvcc,
        f"the CUDA kernels for {name.replace('-', ' and ')}, once; this takes a minute or two",
        partial(_build, wanted),
    )


def report(library: Path) -> str:
    """What the compiler said of a library's kernels; "" where that is lost."""
    try:
        return library.with_suffix(".txt").read_text()
    except OSError:
        return ""


def _build(
    architectures: Sequence[int], command: Sequence[str], target: Path, scratch: Path
) -> tuple[Path, str]:
    version = run([*command, "--version"], "--version").strip().splitlines()
    release = next((line for line in version if "release" in line), "")
    given = from_environment("NVCCFLAGS")
    flags = [*FLAGS]
    for one in architectures:
        flags += ["-gencode", f"arch=compute_{one},code=sm_{one}"]
    compile_with = [*command, *flags, *given]
    linked, said = compile_library(
        scratch,
        compile_with,
        [*command, "-shared", "-cudart=static", *given],
        sources(),
        stamp=("symrnn_cuda_sources", target.parent.name),
    )
    if fingerprint() != target.parent.name:
        raise NotBuiltError("the sources were changed while they were compiled")
    return linked, f"{release}\n{shlex.join(compile_with)}\n\n{said}"
