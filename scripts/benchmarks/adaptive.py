"""What rate orbit coordinates want under an adaptive optimizer, measured by perplexity.

    python scripts/benchmarks/adaptive.py
    python scripts/benchmarks/adaptive.py --rates rmsprop=0.002 --form avg4 --epochs 3 --seeds 1 2

In orthonormal coordinates (`avg`) a matrix's entry is its parameter divided by the root of the
orbit's size. A gradient is scaled alike, so that SGD follows the full matrix at the same rate. Adam
and RMSprop take steps that do not grow with the gradient: there an entry moves by the rate divided
by that root, about √2, unless the rate is multiplied by it, as `parameter_groups(adaptive=True)`
does and `lm.train` with it.

Each optimizer trains the language model at each of its rates twice, with symmetric weights at the
common rate (factor 1) and at the rate times the root of the mean orbit size (factor √2, for `avg`).
All else is the recipe's and equal, random starting values included. `lm.train` itself takes 1 under
SGD and √2 under the others. Perplexities are those of the best epoch's model.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import ROOT, explanation, make_parser, table, write_report
from torch import nn

import lm.optimizers
import lm.train
from lm.sweep_results import Standing, standing_of
from symrnn import get_symmetry, parameter_groups
from symrnn.files import run_program

FACTORS = {"1": False, "root": True}
"""What multiplies the rate of symmetric weights: the `adaptive` of parameter_groups."""


def rate(text: str) -> tuple[str, str]:
    """Of "adam=0.001" both words."""
    optimizer, equals, lr = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"should be OPTIMIZER=RATE, got: {text}")
    return optimizer, lr


def main() -> None:
    parser = make_parser(__doc__, "results/adaptive.md")
    parser.add_argument(
        "--rates",
        type=rate,
        nargs="+",
        default=[rate("sgd=1"), *(rate(f"adam={lr}") for lr in ("0.001", "0.002", "0.003"))],
        metavar="OPTIMIZER=RATE",
    )
    parser.add_argument("--seeds", nargs="+", default=["1"])
    parser.add_argument("--data", default="ptb")
    parser.add_argument("--form", default="avg")
    parser.add_argument("--epochs", default="1")
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptive"), help="their folders")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        factor, *arguments = options.train
        run_program(lambda: train(factor, arguments))

    common = ["--size", "small", "--symm", options.form, "--epochs", options.epochs]
    common += ["--precision", "bf16", "--threads", "1"]
    rows = []
    for optimizer, lr in options.rates:
        for seed in options.seeds:
            own = ["--optimizer", optimizer, "--lr", lr, "--seed", seed]
            ends = []
            for factor in FACTORS:
                folder = options.runs / f"{options.form}-{optimizer}-{lr}-{factor}-seed{seed}"
                place = ["--data", options.data, "--out", str(folder), "--auto-resume"]
                ends.append(ended(factor, [*common, *own, *place], int(options.epochs)))
            rows.append([optimizer, lr, seed, *(f"{end.valid:.2f}" for end in ends)])
            rows[-1] += [f"{end.test:.2f}" for end in ends]

    side = 200
    form = get_symmetry(options.form, side)
    root = (side**2 / form.numel) ** 0.5
    head = ["optimizer", "rate", "seed"]
    head += [f"{split}, factor {f}" for split in ("valid", "test") for f in ("1", f"{root:.3f}")]
    write_report(
        options.out,
        "The rate of orbit coordinates under adaptive optimizers",
        [
            *explanation(__doc__),
            f"Each run: `python -m lm.train --data {options.data} {' '.join(common)}` with the "
            f"row's `--optimizer`, `--lr` and `--seed`; H = {side}, {form.numel:,} parameters for "
            f"{side**2:,} entries.",
            table(head, rows),
        ],
    )


def train(factor: str, arguments: list[str]) -> int:
    """`lm.train`, whose symmetric weights learn at the common rate times that factor."""

    def groups(module: nn.Module, lr: float, *, adaptive: bool = False) -> list[dict[str, Any]]:
        del adaptive  # what the optimizer would have
        return parameter_groups(module, lr, adaptive=FACTORS[factor])

    lm.optimizers.parameter_groups = groups
    return lm.train.main(arguments)


def ended(factor: str, arguments: list[str], epochs: int) -> Standing:
    """How that training ended, in a process of its own; one that was finished before is read."""
    command = [sys.executable, __file__, "--train", factor, *arguments]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(f"the training ended with {code}: {shlex.join(command)}")
    return standing_of(ROOT / arguments[arguments.index("--out") + 1], epochs)


if __name__ == "__main__":
    main()
