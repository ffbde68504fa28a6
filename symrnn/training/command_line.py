"""What the command lines of the training programs share."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from symrnn.files.errors import UserError


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
        return value

    return parse


def folder_to_resume(resume: str | bool | None, out: Path | None) -> Path | None:
    """The run's folder that --resume names, by itself or in --out; None for a new run."""
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
