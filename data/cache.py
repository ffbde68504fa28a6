"""Where corpora are cached, and folders that appear there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where corpora are cached: `cache_dir`, else $SYMRNN_DATA, else ~/.cache/symrnn."""
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("SYMRNN_DATA") or Path.home() / ".cache" / "symrnn")


@contextmanager
def new_folder(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `target` to fill, which then gets that name.

    If the block raises, the folder is removed and nothing has happened.

    shared: another process may make a `target` of the same contents meanwhile, which then stays.

    Raises DataError if the folder cannot be made or cannot get its name.
    """
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
        try:
            os.rename(aside, target)
        except OSError as error:
            if not (shared and target.is_dir()):
                raise DataError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # it is gone if it was renamed


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
