"""The loop of a training run: epochs and steps, logs, checkpoints, interrupts, exact resume.

A training program, in one process or in many::

    with World() as world, Run("lm.train", world) as run:
        config = run.configure(make_parser().parse_args(), resolve, resume_config)
        learner = ...                                   # the data, the model and its optimizer
        run.start(learner, config, ...)
        for epoch in run.epochs(config["epochs"]):
            for inputs, targets in run.steps(batches):
                loss = learner.step(inputs, targets)
                if run.due:
                    run.log({"train/loss": loss})
            if run.stopped:
                break
            with run.measuring():
                run.keep_best(validate(model, run.terminated), save)
        return run.end(lambda: {...})
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from symrnn.files.errors import UserError
from symrnn.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_meta,
    model_tensors,
    restore_model,
    save_checkpoint,
)
from symrnn.training.command_line import (
    MACHINE,
    folder_to_resume,
    given,
    print_table,
    require_compiler,
    unused_folder,
)
from symrnn.training.interrupt import SIGNALS, Interrupt, Stopped
from symrnn.training.process import environment, keep_freed_memory, peak_memory, set_threads
from symrnn.training.progress import progress_bar
from symrnn.training.run_folder import RunFolder
from symrnn.training.state import check_like, pack_state, unpack_state
from symrnn.training.tracker import Tracker
from symrnn.training.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = TypeVar("Batch")
Config = dict[str, Any]


@dataclass
class Progress:
    """Where a run stands; with the tensors in a checkpoint, all it needs to go on exactly.

    A program may add fields of its own, with defaults.
    """

    best: float  # the best validation so far; at first, what any is better than
    epoch: int = 1  # the epoch under way, from 1
    batch: int = 0  # how many of its batches were begun
    step: int = 0  # how many steps were begun in all
    lr: float = 0.0
    nats: float = 0.0  # sum of the training losses of this epoch
    seconds: float = 0.0  # spent so far, over all resumes
    began: float = 0.0  # ``seconds`` as the epoch under way began
    lines: int | None = None  # that were logged so far; former runs did not count them
    ended: bool = False  # whether the run ended before its last epoch, as the recipe wants it

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for what a checkpoint cannot say of a run."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and type(value) is not bool:
                raise TypeError(f"{field.name} should be of type bool, got: {value!r}")
            if field.type not in ("int", "float"):
                continue
            if type(value) is not int and (field.type == "int" or type(value) is not float):
                raise TypeError(f"{field.name} should be of type {field.type}, got: {value!r}")
            # At first the best is what any other is better than.
            if field.name != "best" and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} should be 0 or more, got: {value!r}")
        if self.lines is not None and (type(self.lines) is not int or self.lines < 0):
            raise ValueError(f"lines should be None, 0 or more, got: {self.lines!r}")


class Learner:
    """What is trained, in one of the processes: a model, its optimizer, and where they stand.

    A program adds its step, and to :meth:`state` whatever else the step depends on.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.progress = progress
        self.rate: float | None = None  # of the last step, if there was one

    def set_lr(self, lr: float) -> None:
        """The learning rate from the next step on; symmetric weights have theirs in proportion."""
        self.progress.lr = lr
        self.set_rate(lr)

    def set_rate(self, lr: float) -> None:
        """That of the next step alone."""
        self.rate = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def end_epoch(self) -> None:
        """Forget what belongs to one epoch."""
        self.progress.nats = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model and the progress; called in all processes."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave, after model and progress.

        Raises KeyError, TypeError, ValueError or RuntimeError for anything else.
        """
        saved, own = state["optimizer"], self.optimizer.state_dict()
        check_like(saved, {"state": {}, "param_groups": [{}]}, "optimizer")
        for group, ours in zip(saved["param_groups"], own["param_groups"], strict=True):
            # What else a group has comes from the configuration.
            check_like(group["lr"], 0.0, "optimizer/param_groups/lr")
            for name in ours.keys() - {"lr"}:
                if group.get(name, ours[name]) != ours[name]:
                    raise ValueError(
                        f"optimizer/param_groups/{name} should be {ours[name]!r}, got: "
                        f"{group[name]!r}"
                    )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len({frozenset(entries) for entries in saved["state"].values()}) > 1:
            raise ValueError("optimizer/state should have the same entries for each parameter")
        for index, entries in saved["state"].items():
            if type(index) is not int or not 0 <= index < len(parameters):
                raise ValueError(f"optimizer/state has {index!r}, for {len(parameters)} parameters")
            check_like(entries, {}, f"optimizer/state/{index}")
            for name, value in entries.items():
                if value is not None:
                    place = f"optimizer/state/{index}/{name}"
                    like = parameters[index].detach()
                    if name in _SCALARS:
                        like = like.new_zeros((), dtype=torch.float32)
                    check_like(value, like, place)
        groups = zip(own["param_groups"], saved["param_groups"], strict=True)
        merged = [{**ours, "lr": group["lr"]} for ours, group in groups]
        self.optimizer.load_state_dict({**saved, "param_groups": merged})


_SCALARS = ("step", "eta", "mu")
"""What optimizers of torch.optim keep of each parameter that is one number."""


class Run:
    """One training run, seen from one of its processes: configure, start, epochs, report.

    The first process holds the run's folder and alone writes: nothing here differs in the others,
    whose lines and files go nowhere. A checkpoint follows all lines of its step and no other line
    of that step follows it, so that a run killed anywhere and resumed has every line once.

    Ctrl-C ends it after the step or validation under way, with its report. SIGTERM, from those who
    kill after some seconds, ends it after the step under way or within a validation, without.

    program: its module, as ``python -m`` takes it.
    then: what the first Ctrl-C leads to after the step, for the line that it prints.

    device: of this process; known from :meth:`configure` on.
    resumed: the folder of the run that is continued; None for a new run.
    begun: whether that has a checkpoint to go on from.
    stopped: whether an interrupt ended the run within an epoch.
    """

    device: torch.device
    learner: Learner

    def __init__(self, program: str, world: World, then: str = "") -> None:
        self.program = program
        self.world = world
        self.resumed: Path | None = None
        self.begun = False
        self.stopped = False
        self._out: Path | None = None
        self._folder: RunFolder | None = None
        self._checkpoint: Checkpoint | None = None
        self._tracker: Tracker | None = None
        self._interrupt = Interrupt("ending after this step", then)
        self._ended_by: signal.Signals | None = None  # the same in all processes
        self._logged = True  # whether there are lines that the steps before did not write
        self._bar: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: Any) -> None:
        # A generator that an error left would end its blocks only when it is collected.
        self._interrupt.__exit__(*error)
        if self._bar is not None:
            self._bar.close()
        self._open.__exit__(*error)

    # ---- begin ---------------------------------------------------------------------------------

    def configure(
        self,
        options: argparse.Namespace,
        resolve: Callable[[Config], Config],
        resume: Callable[[Config, Config, Path], Config],
    ) -> Config:
        """The run's configuration, the same in all processes; and this process is made ready.

        A run that is continued has its folder opened here, once, and locked from here on.

        options: of the command line, with those of ``add_run_options``.
        resolve: the configuration of a new run from the options that were given.
        resume: that of a continued one, from its own, the options that were given, and its folder.
        """
        world = self.world
        with world.agreeing():
            self._out = options.out
            config: Config = {}
            if world.first:  # of several machines it alone may see the folder
                self.resumed = folder_to_resume(options)
            if world.first and self.resumed is None:
                config = resolve(given(options))
            elif self.resumed is not None:
                self._folder = self._open.enter_context(RunFolder.open(self.resumed))
                config = resume(self._folder.config, given(options), self.resumed)
                if self._folder.last.exists():
                    self._checkpoint = _last_checkpoint(self._folder, config)
        state = (self.resumed, self._checkpoint is not None, config)
        self.resumed, self.begun, config = world.share(lambda: state)
        with world.agreeing():
            self.device = world.device(config["device"])
            set_threads(config["threads"])
            if self.device.type == "cpu":
                keep_freed_memory()
            if config["compile"]:
                require_compiler(self.device)
        return config

    def start(
        self,
        learner: Learner,
        config: Config,
        *,
        name: str,
        batches: int,
        batch_size: int,
        unit: str,
        lowest_is_best: bool,
        bounds: Callable[[int], Sequence[int]] | None = None,
        facts: Mapping[str, object] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        """Make the folder of a new run; take up the last checkpoint of another; open the logs.

        name: of a new run's folder in runs/, where --out names none.
        batches, batch_size, unit: how many batches are in an epoch, how much is in each, and of
            what.
        lowest_is_best: of what :meth:`keep_best` compares.
        bounds: of an epoch, how much is before each of its batches, and last, how much there is;
            where not all are of that size. ``batches`` is then about how many there are.
        facts: what is trained and on what, to be printed before the first step.
        meta: what a checkpoint's meta holds beside configuration and state.
        """
        self.learner = learner
        self.config = config
        whole = range(0, batches * batch_size + 1, batch_size)
        self._bounds_of = bounds or (lambda _: whole)
        self._bounds: tuple[int, Sequence[int]] = (0, [])  # an epoch, and those of it
        self._unit = unit
        self._lowest_is_best = lowest_is_best
        self._meta = meta or {}
        self._clock = time.monotonic()
        with self.world.agreeing():
            if self.resumed is None and self.world.first:
                path = self._out or unused_folder(Path("runs") / name)
                self._folder = self._open.enter_context(RunFolder.create(path, config))
        if self._folder is not None:
            print(f"the run is kept in {self._folder.path}", flush=True)
        begun, progress = self._restore(), self.progress
        longer = self._folder is not None and self._folder.config["epochs"] != config["epochs"]
        if longer and progress.ended:
            print(f"more epochs are not begun: it ended after {progress.epoch - 1}, by its recipe")
        elif longer and self._folder is not None:
            print(f"extended from {self._folder.config['epochs']} epochs", flush=True)
            self._folder.extend(config["epochs"])
        if begun and progress.batch == 0:
            self._keep_epoch()  # the run may have been killed before it did so
        if self._finished:
            print(f"it is finished: {progress.epoch - 1} epochs, {progress.step} steps", flush=True)
        elif begun:
            print(f"continuing after step {progress.step}, in epoch {progress.epoch}", flush=True)
        if self._folder is None or self._finished:
            return
        epochs = f"{config['epochs']} epoch{'s' * (config['epochs'] != 1)}"
        length = f"{epochs} of {'about ' * (bounds is not None)}{batches:,} steps"
        print_table({**(facts or {}), "runs on": self._place(), "length": length}, 16)
        if not begun:
            progress.lines = 0
        since = progress.step if begun else None
        self._tracker = self._open.enter_context(
            Tracker(self._folder, resume_step=since, resume_lines=progress.lines)
        )
        if not begun:
            self._tracker.hparams(config, {})
            facts = {**environment(), "processes": self.world.size}
            lines = [f"    {name}: {value}" for name, value in facts.items()]
            self._tracker.text("environment", "\n".join(lines))

    def _place(self) -> str:
        """Where the run happens, in words."""
        threads = torch.get_num_threads()
        place = [f"{self.device} ({threads} thread{'s' * (threads > 1)})"]
        if self.device.type != "cpu":
            place = [f"{self.device} ({torch.cuda.get_device_name(self.device)})"]
        if self.world.size > 1:
            place.append(f"{self.world.size} processes")
        place += [f"backend {self.config['backend']}"] if "backend" in self.config else []
        place += [str(self.config["precision"])] if "precision" in self.config else []
        return ", ".join(place)

    def _restore(self) -> bool:
        """Take up the run's last checkpoint, in all processes; whether there is one."""
        checkpoint = self.world.share(lambda: self._checkpoint)
        self._checkpoint = None  # it is as large as the model
        if checkpoint is None:
            return False
        learner = self.learner
        with self.world.agreeing():
            restore_model(learner.model, checkpoint)
            try:
                for name, tensor in model_tensors(learner.model).items():
                    check_like(checkpoint.tensors[name], tensor, name)
                state = unpack_state(checkpoint.tensors, checkpoint.meta["state"])
                progress = dict(state["progress"])
                if "window" in progress:  # the language model's name for it, formerly
                    progress["batch"] = progress.pop("window")
                learner.progress = type(learner.progress)(**progress)
                self._check_progress()
                learner.load_state(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"{checkpoint.path}: not a checkpoint that a run goes on from: {error!r}"
                ) from error
        return True

    def _check_progress(self) -> None:
        """Raise ValueError unless epoch, batch and step fit together and the run's length."""
        progress = self.progress
        former = range(1, progress.epoch)
        if not (
            1 <= progress.epoch <= self.config["epochs"] + (progress.batch == 0)
            and progress.batch <= self.batches
            and progress.step - progress.batch
            == sum(len(self._bounds_of(epoch)) - 1 for epoch in former)
        ):
            raise ValueError(
                f"step {progress.step} is not batch {progress.batch} of {self.batches} in epoch "
                f"{progress.epoch} of {self.config['epochs']}"
            )

    # ---- the loop ------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self.learner.progress

    @property
    def batches(self) -> int:
        """How many there are in the epoch under way."""
        return len(self._epoch_bounds) - 1

    @property
    def done(self) -> int:
        """How much of the epoch was begun, in units (tokens, pictures), of all processes."""
        return self._epoch_bounds[self.progress.batch]

    @property
    def _epoch_bounds(self) -> Sequence[int]:
        if self._bounds[0] != self.progress.epoch:
            self._bounds = self.progress.epoch, self._bounds_of(self.progress.epoch)
        return self._bounds[1]

    @property
    def _finished(self) -> bool:
        return self.progress.ended or self.progress.epoch > self.config["epochs"]

    def finish(self) -> None:
        """End the run after the epoch under way, whatever its last would be."""
        self.progress.ended = True

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left, from 1 to ``count``, with a checkpoint after each.

        It ends early at an interrupt of any process.
        """
        progress = self.progress
        with self._interrupt:
            # Asked here too, as an interrupt may come during a validation.
            while not progress.ended and progress.epoch <= count and not self._interrupted():
                yield progress.epoch
                if self.stopped:  # within a validation
                    return
                progress.epoch += 1
                progress.batch = 0
                self.learner.end_epoch()
                progress.began = self._seconds()
                self._save()
                self._keep_epoch()

    def steps(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches that are left of this epoch, with a checkpoint after every --save-every.

        It ends early at an interrupt of any process, with a checkpoint, and sets ``stopped``.

        batches: from ``progress.batch`` on, this process's part of each.
        """
        progress = self.progress
        bounds, done = self._epoch_bounds, self.done
        self._since = (time.perf_counter(), done)
        self.learner.model.train()
        self._bar = progress_bar(
            total=bounds[-1],
            initial=done,
            desc=f"epoch {progress.epoch}/{self.config['epochs']}",
            unit=self._unit,
        )
        with self._bar:
            for batch in batches:
                progress.batch += 1
                progress.step += 1
                yield batch
                self._bar.update(bounds[progress.batch] - bounds[progress.batch - 1])
                if progress.batch == self.batches:
                    break  # the checkpoint comes after the validation
                self.stopped = self._interrupted()
                if self.stopped or progress.step % self.config["save_every"] == 0:
                    self._save()
                if self.stopped:
                    return
        self._logged = False

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """A validation or test, which may take long: on a SIGTERM it is given up, in all processes.

        What measures asks :meth:`terminated` again and again, and raises :class:`Stopped`; that
        ends the block, and the epochs. The run goes on from here, or from the last checkpoint
        if the block has written lines, which it will write again.
        """
        try:
            yield
        except Stopped:
            self.stopped = True
            self._ended_by = signal.SIGTERM
            if not self._logged:
                self._save()

    def terminated(self) -> bool:
        """Whether this process was sent a SIGTERM."""
        return self._interrupt.number == signal.SIGTERM

    def _interrupted(self) -> bool:
        """Whether an interrupt of any process ends the run; a SIGTERM counts more."""
        came = self.world.sum([float(self._interrupt.number == number) for number in SIGNALS])
        for number, count in zip(SIGNALS, came, strict=True):
            if count:
                self._ended_by = number
        return self._ended_by is not None

    @property
    def due(self) -> bool:
        """Whether the step under way is one to be logged, by --log-every."""
        return self.progress.step % self.config["log_every"] == 0

    def log(self, values: Mapping[str, float], note: str | None = None) -> None:
        """Log numbers at the present step; ``note`` stands beside the progress bar."""
        self._logged = True
        if self._tracker is not None:
            self._tracker.scalars(self.progress.step, values)
            if self.progress.lines is not None:
                self.progress.lines += 1
        if note is not None:
            self._bar.set_postfix_str(note)

    def speed(self) -> float:
        """Units (tokens, pictures) a second, of all processes, since it was last asked."""
        (since, before), self._since = self._since, (time.perf_counter(), self.done)
        return (self.done - before) / (self._since[0] - since)

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        """Log a picture at the present step; it is not drawn where there is no tracker of such.

        The run's time does not count it.
        """
        if self._tracker is not None:
            self._seconds()
            self._tracker.figure(self.progress.step, name, draw)
            self._clock = time.monotonic()

    def outcome(self, metrics: Mapping[str, float]) -> None:
        """Log what the run came to, beside its configuration."""
        if self._tracker is not None:
            self._tracker.hparams(self.config, metrics)

    def epoch_seconds(self) -> float:
        """How long the epoch under way has taken so far, over all resumes."""
        return self._seconds() - self.progress.began

    def require_finite(self, what: str, value: float) -> None:
        """Raise UserError, which ends the run, for a number that all processes see is none."""
        if math.isfinite(value):
            return
        if self._folder is None:  # the first process, which sees the same, says so
            raise SystemExit(UserError.exit_code)
        progress, rate = self.progress, self.learner.rate
        files = [str(file) for file in (self._folder.best, self._folder.last) if file.exists()]
        raise UserError(
            f"the {what} is {value} in epoch {progress.epoch}, after {progress.batch} of its "
            f"{self.batches} batches (step {progress.step}), at learning rate "
            f"{progress.lr if rate is None else rate:g}: stopped; checkpoints from before: "
            f"{', '.join(files) or 'none yet'}"
        )

    def keep_best(self, value: float, save: Callable[[Path], None]) -> bool:
        """Save the model if its validation is the best so far; whether it is."""
        best = self.progress.best
        if not (value < best if self._lowest_is_best else value > best):
            return False
        self.progress.best = value
        if self._folder is not None:
            save(self._folder.best)
        return True

    def _save(self) -> None:
        """Write the checkpoint from which the run would go on exactly."""
        model = self.learner.model
        weights = [parameter.detach().abs().max() for parameter in model.parameters()]
        self.require_finite("largest weight", torch.stack(weights).max().item())
        self._seconds()
        state = {**self.learner.state(), "progress": asdict(self.progress)}
        if self._folder is None or self._tracker is None:
            return
        self._tracker.flush()  # first the lines, then the checkpoint that relies on them
        tensors, packed = pack_state(state, "state")
        save_checkpoint(
            self._folder.last,
            {**model_tensors(model), **tensors},
            {"config": self.config, **self._meta, "state": packed},
        )

    def _keep_epoch(self) -> None:
        """Keep the checkpoint after the last epoch as one of those of --keep."""
        if self._folder is not None:
            self._folder.keep_epoch(self.progress.epoch - 1, self.config.get("keep", 0))

    def _seconds(self) -> float:
        """The seconds spent on the run so far, over all resumes."""
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now
        return self.progress.seconds

    # ---- end -----------------------------------------------------------------------------------

    @property
    def best(self) -> Path:
        """The file of the best model; in the first process."""
        assert self._folder is not None
        return self._folder.best

    def end(self, results: Callable[[], Mapping[str, str]]) -> int:
        """Say what came of the run: the program's lines, its time and memory.

        results: makes the lines, in the first process, and not after a SIGTERM.

        Returns what the program ends with: 0, or as shells have it, 128 + the signal that ended the
        run before its last epoch.
        """
        if self._folder is not None:
            print()
            if not self._finished:
                print(f"interrupted in epoch {self.progress.epoch}; to go on:")
                print(f"  python -m {self.program} --resume {shlex.quote(str(self._folder.path))}")
            if self._ended_by != signal.SIGTERM:
                time_and_memory = {
                    "time": f"{self.progress.seconds:.1f} s",
                    "peak memory": f"{peak_memory(self.device) / 2**20:.0f} MiB",
                }
                print_table({**results(), **time_and_memory})
        return 0 if self._finished or self._ended_by is None else 128 + self._ended_by


def saved_progress(path: Path) -> dict[str, Any]:
    """Where the run stands whose checkpoint that is: the fields of its :class:`Progress`.

    From the header alone, which is quick, and not verified. Raises CheckpointError if there is none
    to be read.
    """
    try:
        state = dict(load_meta(path)["state"]["dict"])  # packed; the rest of it wants the tensors
        progress: dict[str, Any] = unpack_state({}, state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {error!r}") from error
    return progress


def _last_checkpoint(folder: RunFolder, config: Config) -> Checkpoint:
    """The checkpoint that a run goes on from; CheckpointError if it is of another configuration."""
    checkpoint = load_checkpoint(folder.last)
    saved = checkpoint.meta.get("config")
    if not isinstance(saved, dict):
        raise CheckpointError(f"{folder.last}: not a checkpoint that a run goes on from")
    for name in (config.keys() & saved.keys()) - {*MACHINE}:  # other versions may have fewer
        # A run that is extended says so in config.json first.
        extended = name == "epochs" and type(saved[name]) is int and saved[name] < config[name]
        if config[name] != saved[name] and not extended:
            raise CheckpointError(
                f"{folder.last}: not the checkpoint of this run: {name} is {saved[name]!r} in it, "
                f"{config[name]!r} in config.json"
            )
    return checkpoint
