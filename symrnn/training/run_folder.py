"""The folder of one training run: configuration, checkpoints, metrics, and a lock on it all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

from symrnn.files.atomic import (
    is_file_aside,
    remove_files_aside,
    replace_text,
    replacing,
    to_json,
)
from symrnn.files.errors import UserError, describe_os_error

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # a system without such locks: two processes are not kept apart there
    fcntl = None

_CONFIG, _LOCK = "config.json", ".lock"
_OF_A_RUN = (_CONFIG, "last.safetensors", "best.safetensors", "metrics.jsonl")


class InUseError(UserError):
    """Another process holds the folder."""


class RunFolder:
    """The folder of one run, held by this process until `close`, `with` ends, or it dies.

        config.json         how the run was configured
        last.safetensors    the newest checkpoint, from which it resumes
        best.safetensors    the checkpoint of the best validation
        epoch-3.safetensors the checkpoint after that epoch, if some are kept
        metrics.jsonl       every scalar, a JSON object a line
        tensorboard/        the same, and more, for TensorBoard
        .lock               the number of the process that holds, or last held, the folder

    Made by `RunFolder.create` (new run) or `RunFolder.open` (resume). The lock is the operating
    system's: a killed process leaves none behind, and forked children (loader workers) do not
    keep it. Of several processes that train together, one opens the folder.
    """

    path: Path
    config: dict[str, Any]

    def __init__(self, path: Path, config: dict[str, Any], lock: int | None) -> None:
        """Use `create` or `open`. `lock` is the descriptor that holds the lock, or None."""
        self.path = path
        self.config = config
        self._release = weakref.finalize(self, os.close, lock) if lock is not None else None
        _held.add(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: dict[str, Any]) -> RunFolder:
        """Makes the folder of a new run, parents included, and writes `config` (JSON) into it.

        An existing folder is taken if it is empty.

        Raises:
            UserError: the folder holds another run (the message says how to go on), holds
                something else, is a file, is in use by another process, or cannot be written.
            TypeError: `config` is not JSON.
        """
        path = Path(path)
        text = to_json(config, "config", indent=2) + "\n"
        lock = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_if_used(path)
            lock = lock_folder(path)
            _refuse_if_used(path)  # once more: another process may have come between
            remove_files_aside(path)
            with replacing(path / _CONFIG) as new:
                new.write_bytes(text.encode())
        except (OSError, UserError) as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, UserError):
                raise
            raise UserError(_why_not_made(path, error)) from error
        return cls(path, json.loads(text), lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Opens the folder of an existing run to resume it.

        There may be no checkpoint yet, if the run was killed before its first: look whether
        `last` exists. Files that a killed process left half written are removed.

        Raises UserError if there is no run in `path`, its config.json is damaged, or another
        process is using it.
        """
        path = Path(path)
        config_path = path / _CONFIG
        lock = None
        try:
            if not path.is_dir():
                what = "it is a file" if path.exists() else "there is no such folder"
                raise UserError(f"{path}: no run to resume: {what}")
            if not config_path.is_file():
                raise UserError(f"{path}: no run to resume: the folder holds no {_CONFIG}")
            lock = lock_folder(path)
            remove_files_aside(path)
            config = json.loads(config_path.read_bytes())
            if not isinstance(config, dict):
                raise ValueError(f"holds a {type(config).__name__}, not an object")
        except (OSError, UserError, ValueError, RecursionError) as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, UserError):
                raise
            if isinstance(error, OSError):
                reason = f"{path}: cannot be opened: {describe_os_error(error)}"
                raise UserError(reason) from error
            raise UserError(f"{config_path}: is damaged, cannot resume: {error}") from error
        return cls(path, config, lock)

    @property
    def last(self) -> Path:
        """Where the newest checkpoint stands."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """Where the checkpoint of the best validation stands."""
        return self.path / "best.safetensors"

    def keep_epoch(self, epoch: int, count: int) -> None:
        """Keep the newest checkpoint, written after that epoch; drop all but the last ``count``.

        Raises UserError if it cannot be kept (full disk).
        """
        new = self.path / f"epoch-{epoch}.safetensors"
        try:
            if count and not new.exists():
                try:
                    os.link(self.last, new)  # `last` is replaced later, never written into
                except OSError:  # a file system without links
                    with replacing(new) as aside:
                        shutil.copyfile(self.last, aside)
            for number in range(1, epoch - count + 1):
                (self.path / f"epoch-{number}.safetensors").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{new}: was not written: {describe_os_error(error)}") from error

    def extend(self, epochs: int) -> None:
        """Write into the configuration that the run has so many epochs.

        Raises UserError if it cannot be written; the former configuration is untouched then.
        """
        self.config = {**self.config, "epochs": epochs}
        replace_text(self.path / _CONFIG, to_json(self.config, "config", indent=2) + "\n")

    @property
    def metrics(self) -> Path:
        """The file of scalars, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def close(self) -> None:
        """Releases the lock; the files stay. Closing twice does nothing."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_held: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _close_inherited() -> None:
    # A forked child shares the parent's lock, and would hold on to it when the parent is killed.
    for folder in list(_held):
        folder.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _refuse_if_used(path: Path) -> None:
    names = sorted(name for name in os.listdir(path) if name != _LOCK and not is_file_aside(name))
    if any(name in _OF_A_RUN for name in names):
        raise UserError(
            f"{path}: holds a run already; continue it with --resume, or choose another folder"
        )
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{path}: is not empty and holds no run ({shown}); choose a new or an empty folder"
        )


def lock_folder(path: Path) -> int | None:
    """Takes the folder's lock and returns the descriptor that holds it; None if there are none.

    Raises InUseError if another process holds it, UserError if its file is no plain file, OSError
    if that cannot be made.
    """
    if fcntl is None:
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path / _LOCK, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _no_lock(path) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _no_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip() or "of unknown number"
        os.close(descriptor)
        raise InUseError(
            f"{path}: is in use by process {holder}; wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        os.close(descriptor)
        print(
            f"notice: {path}: this file system has no locks ({describe_os_error(error)}); "
            "do not use the folder from two processes at once",
            file=sys.stderr,
        )
        return None
    with contextlib.suppress(OSError):  # a courtesy to whoever finds it locked
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def is_begun(path: Path) -> bool:
    """Whether that folder holds a run, which `RunFolder.open` opens."""
    return (path / _CONFIG).is_file()


def is_in_use(path: Path) -> bool:
    """Whether another process holds the lock of that folder; asked of one that is not starting.

    It is asked by taking the lock for a moment, in which nobody else can.
    """
    if not (path / _LOCK).exists():
        return False
    try:
        lock = lock_folder(path)
    except InUseError:
        return True
    except (OSError, UserError):  # whoever opens the folder has words for it
        return False
    if lock is not None:
        os.close(lock)
    return False


def _no_lock(path: Path) -> UserError:
    # What it leads to, perhaps a file of the user's, would be written to.
    return UserError(f"{path / _LOCK}: is a link, or no file, and thus no lock; remove it")


def _why_not_made(path: Path, error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{path}: cannot be a run folder: it, or a part of it, is a file"
    return f"{path}: the run folder cannot be made: {describe_os_error(error)}"
