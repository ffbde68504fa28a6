"""One training step of the language model: SymLSTM against nn.LSTM in the same model.

    python scripts/benchmarks/step.py
    python scripts/benchmarks/step.py --device cuda --backend fused --sizes medium
    python scripts/benchmarks/step.py --backend auto --sizes medium --variants avg avg,bf16

Both models take the same steps in turn: forward, loss, backward, clipping, SGD, with the recipe's
sizes, dropout and carried state, on random tokens of a 10,000-word vocabulary. A variant followed
by ",bf16" runs forward under autocast, as ``lm.train --precision bf16`` does. Peak memory is that
of a process of its own for each model, the median of three. As in ``lm.train``, the C library is
asked to keep freed memory; ``--system-malloc`` leaves it as it is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from report import explanation, make_parser, table, write_report
from timing import Peer, interleaved, ratio
from torch import nn
from torch.nn import functional as F

from lm.model import LanguageModel
from lm.recipes import SIZES
from symrnn.training import (
    autocast,
    keep_freed_memory,
    peak_memory,
    resolve_device,
    set_threads,
)

VOCABULARY = 10_000
PEER = "nn.LSTM"
SEED = 1


def make_step(size: str, variant: str, backend: str, device: torch.device) -> Callable[[], None]:
    """A function that does one training step of a ``size`` model with ``variant`` weights."""
    variant, _, name = variant.partition(",")
    precision = autocast(name, device)
    recipe = SIZES[size]
    torch.manual_seed(SEED)
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
        model.rnn.STATES = "hc"  # which the model reads
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(VOCABULARY, (recipe.steps + 1, recipe.batch_size), device=device)
    state = None

    def step() -> None:
        nonlocal state
        optimizer.zero_grad(set_to_none=True)
        with precision():
            logits, new = model(ids[:-1], state)
        state = tuple(part.detach() for part in new)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[1:].flatten()) * recipe.steps
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()

    return step


def main() -> None:
    parser = make_parser(__doc__, "results/step_time.md")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--variants", nargs="+", default=["avg", "tri"])
    parser.add_argument("--backend", default="vendor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=60, help="for each size")
    parser.add_argument("--system-malloc", action="store_true")
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
        peers = [
            Peer(variant, make_step(size, variant, options.backend, device)) for variant in variants
        ]
        times = interleaved(peers, options.seconds)
        del peers
        for variant, one in zip(variants, times, strict=True):
            memory = statistics.median(memory_of(size, variant, options) for _ in range(3))
            rows.append(
                [
                    f"{size}, {variant}",
                    f"{1e3 * one.median:.1f}",
                    f"{1e3 * min(one.times):.1f} – {1e3 * max(one.times):.1f}",
                    str(len(one.times)),
                    f"{ratio(one, times[0]):.3f}",
                    f"{memory / 2**20:.0f}",
                ]
            )
    header = ["model", "ms a step, median", "min – max", "steps", "ratio to nn.LSTM", "peak MiB"]
    write_report(
        options.out,
        f"Time of one training step, {options.backend} backend on {device.type}",
        [
            *explanation(__doc__),
            "The ratio is the median over steps of the time against nn.LSTM's step before it.",
            table(header, rows),
        ],
        seed=SEED,
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
