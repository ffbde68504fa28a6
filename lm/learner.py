"""What learns: a language model with its optimizer and carried state, one step at a time."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lm.model import LanguageModel, State
from lm.optimizers import make_optimizer
from lm.perplexity import Score
from symrnn import soft_symmetry_penalty
from symrnn.rnn.dropout import part_of_batch
from symrnn.training import World, autocast, seed_step
from symrnn.training.loop import Learner, Progress
from symrnn.training.state import check_like

_FORMER_DECAY = 1e-4  # torch's default

_RESETS, _MASKS = 0, 1  # the draws of a step: states that begin anew, and what is dropped


@dataclass
class LanguageProgress(Progress):
    """Where the training of a language model stands."""

    tested: dict[str, Any] | None = None  # the fields of the test text's score, at the end
    waited: int = 0  # epochs since the best validation
    stale: int = 0  # the same, or since the rate was divided last
    validations: list[float] = field(default_factory=list)  # of each epoch, in nats per token

    def __post_init__(self) -> None:
        super().__post_init__()
        check_like(self.validations, [0.0], "validations")
        if self.tested is not None:
            check_like(self.tested, asdict(Score(0.0, 1, 1)), "tested")
            if min(self.tested["tokens"], self.tested["words"]) < 1:
                raise ValueError(f"tested is {self.tested}")


class LanguageLearner(Learner):
    """A language model, its optimizer, and the hidden state of this process's streams.

    The whole batch's gradient is the mean of those of the processes, and of the parts that each
    takes one after the other: all are equal, and drop what the whole batch would. What is random in
    a step depends on the seed and the step alone.
    """

    model: LanguageModel
    progress: LanguageProgress

    def __init__(self, model: LanguageModel, config: dict[str, Any], world: World) -> None:
        optimizer = make_optimizer(model, config)
        super().__init__(model, optimizer, LanguageProgress(best=math.inf, lr=config["lr"]))
        self.config = config
        self.average: AveragedModel | None = None
        if config["optimizer"] == "asgd":  # whose mean is of all steps
            self.average = AveragedModel(model)
        self.world = world
        self.hidden: State | None = None
        self.device = next(model.parameters()).device
        self.precision = autocast(config["precision"], self.device)
        penalties = config["activation_penalty"], config["temporal_penalty"]
        self.forward = world.parallel(_Losses(model, *penalties))
        self.alone = getattr(self.forward, "no_sync", nullcontext)
        if config["compile"]:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """One update; the loss per token in nats, and the gradient's norm before clipping.

        inputs, targets int64 (T, B), of this process's streams.
        """
        config, world = self.config, self.world
        self.optimizer.zero_grad(set_to_none=True)
        count = config["accumulate"]
        hidden = self._carried()
        states = [None] * count if hidden is None else _streams(hidden, count)
        value = 0.0
        after: list[list[Tensor]] = []
        parts = zip(inputs.chunk(count, 1), targets.chunk(count, 1), states, strict=True)
        for part, streams in zip(parts, self._parts_of_batch(), strict=True):
            seed_step(config["seed"], self.progress.step, _MASKS)
            # The last part's backward pass adds all gradients up over the processes.
            alone = nullcontext() if len(after) == count - 1 else self.alone()
            with self.precision(), part_of_batch(config["batch_size"], streams), alone:
                losses, penalty, state = self.forward(*part)
            loss = losses.mean() / count
            value += loss.item()  # without penalties: of the perplexity
            loss = loss + penalty / count
            if config["loss"] == "sum":  # the mean is over both; Zaremba's is over the batch alone
                loss = loss * config["steps"]
            if config["soft_symmetry"] and not after:
                penalty = soft_symmetry_penalty(self.model.rnn, config["soft_norm"])
                loss = loss + config["soft_symmetry"] * penalty
            loss.backward()
            after.append([tensor.detach() for tensor in state])
        self.hidden = tuple(torch.cat(parts, 1) for parts in zip(*after, strict=True))
        value = world.sum([value / world.size])[0]
        self.progress.nats += value * (len(inputs) / config["steps"])  # as of a whole window
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config["clip"]).item()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value, norm

    def _carried(self) -> State | None:
        """The state that the streams go on from: of some of them, by chance, zeros."""
        chance = self.config["reset_state"]
        if self.hidden is None or not chance:
            return self.hidden
        seed_step(self.config["seed"], self.progress.step, _RESETS)
        whole = torch.rand(self.config["batch_size"], 1, device=self.device)
        kept = whole[self.world.part_of(len(whole))] >= chance
        return tuple(part * kept for part in self.hidden)

    def _parts_of_batch(self) -> list[slice]:
        """The streams of the whole batch that this process takes at once, one after the other."""
        own = self.world.part_of(self.config["batch_size"])
        each = (own.stop - own.start) // self.config["accumulate"]
        return [slice(first, first + each) for first in range(own.start, own.stop, each)]

    def judge(self, is_best: bool) -> bool:
        """After a validation: what the recipe does after a while without a better one.

        Whether the run is to end.
        """
        config, progress = self.config, self.progress
        progress.waited = 0 if is_best else progress.waited + 1
        progress.stale = 0 if is_best else progress.stale + 1
        if config["schedule"] == "plateau" and progress.stale >= config["lr_patience"]:
            progress.lr /= config["lr_divide"]
            progress.stale = 0
        averaging, patience = config["averaging"], config["patience"]
        begins = averaging is not None and progress.waited >= averaging
        if self.average is None and (begins or self._is_worse_than_before()):
            self.average = AveragedModel(self.model)
        return patience is not None and progress.waited >= patience

    def _is_worse_than_before(self) -> bool:
        """Whether the last validation is worse than the best of all but the n before it.

        With n of ``non_monotone``: what makes NT-ASGD average (Merity et al. 2018, algorithm 1).
        """
        count, seen = self.config["non_monotone"], self.progress.validations
        return count is not None and any(value < seen[-1] for value in seen[: -1 - count])

    def final(self) -> LanguageModel:
        """The model as it is measured and saved: the mean, if one is taken, and made symmetric."""
        model = self.model
        if self.average is not None and self.average.n_averaged:
            model = cast(LanguageModel, self.average.module)
        return model.hardened() if self.config["soft_symmetry"] else model

    def end_epoch(self) -> None:
        super().end_epoch()
        self.hidden = None

    def state(self) -> dict[str, Any]:
        hidden = self.hidden
        if hidden is not None and self.world.size > 1:  # that of the whole batch, (L, B, H)
            parts = self.world.gather([part.cpu() for part in hidden])
            hidden = tuple(torch.cat(streams, 1) for streams in zip(*parts, strict=True))
        average = None
        if self.average is not None:
            numbers = [p.detach().cpu() for p in self.average.module.parameters()]
            average = {"count": int(self.average.n_averaged), "parameters": numbers}
        return {**super().state(), "hidden": hidden, "average": average}

    def load_state(self, state: dict[str, Any]) -> None:
        for group in self.optimizer.param_groups:
            if "lambd" in group:  # of ASGD: former runs had its own decay, and go on with it
                group["lambd"] = _FORMER_DECAY if state.get("average") is None else 0.0
        super().load_state(state)
        if not self.progress.ended and self.progress.epoch <= self.config["epochs"]:
            self.progress.tested = None  # of a run that was finished and is extended now
        if state["hidden"] is not None:
            self._check_hidden(state["hidden"])
            streams = self.world.part_of(self.config["batch_size"])
            self.hidden = tuple(
                part[:, streams].contiguous().to(self.device) for part in state["hidden"]
            )
        average = state.get("average")  # former runs have none
        self.average = None
        if average is not None:
            check_like(average, {"count": 0, "parameters": []}, "average")
            self.average = AveragedModel(self.model)
            own = list(self.average.module.parameters())
            with torch.no_grad():
                for k, (p, value) in enumerate(zip(own, average["parameters"], strict=True)):
                    check_like(value, p.detach().cpu(), f"average/parameters/{k}")
                    p.copy_(value)
            self.average.n_averaged.fill_(average["count"])

    def _check_hidden(self, hidden: Any) -> None:
        """Raise ValueError unless that is the state of the model's layers for the whole batch."""
        shapes = self.model.state_shapes(self.config["batch_size"])
        types = {next(self.model.parameters()).dtype}
        if self.config["precision"] == "bf16":
            types.add(torch.bfloat16)
        right = isinstance(hidden, tuple) and len(hidden) == len(shapes)
        if not right or not all(
            isinstance(part, Tensor) and part.shape == shape and part.dtype in types
            for part, shape in zip(hidden, shapes, strict=True)
        ):
            each = ", ".join(map(str, dict.fromkeys(shapes)))
            raise ValueError(f"hidden is not {len(shapes)} tensors of shape {each}")


def _streams(state: State, count: int) -> list[State]:
    """A state (L, B, H) in so many parts, of as many streams each."""
    return list(zip(*(part.chunk(count, 1) for part in state), strict=True))


class _Losses(nn.Module):
    """A language model with its loss: one module, for DDP and for the compiler."""

    def __init__(self, model: LanguageModel, activation: float, temporal: float) -> None:
        super().__init__()
        self.model = model
        self.activation, self.temporal = activation, temporal

    def forward(
        self, inputs: Tensor, targets: Tensor, state: State | None
    ) -> tuple[Tensor, Tensor, State]:
        """inputs, targets int64 (T, B), state -> losses (T·B,), penalty, state."""
        output, state = self.model.outputs(inputs, state)
        dropped = self.model.output_drop(output)
        losses = self.model.losses(self.model.projection(dropped), targets)
        penalty = activation_penalty(output, dropped, self.activation, self.temporal)
        return losses, penalty, state


def activation_penalty(output: Tensor, dropped: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · mean(dropped²) + beta · mean((change of output)²): a scalar, at least in float32.

    Activation regularization and temporal activation regularization of Merity et al. (2018).

    output, dropped: of the highest layer, before and after the dropout, (T, B, H).
    """
    whole = torch.promote_types(output.dtype, torch.float32)
    penalty = torch.zeros((), dtype=whole, device=output.device)
    if alpha:
        penalty = penalty + alpha * dropped.to(whole).square().mean()
    if beta and len(output) > 1:  # of one step there is no change
        penalty = penalty + beta * output.to(whole).diff(dim=0).square().mean()
    return penalty
