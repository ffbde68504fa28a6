"""A table of finished runs of image networks, and a picture of their validation curves.

    python scripts/table_vision.py runs/cifar10-none runs/cifar10-tri --out results/cifar10.md

Reads the run folders that ``symrnn.vision.train`` wrote; trains nothing. The rows stand in the
order of the folders, and in a .json beside the table too. The .json of an earlier table may stand
among the folders, for its rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from report import table, write_report

from symrnn import count_parameters, open_packed
from symrnn.training import load_checkpoint, unpack_state
from symrnn.vision.options import MACHINE
from symrnn.vision.saved import load_model

HEADER = ["weights", "last, %", "best, %", "best epoch", "parameters in training", "deployed"]
HEADER += ["minutes", "threads"]


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says: configuration, curve, accuracies, counts, time.

    JSON. The configuration is without what only says where it ran; "curve" is the accuracy on the
    validation set by epoch, in percent.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [line["valid/accuracy"] for line in lines if "valid/accuracy" in line]
    meta = open_packed(folder / "best.safetensors").meta
    config = meta["config"]
    if len(curve) < config["epochs"]:
        raise SystemExit(f"{folder}: not finished, {len(curve)} of {config['epochs']} epochs")
    counts = count_parameters(load_model(folder))
    state = load_checkpoint(folder / "last.safetensors")
    return {
        "name": folder.name,
        "label": label_of(config),
        "data": Path(config["data"]).name,
        "config": {name: value for name, value in config.items() if name not in MACHINE},
        "last": curve[-1],
        "best": meta["accuracy"],
        "epoch": meta["epoch"],
        "training": counts.training,
        "deployed": counts.deployed,
        "seconds": unpack_state(state.tensors, state.meta["state"])["progress"]["seconds"],
        "threads": config["threads"],
        "curve": curve,
    }


def label_of(config: Mapping[str, Any]) -> str:
    """What a run's weights are: "tri in space, shared by stage, seed 1"."""
    form = str(config["symm"])
    if config["soft_symmetry"]:
        form = f"soft {config['soft_symmetry']:g}"
    if config["axes"] != "channel":
        form += " in space" if config["axes"] == "space" else " in both"
    share = [] if config["share"] == "none" else [f"shared by {config['share']}"]
    return ", ".join([form, *share, f"seed {config['seed']}"])


def curves(runs: list[dict[str, Any]]) -> Figure:
    """Validation accuracy by epoch, a line for each run."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for run in runs:
        panel.plot(range(1, len(run["curve"]) + 1), run["curve"], marker=".", label=run["label"])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="epoch", ylabel="validation accuracy, %")
    panel.grid(True, color="0.9")
    panel.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .md; the picture and a .json stand beside"
    )
    parser.add_argument("--title", default="Accuracy")
    parser.add_argument("--note", action="append", default=[], help="a paragraph above the table")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for place in options.runs:
        earlier = place.suffix == ".json"
        runs += json.loads(place.read_text())["runs"] if earlier else [read_run(place)]
    rows = [
        [
            run["label"],
            f"{run['last']:.2f}",
            f"{run['best']:.2f}",
            str(run["epoch"]),
            f"{run['training']:,}",
            f"{run['deployed']:,}",
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
            f"`{config['model']}` on {runs[0]['data']}, recipe {config['recipe']}, "
            f"{config['epochs']} epochs, batch {config['batch_size']}, {config['precision']}. "
            "Accuracy on the whole validation set, after the last epoch and after the best one. "
            "Minutes are those of training with validation, on the threads named.",
            *options.note,
            table(HEADER, rows),
            f"![validation accuracy by epoch]({figure.name})",
        ],
    )


if __name__ == "__main__":
    main()
