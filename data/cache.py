"""Where corpora are cached, and folders that appear there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ASIDE_SUFFIX = ".symrnn-part"


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where corpora are cached: `cache_dir`, else $SYMRNN_DATA, else ~/.cache/symrnn.

    Raises DataError where neither is given and there is no home.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    if given := os.environ.get("SYMRNN_DATA"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "symrnn"
    except RuntimeError:
        raise DataError(
            "there is no home folder to cache corpora in; another folder can be given as "
            "cache_dir or in $SYMRNN_DATA"
        ) from None


@contextmanager
def new_folder(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `target` to fill, which then gets that name.

    If the block raises, the folder is removed and nothing has happened. A kill leaves it behind;
    the next call that fills a folder there removes it, and none that a process is still filling.

    shared: another process may make a `target` of the same contents meanwhile, which then stays.

    Raises DataError if the folder cannot be made or cannot get its name.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        aside, lock = _make_aside(target)
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
        if lock is not None:
            os.close(lock)


def _make_aside(target: Path) -> tuple[Path, int | None]:
    """A new folder beside `target`, and the descriptor that locks it while this process lives."""
    while True:
        made = tempfile.mkdtemp(_ASIDE_SUFFIX, f".{target.name}.", target.parent)
        try:
            os.chmod(made, 0o777 & ~umask())
            lock = _lock(made)
        except (BlockingIOError, FileNotFoundError):
            continue  # between the two lines another process took it for abandoned
        except OSError:
            return Path(made), None  # a file system without locks: nothing is removed there
        if os.path.exists(made):
            return Path(made), lock
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes were filling in `folder`."""
    for name in os.listdir(folder):
        if not (name.startswith(".") and name.endswith(_ASIDE_SUFFIX)):
            continue
        with contextlib.suppress(OSError):  # it is locked, somebody else's, or gone by now
            lock = _lock(folder / name)
            try:
                shutil.rmtree(folder / name)
            finally:
                os.close(lock)


def _lock(folder: str | Path) -> int:
    """Locks a folder until the descriptor is closed or the process ends; OSError if it cannot."""
    if fcntl is None:
        raise OSError("this system has no such locks")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
