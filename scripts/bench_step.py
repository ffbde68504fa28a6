"""One training step of the language model: SymLSTM against nn.LSTM in the same model.

    python scripts/bench_step.py

Both models take the same steps in turn: forward, loss, backward, clipping, SGD, with the recipe's
sizes, dropout and carried state, on random tokens of a 10,000-word vocabulary. Peak memory is that
of a process of its own for each model, the median of three. As in ``lm.train``, the C library is
asked to keep freed memory; ``--system-malloc`` leaves it as it is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import table, write_report
from torch import nn
from torch.nn import functional as F

from lm.model import LanguageModel
from lm.recipes import SIZES
from symrnn.training import keep_freed_memory, peak_memory, resolve_device, set_threads

VOCABULARY = 10_000
PEER = "nn.LSTM"


def make_step(size: str, variant: str, backend: str, device: torch.device) -> Callable[[], None]:
    """A function that does one training step of a ``size`` model with ``variant`` weights."""
    recipe = SIZES[size]
    torch.manual_seed(1)
    model = LanguageModel(
        VOCABULARY,
        recipe.embedding_size,
        recipe.hidden_size,
        recipe.num_layers,
        recipe.dropout,
        symm="none" if variant == PEER else variant,
        backend=backend,
    )
    if variant == PEER:
        del model.rnn
        model.rnn = nn.LSTM(  # type: ignore[assignment]
            recipe.embedding_size, recipe.hidden_size, recipe.num_layers, dropout=recipe.dropout
        )
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(VOCABULARY, (recipe.steps + 1, recipe.batch_size), device=device)
    state = None

    def step() -> None:
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        logits, new = model(ids[:-1], state)
        state = tuple(part.detach() for part in new)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[1:].flatten()) * recipe.steps
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def interleaved(steps: list[Callable[[], None]], count: int) -> list[list[float]]:
    """Seconds of ``count`` calls of each function, in turn, after two calls to warm up."""
    for step in steps:
        step()
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(count):
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--variants", nargs="+", default=["avg", "tri"])
    parser.add_argument("--backend", default="vendor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=60, help="for each size")
    parser.add_argument("--system-malloc", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/step_time.md"))
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    set_threads(options.threads)
    if not options.system_malloc:
        keep_freed_memory()

    if options.memory_of:
        step = make_step(*options.memory_of, options.backend, device)
        for _ in range(4):
            step()
        print(peak_memory(device))
        return

    variants = [PEER, *options.variants]
    rows = []
    for size in options.sizes:
        steps = [make_step(size, variant, options.backend, device) for variant in variants]
        start = time.perf_counter()
        for step in steps:
            step()
        count = max(int(options.seconds / (time.perf_counter() - start)), 7)
        seconds = interleaved(steps, count)
        del steps
        peer = seconds[0]
        for variant, times in zip(variants, seconds, strict=True):
            ratio = statistics.median(a / b for a, b in zip(times, peer, strict=True))
            memory = statistics.median(memory_of(size, variant, options) for _ in range(3))
            rows.append(
                [
                    f"{size}, {variant}",
                    f"{1e3 * statistics.median(times):.1f}",
                    f"{1e3 * min(times):.1f} – {1e3 * max(times):.1f}",
                    str(count),
                    f"{ratio:.3f}",
                    f"{memory / 2**20:.0f}",
                ]
            )
    header = ["model", "ms a step, median", "min – max", "steps", "ratio to nn.LSTM", "peak MiB"]
    write_report(
        options.out,
        f"Time of one training step, {options.backend} backend on {device.type}",
        [
            " ".join((__doc__ or "").split("\n\n")[2].split()),
            "The ratio is the median over steps of the time against nn.LSTM's step before it.",
            table(header, rows),
        ],
    )


def memory_of(size: str, variant: str, options: argparse.Namespace) -> int:
    """Peak memory, in bytes, of a process that does a few steps of one model."""
    command = [sys.executable, __file__, "--memory-of", size, variant]
    command += ["--backend", options.backend, "--device", options.device]
    if options.system_malloc:
        command.append("--system-malloc")
    if options.threads:
        command += ["--threads", str(options.threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
