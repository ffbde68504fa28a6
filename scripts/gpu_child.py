"""Runs a part of scripts/gpu_check.py in a process of its own, that may die or hang.

The child appends lines of JSON to a file, one before each case and one after it; whoever watches
reads along. A child that is silent for longer than its case may take is killed, with all that it
started; what it had found stays, and another goes on with the next case.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GPU_LOST = 3  # the exit status of a child whose GPU answers every call with an error
STARTING = 90.0  # seconds until the first case: PyTorch is loaded, and the GPU woken
DYING = 10.0  # seconds a killed process has to be gone

Record = dict[str, Any]


# ---- in the child ------------------------------------------------------------------------------


class Skipped(Exception):
    """Why a case is not run: no failure."""


class Cases:
    """What a child runs, one case after the other.

    records: the file.  seconds: after which no case is begun.
    usable: called after a case that failed; an exception of it says that the GPU is lost.
    """

    def __init__(self, records: Path, seconds: float, usable: Callable[[], Any] = bool) -> None:
        self.records = records
        self.end = time.monotonic() + seconds
        self.usable = usable
        self.begun = {one["case"] for one in read_records(records) if one["type"] == "begin"}

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def write(self, **record: Any) -> None:
        with self.records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def run(self, name: str, seconds: float, case: Callable[[], Record]) -> None:
        """Run a case, unless another child has begun it.

        seconds: it may take.  case: returns what it found; "ok" is true where that is left out.
        """
        if name in self.begun:
            return
        if self.left() <= 0:
            self.write(type="case", case=name, ok=None, words="skipped: the time was up")
            return
        self.write(type="begin", case=name, seconds=seconds)
        began = time.monotonic()
        try:
            found = {"ok": True, **case()}
        except Skipped as why:
            found = {"ok": None, "words": f"skipped: {why}"}
        except Exception as error:
            traceback.print_exc()
            found = {"ok": False, "words": f"{type(error).__name__}: {short(error)}"}
        took = time.monotonic() - began
        self.write(type="case", case=name, took=round(took, 3), **found)
        if found["ok"] is False:
            try:
                self.usable()
            except Exception as error:
                print(f"the GPU is lost: {error}", flush=True)
                os._exit(GPU_LOST)  # at once: an orderly end would wait for the GPU


def short(error: BaseException) -> str:
    """An error's words in one line."""
    return " ".join(str(error).split())[:400]


# ---- in whoever watches ------------------------------------------------------------------------


def read_records(path: Path) -> list[Record]:
    """All whole lines of a file; none where it is not."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


class Ended(NamedTuple):
    """How a process ended. status: as the system has it.  words: why it was killed, else ""."""

    status: int | None
    words: str


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it started. One that the system does not let go is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(DYING)


def run_limited(
    command: Sequence[str],
    seconds: float,
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    watch: Callable[[], str] = str,
) -> Ended:
    """Run a command until it ends, or has taken so many seconds, or ``watch`` says why not.

    log: where its words go, after what is there.  folder: where it runs.
    """
    end = time.monotonic() + seconds
    with log.open("ab") as words:
        words.write(f"\n$ {' '.join(command)}\n".encode())
        words.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,  # so that all of it can be killed
        )
        why = ""
        try:
            while process.poll() is None and not why:
                time.sleep(0.1)
                why = watch()
                if not why and time.monotonic() > end:
                    why = f"it did not end within {seconds:.0f} s"
        finally:
            if process.poll() is None:
                stop(process)
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it left behind
    return Ended(process.poll(), "" if process.returncode == 0 else why)


def how_it_ended(ended: Ended) -> str:
    """In words: "was killed: …", "died of SIGSEGV", "ended with status 1"."""
    if ended.words:
        return f"was killed: {ended.words}"
    if ended.status is None:
        return "cannot be killed"
    if ended.status == GPU_LOST:
        return "lost the GPU"
    if ended.status < 0:
        try:
            return f"died of {signal.Signals(-ended.status).name}"
        except ValueError:
            return f"died of signal {-ended.status}"
    return f"ended with status {ended.status}"


class Watch:
    """Reads a child's records along with it; called, says why the child should be killed."""

    def __init__(self, records: Path, saw: Callable[[list[Record]], None]) -> None:
        self.records = records
        self.saw = saw
        self.size = -1
        self.since = time.monotonic()
        self.running: Record | None = None

    def __call__(self) -> str:
        size = self.records.stat().st_size if self.records.exists() else 0
        if size != self.size:
            self.size, self.since = size, time.monotonic()
            found = read_records(self.records)
            last = found[-1] if found else None
            self.running = last if last and last["type"] == "begin" else None
            self.saw(found)
        silent = time.monotonic() - self.since
        allowed = self.running["seconds"] if self.running else STARTING
        if silent <= allowed:
            return ""
        what = self.running["case"] if self.running else "starting"
        return f"{what} took longer than {allowed:.0f} s"


def run_child(
    command: Callable[[float], Sequence[str]],
    seconds: float,
    records: Path,
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    saw: Callable[[list[Record]], None] = lambda _: None,
    grace: float = 5.0,
) -> list[Record]:
    """Run a part to its end, by one child after another where one dies; all records of cases.

    command: of a child that begins no case after so many seconds. It ends itself once it is done.
    grace: seconds, of all, that a case may take past that.
    """
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        watch = Watch(records, saw)
        before = len(read_records(records))
        ended = run_limited(
            command(max(left - grace, 0.0)), left, log, environment=environment, watch=watch
        )
        found = read_records(records)
        last = found[-1] if found else None
        if ended.status == 0:
            break
        how = how_it_ended(ended)
        case = last["case"] if last and last["type"] == "begin" else None
        if case or ended.status != GPU_LOST:  # else the case that lost it has said so
            words = f"the process {how}"
            ending = {"type": "case", "case": case or "between cases", "ok": False, "words": words}
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(ending) + "\n")
        progressed = len(found) > before
        if not progressed or end - time.monotonic() < 2 * grace:
            break
    found = read_records(records)
    saw(found)
    return [one for one in found if one["type"] != "begin"]
