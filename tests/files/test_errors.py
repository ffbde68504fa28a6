"""The frame of a program: which exit code and which line on stderr each end has."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from symrnn.files import UserError, errors, run_program


class ForeignError(Exception):
    pass


def fail(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (fail(UserError("--lr: -1 is not above 0")), 2, "error: --lr: -1 is not above 0\n"),
        (fail(ForeignError("no corpus")), 2, "error: no corpus\n"),
        (fail(KeyboardInterrupt()), 130, ""),
        (fail(errors.Terminated()), 143, ""),
        (fail(BrokenPipeError()), 141, ""),
        (fail(SystemExit(4)), 4, ""),
    ],
)
def test_exit_codes(
    main: Callable[[], int | None], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(main, ForeignError)
    assert caught.value.code == code
    assert capsys.readouterr().err == message


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ForeignError):
        run_program(fail(ForeignError()))
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"na\\xefve \\u20ac \\udcff"), ("latin-1", b"na\xefve \\u20ac \\udcff")],
)
def test_what_stdout_cannot_hold_is_written_escaped(
    encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stdout)
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: print("naïve € \udcff", end=""))
    assert caught.value.code == 0
    assert stdout.buffer.getvalue() == written  # type: ignore[attr-defined]


def while_interrupted() -> int:
    """The disk fills up while a file is cleaned up on the way out."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        try:
            raise OSError(errno.ENOSPC, "no room")
        except OSError as error:
            raise UserError("the disk is full") from error


def raise_again(error: OSError, first: BaseException) -> None:
    """What a thread left is raised while `first` is handled, which came of it."""
    try:
        raise first from error
    except BaseException:
        with contextlib.suppress(OSError):
            fail(error)()


def test_an_error_on_the_way_out_of_an_interrupt_is_not_told() -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(while_interrupted)
    assert caught.value.code == 130


@pytest.mark.parametrize(
    ("first", "code", "message"),
    [
        (UserError("the disk is full"), 2, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, ""),
        (errors.Terminated(), 143, ""),
    ],
)
def test_errors_that_caused_each_other_end_too(
    first: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = OSError(errno.ENOSPC, "no room")
    raise_again(stored, first)
    assert (stored.__context__, first.__cause__) == (first, stored)
    error = UserError("the disk is full")
    error.__cause__ = stored
    assert list(errors.causes(error)) == [error, stored, first]
    with pytest.raises(SystemExit) as caught:
        run_program(fail(error))
    assert caught.value.code == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "", "a.txt"), "a.txt: the disk is full"),
        (OSError(errno.EMFILE, "", "a.txt"), "a.txt: this process may open no more files "),
        (OSError(errno.ENFILE, ""), "the machine can open no more files"),
        (OSError(errno.ENOMEM, ""), "the memory is too small"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: Input/output error"),
        (MemoryError(), "the memory is too small"),
        (MemoryError("Unable to allocate 8 TiB"), "the memory is too small: Unable to allocate 8"),
        (RuntimeError("CUDA out of memory. Tried\nto"), "the memory is too small: CUDA out of mem"),
    ],
)
def test_what_a_machine_lacks_is_no_bug(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(fail(error))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_memory_that_pytorch_cannot_get() -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: torch.empty(1 << 60).dim())
    assert caught.value.code == 2


# The file alone, since importing its package loads torch.
PRINTS = f"""
import runpy
run_program = runpy.run_path({errors.__file__!r})["run_program"]
def main():
    for line in range(100_000):
        print("a line")
run_program(main)
"""


def test_output_that_nobody_takes_ends_without_a_traceback() -> None:
    program = [sys.executable, "-c", PRINTS]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_a_full_disk_is_a_users_error(unbuffered: str) -> None:
    program = [sys.executable, "-c", PRINTS.replace("100_000", "1")]
    settings = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, env=settings)
    assert done.stderr == b"error: output: the disk is full\n"
    assert done.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_error_that_cannot_be_told_has_its_exit_code() -> None:
    program = [sys.executable, "-c", PRINTS.replace("100_000", "1")]
    with open("/dev/full", "w") as full:
        assert subprocess.run(program, stdout=full, stderr=full).returncode == 2
