"""The frame of a program: which exit code and which line on stderr each end has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

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
