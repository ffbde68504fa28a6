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

To load a library is to run its code. So nothing is loaded from, or written into, a folder that
another user than ourselves or root owns, or that its group or others may write; nor where others
may put another folder into the cache's place.

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
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from symrnn.files import UserError, cache_folder
from symrnn.native.building import (
    NotBuiltError,
    command_from,
    compile_library,
    fingerprint_of,
    from_environment,
    run,
)

FOLDER = Path(__file__).resolve().parent
SHARED_HEADERS = ("layout.h", "schedule.h", "symrnn.h")  # from the folder above

OLDEST = 80  # the first whose matrix units take TF32 and bfloat16
DEFAULT = "/usr/local/cuda/bin/nvcc"
FLAGS = (
    *("-std=c++17", "-O3", "--expt-relaxed-constexpr"),
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=-v",  # the report
)

_UNFINISHED = "building-"
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


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


def cache() -> Path:
    """Where libraries are cached: $SYMRNN_CACHE, else ~/.cache/symrnn/kernels."""
    try:
        return cache_folder("SYMRNN_CACHE", "kernels").absolute()
    except UserError as error:
        raise NotBuiltError(str(error)) from None


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
            _refuse_untrusted(path)
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
    target = cache() / fingerprint() / f"{name}.so"
    try:
        if target.exists():
            _refuse_untrusted(target)
            return target
        command = nvcc()
        _make_folder(target.parent)
        with _alone(target.parent):
            if not target.exists():
                print(
                    f"symrnn: compiling the CUDA kernels for {name.replace('-', ' and ')}, once; "
                    "this takes less than a minute",
                    file=sys.stderr,
                    flush=True,
                )
                _build(command, wanted, target)
    except OSError as error:
        raise NotBuiltError(
            f"{target.parent} cannot be written: {error.strerror or error}; another folder can be "
            "given in SYMRNN_CACHE"
        ) from None
    return target


def report(library: Path) -> str:
    """What the compiler said of a library's kernels; "" where that is lost."""
    try:
        return library.with_suffix(".txt").read_text()
    except OSError:
        return ""


def _build(command: Sequence[str], architectures: Sequence[int], target: Path) -> None:
    version = run([*command, "--version"], "--version").strip().splitlines()
    release = next((line for line in version if "release" in line), "")
    given = from_environment("NVCCFLAGS")
    flags = [*FLAGS]
    for one in architectures:
        flags += ["-gencode", f"arch=compute_{one},code=sm_{one}"]
    given = from_environment("NVCCFLAGS")
    compile_with = [*command, *flags, *given]
    # In the folder itself: what is whole only has to be renamed.
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=_UNFINISHED, ignore_cleanup_errors=True
    ) as scratch:
        linked, said = compile_library(
            Path(scratch),
            compile_with,
            [*command, "-shared", "-cudart=static", *given],
            sources(),
            stamp=("symrnn_cuda_sources", target.parent.name),
        )
        if fingerprint() != target.parent.name:
            raise NotBuiltError("the sources were changed while they were compiled")
        words = Path(scratch, "report.txt")
        words.write_text(f"{release}\n{shlex.join(compile_with)}\n\n{said}")
        with linked.open("rb+") as file:  # to load half a library, after a crash, is to crash again
            os.fsync(file.fileno())
        linked.chmod(linked.stat().st_mode & ~_WRITABLE)
        os.replace(words, target.with_suffix(".txt"))
        os.replace(linked, target)  # last: where this is, all is


def _make_folder(folder: Path) -> None:
    """Make a folder of the cache for ourselves alone; refuse one that others may change.

    In a cache that the user has chosen others may read, as far as the umask lets them.
    """
    mode = 0o755 if os.environ.get("SYMRNN_CACHE") else 0o700
    try:
        folder.mkdir(mode, exist_ok=True)
    except FileNotFoundError:  # nor is the cache there
        folder.parent.mkdir(mode, parents=True, exist_ok=True)
        folder.mkdir(mode, exist_ok=True)
    _refuse_untrusted(folder)


def _refuse_untrusted(path: Path) -> None:
    """Raise NotBuiltError if others may change a file or folder of the cache, or put one there.

    Nor may they put another folder into the cache's place. Above it folders need not be ours alone:
    one like /tmp, in which nobody may rename what is not his own, and one of our group's will do.
    """
    if os.name != "posix":
        return
    inside = {Path(os.path.realpath(cache())), cache()}
    for one in dict.fromkeys(_way_to(path)):
        try:
            found = one.lstat()
        except OSError as error:
            raise NotBuiltError(f"{one} cannot be looked at: {error.strerror}") from None
        writable = 0 if stat.S_ISLNK(found.st_mode) else found.st_mode & _WRITABLE
        if inside.isdisjoint((one, *one.parents)):
            writable = 0 if found.st_mode & stat.S_ISVTX else writable & stat.S_IWOTH
        why = ""
        if found.st_uid not in (os.geteuid(), 0):
            why = f"it belongs to another user ({found.st_uid})"
        elif writable:
            why = f"its group or others may write it (mode {stat.S_IMODE(found.st_mode):o})"
        if why:
            raise NotBuiltError(
                f"{one} is not to be trusted with code: {why}; remove it, or name a folder of your "
                "own in SYMRNN_CACHE"
            )


def _way_to(path: Path) -> Iterator[Path]:
    """A file, the folders that it lies in, and where the links among them lead."""
    yield from (path, *path.parents)
    real = Path(os.path.realpath(path))
    yield from (real, *real.parents)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; what a killed one has left in the folder goes.

    Where the file system has no locks, several may do the same work. Each has its own scratch
    folder, and the last library put into place is as good as the first.
    """
    import fcntl  # not on Windows, where nvcc() has raised before

    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(folder / "lock", flags, 0o600), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for left in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
