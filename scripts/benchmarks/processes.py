"""A training step of the language model on the CPU: two processes against one.

    python scripts/benchmarks/processes.py
    python scripts/benchmarks/processes.py --sizes small --variants avg --seconds 5

The step is that of `lm.train`, with the recipe's sizes, dropout and carried state, on random tokens
of a 10,000-word vocabulary, new ones at each step (a batch that is learnt by heart at such rates is
chaos, in which no two runs agree): forward, loss, backward, clipping, SGD, and the question
to the other process whether to stop. Each peer has the whole batch: of two processes, of one thread
each, each has half of its streams, and DDP exchanges the gradients over gloo. On two cores the fair
peer is one process of two threads. Each makes one step in turn, while the others wait.

The numbers are compared in runs of their own, with one process of one thread. "Loss" is the largest
relative difference in any step; "weights" the largest difference of a weight after the last step,
relative to the largest one of its tensor.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from report import explanation, make_parser, table, write_report
from timing import Peer, interleaved, ratio
from torch import Tensor

from lm.learner import LanguageLearner
from lm.options import resolve
from lm.recipes import SIZES
from lm.saved import build_model
from symrnn.training import World, keep_freed_memory, seed_everything, set_threads

VOCABULARY = 10_000
SEED = 1

PAUSE = 0.02
"""Seconds before a step: threads of the peer before it may spin for a while."""


class Kind(NamedTuple):
    """Of what a peer consists; the threads are those of each process."""

    processes: int
    threads: int

    def __str__(self) -> str:
        names = {"process": self.processes, "thread": self.threads}
        many = {"process": "processes", "thread": "threads"}
        return " of ".join(f"{n} {name if n == 1 else many[name]}" for name, n in names.items())


KINDS = [Kind(1, 1), Kind(1, 2), Kind(2, 1)]


def main() -> None:
    parser = make_parser(__doc__, "results/processes.md")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "medium"])
    parser.add_argument("--variants", nargs="+", default=["none", "avg"])
    parser.add_argument("--seconds", type=float, default=60, help="for each size and variant")
    parser.add_argument("--steps", type=int, default=50, help="whose numbers are compared")
    options = parser.parse_args()
    times, differences = [], []
    for size in options.sizes:
        for variant in options.variants:
            given = {"size": size, "symm": variant, "seed": SEED}
            times += rows_of_times(given, options.seconds)
            differences += rows_of_differences(given, options.steps)
    ratios = [f"{kind} / this" for kind in KINDS[:2]]
    write_report(
        options.out,
        "A training step in two processes",
        [
            *explanation(__doc__),
            "The ratios are medians over rounds, of one peer's step by another's in the same "
            f"round; the numbers are those of {options.steps} steps.",
            table(["peer", "ms a step, median", "min – max", "steps", *ratios], times),
            table(["peer", "loss", "weights"], differences),
        ],
        seed=SEED,
    )


def rows_of_times(given: dict[str, Any], seconds: float) -> list[list[str]]:
    with ExitStack() as stack:
        peers = []
        for kind in KINDS:
            group = stack.enter_context(started(kind, given))
            peers.append(Peer(str(kind), group.step, partial(time.sleep, PAUSE)))
        measured = interleaved(peers, seconds)
    return [
        [
            f"{given['size']}, {given['symm']}, {one.stmt}",
            f"{1e3 * one.median:.1f}",
            f"{1e3 * min(one.times):.1f} – {1e3 * max(one.times):.1f}",
            str(len(one.times)),
            *(f"{ratio(other, one):.2f}" for other in measured[:2]),
        ]
        for one in measured
    ]


def rows_of_differences(given: dict[str, Any], steps: int) -> list[list[str]]:
    losses: list[list[float]] = []
    weights: list[list[np.ndarray]] = []
    for kind in KINDS:
        with started(kind, given) as group:
            losses.append([group.step() for _ in range(steps)])
            weights.append(group.weights())
    return [
        [
            f"{given['size']}, {given['symm']}, {kind}",
            f"{max(abs(a - b) / a for a, b in zip(losses[0], loss, strict=True)):.1e}",
            f"{max(difference(a, b) for a, b in zip(weights[0], weight, strict=True)):.1e}",
        ]
        for kind, loss, weight in zip(KINDS[1:], losses[1:], weights[1:], strict=True)
    ]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


# ---- a peer --------------------------------------------------------------------------------------


class Group:
    """The processes that train together, each at the other end of a pipe."""

    def __init__(self, ends: list[Connection]) -> None:
        self.ends = ends

    def step(self) -> float:
        """One step of all; the loss per token, in nats."""
        return self._ask("step")

    def weights(self) -> list[np.ndarray]:
        return self._ask("weights")

    def _ask(self, what: str) -> Any:
        for end in self.ends:
            end.send(what)
        first, *_ = [end.recv() for end in self.ends]
        return first


@contextmanager
def started(kind: Kind, given: dict[str, Any]) -> Iterator[Group]:
    """Processes as torchrun starts them, until the end of the ``with``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        ends = []
        for rank in range(kind.processes):
            here, there = context.Pipe()
            values = (there, given, kind, rank, port)
            process = context.Process(target=work, args=values, daemon=True)
            process.start()
            there.close()
            stack.callback(process.join)
            ends.append(here)
        for end in ends:  # closed before the processes are waited for
            stack.enter_context(closing(end))
        yield Group(ends)


def work(end: Connection, given: dict[str, Any], kind: Kind, rank: int, port: int) -> None:
    """One of the processes: does what it is asked for, until the pipe is closed."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.processes}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**names, **address}.items()})
    set_threads(kind.threads)
    keep_freed_memory()
    with World() as world:
        learner, batches = make_learner(given, world)
        while True:
            try:
                asked = end.recv()
            except EOFError:
                return
            if asked == "step":
                learner.progress.step += 1
                loss, _ = learner.step(*next(batches))
                world.sum([0.0, 0.0])  # as after each step of a run, for an interrupt
                end.send(loss)
            else:
                end.send([p.detach().numpy() for p in learner.model.parameters()])


def make_learner(
    given: dict[str, Any], world: World
) -> tuple[LanguageLearner, Iterator[tuple[Tensor, Tensor]]]:
    """The model in training, and this process's streams of the batches: inputs, targets (T, B)."""
    config = resolve(given)
    seed_everything(config["seed"])
    model = build_model(config, VOCABULARY)
    model.initialize(config["init_range"], config["forget_bias"], config["init"])
    learner = LanguageLearner(model, config, world)
    learner.set_lr(config["lr"])
    model.train()
    return learner, batches_of(config, world.part_of(config["batch_size"]))


def batches_of(config: dict[str, Any], part: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for all processes, each of which takes its part of the streams."""
    drawn = torch.Generator().manual_seed(config["seed"])
    shape = config["steps"] + 1, config["batch_size"]
    while True:
        ids = torch.randint(VOCABULARY, shape, generator=drawn)[:, part].contiguous()
        yield ids[:-1], ids[1:]


if __name__ == "__main__":
    main()
