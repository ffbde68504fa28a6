"""Files that a reader finds whole, old or new, and JSON that reads back as it was written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from symrnn.files.errors import UserError, describe_os_error

_ASIDE_PREFIX, _ASIDE_SUFFIX = ".symrnn-", ".tmp"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of an empty file to write, or to replace; it then takes the place of `path`.

    It lies in a folder of its own beside `path`, is fsynced and renamed over `path`, so whoever
    opens `path`, also after a kill or a power cut, finds the former file or the new one. If
    anything fails, or the block raises, the folder aside is removed and `path` stays as it was.
    Only a kill leaves the folder aside behind: `remove_files_aside` sweeps it. If `path` is a
    symbolic link, the file it points to is replaced. The mode is what umask leaves of 0666.

    Raises OSError as it comes; the caller knows what the file was for.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    with tempfile.TemporaryDirectory(
        _ASIDE_SUFFIX, _ASIDE_PREFIX, folder, ignore_cleanup_errors=True
    ) as aside:
        new = Path(aside, "new")
        new.touch()
        mode = new.stat().st_mode
        yield new
        new.chmod(mode)  # a library that writes its file may make it private (0600)
        with new.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(new, target)
    # From here on the new file is in place: failing now would say the opposite.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, as :func:`replacing` has it.

    Raises UserError if it cannot be written; what was there before is untouched then.
    """
    try:
        with replacing(path) as new:
            new.write_bytes(text.encode())
    except OSError as error:
        raise UserError(f"{path}: was not written: {describe_os_error(error)}") from error


def is_file_aside(name: str) -> bool:
    """Whether `name` is that of a folder that `replacing` makes."""
    return name.startswith(_ASIDE_PREFIX) and name.endswith(_ASIDE_SUFFIX)


def remove_files_aside(folder: Path) -> None:
    """Removes what a killed `replacing` left in `folder`. Nobody may be writing there."""
    for name in os.listdir(folder):
        if is_file_aside(name):
            shutil.rmtree(folder / name)


def to_json(value: Any, name: str, indent: int | None = None) -> str:
    """The JSON of `value`, which `json.loads` turns back into an equal value of equal types.

    Allowed: dicts with str keys, lists, str, int, float, bool, None. Non-finite floats become
    the tokens NaN, Infinity and -Infinity, which Python reads and strict readers refuse: a run
    that diverges must still be able to save.

    Raises TypeError for anything that would come back as something else (tuple, int key,
    numpy number), naming its place; `name` is what `value` is called there.
    """
    _check_json(value, name)
    return json.dumps(value, indent=indent)


def _check_json(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place}: key {key!r} is {type(key).__name__}; JSON keys are str")
            _check_json(item, f"{place}[{key!r}]")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_json(item, f"{place}[{number}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(
            f"{place} is {type(value).__module__}.{type(value).__name__}; JSON takes dict, list, "
            "str, int, float, bool and None (pack_state packs tuples, tensors and int keys)"
        )
