"""How far an epoch is: a bar where somebody watches, elsewhere a line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

FIRST, EVERY = 10.0, 60.0
"""Seconds until the first line, which says how long an epoch takes, and between the others."""


def progress_bar(total: int, initial: int, desc: str, unit: str) -> Any:
    """A context that is told of progress: ``update(count)``, ``set_postfix_str(note)``.

    tqdm's bar where stderr is a terminal and tqdm is installed, else lines on stderr.

    total, initial: how much there is, and was done before, in ``unit``.
    desc: what it is of.
    """
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(
                total=total, initial=initial, desc=desc, unit=unit,
                unit_scale=True, leave=False, dynamic_ncols=True,
            )  # fmt: skip
    return _Lines(total, initial, desc, unit)


class _Lines:
    def __init__(self, total: int, initial: int, desc: str, unit: str) -> None:
        self._total, self._initial, self._desc, self._unit = total, initial, desc, unit
        self._done = initial
        self._note = ""
        self._began = time.monotonic()
        self._due = self._began + FIRST

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._due or self._done >= self._total:
            return
        self._due = now + EVERY
        rate = (self._done - self._initial) / (now - self._began)
        note = f"  {self._note}" if self._note else ""
        left, whole = (self._total - self._done) / rate, self._total / rate
        print(
            f"{self._desc}  {self._done / self._total:4.0%}{note}  {rate:,.0f} {self._unit}/s, "
            f"{_duration(left)} left of {_duration(whole)}",
            file=sys.stderr,
            flush=True,
        )

    def set_postfix_str(self, note: str) -> None:
        self._note = note

    def close(self) -> None:
        pass


def _duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
