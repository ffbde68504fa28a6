"""Libraries that are compiled when first needed, in a folder of the user's; without torch.

Those for GPUs (:mod:`symrnn.native.cuda`) and PyTorch's operators (:mod:`symrnn.native.torch`) are:
what they are compiled with or for is known on the machine at hand only.

To load a library is to run its code. So nothing is loaded from, or written into, a folder that
another user than ourselves or root owns, or that its group or others may write; nor where others
may put another folder into the cache's place.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from symrnn.files import UserError, cache_folder
from symrnn.native.building import NotBuiltError

_UNFINISHED = "building-"
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH

Make = Callable[[list[str], Path, Path], tuple[Path, str]]
"""(compiler's command, target, scratch folder) -> the library, in that folder, and a report."""


def cache() -> Path:
    """Where libraries are cached: $SYMRNN_CACHE, else ~/.cache/symrnn/kernels."""
    try:
        return cache_folder("SYMRNN_CACHE", "kernels").absolute()
    except UserError as error:
        raise NotBuiltError(str(error)) from None


def build_once(target: Path, compiler: Callable[[], list[str]], what: str, make: Make) -> Path:
    """The library at ``target``, compiled if it is not there yet, with its report beside it.

    compiler: its command, asked for only where it is needed.
    what: is compiled, for the notice on stderr: "the CUDA kernels, once".

    Another process that builds the same is waited for. Raises NotBuiltError, also where the folder
    or the library is not to be trusted.
    """
    try:
        if target.exists():
            refuse_untrusted(target)
            return target
        command = compiler()
        _make_folder(target.parent)
        with _alone(target.parent):
            if not target.exists():
                print(f"symrnn: compiling {what}", file=sys.stderr, flush=True)
                _build(command, target, make)
    except OSError as error:
        raise NotBuiltError(
            f"{target.parent} cannot be written: {error.strerror or error}; another folder can be "
            "given in SYMRNN_CACHE"
        ) from None
    return target


def _build(command: list[str], target: Path, make: Make) -> None:
    # In the folder itself: what is whole only has to be renamed.
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=_UNFINISHED, ignore_cleanup_errors=True
    ) as scratch:
        linked, report = make(command, target, Path(scratch))
        words = Path(scratch, "report.txt")
        words.write_text(report)
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
    refuse_untrusted(folder)


def refuse_untrusted(path: Path) -> None:
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
