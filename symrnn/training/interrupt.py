"""Ctrl-C and `kill`, once: stop at the next good moment. Twice: at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from symrnn.files.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """What takes long was given up on the way, as it was asked to."""


class Interrupt:
    """While in its `with` block, the first SIGINT or SIGTERM only sets `number`.

        with Interrupt() as interrupt:
            for batch in batches:
                step(batch)
                if interrupt.requested:
                    save(); break

    The first signal prints one line on stderr that says so. The second gives the former handlers
    back and raises KeyboardInterrupt (Terminated if the first was SIGTERM) wherever the program
    is: half-written files are cleaned up on the way out, and a third signal meets Python's own
    handling. On leaving, the former handlers are back. Outside the main thread Python allows no
    handlers: nothing is changed there and `requested` stays False. A SIGINT that was ignored (a
    shell's background job) is taken too, as a stop that saves is what whoever sends it wants.

    Forked children (loader workers) ignore SIGINT, which the terminal sends them along with us,
    since the step under way still needs them; SIGTERM ends them as usual.

    Args:
        plan: what will happen, for the line printed.
        then: what SIGINT leads to besides. SIGTERM comes from those who do not wait.

    number: the first signal that came; None before.
    """

    def __init__(
        self, plan: str = "finishing this step, then saving a checkpoint", then: str = ""
    ) -> None:
        self.plan = plan
        self.then = then
        self.number: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._process = 0

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number is not None

    def __enter__(self) -> Interrupt:
        self.number = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._former:
            number, handler = self._former.popitem()
            # None: a handler set outside Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.requested:
            self._restore()
            raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt
        self.number = signal.Signals(number)
        then = f"; {self.then}" if self.then and number == signal.SIGINT else ""
        # Not print: a handler that runs inside a print to the same stream would fail.
        line = f"\n{self.number.name}: {self.plan}{then}; once more to leave at once\n"
        with contextlib.suppress(OSError):  # Ctrl-C also ended the `tee` that read our stderr
            os.write(2, line.encode())
