"""What child processes of the tests do; these import it by name."""

from __future__ import annotations

import functools
import os
import signal
import time

import matplotlib.figure
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from worlds import begin

import symrnn.vision.train
from symrnn.files import UserError, run_program
from symrnn.training import World, world
from symrnn.training.loop import Run
from symrnn.vision.batch_norm import running_statistics, synchronize_batch_norm
from symrnn.vision.learner import ImageLearner


def program(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The training program; its figures are empty, as drawing takes longer than training."""
    begin(environment, output)
    symrnn.vision.train.draw_filters = lambda _: matplotlib.figure.Figure((1, 1))
    run_program(functools.partial(symrnn.vision.train.main, arguments))


def interrupted(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which the second process alone gets a SIGINT, in the fourth step."""
    step, calls = ImageLearner.step, 0

    def interrupting(*values: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4 and environment["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGINT)
        return step(*values)  # type: ignore[arg-type]

    ImageLearner.step = interrupting  # type: ignore[method-assign]
    program(arguments, environment, output)


def failing(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The program, of which one process alone fails; the last arguments say where and which.

    "asleep": in a step, where the other is in something that takes forever.
    """
    *arguments, place, rank = arguments
    world.POLL = world.GRACE = 0.2

    def fail(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    owners = {"log": Run, "_restore": Run, "measure": symrnn.vision.train}
    if environment["RANK"] == rank:
        setattr(owners.get(place, ImageLearner), "step" if place == "asleep" else place, fail)
    elif place == "asleep":
        ImageLearner.step = lambda *_: time.sleep(1000)  # type: ignore[assignment]
    program(arguments, environment, output)


def joint_batch_norm(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Three steps of a batch norm in a small model, in float64, on a half of each joint batch.

    Saves to the file of the first argument what the first process has then.
    """
    begin(environment, output)
    path, kind = arguments
    with World() as processes:
        model, pictures, labels = small_model()
        if kind == "joint":
            synchronize_batch_norm(model)
        called = processes.parallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        half = slice(4 * processes.rank, 4 * processes.rank + 4)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(called(pictures[half]), labels[half])
            loss.backward()
            optimizer.step()
            processes.average_(running_statistics(model))
            losses.append(processes.sum([loss.item() / 2])[0])
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        means = processes.gather(running_statistics(model)[0].tolist())
        assert means[0] == means[1]
        if processes.first:
            save_file({"losses": torch.tensor(losses).double(), **state}, path)


def small_model() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model with a batch norm, 8 pictures and their labels."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    pictures = 3 + torch.randn(8, 3, 6, 6, dtype=torch.float64).cumsum(0)
    return model.double(), pictures, torch.arange(8) % 3
