"""Errors that a user can mend, and the frame of a program that reports them without a traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_THE_MACHINE = (*_NO_ROOM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class UserError(Exception):
    """A user's mistake or an outside condition: a bad file, a full disk, an unknown device.

    Its message names the argument or path, the value got and what is allowed. `exit_code` is
    what a program ends with that `run_program` runs.
    """

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """The process was asked by SIGTERM to leave at once; `run_program` ends with 143."""

    exit_code = TERMINATED


def describe_os_error(error: OSError) -> str:
    """Why the operating system refused, in words: `"the disk is full"`."""
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file is larger than the limit on file sizes (ulimit -f) allows",
        errno.EMFILE: "this process may open no more files (ulimit -n)",
        errno.ENFILE: "the machine can open no more files",
        errno.ENOMEM: "the memory is too small",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENAMETOOLONG: "the name is too long",
    }
    return known.get(error.errno or 0) or error.strerror or str(error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, in the order of a traceback from its end, each once.

    The chain may be a cycle: an error that a thread left, raised again while what came of it is
    handled, has for its context what it is the cause of.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def run_program(main: Callable[[], int | None], *extra_error_types: type[Exception]) -> NoReturn:
    """Runs `main` and ends the process with its exit code; None counts as 0.

    - `UserError`, or one of `extra_error_types`: `error: message` on stderr and the error's
      `exit_code` (2 if it has none), no traceback.
    - KeyboardInterrupt: exit 130, nothing printed; `Terminated`: 143.
    - BrokenPipeError, as the reader of stdout went away (`program | head`): exit 141, nothing
      printed.
    - What a machine lacks, wherever that arose, also at the last output to stdout: as a
      `UserError`. That is an OSError for a full disk, a used-up quota, a limit on file sizes or on
      open files, a disk that fails; and memory that is too small.
    - SystemExit (argparse) passes, and any other exception too: those are our bugs, and their
      traceback is wanted.

    What stdout's encoding cannot hold is written escaped (`\\xef`), as Python does on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    reported: tuple[type[Exception], ...] = (UserError, *extra_error_types)
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _end(None, getattr(error, "exit_code", INTERRUPTED))
    except BrokenPipeError:
        _end(None, BROKEN_PIPE)
    except Exception as error:
        for cause in causes(error) if isinstance(error, reported) else ():
            if isinstance(cause, KeyboardInterrupt):  # the error came up on its way out
                _end(None, getattr(cause, "exit_code", INTERRUPTED))
        if isinstance(error, reported):
            _end(str(error), getattr(error, "exit_code", UserError.exit_code))
        lacking = _lacking(error)
        if lacking is None:
            raise
        _end(lacking, UserError.exit_code)
    sys.exit(code)


def _lacking(error: Exception) -> str | None:
    """What the machine lacks, if that is what `error` says."""
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = error.filename or ("output" if error.errno in _NO_ROOM else None)
        return f"{where}: {describe_os_error(error)}" if where else describe_os_error(error)
    # PyTorch's errors have no kind of their own on CPUs; the last is that of a GPU.
    words = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    ):
        return ": ".join(["the memory is too small", *str(error).splitlines()[:1]])
    return None


def _end(message: str | None, code: int) -> NoReturn:
    """Ends the process, with one line on stderr if there is a message."""
    if message is not None:
        with contextlib.suppress(OSError):  # where stderr is a file, the disk is full for it too
            print(f"error: {message}", file=sys.stderr)
    _drop_unwritable_output()
    sys.exit(code)


def _drop_unwritable_output() -> None:
    """Writes what stdout still buffers; if it cannot, sends it nowhere.

    Otherwise the interpreter tries again at its end, fails, and prints a traceback of its own.
    """
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
