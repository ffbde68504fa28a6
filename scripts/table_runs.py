"""A table of finished training runs, and a picture of their validation curves.

    python scripts/table_runs.py runs/ptb-small-none runs/ptb-small-avg --out results/ptb_small.md

Reads the run folders that ``lm.train`` wrote; trains nothing. The rows stand in the order of the
folders, and in a .json beside the table too, for scripts/plot_forms.py. The .json of an earlier
table may stand among the folders, for its rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from report import table, write_report

from lm.model import CELLS
from lm.saved import load_saved
from symrnn import count_parameters
from symrnn.training import load_checkpoint, unpack_state
from symrnn.training.command_line import MACHINE

HEADER = ["weights", "valid", "test", "best epoch", "parameters in training", "deployed"]
HEADER += ["of these recurrent", "minutes", "threads"]


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says: configuration, curve, best epoch, test, counts, time.

    JSON. The configuration is without what only says where it ran; "recurrent" are of the deployed
    parameters; "curve" is the validation perplexity by epoch.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tests = [line["test/perplexity"] for line in lines if "test/perplexity" in line]
    if not tests:
        raise SystemExit(f"{folder}: this run is not finished, it has no test perplexity")
    # The model that was trained and, of soft symmetry, the other one that is kept.
    last, best = (
        load_saved(folder / f"{name}.safetensors", torch.device("cpu")) for name in ("last", "best")
    )
    kept = count_parameters(best.model)
    state = load_checkpoint(folder / "last.safetensors")
    return {
        "name": folder.name,
        "label": label_of(best.config),
        "config": {name: value for name, value in best.config.items() if name not in MACHINE},
        "valid": best.meta["valid_perplexity"],
        "test": tests[-1],
        "epoch": best.meta["epoch"],
        "training": count_parameters(last.model).training,
        "deployed": kept.deployed,
        "recurrent": kept.recurrent,
        "seconds": unpack_state(state.tensors, state.meta["state"])["progress"]["seconds"],
        "threads": best.config["threads"],
        "curve": [line["valid/perplexity"] for line in lines if "valid/perplexity" in line],
    }


def label_of(config: Mapping[str, Any]) -> str:
    """What a run's weights are, as far as it is not what all runs have: "avg, seed 1"."""
    cell, gates = config["cell"], CELLS[config["cell"]].GATES
    hidden, inputs = config["symm_hh"], config["symm_ih"]
    form = config["symm"]
    if form != "none" and (hidden, inputs) != (gates, ""):
        parts = {"hidden": hidden, "input": inputs}
        on = [
            name if named == gates else f"{name} {named}" for name, named in parts.items() if named
        ]
        form += f" on {' and '.join(on)}"
    parts = [form] if cell == "lstm" else [cell, form]
    if config["soft_symmetry"]:
        norm = "" if config["soft_norm"] == 2 else f", {config['soft_norm']}-norm"
        parts.append(f"soft {config['soft_symmetry']:g}{norm}")
    return ", ".join([*parts, f"seed {config['seed']}"])


def curves(runs: list[dict[str, Any]]) -> Figure:
    """Validation perplexity by epoch, a line for each run."""
    many = len(runs) > 8  # the legend beside the lines, and more ways to draw them than colours
    figure = Figure(figsize=(9, 6) if many else (6, 4), layout="constrained")
    panel = figure.subplots()
    for number, run in enumerate(runs):
        epochs = range(1, len(run["curve"]) + 1)
        style = ("-", "--", ":")[number // 10 % 3]
        panel.plot(epochs, run["curve"], marker=".", linestyle=style, label=run["label"])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="epoch", ylabel="validation perplexity")
    panel.grid(True, color="0.9")
    if many:
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        panel.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .md; the picture and a .json stand beside"
    )
    parser.add_argument("--title", default="Perplexity")
    parser.add_argument("--note", action="append", default=[], help="a paragraph above the table")
    options = parser.parse_args()
    runs = []
    for place in options.runs:
        earlier = place.suffix == ".json"
        runs += json.loads(place.read_text())["runs"] if earlier else [read_run(place)]
    rows = [
        [
            run["label"],
            f"{run['valid']:.2f}",
            f"{run['test']:.2f}",
            str(run["epoch"]),
            f"{run['training']:,}",
            f"{run['deployed']:,}",
            f"{run['recurrent']:,}",
            f"{run['seconds'] / 60:.1f}",
            str(run["threads"] or "default"),
        ]
        for run in runs
    ]
    config = runs[0]["config"]
    figure, data = (options.out.with_suffix(suffix) for suffix in (".png", ".json"))
    figure.parent.mkdir(parents=True, exist_ok=True)
    curves(runs).savefig(figure, dpi=110)
    data.write_text(json.dumps({"title": options.title, "runs": runs}, indent=2) + "\n")
    write_report(
        options.out,
        options.title,
        [
            f"`{config['size']}` model, recipe {config['recipe']}, {config['epochs']} epochs; "
            "perplexity of the model that validated best, over every token of the text in one "
            "stream with carried state. Minutes are those of training with validation, on the "
            "threads named.",
            *options.note,
            table(HEADER, rows),
            f"![validation perplexity by epoch]({figure.name})",
        ],
    )


if __name__ == "__main__":
    main()
