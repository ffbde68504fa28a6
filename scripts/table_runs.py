"""A table of finished training runs, and a picture of their validation curves.

    python scripts/table_runs.py runs/ptb-small-none runs/ptb-small-avg --out results/ptb_small.md

Reads the run folders that ``lm.train`` wrote; trains nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from report import table, write_report

from data import codec_from_state
from lm.saved import build_model
from symrnn import count_parameters
from symrnn.training import load_checkpoint, unpack_state


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says: configuration, curve, best epoch, test, counts, time."""
    best, last = (load_checkpoint(folder / f"{name}.safetensors") for name in ("best", "last"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tests = [line["test/perplexity"] for line in lines if "test/perplexity" in line]
    if not tests:
        raise SystemExit(f"{folder}: this run is not finished, it has no test perplexity")
    config = best.meta["config"]
    return {
        "config": config,
        "name": folder.name,
        "valid": best.meta["valid_perplexity"],
        "epoch": best.meta["epoch"],
        "test": tests[-1],
        "curve": [line["valid/perplexity"] for line in lines if "valid/perplexity" in line],
        "count": count_parameters(build_model(config, len(codec_from_state(best.meta["codec"])))),
        "seconds": unpack_state(last.tensors, last.meta["state"])["progress"]["seconds"],
    }


def curves(runs: list[dict[str, Any]]) -> Figure:
    """Validation perplexity by epoch, a line for each run."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for run in runs:
        epochs = range(1, len(run["curve"]) + 1)
        label = f"{run['config']['symm']}, seed {run['config']['seed']}"
        panel.plot(epochs, run["curve"], marker=".", label=label)
    panel.set(xlabel="epoch", ylabel="validation perplexity")
    panel.grid(True, color="0.9")
    panel.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="a .md; the picture stands beside")
    parser.add_argument("--title", default="Perplexity")
    parser.add_argument("--note", action="append", default=[], help="a paragraph above the table")
    options = parser.parse_args()
    runs = [read_run(folder) for folder in options.runs]
    rows = [
        [
            f"{run['config']['symm']}, seed {run['config']['seed']}",
            f"{run['valid']:.2f}",
            f"{run['test']:.2f}",
            str(run["epoch"]),
            f"{run['count'].training:,}",
            f"{run['count'].recurrent:,}",
            f"{run['seconds'] / 60:.1f}",
            str(run["config"]["threads"] or "default"),
        ]
        for run in runs
    ]
    header = ["hidden weights", "valid", "test", "best epoch", "parameters", "recurrent", "minutes"]
    config = runs[0]["config"]
    figure = options.out.with_suffix(".png")
    figure.parent.mkdir(parents=True, exist_ok=True)
    curves(runs).savefig(figure, dpi=110)
    write_report(
        options.out,
        options.title,
        [
            f"`{config['size']}` model, recipe {config['recipe']}, {config['epochs']} epochs; "
            "perplexity of the model that validated best, over every token of the text in one "
            "stream with carried state. Minutes are those of training with validation, on the "
            "threads named.",
            *options.note,
            table([*header, "threads"], rows),
            f"![validation perplexity by epoch]({figure.name})",
        ],
    )


if __name__ == "__main__":
    main()
