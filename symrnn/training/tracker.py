"""The numbers of a run: to TensorBoard and, a JSON object a line, to metrics.jsonl."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from symrnn.files.atomic import replacing
from symrnn.files.errors import UserError, describe_os_error
from symrnn.training.run_folder import RunFolder

_EVENTS = "events.out.tfevents."  # what the names of TensorBoard's files begin with

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes scalars, figures, texts and hyper-parameters of the run in `folder`.

    A line of metrics.jsonl is `{"step": 120, "time": 1700000000.123, "train/loss": 4.5}`, time
    in seconds since 1970. JSON has no NaN: non-finite values stand there as the strings "NaN",
    "Infinity" and "-Infinity", which `float()` of Python reads; TensorBoard gets them as they are.
    Each line is handed to the operating system at once, so a kill loses none; TensorBoard's
    events wait for `flush`, or half a minute. Without TensorBoard installed there is
    metrics.jsonl alone, without matplotlib there are no figures, and one notice on stderr says so.

    Args:
        folder: of the run; held open by the caller.
        resume_step: the step of the checkpoint that the run goes on from; lines of later steps,
            and a last line cut off by a kill, are removed, and TensorBoard is told to drop its
            points of later steps. None begins anew: whatever there was is dropped.
        resume_lines: how many lines there were then; later ones are removed, of that step too. None
            where that is not known.

    Raises UserError if metrics.jsonl cannot be read or written (full disk); so do all methods.
    """

    def __init__(
        self, folder: RunFolder, *, resume_step: int | None, resume_lines: int | None = None
    ) -> None:
        keep = -1 if resume_step is None else resume_step
        self._folder = folder
        self._step = max(keep, 0)
        self._hparams_written = False
        try:
            _cut_back(folder, keep, resume_lines)
            # Line buffered: a line is one write, and is the system's before the call returns.
            self._file: TextIO = folder.metrics.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error
        try:
            self._writer = _summary_writer(folder, keep + 1)
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise self._error(error) from error
            raise
        self._draws = self._writer is not None and _can_draw()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` (numbers, or tensors of one element) at `step` (0 or more).

        Their names are other than "step" and "time", which the line has already.
        """
        numbers = {name: float(value) for name, value in values.items()}
        now = time.time()
        line: dict[str, int | float | str] = {"step": step, "time": round(now, 3)}
        line.update({name: _in_json(number) for name, number in numbers.items()})
        self._step = max(self._step, step)
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            if self._writer is not None:
                for name, number in numbers.items():
                    self._writer.add_scalar(name, number, step, walltime=now)
        except OSError as error:
            raise self._error(error) from error

    def figure(self, step: int, tag: str, figure: Figure | Callable[[], Figure]) -> None:
        """Records a matplotlib figure, or what draws one, at `step` in TensorBoard; closes it."""
        if self._writer is None or not self._draws:
            return
        try:
            figure = figure() if callable(figure) else figure
            self._writer.add_figure(tag, figure, step, close=True)
        except OSError as error:
            raise self._error(error) from error

    def text(self, tag: str, text: str, step: int | None = None) -> None:
        """Records a Markdown text in TensorBoard at `step`, by default the newest step."""
        if self._writer is None:
            return
        try:
            self._writer.add_text(tag, text, self._step if step is None else step)
        except OSError as error:
            raise self._error(error) from error

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Lists the run in TensorBoard's HPARAMS tab, in the run's own folder.

        Call it at the start with `metrics` empty, so that a killed run is listed too, at the end
        with the final metrics, or both: `config` is written once. Nested dicts are named
        with dots ("model.hidden"); None is "none", True "true", a list its JSON. The metrics become
        scalars "hparam/NAME" at the newest step; the tab's columns are all scalars of all runs.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        numbers = {f"hparam/{name}": value for name, value in metrics.items()}
        # The first summary fixes the tab's columns from this one run; without it the tab reads
        # them off all runs that lie side by side.
        _, start, end = hparams(_flat(config), numbers)
        events: Any = self._writer.file_writer
        try:
            if not self._hparams_written:
                events.add_summary(start)
                self._hparams_written = True
            if numbers:
                events.add_summary(end)
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, self._step)
        except OSError as error:
            raise self._error(error) from error

    def flush(self) -> None:
        """Writes everything out. Call it before saving the checkpoint that relies on it."""
        try:
            self._file.flush()
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Writes everything out and closes the files. Closing twice does nothing."""
        if self._file.closed:
            return
        try:
            self._file.close()
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except UserError:
            if kind is None:  # else what ended the block says more than a second full-disk error
                raise

    def _error(self, error: OSError) -> UserError:
        if not self._folder.path.is_dir():  # TensorBoard opens its file anew for every write
            return UserError(f"{self._folder.path}: the run's folder was renamed or deleted")
        return UserError(f"{self._folder.metrics}: metrics: {describe_os_error(error)}")


def _in_json(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    flat: dict[str, int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, bool):  # as a number, it would stand in the tab as 1.0
            flat[f"{prefix}{name}"] = "true" if value else "false"
        elif isinstance(value, (int, float, str)):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = "none" if value is None else json.dumps(value, default=str)
    return flat


def _cut_back(folder: RunFolder, keep: int, count: int | None) -> None:
    """Leaves in metrics.jsonl the whole lines of steps up to `keep`, the first `count` of them."""
    if not folder.metrics.exists():
        return
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    kept = [
        line for line, step in zip(lines, steps, strict=True) if step is not None and step <= keep
    ][:count]
    if len(kept) == len(lines):
        return
    with replacing(folder.metrics) as new:
        new.write_bytes(b"".join(kept))
    damaged = steps[:-1].count(None)  # a torn last line is what a kill leaves; others are not
    if damaged:
        print(
            f"notice: {folder.metrics}: dropped {damaged} lines that are not JSON with a step",
            file=sys.stderr,
        )


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None if the line is torn or not one of ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and step >= 0 else None


def _can_draw() -> bool:
    """Whether matplotlib is there, and takes the settings that it finds."""
    try:
        import matplotlib.pyplot  # noqa: F401  what TensorBoard's writer draws with
    except (ImportError, ValueError) as error:  # the latter for MPLBACKEND, as of a notebook
        print(
            f"notice: matplotlib cannot be imported (pip install 'symrnn[train]'): {error}: there "
            "are no figures",
            file=sys.stderr,
        )
        return False
    return True


class _ReportedOnce:
    """A `threading.excepthook` without the traceback that TensorBoard's thread prints.

    What ends that thread (a full disk) it also hands to the next call of its writer, and there
    it becomes a UserError: no need to tell it twice.
    """

    def __init__(self, former: Callable[[threading.ExceptHookArgs], object]) -> None:
        self.former = former

    def __call__(self, args: threading.ExceptHookArgs, /) -> None:
        ours = type(args.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(args.exc_value, OSError)):
            self.former(args)


def _summary_writer(folder: RunFolder, purge_step: int) -> SummaryWriter | None:
    """TensorBoard's writer, which drops earlier points from `purge_step` on; None if missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "notice: TensorBoard is not installed (pip install 'symrnn[train]'): metrics go to "
            f"{folder.metrics} only",
            file=sys.stderr,
        )
        return None
    if not isinstance(threading.excepthook, _ReportedOnce):
        threading.excepthook = _ReportedOnce(threading.excepthook)
    again = folder.tensorboard.is_dir() and any(folder.tensorboard.iterdir())
    if again:
        _put_before_now(folder.tensorboard)
    return SummaryWriter(
        log_dir=str(folder.tensorboard), purge_step=purge_step if again else None, flush_secs=30
    )


def _put_before_now(events: Path) -> None:
    """Renames event files where one would be read after a file that begins now.

    TensorBoard reads them in the order of their names, which hold the time of their beginning, and
    drops points by step as a later file says. So if the clock was set back, the number of a file
    takes the place of its time.
    """
    files = sorted(file for file in events.iterdir() if file.name.startswith(_EVENTS))
    if not files or files[-1].name < f"{_EVENTS}{int(time.time()):010}":
        return
    for number, file in enumerate(files, 1):
        rest = file.name.removeprefix(_EVENTS).partition(".")[2]
        file.rename(file.with_name(f"{_EVENTS}{number:010}.{rest}"))
