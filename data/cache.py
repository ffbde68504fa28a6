"""Where corpora are kept, and folders that appear there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where corpora are kept: `cache_dir`, else $SYMRNN_DATA, else ~/.cache/symrnn."""
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("SYMRNN_DATA") or Path.home() / ".cache" / "symrnn")


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, removed at the end unless it was renamed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        os.chmod(aside, 0o777 & ~umask())
    except OSError as error:
        raise DataError(
            f"{str(target.parent)!r} cannot be written: {error.strerror}; another folder can be "
            "given as cache_dir or in $SYMRNN_DATA"
        ) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def named(aside: Path, target: Path) -> None:
    """Give the folder `aside` the name `target`; DataError if that cannot be."""
    try:
        os.rename(aside, target)
    except OSError as error:
        raise DataError(f"{str(target)!r} cannot be written: {error.strerror}") from error


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
