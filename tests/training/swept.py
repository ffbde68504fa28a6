"""Sweeps whose runs are forked from a process that has loaded torch, which takes long otherwise."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import worlds

import lm.sweep
import lm.sweep_processes
import lm.train
from data import DataError
from symrnn.files import run_program


class Forked:
    """As `lm.sweep_processes.Process`, of a command that runs lm.train; without its pictures."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        assert command[1:3] == ["-m", "lm.train"]
        log.parent.mkdir(exist_ok=True)
        parent, self._code = os.getpid(), None
        self._pid = os.fork()
        if self._pid:
            return
        try:
            os.setsid()
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.closerange(3, 256)  # the sweep's lock, too
            worlds.begin({}, str(log))
            worlds.without_pictures()
            run_program(functools.partial(lm.train.main, command[3:]), DataError)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(70)

    _code: int | None

    def code(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def stop(self) -> None:
        if self.code() is None:
            os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.code() is None:
            os.kill(self._pid, signal.SIGKILL)
            while self.code() is None:
                time.sleep(0.01)


def sweep(arguments: list[str], output: str) -> None:
    """The program, its stdout and stderr in a file."""
    worlds.begin({}, output)
    lm.sweep.Process = Forked  # type: ignore[misc, assignment]
    lm.sweep.POLL, lm.sweep.LOOK = 0.01, 0.05
    run_program(functools.partial(lm.sweep.main, arguments), DataError)


def tied(command: list[str], log: str) -> None:
    """Starts a command as a sweep does, and waits to be killed."""
    lm.sweep_processes.Process(command, Path(log))
    time.sleep(600)
