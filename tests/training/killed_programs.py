"""What the child processes of these tests run, until they are killed."""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from symrnn.training import (
    RunFolder,
    Tracker,
    load_checkpoint,
    pack_state,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
    set_threads,
    unpack_state,
)

with contextlib.suppress(ImportError):
    import torch.utils.tensorboard  # loaded once, before the children are forked


def train(folder: Path, steps: int, every: int, stop_after: int | None = None) -> None:
    """A toy run: data order from `random`, noise and dropout from torch, momentum, a schedule.

    Begins in an empty folder, and goes on from `last` in one that holds the run; a checkpoint
    `every` so many steps. `stop_after`: leave after this step, checkpoint or not.
    """
    set_threads(1)
    seed_everything(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps // 2, steps - 5])
    examples = torch.randn(40, 6)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    new = not (folder / "config.json").exists()
    run = RunFolder.create(folder, {"steps": steps}) if new else RunFolder.open(folder)
    done = None
    if run.last.exists():
        checkpoint = load_checkpoint(run.last)
        for name, part in parts.items():
            part.load_state_dict(unpack_state(checkpoint.tensors, checkpoint.meta[name]))
        set_rng_state(unpack_state(checkpoint.tensors, checkpoint.meta["rng"]))
        done = checkpoint.meta["step"]
    with run, Tracker(run, resume_step=done) as tracker:
        for step in range((done or 0) + 1, steps + 1):
            rows = examples[random.sample(range(40), 8)]
            loss = (model(rows + 0.1 * torch.randn_like(rows)) - rows[:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            tracker.scalars(step, {"loss": loss.item()})
            if step % every == 0 or step == steps:
                tracker.flush()
                tensors: dict[str, Tensor] = {}
                meta = {"step": step}
                states = {name: part.state_dict() for name, part in parts.items()}
                for name, state in {**states, "rng": rng_state()}.items():
                    packed_tensors, meta[name] = pack_state(state, name)
                    tensors.update(packed_tensors)
                save_checkpoint(run.last, tensors, meta)
            if step == stop_after:
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
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        (folder / "written").write_text(str(child))
        (folder / "written").rename(folder / "held")
        time.sleep(20)
