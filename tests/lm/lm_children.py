"""What child processes of the tests do; these import it by name."""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import Any

import matplotlib.figure
from worlds import begin

import lm.train
from data import DataError
from lm.learner import LanguageLearner
from symrnn.files import UserError, run_program
from symrnn.training import world
from symrnn.training.loop import Run


def program(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The training program; its figures are empty, as drawing takes longer than training."""
    begin(environment, output)
    lm.train.spectrum_figure = lambda _: matplotlib.figure.Figure((1, 1))
    run_program(functools.partial(lm.train.main, arguments), DataError)


def interrupted(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which the second process alone gets a SIGINT, in the fourth step."""
    step, calls = LanguageLearner.step, 0

    def interrupting(*values: Any) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls == 4 and environment["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGINT)
        return step(*values)

    LanguageLearner.step = interrupting  # type: ignore[method-assign]
    program(arguments, environment, output)


def failing(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which one process alone fails; the last arguments say where and which.

    "asleep": in a step, where the other is in something that takes forever.
    """
    *arguments, place, rank = arguments
    world.POLL = world.GRACE = 0.2

    def fail(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    owners = {"log": Run, "_restore": Run, "measure": lm.train}
    if environment["RANK"] == rank:
        setattr(owners.get(place, LanguageLearner), "step" if place == "asleep" else place, fail)
    elif place == "asleep":
        LanguageLearner.step = lambda *_: time.sleep(1000)  # type: ignore[assignment]
    program(arguments, environment, output)


def killed(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which the process that the last argument names is killed in a step."""
    *arguments, rank = arguments
    world.POLL = world.GRACE = 0.2
    if environment["RANK"] == rank:
        LanguageLearner.step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
    program(arguments, environment, output)
