"""The processes of a sweep's runs: started apart from the terminal, and ended with the sweep."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Linux tells a process of its parent's death, if it asks to; exec leaves that as it is. A parent
# that died before the question is seen by its number.
_ENDED_WITH_PARENT = """\
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""


class Process:
    """A command that runs, its output appended to the file ``log``.

    It is in a session of its own, so that a Ctrl-C in the terminal reaches the sweep alone, which
    says :meth:`stop`. On Linux it gets a SIGTERM when the thread that started it ends, in whatever
    way; elsewhere a sweep that is killed by SIGKILL leaves it running.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        log.parent.mkdir(exist_ok=True)
        if sys.platform == "linux":
            number = str(os.getpid())
            started = [sys.executable, "-ESc", _ENDED_WITH_PARENT, number, *command]
        else:
            started = [*command]
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                started,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def code(self) -> int | None:
        """What it ended with, or minus the number of the signal that ended it; None before."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def how_it_ended(code: int) -> str:
    """In words: "exit 2", or "killed by SIGKILL"."""
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(number).name}"
    return f"exit {code}"


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a file that are not empty, of its last 10,000 bytes."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 10_000, 0))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-count:]
