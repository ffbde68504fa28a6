"""What a sweep runs: the combinations of forms, other options and seeds, and the runs they come to.

The parser of lm.train resolves each combination to a configuration. Combinations of one
configuration are one run, and runs that differ in their seeds alone are a group. What a sweep is
stands in its folder, in sweep.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from lm.model import CELLS
from lm.optimizers import make_optimizer
from lm.options import MARKS, make_parser, resolve
from lm.saved import build_model, check_machine
from lm.train import open_training_corpus
from symrnn import count_parameters
from symrnn.files import (
    UserError,
    describe_os_error,
    is_file_aside,
    remove_files_aside,
    replace_text,
    to_json,
)
from symrnn.training import resolve_device
from symrnn.training.command_line import MACHINE, given, option_name, require_compiler
from symrnn.training.run_folder import lock_folder

Config = dict[str, Any]

_FILE, _VERSION = "sweep.json", 1
_MOST = 10_000  # seeds in a range; more of them is a slip of the keyboard


# ---- the command line ----------------------------------------------------------------------------


def seed_list(text: str) -> list[int]:
    """An argparse type: numbers and ranges. "1-3,7" is 1, 2, 3, 7; each is taken once."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r" *([0-9]{1,10}) *(?:- *([0-9]{1,10}) *)?", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < 2**32 or high - low >= _MOST:
            raise argparse.ArgumentTypeError(
                f"should be numbers and ranges from 0 to {2**32 - 1}, of at most {_MOST:,}, as in "
                f"1-3,7; got: {text!r}"
            )
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


def options_in(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of lm.train that stand in arguments, by their names in a configuration."""
    return given(_parse(arguments))


def check_common(arguments: Sequence[str]) -> None:
    """Raise UserError for arguments that lm.train refuses, or that are not for all runs alike."""
    options = _parse(arguments)
    of_the_sweep = {
        "seed": "--seeds 1-5",
        "symm": "--symm none avg",
        "out": "--out FOLDER, in which each run has a folder",
        "dry_run": "--dry-run",
        "resume": "the same command again, which goes on with what was begun",
        "auto_resume": "the same command again, which goes on with what was begun",
    }
    for name, instead in of_the_sweep.items():
        if getattr(options, name) not in (None, False):
            raise UserError(
                f"{option_name(name)} is not for the single runs: before the --, a sweep has "
                f"{instead}"
            )


def axes_of(vary: Iterable[Sequence[str]], arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option that varies beside form and seed, by its name in a configuration.

    vary: of each --vary, the option and its values.
    arguments: those for all runs alike.

    Raises UserError for an option that lm.train has not, that takes no value, that cannot vary, or
    that stands in ``arguments``; and for a value that lm.train refuses.
    """
    common = options_in(arguments)
    axes: dict[str, list[str]] = {}
    for option, *values in vary:
        option = "--" + option.lstrip("-")
        if not values:
            raise UserError(f"--vary {option}: wants values, as in --vary lr 1 0.5")
        for value in values:
            named = options_in([f"{option}={value}"])
        name = next(iter(named), "out")
        if name in ("out", "seed", "symm"):
            raise UserError(
                f"--vary {option}: is not for --vary; a sweep has --seeds and --symm, and its runs "
                "are stored in --out"
            )
        if name in MACHINE and name != "data":
            raise UserError(f"--vary {option}: says where a run happens, not what it is")
        if name in axes:
            raise UserError(f"--vary {option}: stands twice; give all its values at once")
        if name in common:
            raise UserError(f"--vary {option}: stands after the -- too; leave it out there")
        axes[name] = list(dict.fromkeys(values))
    return axes


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of lm.train; what its parser finds wrong is a UserError."""
    parser = make_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


# ---- runs ----------------------------------------------------------------------------------------


@dataclass
class PlannedRun:
    """One run of a sweep. JSON.

    name: of its folder in the sweep's.
    options: what tells its group from the others, by name: "symm", and what varies beside it.
    arguments: of lm.train, beside those for all runs alike.
    config: resolved, with marks of the data, but without what only says where it runs.
    steps: of the whole run.
    parameters: "training", "deployed", and of these "recurrent".
    failed: how it failed when it was last run; "" if it did not.
    """

    name: str
    options: dict[str, str]
    arguments: list[str]
    config: Config
    steps: int
    parameters: dict[str, int]
    failed: str = ""

    @property
    def group(self) -> Config:
        """What the runs of a group have in common, and no other run has."""
        return {k: v for k, v in self.config.items() if k not in ("seed", "data")}

    @property
    def label(self) -> str:
        """Its group in words: "avg", or "avg, symm-ih ifgo"."""
        others = [f"{_word(name)} {value or 'none'}" for name, value in self.options.items()][1:]
        return ", ".join([self.options["symm"], *others])


def _word(name: str) -> str:
    return option_name(name).removeprefix("--")


def stem_of(options: Mapping[str, str]) -> str:
    """The name of a group, and of its folders but for the seed: "avg-diag16-symm-ih=ifgo".

    Every file system takes it.
    """
    parts = [options["symm"]]
    for name, value in options.items():
        if name != "symm":
            value = Path(value).name if name == "data" else value
            parts.append(f"{_word(name)}={value or 'none'}")
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", "-".join(parts))[:120].strip(".-")


class Resolver:
    """Makes configurations of arguments of lm.train, as lm.train would.

    arguments: those for all runs alike.
    here: whether the runs are to run on this machine, which is then checked for it.

    given: the options that stand in ``arguments``, by name.
    """

    def __init__(self, arguments: Sequence[str], here: bool) -> None:
        self.arguments = arguments
        self.here = here
        self.given = options_in(arguments)
        self._corpora: dict[str, tuple[int, int, Config]] = {}

    def __call__(self, own: Sequence[str]) -> tuple[Config, int, dict[str, int]]:
        """The configuration, the steps and the parameters of the run with those arguments too.

        Raises UserError (or DataError) for what lm.train would refuse.
        """
        config = resolve(options_in([*self.arguments, *own]))
        if self.here:
            device = resolve_device(config["device"])
            check_machine(config, device)
            if config["compile"]:
                require_compiler(device)
        vocab_size, batches, marks = self._corpus(config)
        parameters = _count(config, vocab_size)
        config = {k: v for k, v in config.items() if k not in MACHINE or k == "data"} | marks
        return config, config["epochs"] * batches, parameters

    def _corpus(self, config: Config) -> tuple[int, int, Config]:
        """Size of the vocabulary, batches in an epoch, and what a configuration says of the data.

        Each corpus is opened once, and is on the disk when the runs begin.
        """
        names = ("data", "tokenizer", "vocab_size", "min_count")
        sizes = ("batch_size", "steps", "random_steps")
        key = json.dumps([config[name] for name in (*names, *sizes)])
        if key not in self._corpora:
            marked = dict(config)
            corpus, batches_in = open_training_corpus(marked, None)
            marks = {k: v for k, v in marked.items() if k not in config}
            self._corpora[key] = len(corpus.codec), len(batches_in(1)), marks
        return self._corpora[key]


def _count(config: Config, vocab_size: int) -> dict[str, int]:
    """The parameters of the model that is trained, and of the one that is deployed."""
    with torch.device("meta"):
        model = build_model(config, vocab_size)
        make_optimizer(model, config)  # which may refuse a number
        count = count_parameters(model)
        training = count.training
        if config["soft_symmetry"]:  # which is saved as the upper triangles of all gates
            gates = CELLS[config["cell"]].GATES
            hardened = {**config, "symm": "tri", "symm_hh": gates}
            count = count_parameters(build_model(hardened, vocab_size))
    return {"training": training, "deployed": count.deployed, "recurrent": count.recurrent}


# ---- a sweep -------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """A sweep, as sweep.json has it.

    arguments: of lm.train, for all runs alike.
    commands: that began it and added to it, as a shell takes them.
    threads: of each run; None where lm.train decides.
    environment: what it was begun on; None if its commands were printed only.
    runs: in the order in which they are run: the first seed of every group, the second, ...
    """

    folder: Path
    arguments: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    threads: int | None = None
    environment: dict[str, Any] | None = None
    runs: list[PlannedRun] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep in a folder; UserError if there is none, or its file is damaged."""
        path = folder / _FILE
        try:
            stored = json.loads(path.read_bytes())
            if stored.pop("version") != _VERSION:
                raise UserError(f"{path}: is of another version of this program")
            stored["runs"] = [PlannedRun(**run) for run in stored["runs"]]
            return cls(folder, **stored)
        except FileNotFoundError:
            raise UserError(f"{folder}: holds no sweep (there is no {_FILE})") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {describe_os_error(error)}") from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: is damaged: {error!r}") from error

    def write(self) -> None:
        """Store it, in one step; UserError if it cannot be written."""
        stored = {"version": _VERSION, **asdict(self)}
        del stored["folder"]
        replace_text(self.folder / _FILE, to_json(stored, "sweep", indent=1) + "\n")

    def folder_of(self, run: PlannedRun) -> Path:
        """The folder of a run."""
        return self.folder / run.name

    def log_of(self, run: PlannedRun) -> Path:
        """The file with what a run printed."""
        return self.folder / "logs" / f"{run.name}.txt"

    def plan(
        self,
        resolver: Resolver,
        seeds: Sequence[int],
        forms: Sequence[str],
        axes: Mapping[str, Sequence[str]],
    ) -> tuple[list[PlannedRun], list[str]]:
        """The runs of all combinations, in order; those that are new are added to the sweep's.

        Returns them, and a line for each group that several combinations came to.

        Raises UserError for what lm.train would refuse, and if a run that the sweep has would be
        another one with the arguments of ``resolver``.
        """
        self._check_same(resolver)
        groups: list[list[PlannedRun]] = []  # of combinations that are the same runs
        for symm, *values in itertools.product(forms, *axes.values()):
            options = dict(zip(axes, values, strict=True))
            own = ["--symm", symm, *(f"{option_name(k)}={v}" for k, v in options.items())]
            config, steps, parameters = resolver([*own, "--seed", str(seeds[0])])
            made = PlannedRun("", {"symm": symm, **options}, own, config, steps, parameters)
            same = next((group for group in groups if group[0].group == made.group), None)
            if same is None:
                groups.append([made])
            else:
                same.append(made)
        stems = {run.name.rpartition("-seed")[0] for run in self.runs}
        merged = []
        for group in groups:
            labels = list(dict.fromkeys(run.label for run in group))
            self._name(group, stems)
            if len(labels) > 1:
                merged.append(f"{group[0].label} is run once for: {'; '.join(labels)}")
        planned = [self._seeded(group[0], seed) for seed in seeds for group in groups]
        names = {run.name for run in self.runs}
        self.runs += [run for run in planned if run.name not in names]
        return planned, merged

    def _check_same(self, resolver: Resolver) -> None:
        """Raise UserError unless the runs that the sweep has would still be the same."""
        varied = {name for run in self.runs for name in run.options} & resolver.given.keys()
        if varied:
            raise UserError(
                f"{self.folder}: holds a sweep in which {option_name(min(varied))} varies: give it "
                "by --vary, or another --out"
            )
        # The last two arguments are the seed.
        firsts = {tuple(run.arguments[:-2]): run for run in reversed(self.runs)}
        for run in firsts.values():
            now, _, _ = resolver(run.arguments)
            changed = [k for k in now if k != "data" and run.config.get(k) != now[k]]
            marks = [k for k in changed if k in MARKS]
            words = [f"the {name.replace('_', ' ')} is another" for name in marks] or [
                f"{option_name(k)} is {run.config.get(k)}, not {now[k]}" for k in changed
            ]
            if words:
                raise UserError(
                    f"{self.folder}: holds a sweep of other runs: {', '.join(words[:3])}: give the "
                    "same arguments after the --, or another --out"
                )

    def _name(self, group: Sequence[PlannedRun], stems: set[str]) -> None:
        """Name the first of combinations that are the same runs as their group, and add it."""
        first = group[0]
        for run in self.runs:
            if run.group == first.group:
                first.name, first.options = run.name.rpartition("-seed")[0], run.options
                return
        first.options = {
            name: value
            for name, value in first.options.items()
            if name == "symm" or all(other.options[name] == value for other in group)
        }
        # Folders whose names differ in the case of their letters alone are one on some systems.
        used = {stem.casefold() for stem in stems}
        stem = first.name = stem_of(first.options)
        for number in itertools.count(2):
            if first.name.casefold() not in used:
                break
            first.name = f"{stem}-{number}"
        stems.add(first.name)

    def _seeded(self, first: PlannedRun, seed: int) -> PlannedRun:
        """The run of that seed in the group of ``first``."""
        for run in self.runs:
            if run.config["seed"] == seed and run.group == first.group:
                return run
        return PlannedRun(
            f"{first.name}-seed{seed}",
            first.options,
            [*first.arguments, "--seed", str(seed)],
            {**first.config, "seed": seed},
            first.steps,
            first.parameters,
        )


def has_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep; UserError if it holds something else."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise UserError(f"{folder}: cannot be the folder of a sweep: it is a file") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {describe_os_error(error)}") from error
    names = sorted(name for name in names if name != ".lock" and not is_file_aside(name))
    if names and _FILE not in names:
        raise UserError(
            f"{folder}: is not empty and holds no sweep ({', '.join(names[:3])}); choose a new or "
            "an empty folder"
        )
    return bool(names)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder of a sweep, if it is not there, and hold it: no other sweep can.

    Raises UserError if another process holds it, or if it is the folder of something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        has_sweep(folder)
        lock = lock_folder(folder)
        remove_files_aside(folder)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: cannot be the folder of a sweep: it is a file") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {describe_os_error(error)}") from error
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
