"""Errors that a user can mend, and the frame of a program that reports them without a traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A user's mistake or an outside condition: a bad file, a full disk, an unknown device.

    Its message names the argument or path, the value got and what is allowed. `exit_code` is
    what a program ends with that `run_program` runs.
    """

    exit_code = 2


def describe_os_error(error: OSError) -> str:
    """Why the operating system refused, in words: `"the disk is full"`."""
    known = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file is larger than the limit on file sizes (ulimit -f) allows",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENAMETOOLONG: "the name is too long",
    }
    return known.get(error.errno or 0) or error.strerror or str(error)


def run_program(main: Callable[[], int | None], *extra_error_types: type[Exception]) -> NoReturn:
    """Runs `main` and ends the process with its exit code; None counts as 0.

    - `UserError`, or one of `extra_error_types`: `error: message` on stderr and the error's
      `exit_code` (2 if it has none), no traceback.
    - KeyboardInterrupt: exit 130, nothing printed.
    - BrokenPipeError, as the reader of stdout went away (`program | head`): exit 141, nothing
      printed.
    - OSError for a full disk, a used-up quota or a limit on file sizes, wherever it arose, also
      at the last output to stdout: as a `UserError`.
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
    except reported as error:
        if _interrupted(error):
            sys.exit(INTERRUPTED)
        code = getattr(error, "exit_code", UserError.exit_code)
        print(f"error: {error}", file=sys.stderr)
        _drop_unwritable_output()
    except KeyboardInterrupt:
        code = INTERRUPTED
        _drop_unwritable_output()
    except BrokenPipeError:
        code = BROKEN_PIPE
        _drop_unwritable_output()
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        code = UserError.exit_code
        print(f"error: {error.filename or 'output'}: {describe_os_error(error)}", file=sys.stderr)
        _drop_unwritable_output()
    sys.exit(code)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error only came up while a KeyboardInterrupt was on its way out."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


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
