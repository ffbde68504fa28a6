"""The one exception this package raises for what a user can mend, and the frame of its programs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class DataError(Exception):
    """A corpus, file or argument that cannot be used as given.

    The message names the argument or file, the value got and what is allowed. The programs of
    this package print it and leave with exit code 2, without a traceback.
    """


def require_integer(name: str, value: object, *, least: int) -> int:
    """`value` as an int, or a DataError: it must be a whole number of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DataError(f"{name} must be an integer, got {value!r}")
    number = int(value.__index__())
    if number < least:
        raise DataError(f"{name} must be at least {least}, got {number}")
    return number


def run_program(main: Callable[[], int]) -> NoReturn:
    """Runs a program of this package, which reports its DataErrors itself; ends with its exit code.

    As `symrnn.files.run_program`, which needs torch: Ctrl-C is exit code 130 and a reader of
    stdout that went away 141, both in silence; characters that stdout's encoding lacks are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
    sys.exit(code)
