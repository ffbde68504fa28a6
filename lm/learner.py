"""What learns: a language model with its optimizer and carried state, one step at a time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lm.model import LanguageModel, State
from lm.perplexity import Score
from symrnn import parameter_groups, soft_symmetry_penalty
from symrnn.training import World, autocast, rng_state, seed_step, set_rng_state
from symrnn.training.loop import Learner, Progress
from symrnn.training.state import check_like


@dataclass
class LanguageProgress(Progress):
    """Where the training of a language model stands."""

    tested: dict[str, Any] | None = None  # the fields of the test text's score, at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tested is not None:
            check_like(self.tested, asdict(Score(0.0, 1, 1)), "tested")
            if min(self.tested["tokens"], self.tested["words"]) < 1:
                raise ValueError(f"tested is {self.tested}")


class LanguageLearner(Learner):
    """A language model, its optimizer, and the hidden state of this process's streams.

    The whole batch's gradient is the mean of those of the processes, which have equal parts.
    """

    model: LanguageModel
    progress: LanguageProgress

    def __init__(self, model: LanguageModel, config: dict[str, Any], world: World) -> None:
        optimizer = torch.optim.SGD(parameter_groups(model, config["lr"]), lr=config["lr"])
        super().__init__(model, optimizer, LanguageProgress(best=math.inf, lr=config["lr"]))
        self.config = config
        self.world = world
        self.hidden: State | None = None
        self.device = next(model.parameters()).device
        self.precision = autocast(config["precision"], self.device)
        self.forward = world.parallel(_Losses(model))
        if config["compile"]:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """One update; the loss per token in nats, and the gradient's norm before clipping.

        inputs, targets int64 (T, B), of this process's streams.
        """
        config, world = self.config, self.world
        if world.size > 1:  # dropout elsewhere than in the other processes
            seed_step(config["seed"], self.progress.step, world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            losses, hidden = self.forward(inputs, targets, self.hidden)
        self.hidden = tuple(part.detach() for part in hidden)
        loss = losses.mean()
        value = world.sum([loss.item() / world.size])[0]
        self.progress.nats += value
        if config["loss"] == "sum":  # the mean is over steps and batch; Zaremba's over the batch
            loss = loss * config["steps"]
        if config["soft_symmetry"]:
            penalty = soft_symmetry_penalty(self.model.rnn, config["soft_norm"])
            loss = loss + config["soft_symmetry"] * penalty
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config["clip"]).item()
        self.optimizer.step()
        return value, norm

    def final(self) -> LanguageModel:
        """The model as it is measured and saved: with soft symmetry, made symmetric."""
        return self.model.hardened() if self.config["soft_symmetry"] else self.model

    def end_epoch(self) -> None:
        super().end_epoch()
        self.hidden = None

    def state(self) -> dict[str, Any]:
        hidden = self.hidden
        if hidden is not None and self.world.size > 1:  # that of the whole batch, (L, B, H)
            parts = self.world.gather([part.cpu() for part in hidden])
            hidden = tuple(torch.cat(streams, 1) for streams in zip(*parts, strict=True))
        return {**super().state(), "hidden": hidden, "rng": rng_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if self.progress.epoch <= self.config["epochs"]:
            self.progress.tested = None  # of a run that was finished and is extended now
        if state["hidden"] is not None:
            self._check_hidden(state["hidden"])
            streams = self.world.part_of(self.config["batch_size"])
            self.hidden = tuple(
                part[:, streams].contiguous().to(self.device) for part in state["hidden"]
            )
        set_rng_state(state["rng"])

    def _check_hidden(self, hidden: Any) -> None:
        """Raise ValueError unless that is the state of the model's layers for the whole batch."""
        shape = tuple(self.config[name] for name in ("num_layers", "batch_size", "hidden_size"))
        types = {next(self.model.parameters()).dtype}
        if self.config["precision"] == "bf16":
            types.add(torch.bfloat16)
        right = isinstance(hidden, tuple) and len(hidden) == len(self.model.rnn.STATES)
        if not right or not all(
            isinstance(part, Tensor) and part.shape == shape and part.dtype in types
            for part in hidden
        ):
            raise ValueError(f"hidden is not {len(self.model.rnn.STATES)} tensors of shape {shape}")


class _Losses(nn.Module):
    """A language model with its loss: one module, for DDP and for the compiler."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, state: State | None) -> tuple[Tensor, State]:
        """inputs, targets int64 (T, B), state -> losses (T·B,), state."""
        features, state = self.model.features(inputs, state)
        return self.model.losses(features, targets), state
