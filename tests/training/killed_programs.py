"""What the child processes of these tests run, until they are killed."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from symrnn.training import (
    RunFolder,
    World,
    save_checkpoint,
    seed_everything,
    seed_step,
    set_threads,
)
from symrnn.training.command_line import RUN_DEFAULTS, add_run_options
from symrnn.training.loop import Learner, Progress, Run

BATCHES = 5


class Toy(Learner):
    """Rows, noise and dropout at random, momentum, a schedule."""

    def __init__(self, steps: int) -> None:
        seed_everything(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        super().__init__(model, optimizer, Progress(best=math.inf))
        milestones = [steps // 2, steps // 2, steps - 5]
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        self.examples = torch.randn(40, 6)

    def step(self) -> float:
        seed_step(1, self.progress.step, 0)
        rows = self.examples[torch.randperm(40)[:8]]
        loss = (self.model(rows + 0.1 * torch.randn_like(rows)) - rows[:, :1]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.progress.nats += loss.item()
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "scheduler": self.scheduler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.scheduler.load_state_dict(state["scheduler"])


def configured(run: Run, *arguments: object, **defaults: object) -> dict[str, Any]:
    """The configuration of a toy run with those arguments; `defaults`: other than RUN_DEFAULTS."""
    parser = argparse.ArgumentParser()
    add_run_options(parser.add_argument)
    options = parser.parse_args([str(argument) for argument in arguments])
    return run.configure(
        options,
        lambda given: {**RUN_DEFAULTS, "epochs": 3, **defaults, **given},
        lambda config, given, _: {**config, **given},
    )


def started(run: Run, *arguments: object, lowest_is_best: bool = True, **defaults: object) -> Toy:
    config = configured(run, *arguments, **defaults)
    toy = Toy(BATCHES * config["epochs"])
    toy.progress.best = math.inf if lowest_is_best else -math.inf
    run.start(
        toy,
        config,
        name="toy",
        batches=BATCHES,
        batch_size=8,
        unit="row",
        lowest_is_best=lowest_is_best,
    )
    return toy


def train(folder: Path, steps: int, every: int, stop_after: int | None = None) -> None:
    """A toy run; begins in an empty folder, and goes on in one that holds the run.

    every: steps between checkpoints.  stop_after: leave after this step, checkpoint or not.
    """
    set_threads(1)
    new = not (folder / "config.json").exists()
    defaults = {"epochs": steps // BATCHES, "save_every": every}
    with World() as world, Run("toy", world) as run:
        toy = started(run, "--out" if new else "--resume", folder, **defaults)
        for _ in run.epochs(run.config["epochs"]):
            for _ in run.steps(range(run.progress.batch, BATCHES)):
                run.log({"loss": toy.step()})
                if run.progress.step == stop_after:
                    return


def save_forever(path: Path) -> None:
    """Saves checkpoints whose every number is the count of saves so far, until killed."""
    count = 0
    while True:
        count += 1
        tensors = {f"part{index}": torch.full((300, 300), float(count)) for index in range(4)}
        save_checkpoint(path, tensors, {"count": count})


def hold(folder: Path) -> None:
    """Opens a run and forks; both wait to be killed. The file `held` names the forked child."""
    with RunFolder.open(folder):
        if os.fork() == 0:
            # By the child, which by now has let go of what it has from its parent.
            (folder / "written").write_text(str(os.getpid()))
            (folder / "written").rename(folder / "held")
        time.sleep(600)
        os._exit(0)
