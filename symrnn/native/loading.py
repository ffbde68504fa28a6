"""Opens a library of kernels with ctypes, and says why one cannot be used."""

from __future__ import annotations

import ctypes
import importlib.util
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

from symrnn.native.interface import INTERFACE, Functions, declare


class AbsentError(Exception):
    """Why a library cannot be had: a clause that goes on after "the kernels are"."""


def open_library(
    path: Path, prefix: str, functions: Functions, fingerprint: str, remedy: str
) -> ctypes.CDLL:
    """The library at this path, its functions typed.

    prefix: of its functions, such as "symrnn_".
    fingerprint: of the sources beside us; "" where there are none, as in a wheel.
    remedy: what a user is told to do about a library that is none of these sources.

    Raises AbsentError if it cannot be loaded, or was built from other sources.
    """
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise AbsentError(f"built but cannot be loaded: {error}; {remedy}") from None
    try:
        number = lib[f"{prefix}interface"]()
        if number != INTERFACE:
            raise AbsentError(
                f"built from other sources: their interface is number {number}, "
                f"this symrnn's is {INTERFACE}; {remedy}"
            )
        declare(lib, functions)
    except AttributeError as error:
        raise AbsentError(f"built from other sources: {error}; {remedy}") from None
    if fingerprint and _built_from(lib, prefix) not in (None, fingerprint):
        raise AbsentError(f"built from other sources than those beside them; {remedy}")
    return lib


def _built_from(lib: ctypes.CDLL, prefix: str) -> str | None:
    """The fingerprint of its sources; None of a library that somebody compiled by hand."""
    try:
        built_from = lib[f"{prefix}sources"]
    except AttributeError:
        return None
    built_from.restype = ctypes.c_char_p
    return str(built_from().decode())


def open_calls(path: Path, fingerprint: str) -> Any:
    """The extension module at this path; None if there is none that this Python can use.

    fingerprint: as above; one that was built from other sources is not used.
    """
    name = "symrnn.native._calls"
    spec = importlib.util.spec_from_file_location(
        name, path, loader=ExtensionFileLoader(name, str(path))
    )
    if spec is None or not path.exists():
        return None
    try:
        module: Any = importlib.util.module_from_spec(spec)
    except ImportError:
        return None
    fits = module.INTERFACE == INTERFACE and fingerprint in ("", module.SOURCES)
    return module if fits else None
