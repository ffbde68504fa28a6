"""Which backend is fastest for a few steps without gradients: the table behind ``backend="auto"``.

    python scripts/bench_backends.py

A two-layer SymLSTM with plain weights, as ``lm.generate`` runs it, so that only the ways to run
the layer differ; ``nn.LSTM`` beside it. Median milliseconds of a call, interleaved.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from bench_step import interleaved
from report import table, write_report
from torch import nn

from symrnn import SymLSTM
from symrnn.training import set_threads

SHAPES = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (35, 1), (1, 4), (1, 20), (4, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[200, 650, 1500])
    parser.add_argument("--calls", type=int, default=31)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("results/backends.md"))
    options = parser.parse_args()
    set_threads(options.threads)
    rows = []
    for size in options.hidden_sizes:
        plain = nn.LSTM(size, size, 2)
        layers = [SymLSTM.from_lstm(plain, "none", backend=b) for b in ("vendor", "script")]
        for steps, batch in SHAPES:
            x = torch.randn(steps, batch, size)
            with torch.no_grad():
                calls = [partial(layer, x) for layer in [plain, *layers]]
                seconds = interleaved(calls, options.calls)
            medians = [1e3 * statistics.median(times) for times in seconds]
            rows.append(
                [
                    f"H = {size}, T = {steps}, B = {batch}",
                    *(f"{value:.3f}" for value in medians),
                    f"{medians[1] / medians[2]:.2f}",
                ]
            )
    header = ["", "nn.LSTM", "vendor", "script", "vendor / script"]
    write_report(
        options.out,
        "Time of a few steps without gradients, by backend",
        [" ".join((__doc__ or "").split("\n\n")[2].split()), table(header, rows)],
    )


if __name__ == "__main__":
    main()
