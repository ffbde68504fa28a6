"""What the command lines of the training programs share: options, and configurations from them.

A configuration is a flat dict, JSON as it stands, from the options' names to their values: what the
run's folder holds, what ``--dry-run`` prints, and what the programs read.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from symrnn.files.errors import UserError
from symrnn.symmetry import check_symmetry_name, list_symmetries, numbered_symmetries
from symrnn.training.run_folder import is_begun

SOFT_DEFAULTS: dict[str, Any] = {"soft_symmetry": 0.0, "soft_norm": 2}

RUN_DEFAULTS: dict[str, Any] = {
    "compile": False,
    "seed": 1,
    "device": "auto",
    "threads": None,
    "save_every": 500,
    "log_every": 50,
    "keep": 0,
}
"""What an option of a run that isn't given stands for."""

MACHINE = ("data", "workers", "device", "threads", "save_every", "log_every", "keep")
"""Options that say where a run happens, not what it is: a resumed run may change them."""

# ---- types of arguments ------------------------------------------------------------------------


def number(
    kind: type[int] | type[float], low: float, high: float = math.inf, *, open_low: bool = False
) -> Callable[[str], Any]:
    """An argparse type: a number of ``kind`` from ``low`` (not itself if open_low) to ``high``."""

    def parse(text: str) -> Any:
        allowed = f"a{'n integer' if kind is int else ' number'} "
        allowed += f"above {low}" if open_low else f"of at least {low}"
        allowed += f" and at most {high}" if high < math.inf else ""
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"should be {allowed}, got: {text!r}") from None
        if (
            not (low < value if open_low else low <= value)
            or not value <= high
            or value == math.inf
        ):
            raise argparse.ArgumentTypeError(f"should be {allowed}, got: {text!r}")
        if value > _LARGEST[kind]:
            raise argparse.ArgumentTypeError(f"should be at most {_LARGEST[kind]}, got: {text!r}")
        return value

    return parse


_LARGEST = {int: torch.iinfo(torch.int64).max, float: torch.finfo(torch.float32).max}


def symmetry(text: str) -> str:
    """An argparse type: the name of a symmetric form, or "none"."""
    try:
        check_symmetry_name("it", text, "none")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def known_or_path(known: Collection[str]) -> Callable[[str], str]:
    """An argparse type: one of the ``known`` names, or the absolute path of anything else."""
    return lambda text: text if text in known else os.path.realpath(text)


# ---- options -----------------------------------------------------------------------------------


def add_symmetry_options(add: Callable[..., Any], default: str, weights: str) -> None:
    """The options on forms. ``add``: an ``add_argument``; ``weights``: which a penalty is of."""
    forms = ", ".join([*list_symmetries(), *numbered_symmetries()])
    add("--symm", type=symmetry, metavar="FORM", help=f"none, {forms} ({default})")
    add(
        "--soft-symmetry",
        type=number(float, 0, open_low=True),
        metavar="RHO",
        help=f"full {weights} W, with RHO·‖W − Wᵀ‖ added to the loss; the model that is "
        "measured and saved has their upper triangles (implies --symm none)",
    )
    add("--soft-norm", type=int, choices=[1, 2], help="which norm that is (2)")


def add_machine_options(add: Callable[..., Any]) -> None:
    """The options of every program. ``add``: an ``add_argument``."""
    add("--device", help="auto, cpu, cuda, cuda:1, … (auto)")
    add("--threads", type=number(int, 1, 1024), help="of one CPU operation (PyTorch's choice)")


def add_run_options(add: Callable[..., Any]) -> None:
    """The options of a training run. ``add``: an ``add_argument``."""
    add("--out", type=Path, metavar="FOLDER", help="where the run is stored (a new one in runs/)")
    add(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the run stored there (without FOLDER: in --out) exactly where it stopped",
    )
    add(
        "--auto-resume",
        action="store_true",
        default=None,
        help="continue the run in --out if it was begun, and else begin it there",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), help="(1)")
    add_machine_options(add)
    add("--compile", action="store_true", default=None, help="run the model by torch.compile")
    add("--save-every", type=number(int, 1), metavar="STEPS", help="between checkpoints (500)")
    add("--log-every", type=number(int, 1), metavar="STEPS", help="between logged points (50)")
    add(
        "--keep",
        type=number(int, 0),
        metavar="N",
        help="the checkpoints of the last N epochs, beside the best model and the newest (0)",
    )
    add("--dry-run", action="store_true", help="print configuration and counts, train nothing")


# ---- configurations ----------------------------------------------------------------------------


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that stand on the command line, without those about the run's folder."""
    apart = ("out", "resume", "auto_resume", "dry_run")
    return {k: v for k, v in vars(options).items() if v is not None and k not in apart}


def check_soft_symmetry(given: Mapping[str, Any]) -> None:
    """Raise UserError for options that contradict --soft-symmetry, or lack it."""
    if "soft_symmetry" in given:
        if given.get("symm", "none") != "none":
            raise UserError(
                "--soft-symmetry wants --symm none, for it draws full matrices towards symmetric "
                f"ones; got: --symm {given['symm']}"
            )
    elif "soft_norm" in given:
        raise UserError(f"--soft-norm {given['soft_norm']} is that of --soft-symmetry: give both")


def check_configuration(
    config: Mapping[str, Any],
    folder: Path,
    *,
    program: str,
    parser: argparse.ArgumentParser,
    resolve: Callable[[dict[str, Any]], dict[str, Any]],
    defaults: Mapping[str, Any],
    marks: Collection[str],
) -> None:
    """Raise UserError unless what ``config.json`` holds is a configuration that ``program`` makes.

    It is spelt as a command line, which is parsed and resolved: so the options alone say what is
    allowed, and what goes together.

    defaults: what options that are not given stand for, before they are resolved.
    marks: what the configuration holds besides, of the data.
    """
    names = {*resolve({}), *marks}
    for what, differing in (("lacks", names - config.keys()), ("holds", config.keys() - names)):
        if differing:
            raise UserError(
                f"{folder}: is no run of {program}: its configuration {what} "
                f"{', '.join(sorted(differing))}"
            )
    changed = {
        name: value
        for name, value in config.items()
        if name not in marks and (name not in defaults or value != defaults[name])
    }
    parser.error = _refuse  # type: ignore[method-assign]
    try:
        resolved = resolve(given(parser.parse_args(_spelt(changed))))
        for name, value in resolved.items():
            found = config[name]
            # A path may lead elsewhere by now. True is 1 in Python, but not here.
            same = value == found or (name == "data" and isinstance(found, str))
            if not same or isinstance(value, bool) != isinstance(found, bool):
                _refuse(f"{option_name(name)} should be {value!r}, got: {found!r}")
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: is damaged, cannot resume: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _spelt(config: Mapping[str, Any]) -> list[str]:
    """The command line with those values; UserError for one that no option takes."""
    arguments = []
    for name, value in config.items():
        option = option_name(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, (dict, list)):
                _refuse(f"{option} should be flat, got: a {type(item).__name__}")
        if isinstance(value, bool):
            arguments.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, list):
            arguments += [option, *map(str, value)]
        elif value is not None:
            arguments.append(f"{option}={value}")
    return arguments


def option_name(name: str) -> str:
    """The option that gives the value of that name in a configuration."""
    return "--" + name.removeprefix("num_").replace("_", "-")


def continued(
    config: dict[str, Any], given: Mapping[str, Any], folder: Path, *, extendable: bool = False
) -> dict[str, Any]:
    """The configuration of the run in ``folder``, with the options of MACHINE that are given.

    extendable: whether more epochs may be given too, as nothing before them depends on the end.

    Raises UserError for any other option that is given and contradicts the run.
    """
    changeable: tuple[str, ...] = MACHINE
    if extendable and "epochs" in given:
        if given["epochs"] < config["epochs"]:
            raise UserError(
                f"--epochs {given['epochs']} contradicts the run in {folder}, which has "
                f"{config['epochs']}: it can be made longer, not shorter"
            )
        changeable = (*MACHINE, "epochs")
    for name, value in given.items():
        if name not in changeable and config.get(name) != value:
            why = ", on which its schedule depends" if name == "epochs" else ""
            raise UserError(
                f"{option_name(name)} {_shown(value)} contradicts the run in {folder}, which has "
                f"{_shown(config.get(name))}{why}: leave the option out to continue that run, or "
                "start another with --out"
            )
    return {**config, **{name: given[name] for name in changeable if name in given}}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value) or '""'


def print_table(values: Mapping[str, object], width: int = 21) -> None:
    """Print a line for each value, its name first."""
    for name, value in values.items():
        print(f"{name:{width}} {value}")


# ---- folders and machine -----------------------------------------------------------------------


def checkpoint_file(path: str | Path | None, program: str) -> Path:
    """The file of a trained model: ``path``, or the best of the run whose folder that is.

    path: a folder may also be one of the hub (:mod:`symrnn.hub`); None is the best of the newest
        run in ./runs.
    program: what trains such, as ``python -m`` takes it.

    Raises UserError where there is none.
    """
    if path is None:
        found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda f: f.stat().st_mtime)
        if not found:
            raise UserError(
                "no checkpoint given, and there is no trained run in ./runs: "
                f"train one with python -m {program}, or name a checkpoint"
            )
        return found[-1]
    path = Path(path)
    if not path.is_dir():
        return path
    best, last, alone = (path / f"{name}.safetensors" for name in ("best", "last", "model"))
    if not best.exists() and last.exists():
        raise UserError(
            f"{path}: there is no best checkpoint before the first validation; {last} can be named"
        )
    return alone if alone.exists() and not best.exists() else best


def folder_to_resume(options: argparse.Namespace) -> Path | None:
    """The run's folder that --resume names, by itself or in --out; None for a new run.

    With --auto-resume it is --out, if that holds a run.
    """
    resume: str | bool | None = options.resume
    out: Path | None = options.out
    if options.auto_resume:
        if out is None or resume is not None:
            raise UserError("--auto-resume wants the run's folder by --out, and no --resume")
        return out if is_begun(out) else None
    if resume is None:
        return None
    if isinstance(resume, bool):  # without a folder
        if out is None:
            raise UserError(
                "--resume wants the run's folder: --resume FOLDER, or --out FOLDER --resume"
            )
        return out
    folder = Path(resume)
    if out is not None and out.resolve() != folder.resolve():
        raise UserError(f"--resume {folder} goes on in that folder: leave out --out {out}")
    return folder


def unused_folder(path: Path) -> Path:
    """``path``, or the first of path-2, path-3, … that does not exist yet."""
    folder, again = path, 1
    while folder.exists():
        again += 1
        folder = path.with_name(f"{path.name}-{again}")
    return folder


def require_compiler(device: torch.device) -> None:
    """Raise UserError if ``torch.compile`` has none for this device."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler on the CPU, and none (g++) is installed")
