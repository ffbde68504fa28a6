"""A table of finished training runs, and a picture of their validation curves.

    python scripts/tables/runs.py runs/ptb-small-none runs/ptb-small-avg --out results/ptb_small.md
    python scripts/tables/runs.py runs/cifar10-none runs/cifar10-tri --out results/cifar10.md

Reads the run folders that lm.train or symrnn.vision.train wrote; trains nothing. The rows stand in
the order of the folders, and in a .json beside the table too, for scripts/tables/forms.py. The
.json of an earlier table may stand among the folders, for its rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, table, write_report

from lm.model import CELLS
from lm.saved import load_saved
from symrnn import count_parameters, open_packed
from symrnn.training import load_checkpoint, unpack_state
from symrnn.training.command_line import MACHINE
from symrnn.vision.saved import load_model

COUNTS = ["best epoch", "parameters in training", "deployed"]
TIME = ["minutes", "threads"]


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run's folder says: configuration, curve, best epoch, scores, counts, time.

    JSON. The configuration is without what only says where it ran; "curve" has the perplexity, or
    the accuracy in percent, on the validation set by epoch.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics: dict[str, list[Any]] = {}
    for line in lines:
        for name, value in line.items():
            metrics.setdefault(name, []).append(value)
    meta = open_packed(folder / "best.safetensors").meta
    read = read_language_model if "cell" in meta["config"] else read_image_network
    state = load_checkpoint(folder / "last.safetensors")
    return {
        "name": folder.name,
        "config": {name: value for name, value in meta["config"].items() if name not in MACHINE},
        "epoch": meta["epoch"],
        "seconds": unpack_state(state.tensors, state.meta["state"])["progress"]["seconds"],
        "threads": meta["config"]["threads"],
        **read(folder, meta, metrics),
    }


def read_language_model(folder: Path, meta: Any, metrics: dict[str, list[Any]]) -> dict[str, Any]:
    """ "recurrent" are of the deployed parameters."""
    if "test/perplexity" not in metrics:
        raise SystemExit(f"{folder}: this run is not finished, it has no test perplexity")
    # The model that was trained and, of soft symmetry, the other one that is deployed.
    last, best = (
        count_parameters(load_saved(folder / f"{name}.safetensors", torch.device("cpu")).model)
        for name in ("last", "best")
    )
    return {
        "label": label_of(meta["config"]),
        "valid": meta["valid_perplexity"],
        "test": metrics["test/perplexity"][-1],
        "training": last.training,
        "deployed": best.deployed,
        "recurrent": best.recurrent,
        "curve": metrics["valid/perplexity"],
    }


def read_image_network(folder: Path, meta: Any, metrics: dict[str, list[Any]]) -> dict[str, Any]:
    """ "last" and "best" are accuracies in percent."""
    config, curve = meta["config"], metrics.get("valid/accuracy", [])
    if len(curve) < config["epochs"]:
        raise SystemExit(f"{folder}: not finished, {len(curve)} of {config['epochs']} epochs")
    counts = count_parameters(load_model(folder))
    return {
        "label": image_label_of(config),
        "data": Path(config["data"]).name,
        "last": curve[-1],
        "best": meta["accuracy"],
        "training": counts.training,
        "deployed": counts.deployed,
        "curve": curve,
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
    if config["precision"] != "fp32":
        parts.append(config["precision"])
    return ", ".join([*parts, f"seed {config['seed']}"])


def image_label_of(config: Mapping[str, Any]) -> str:
    """Likewise of an image network: "tri in space, shared by stage, seed 1"."""
    form = str(config["symm"])
    if config["soft_symmetry"]:
        form = f"soft {config['soft_symmetry']:g}"
    if config["axes"] != "channel":
        form += " in space" if config["axes"] == "space" else " in both"
    share = [] if config["share"] == "none" else [f"shared by {config['share']}"]
    return ", ".join([form, *share, f"seed {config['seed']}"])


def curves(runs: list[dict[str, Any]], what: str) -> Figure:
    """The curve of each run by epoch."""
    many = len(runs) > 8  # the legend beside the lines, and more ways to draw them than colours
    figure = Figure(figsize=(9, 6) if many else (6, 4), layout="constrained")
    panel = figure.subplots()
    for number, run in enumerate(runs):
        epochs = range(1, len(run["curve"]) + 1)
        style = ("-", "--", ":")[number // 10 % 3]
        panel.plot(epochs, run["curve"], marker=".", linestyle=style, label=run["label"])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="epoch", ylabel=f"validation {what}")
    panel.grid(True, color="0.9")
    if many:
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        panel.legend()
    return figure


def summary(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """What all runs have in common, in words, and the Markdown table."""
    images = "best" in runs[0]
    scores = ["last", "best"] if images else ["valid", "test"]
    counts = ["training", "deployed"] if images else ["training", "deployed", "recurrent"]
    heads = [f"{name}, %" for name in scores] if images else scores
    rows = [
        [
            run["label"],
            *(f"{run[name]:.2f}" for name in scores),
            str(run["epoch"]),
            *(f"{run[name]:,}" for name in counts),
            f"{run['seconds'] / 60:.1f}",
            str(run["threads"] or "default"),
        ]
        for run in runs
    ]
    config = runs[0]["config"]
    recipe = f"recipe {config['recipe']}, {config['epochs']} epochs"
    if images:
        words = (
            f"`{config['model']}` on {runs[0]['data']}, {recipe}, batch {config['batch_size']}, "
            f"{config['precision']}. Accuracy on the whole validation set, after the last epoch "
            "and after the best one."
        )
    else:
        words = (
            f"`{config['size']}` model, {recipe}; perplexity of the model that validated best, "
            "over every token of the text in one stream with carried state."
        )
    words += " Minutes are those of training with validation, on the threads named."
    recurrent = [] if images else ["of these recurrent"]
    return words, table(["weights", *heads, *COUNTS, *recurrent, *TIME], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .md; the picture and a .json stand beside"
    )
    parser.add_argument("--title", help="(Perplexity, or Accuracy)")
    parser.add_argument("--note", action="append", default=[], help="a paragraph above the table")
    options = parser.parse_args()
    runs = []
    for place in options.runs:
        earlier = place.suffix == ".json"
        runs += json.loads(place.read_text())["runs"] if earlier else [read_run(place)]
    if len({"best" in run for run in runs}) > 1:
        parser.error("language models and image networks do not share a table")
    what = "accuracy, %" if "best" in runs[0] else "perplexity"
    title = options.title or what.partition(",")[0].capitalize()
    figure, data = (options.out.with_suffix(suffix) for suffix in (".png", ".json"))
    figure.parent.mkdir(parents=True, exist_ok=True)
    curves(runs, what).savefig(figure, dpi=110)
    data.write_text(json.dumps({"title": title, "runs": runs}, indent=2) + "\n")
    words, rows = summary(runs)
    picture = f"![validation {what.partition(',')[0]} by epoch]({figure.name})"
    write_report(options.out, title, [words, *options.note, rows, picture])


if __name__ == "__main__":
    main()
