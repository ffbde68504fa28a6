"""The one exception this package raises for what a user can mend."""

from __future__ import annotations


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
