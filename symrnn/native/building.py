"""Compiles the native kernels into one shared library; for setup.py, and so without torch.

The library has a plain C interface (symrnn.h) and is loaded with ctypes. It knows neither Python
nor torch, so one build serves every version of both. It is made of all the .cpp files beside this
one, each compiled by itself; those for processors other than the one at hand compile to nothing.

For programs in C, `python -m symrnn.native --out FOLDER` builds the same with nothing of the C++
library left to load.

Beside it, python/calls.cpp is compiled into an extension module that makes small calls quickly, in
Python's limited interface; the package works without, and so does a Python that cannot load it.

A build that cannot be made is no error: the package works without, only slower. The reason is then
left in a file beside the place of the library, for the notice that the user meets.

Environment:

- ``SYMRNN_NATIVE=0`` skips the build.
- ``CXX`` is the compiler, with arguments if need be; else the first of c++, g++ and clang++.
- ``CXXFLAGS`` come after the flags below, ``LDFLAGS`` when linking.
- ``ARCHFLAGS``, on macOS, as for every extension of Python's.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "_kernels.so"  # on macOS too: ctypes does not mind the ending
REASON = "_kernels.txt"  # why there is no library
CALLS = "_calls.so"  # the extension module of python/calls.cpp

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread")

# Beside what its header declares, a library says what it was built from.
_STAMP = """\
extern "C" __attribute__((visibility("default"))) const char *{symbol}(void);
const char *{symbol}(void) {{ return "{fingerprint}"; }}
"""


class NotBuiltError(Exception):
    """Why a library cannot be built: a clause that goes on after "not built: "."""


def sources() -> list[Path]:
    """The files to compile."""
    return sorted(FOLDER.glob("*.cpp"))


def headers() -> list[Path]:
    """The files that those include."""
    return sorted(FOLDER.glob("*.h"))


def fingerprint() -> str:
    """A number, in hex, that changes with the sources; "" where they are not, as in a wheel."""
    return fingerprint_of(headers() + sources()) if sources() else ""


def compiler() -> list[str]:
    """The command of the C++ compiler. Raises NotBuiltError where there is none."""
    given = command_from("CXX")
    if given:
        return given
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NotBuiltError(f"no C++ compiler was found: neither CXX nor {', '.join(COMPILERS)}")


def build(folder: Path) -> str:
    """Build the library into `folder`, or leave the reason there why not.

    Returns that reason, or "". What an earlier build left goes in any case: no library is better
    than one of other sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _build(folder / LIBRARY)
    except NotBuiltError as error:
        for made in (LIBRARY, CALLS):
            (folder / made).unlink(missing_ok=True)
        (folder / REASON).write_text(f"{error}\n")
        print(f"symrnn: the native kernels were not built: {error}", file=sys.stderr, flush=True)
        return str(error)
    (folder / REASON).unlink(missing_ok=True)
    _build_calls(folder / CALLS)
    return ""


def _build(target: Path) -> None:
    if os.environ.get("SYMRNN_NATIVE") == "0":
        raise NotBuiltError("SYMRNN_NATIVE=0 was set when symrnn was installed")
    if not sources():
        raise NotBuiltError(f"there are no sources in {FOLDER}")
    command = compiler()
    flags = [*FLAGS, *from_environment("CXXFLAGS")]
    if sys.platform == "darwin":
        flags += from_environment("ARCHFLAGS")
    # In the folder itself: what is whole only has to be renamed, and a process that has the old
    # library loaded keeps it.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="_kernels.building-") as scratch:
        linked, _ = compile_library(
            Path(scratch),
            [*command, *flags],
            [*command, *flags, "-shared"],
            sources(),
            stamp=("symrnn_sources", fingerprint()),
            link_last=from_environment("LDFLAGS"),
        )
        os.replace(linked, target)


# ---- for programs in C ---------------------------------------------------------------------------

FOR_C = "libsymrnn.so"
HEADERS_FOR_C = ("symrnn.h", "symrnn_runtime.h")

# What the C++ library has of it goes into ours, and is seen by nobody: libc and libm are left.
_ALONE = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", f"-Wl,-soname,{FOR_C}")


def build_for_c(folder: Path) -> list[Path]:
    """Build the library for programs in C into a folder, which is made, its headers beside it.

    It is that of Python, but needs no libstdc++. Returns the paths. Raises NotBuiltError if it
    cannot be built, and OSError.
    """
    if not sources():
        raise NotBuiltError(f"there are no sources in {FOLDER}: a clone and an sdist have them")
    folder.mkdir(parents=True, exist_ok=True)
    compile_with = [*compiler(), *FLAGS, *from_environment("CXXFLAGS")]
    alone = _ALONE if sys.platform.startswith("linux") else ()
    with tempfile.TemporaryDirectory(dir=folder, prefix="libsymrnn.building-") as scratch:
        linked, _ = compile_library(
            Path(scratch),
            compile_with,
            [*compile_with, "-shared", *alone],
            sources(),
            stamp=("symrnn_sources", fingerprint()),
            link_last=from_environment("LDFLAGS"),
        )
        os.replace(linked, folder / FOR_C)
    for name in HEADERS_FOR_C:
        shutil.copy(FOLDER / name, folder / name)
    return [folder / name for name in (FOR_C, *HEADERS_FOR_C)]


def calls_fingerprint() -> str:
    """As :func:`fingerprint`, of the extension module."""
    found = [_calls_source(), FOLDER / "symrnn.h"]
    return fingerprint_of(found) if _calls_source().exists() else ""


def _calls_source() -> Path:
    return FOLDER / "python" / "calls.cpp"


def _build_calls(target: Path) -> None:
    """Build the extension module; where that cannot be, calls are made by Python's own code."""
    include = sysconfig.get_path("include")
    flags = [*FLAGS, f"-I{include}", f'-DSYMRNN_SOURCES="{calls_fingerprint()}"']
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup", *from_environment("ARCHFLAGS")]
    flags += from_environment("CXXFLAGS")
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="_calls.building-") as scratch:
        made = Path(scratch, CALLS)
        try:
            for needed in (_calls_source(), Path(include, "Python.h")):
                if not needed.exists():
                    raise NotBuiltError(f"there is no {needed}")
            run([*compiler(), *flags, "-shared", str(_calls_source()), "-o", str(made)], CALLS)
        except NotBuiltError as error:
            print(f"symrnn: calls are made by Python's code: {error}", file=sys.stderr, flush=True)
            return
        os.replace(made, target)


# ---- what the kernels for GPUs are compiled with too ---------------------------------------------


def compile_library(
    scratch: Path,
    compile_with: Sequence[str],
    link_with: Sequence[str],
    sources: Sequence[Path],
    *,
    stamp: tuple[str, str],
    link_last: Sequence[str] = (),
) -> tuple[Path, str]:
    """Compile files side by side, and link them with a stamp.

    stamp: the name of a function, and the fingerprint that it returns.
    Returns the library, in the folder `scratch`, and what the compilers said. Raises NotBuiltError.
    """
    symbol, fingerprint = stamp
    stamp_source = scratch / "stamp.cpp"
    stamp_source.write_text(_STAMP.format(symbol=symbol, fingerprint=fingerprint))
    paths = [*sources, stamp_source]
    objects = {path: scratch / f"{path.stem}.o" for path in paths}

    def compile_one(path: Path) -> str:
        return run([*compile_with, "-c", str(path), "-o", str(objects[path])], path.name)

    # The largest first, so that no core waits for one that came last.
    order = sorted(paths, key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(cores()) as pool:
        said = dict(zip(order, pool.map(compile_one, order), strict=True))
    linked = scratch / "linked.so"
    run([*link_with, *map(str, objects.values()), "-o", str(linked), *link_last], "linking")
    return linked, "".join(said[path] for path in paths)


def fingerprint_of(paths: Iterable[Path], flags: Sequence[str] = ()) -> str:
    """A number, in hex, that changes with these files, their names, and the flags."""
    digest = hashlib.sha256(shlex.join(flags).encode())
    for path in paths:
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def command_from(variable: str) -> list[str]:
    """The compiler that the environment names; [] if none. Raises NotBuiltError if it is none."""
    if os.name != "posix":
        raise NotBuiltError(f"there is no native build for {sys.platform}")
    given = from_environment(variable)
    if given and shutil.which(given[0]) is None:
        raise NotBuiltError(f"{variable}={shlex.join(given)} is no command")
    return given


def run(command: list[str], what: str) -> str:
    """Run a compiler, and return its words.

    Raises NotBuiltError if it fails: all its words then go to stderr, where the log of a build is,
    and the first error into the reason.
    """
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise NotBuiltError(f"{command[0]} does not run: {error.strerror}") from None
    if ended.returncode == 0:
        return ended.stdout
    print(f"{shlex.join(command)}\n{ended.stdout}", file=sys.stderr, flush=True)
    lines = [line.strip() for line in ended.stdout.splitlines() if _is_error(line)]
    words = f": {lines[0].replace(f'{FOLDER}{os.sep}', '')[:300]}" if lines else ""
    raise NotBuiltError(f"{command[0]} ended with status {ended.returncode} at {what}{words}")


def _is_error(line: str) -> bool:
    return any(word in line.lower() for word in ("error", "fatal"))  # the latter are nvcc's own


def from_environment(name: str) -> list[str]:
    """The arguments that stand in a variable. Raises NotBuiltError for a quote without its end."""
    value = os.environ.get(name, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise NotBuiltError(f"{name}={value} cannot be read: {error}") from None


def cores() -> int:
    """How many compilers can run side by side."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
