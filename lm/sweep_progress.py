"""How far the runs of a sweep are: in one line on a terminal, line by line where there is none.

All of it goes to stderr; the table is what a sweep has for stdout.
"""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from collections.abc import Sequence

from lm.sweep_plan import PlannedRun, Sweep
from lm.sweep_processes import how_it_ended, last_lines
from lm.sweep_results import Standing, standing_of
from symrnn.training.run_folder import is_in_use

LOOK, SAY = 1.0, 60.0
"""Seconds: between two looks at the runs; after which something is said where no terminal is."""

_STOPPED = (-2, -15, 130, 143)  # how a run ends that was asked to


class Watch:
    """Looks at the runs and tells of them; in a ``with``, after which the line is gone."""

    def __init__(self, sweep: Sweep, runs: Sequence[PlannedRun], jobs: int) -> None:
        self.sweep = sweep
        self.runs = runs
        self.jobs = jobs
        self.live = sys.stderr.isatty()
        self._standings = {run.name: self._read(run) for run in runs}
        self._left_at_first = len(runs) - sum(self._fractions())
        self._busy = 0.0  # seconds of all processes
        self._done = 0.0  # of how many runs' work, when it was last looked at
        self._end: float | None = None  # as it was expected then
        self._clock = self._next = self._said = time.monotonic()
        self._taken: set[str] = set()
        self._running: set[str] = set()

    def __enter__(self) -> Watch:
        finished = sum(standing.finished for standing in self._standings.values())
        words = f"{len(self.runs)} runs in {self.sweep.folder}, {finished} of them finished"
        if finished < len(self.runs):
            words += f"; {self.jobs} at a time, --threads {self.sweep.threads}"
        self.say(words)
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    # ---- looking -------------------------------------------------------------------------------

    def look(self, run: PlannedRun) -> Standing:
        """How far a run is now."""
        self._standings[run.name] = self._read(run)
        return self._standings[run.name]

    def _read(self, run: PlannedRun) -> Standing:
        return standing_of(self.sweep.folder_of(run), run.config["epochs"])

    def is_taken(self, run: PlannedRun) -> bool:
        """Whether another process is at it, which is told once."""
        taken = is_in_use(self.sweep.folder_of(run))
        if taken and run.name not in self._taken:
            self._taken.add(run.name)
            self.say(f"{run.name}: another process is at it; waiting for its end")
        return taken

    # ---- telling -------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One line, for good."""
        self._write("")
        print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def ended(self, run: PlannedRun, code: int, told: bool) -> None:
        """Tell how a run ended, and note it where it failed.

        told: whether it was asked to end.
        """
        self._running.discard(run.name)
        standing = self.look(run)
        if standing.finished:
            run.failed = ""
            self.say(
                f"{run.name}: finished, valid {standing.valid:.2f}, test {standing.test:.2f}, "
                f"{standing.seconds:.0f} s; {self._summary()}"
            )
        elif told and code in _STOPPED:
            run.failed = ""
            self.say(f"{self._place(run)}: saved")
        else:
            log = self.sweep.log_of(run)
            lines = last_lines(log, 5)
            # It counts as neither done nor left.
            self._left_at_first -= 1 - min(standing.step / run.steps, 1.0)
            run.failed = f"{how_it_ended(code)}: {lines[-1] if lines else 'without a word'}"
            self.say("\n    ".join([f"{run.name}: failed ({how_it_ended(code)}); {log}:", *lines]))

    def show(self, running: Sequence[PlannedRun]) -> None:
        """Tell how far the runs are, if it is time to."""
        now = time.monotonic()
        self._busy += (now - self._clock) * len(running)
        self._clock = now
        self._running = {run.name for run in running}
        if now < self._next:
            return
        for run in running:
            before = self._standings[run.name].epochs
            standing = self.look(run)
            if standing.epochs > before and not self.live and not standing.finished:
                epochs = f"{standing.epochs}/{run.config['epochs']}"
                self.say(f"{run.name}: epoch {epochs}, valid {standing.valid:.2f}; {self._left()}")
        line = f"{self._summary()}: {', '.join(map(self._place, running)) or 'waiting'}"
        if self.live:
            self._write(f"{line}; {self._left()}")
        elif now - self._said >= SAY:
            self.say(f"{line}; {self._left()}")
        # Long logs take long to look at.
        self._next = now + max(LOOK, 20 * (time.monotonic() - now))

    def _place(self, run: PlannedRun) -> str:
        standing, epochs = self._standings[run.name], run.config["epochs"]
        if not standing.begun:
            return f"{run.name} at its beginning"
        return f"{run.name} epoch {min(standing.epochs + 1, epochs)}/{epochs}"

    def _summary(self) -> str:
        ended = [s for name, s in self._standings.items() if name not in self._running]
        finished = sum(standing.finished for standing in ended)
        failed = sum(bool(run.failed) for run in self.runs)
        words = f"{finished} of {len(self.runs)} finished"
        return f"{words}, {failed} failed" if failed else words

    def _left(self) -> str:
        """The time that is left, if the runs go on as they did since the sweep was started."""
        left = [1 - fraction for fraction in self._fractions()]
        done = self._left_at_first - sum(left)
        if done != self._done and done > 0 and self._busy:
            each = self._busy / done  # seconds of a run
            self._end = self._clock + each * max(sum(left) / self.jobs, max(left))
        self._done = done
        if self._end is None:
            return "time left unknown"
        seconds = max(round(self._end - self._clock), 0)
        return f"about {datetime.timedelta(seconds=seconds)} left"

    def _fractions(self) -> list[float]:
        """How much of each run is done, of 1; of those that failed nothing is left to do."""
        fractions = []
        for run in self.runs:
            standing = self._standings[run.name]
            ended = standing.finished or run.failed
            fractions.append(1.0 if ended else min(standing.step / run.steps, 1.0))
        return fractions

    def _write(self, line: str) -> None:
        """Put a line in the place of the last one."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
            sys.stderr.flush()
