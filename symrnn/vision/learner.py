"""What learns: an image network with its optimizer, one step at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symrnn import harden, parameter_groups, soft_symmetry_penalty, symmetrize
from symrnn.training import World, autocast, seed_step
from symrnn.training.loop import Learner, Progress
from symrnn.training.state import check_like
from symrnn.vision import default_where
from symrnn.vision.batch_norm import running_statistics, synchronize_batch_norm
from symrnn.vision.dirac import no_decay
from symrnn.vision.saved import memory_format_of


@dataclass
class ImageProgress(Progress):
    """What is drawn at random hangs on the seed and the step alone, and needs no state."""

    best: float = -1.0  # the best validation's accuracy, percent
    best_epoch: int = 0  # 0: none yet
    latest: float = 0.0  # the latest validation's accuracy, percent
    correct: float = 0.0  # how many of this epoch's pictures were recognised


class ImageLearner(Learner):
    """An image network, its optimizer, and what this process summed up of the epoch.

    Each process has an equal part of each batch; gradients are the mean over all. A seed fixes a
    run on CPUs to the bit, on as many processes, however often it was resumed. On GPUs cuDNN picks
    its kernels by their speed, and some of them add up in any order.
    """

    progress: ImageProgress

    def __init__(self, model: nn.Module, config: dict[str, Any], world: World) -> None:
        self.config = config
        self.world = world
        self.soft_where = default_where(model) if config["where"] is None else config["where"]
        if config["sync_bn"] and world.size > 1:
            model = synchronize_batch_norm(model)
        super().__init__(model, make_optimizer(model, config), ImageProgress())
        # Of a joint batch norm they are the same everywhere already.
        self.statistics = [] if config["sync_bn"] else running_statistics(model)
        device = next(model.parameters()).device
        self.precision = autocast(config["precision"], device)
        self.memory_format = memory_format_of(config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16")
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, correct: our part
        self.forward = world.parallel(model)
        if config["compile"]:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        torch.backends.cudnn.benchmark = device.type == "cuda"  # all batches are of one shape

    def step(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """One update by this process's part of a batch.

        Returns float64 (2,): the sum of its pictures' losses in nats, and how many it recognised.
        """
        config = self.config
        # For dropout, elsewhere than in the other processes.
        seed_step(config["seed"], self.progress.step - 1, self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            logits = self.forward(pictures.contiguous(memory_format=self.memory_format))
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        objective = loss
        if config["soft_symmetry"]:
            penalty = soft_symmetry_penalty(self.model, config["soft_norm"], self.soft_where)
            objective = loss + config["soft_symmetry"] * penalty
        self.scaler.scale(objective).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.world.average_(self.statistics)
        correct = (logits.argmax(1) == labels).sum()
        done = torch.stack([loss.detach().double() * len(labels), correct.double()])
        self.sums += done
        return done

    def final(self) -> nn.Module:
        """The model as it is measured and saved: with soft symmetry, made symmetric."""
        if not self.config["soft_symmetry"]:
            return self.model
        model = copy.deepcopy(self.model)
        harden(model, self.soft_where)
        symmetrize(model, "tri", self.soft_where)  # exactly what it is now, in half the parameters
        return model

    def add_up(self) -> None:
        """Bring the progress up to date with what all processes summed up."""
        self.progress.nats, self.progress.correct = self.world.sum(self.sums.tolist())

    def end_epoch(self) -> None:
        super().end_epoch()
        self.sums.zero_()

    def state(self) -> dict[str, Any]:
        self.add_up()
        return {**super().state(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        check_like(state["scaler"], self.scaler.state_dict(), "scaler")
        self.scaler.load_state_dict(state["scaler"])
        if self.world.first:  # holds what all have summed up
            self.sums[0], self.sums[1] = self.progress.nats, self.progress.correct


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.SGD:
    """The descent of a configuration, of a model on its device.

    Every weight decays as it would in a plain layer, by lr · weight_decay of itself a step: where
    symmetric parameters are trained at a smaller rate, their decay is larger by as much.
    """
    free, decay = no_decay(model), config["weight_decay"]
    groups = []
    for group in parameter_groups(model, config["lr"]):
        for decayed in (True, False):
            chosen = [p for p in group["params"] if (id(p) not in free) == decayed]
            if chosen:
                own = decay / group["lr_scale"] if decayed else 0.0
                groups.append({**group, "params": chosen, "weight_decay": own})
    return torch.optim.SGD(
        groups, lr=config["lr"], momentum=config["momentum"], nesterov=config["nesterov"]
    )
