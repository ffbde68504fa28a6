"""The processes of a training program, with around them what torchrun puts there.

What a child process does here has for its arguments the program's module, then the program's own.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data import DataError
from symrnn.files import UserError, run_program
from symrnn.training import world
from symrnn.training.loop import Learner, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def together(
    context: ForkServerContext,
    folder: Path,
    function: Callable[..., None],
    *arguments: object,
    size: int = 2,
) -> list[BaseProcess]:
    """Start `function` in so many processes.

    It gets the arguments as strings, the environment and a file for stdout and stderr, for which
    see `begin`: `output0.txt`, `output1.txt`, … in the folder.
    """
    port = free_port()
    processes = []
    for rank in range(size):
        values = (
            [str(argument) for argument in arguments],
            environment_of(rank, size, port),
            str(folder / f"output{rank}.txt"),
        )
        process = context.Process(target=function, args=values, daemon=True)
        process.start()
        processes.append(process)
    return processes


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, of so many on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def begin(environment: dict[str, str], output: str) -> None:
    """Be a process that was started with that environment, stdout and stderr in a file."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def ended(processes: list[BaseProcess], seconds: float = 600) -> list[int | None]:
    """Their exit codes, at the end of all."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    return [process.exitcode for process in processes]


def without_pictures() -> None:
    """From here on those of a training run are empty: drawing takes longer than training."""
    drawn_by = {
        "spectrum_figure": ("lm.spectrum", "lm.train"),
        "draw_filters": ("symrnn.vision.drawing", "symrnn.vision.train"),
    }
    for drawing, modules in drawn_by.items():
        for module in modules:
            setattr(importlib.import_module(module), drawing, _empty)


def _empty(*_: object, **__: object) -> Figure:
    from matplotlib.figure import Figure  # tests on a GPU may have to do without

    return Figure((1, 1))


# ---- what the children do ------------------------------------------------------------------------


def program(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The training program."""
    begin(environment, output)
    module = importlib.import_module(arguments[0])
    without_pictures()
    run_program(functools.partial(module.main, arguments[1:]))


def run(main: Callable[[], int | None]) -> None:
    """A program that is alone."""
    without_pictures()
    run_program(main, DataError)


def python(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """What ``python`` does with -m MODULE … or -c CODE, in the folder PWD of the environment.

    But for what is in memory already: loading torch takes longer than most programs do.
    """
    begin(environment, output)
    without_pictures()
    os.chdir(environment["PWD"])
    flag, what, *rest = arguments
    sys.argv = [flag, *rest]
    sys.path.insert(0, "")
    if flag == "-m":
        sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


class _OfOlderRelease(world.DistributedDataParallel):
    """Which has no other name for it, and sends no buffers at the start either."""

    def __init__(self, module: nn.Module, broadcast_buffers: bool, **options: Any) -> None:
        super().__init__(module, broadcast_buffers=broadcast_buffers, **options)


def with_own_buffers(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Each process begins with buffers of its own; prints what all have under DDP."""
    begin(environment, output)
    world.DistributedDataParallel = _OfOlderRelease
    with world.World() as here:
        model = nn.BatchNorm1d(3)
        assert model.running_mean is not None
        model.running_mean.fill_(here.rank + 1)
        here.parallel(model)
        print(here.gather(model.running_mean.tolist()), flush=True)


def impatient(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, which gives up soon where the others are not there."""
    world.PATIENCE, world.GRACE = 0.5, 1.0
    program(arguments, environment, output)


def interrupted(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which the second process alone gets a signal, in the fourth step.

    The last argument is its number.
    """
    *arguments, number = arguments
    _, learner = _parts(arguments)
    step, calls = learner.step, 0  # type: ignore[attr-defined]

    def interrupting(*values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 and environment["RANK"] == "1":
            os.kill(os.getpid(), int(number))
        return step(*values)

    learner.step = interrupting  # type: ignore[attr-defined]
    program(arguments, environment, output)


def failing(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which one process alone fails; the last arguments say where and which.

    "asleep": in a step, where the other is in something that takes forever.
    "killed": in a step, by SIGKILL.
    """
    *arguments, place, rank = arguments
    module, learner = _parts(arguments)
    # Only the sleeping one has to be ended by the other's failure; where all go their way, no
    # process is ended for being slow.
    world.POLL = 0.2
    world.GRACE = 0.2 if place == "asleep" and environment["RANK"] != rank else 600

    def fail(*_: object, **__: object) -> None:
        if place == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("the disk is full")

    owners: dict[str, object] = {"log": Run, "_restore": Run, "measure": module}
    if environment["RANK"] == rank:
        name = "step" if place in ("asleep", "killed") else place
        setattr(owners.get(place, learner), name, fail)
    elif place == "asleep":
        learner.step = lambda *_: time.sleep(1000)  # type: ignore[attr-defined]
    program(arguments, environment, output)


def _parts(arguments: list[str]) -> tuple[ModuleType, type[Learner]]:
    """The program's module, and what it calls its learner."""
    module = importlib.import_module(arguments[0])
    (learner,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Learner) and value is not Learner
    )
    return module, learner
