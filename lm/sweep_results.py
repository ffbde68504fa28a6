"""What the runs of a sweep have come to: read from their folders, and as a table over seeds."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm.perplexity import Score
from lm.sweep_plan import PlannedRun, Sweep
from symrnn.files import UserError, replace_text, to_json
from symrnn.training import CheckpointError
from symrnn.training.loop import saved_progress
from symrnn.training.run_folder import is_begun

MEASURES = (
    *("valid", "test", "valid_per_word", "test_per_word", "valid_bits", "test_bits"),
    *("best_epoch", "seconds"),
)
"""What a group has the mean and the standard deviation of, over its finished runs."""


COUNTS = ("training", "deployed", "recurrent")
"""Parameters: of the model in training, of the one that is deployed, and of its recurrence."""


@dataclass
class Standing:
    """How far a run has come, and what came of it so far. JSON.

    begun, finished: whether it is.
    epochs: that are finished.
    step: the last that was logged or saved.
    valid: the best validation perplexity so far, per token; best_epoch: its epoch. None before the
        first validation.
    test: the test perplexity of that model, per token; None before the end.
    valid_per_word, test_per_word: the same per word, which compares between tokenizers.
    valid_bits, test_bits: the same in bits per token, which characters are compared by.
    seconds: spent on it, up to its last checkpoint.
    valid_unknown, test_unknown: the share of <unk> in the tokens of these texts, from 0 to 1; a
        perplexity is easily low where much is unknown.
    """

    begun: bool = False
    finished: bool = False
    epochs: int = 0
    step: int = 0
    valid: float | None = None
    best_epoch: int | None = None
    test: float | None = None
    valid_per_word: float | None = None
    test_per_word: float | None = None
    valid_bits: float | None = None
    test_bits: float | None = None
    seconds: float = 0.0
    valid_unknown: float | None = None
    test_unknown: float | None = None


def standing_of(folder: Path, epochs: int) -> Standing:
    """How far the run of so many epochs in a folder has come; it may be running."""
    if not is_begun(folder):
        return Standing()
    validations, last = _metrics(folder / "metrics.jsonl")
    best = min(validations, key=lambda line: float(line["valid/loss"]), default=None)
    progress = _progress(folder / "last.safetensors")
    tested = Score(**progress["tested"]) if progress.get("tested") else None
    ended = progress.get("ended", False)  # by --patience, before its last epoch
    standing = Standing(
        begun=True,
        finished=tested is not None and (ended or progress["epoch"] > epochs),
        epochs=len(validations),
        step=max(last.get("step", 0), progress.get("step", 0)),
        seconds=progress.get("seconds", 0.0),
    )
    if best is not None:
        standing.valid = float(best["valid/perplexity"])
        standing.valid_bits = float(best["valid/loss"]) / math.log(2)
        standing.valid_per_word = float(best["valid/word_perplexity"])
        standing.best_epoch = int(best["epoch"])
        standing.valid_unknown = best.get("valid/unknown_share")
    if tested is not None:
        standing.test, standing.test_per_word = tested.perplexity, tested.word_perplexity
        standing.test_bits = tested.bits
        standing.test_unknown = last.get("test/unknown_share")
    return standing


def _metrics(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of metrics.jsonl that say of a validation, and the last line, {} if there is none.

    They may be many, and they grow: only those lines are parsed.
    """
    validations, last = [], b"{}"
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # being written, or torn by a kill
                break
            last = line
            if b'"valid/loss"' in line:
                validations.append(_parsed(line))
    return [line for line in validations if "valid/loss" in line], _parsed(last)


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of metrics.jsonl; {} if it is damaged."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _progress(checkpoint: Path) -> dict[str, Any]:
    """Where the run of a checkpoint stands; nothing without one, or of one that is damaged."""
    if not checkpoint.exists():
        return {}
    try:
        return saved_progress(checkpoint)
    except CheckpointError:  # the run says so when it goes on
        return {}


# ---- the table -----------------------------------------------------------------------------------


def state_of(run: PlannedRun, standing: Standing) -> str:
    """In words: "finished", "failed", "epoch 3 of 13" or "not begun"."""
    if standing.finished:
        return "finished"
    if run.failed:
        return "failed"
    if not standing.begun:
        return "not begun"
    return f"epoch {standing.epochs} of {run.config['epochs']}"


def results_of(sweep: Sweep) -> dict[str, Any]:
    """All numbers of a sweep, as table.json has them: each run's, and over seeds each group's.

    "groups" have of each of :data:`MEASURES`, over their finished runs, "mean", "std" (of the
    sample, with n - 1; None for one run) and "n".
    """
    runs = []
    groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for run in sweep.runs:
        standing = standing_of(sweep.folder_of(run), run.config["epochs"])
        record = {
            "name": run.name,
            "label": run.label,
            "options": run.options,
            "seed": run.config["seed"],
            "state": state_of(run, standing),
            "failed": run.failed,
            **asdict(standing),
            "parameters": run.parameters,
        }
        runs.append(record)
        for config, group in groups:
            if config == run.group:
                group["runs"].append(record)
                break
        else:
            first = {"label": run.label, "options": run.options, "parameters": run.parameters}
            groups.append((run.group, {**first, "epochs": run.config["epochs"], "runs": [record]}))
    first_config = sweep.runs[0].config if sweep.runs else {}
    common = {
        name: value
        for name, value in first_config.items()
        if name != "seed" and all(run.config[name] == value for run in sweep.runs)
    }
    return {
        "commands": sweep.commands,
        "arguments": sweep.arguments,
        "threads": sweep.threads,
        "environment": sweep.environment,
        "config": common,
        "groups": [summed_up(group) for _, group in groups],
        "runs": runs,
    }


def summed_up(group: dict[str, Any]) -> dict[str, Any]:
    """A group whose "runs" are records, with their names in the place of these, and MEASURES."""
    finished = [run for run in group["runs"] if run["finished"]]
    measures = {name: spread([run[name] for run in finished]) for name in MEASURES}
    return {**group, "runs": [run["name"] for run in group["runs"]], **measures}


def merged(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of one sweep whose runs were shared out, over machines or over time.

    tables: as :func:`results_of` gives them. Of a run that is in several the furthest counts; each
        part's commands and machine are kept, in "parts".

    Raises UserError unless the runs of all are alike but for their seeds and their groups' options.
    """
    common = _common_config(tables)
    runs: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for table in tables:
        for run in table["runs"]:
            other = runs.get(run["name"])
            if other is None or _how_far(run) > _how_far(other):
                runs[run["name"]] = run
        for group in table["groups"]:
            kept = groups.setdefault(group["label"], {**group, "runs": []})
            for name in ("options", "parameters", "epochs"):
                if kept[name] != group[name]:
                    raise UserError(
                        f"tables of different sweeps: {group['label']} has {name} {kept[name]} in "
                        f"one, {group[name]} in another"
                    )
            kept["runs"] += [name for name in group["runs"] if name not in kept["runs"]]
    made = ("commands", "threads", "environment")
    parts: list[dict[str, Any]] = []
    for table in tables:
        for part in table.get("parts", [table]):
            part = {name: part[name] for name in made}
            if part not in parts:  # it has gone on since
                parts.append(part)
    return {
        **tables[0],
        "config": common,
        "commands": [*dict.fromkeys(one for table in tables for one in table["commands"])],
        "parts": parts,
        "groups": [
            summed_up({**group, "runs": [runs[name] for name in group["runs"]]})
            for group in groups.values()
        ],
        "runs": [*runs.values()],
    }


def _common_config(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is common to the runs of all. UserError for what no group's options tell apart."""
    varied = {name for table in tables for group in table["groups"] for name in group["options"]}
    common: dict[str, Any] = dict(tables[0]["config"])
    for table in tables[1:]:
        other = table["config"]
        for name in [*common]:
            if name not in other or (name in varied and common[name] != other[name]):
                del common[name]
            elif common[name] != other[name]:
                raise UserError(
                    f"tables of different sweeps: {name} is {common[name]} in one, "
                    f"{other[name]} in another"
                )
    return common


def _how_far(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["finished"], run["epochs"], run["step"]


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation of the sample, and number of values; None where there is none.

    Of values of which one is infinite, as a perplexity may be, there is no deviation.
    """
    finite = all(map(math.isfinite, values))
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 and finite else None,
        "n": len(values),
    }


def made_with(results: dict[str, Any]) -> str:
    """The commands, the machine, versions and the date of the runs, as a Markdown list.

    Commands that only printed those of the runs are named if no other ran them. Of merged results
    there is a list for each part.
    """
    if "parts" in results:
        parts = enumerate(results["parts"], 1)
        return "\n\n".join(f"Part {n}:\n\n{made_with(part)}" for n, part in parts)
    ran = [command for command in results["commands"] if "--print" not in shlex.split(command)]
    lines = [f"command: `{command}`" for command in ran or results["commands"]]
    made = results["environment"]
    if made is not None:
        machine = f"{made['cpu']}, {made['cores']} cores, --threads {results['threads']}"
        if made["gpus"]:
            machine += f"; {', '.join(made['gpus'])}, CUDA {made['cuda']}"
        lines += [
            f"machine: {machine}",
            f"versions: Python {made['python']}, torch {made['torch']}, numpy {made['numpy']}",
            f"begun: {made['date'][:10]}",
        ]
    return "\n".join(f"- {line}" for line in lines)


def markdown(results: dict[str, Any]) -> list[str]:
    """The words and the tables of :func:`results_of`, a block of Markdown each."""
    config, groups, runs = results["config"], results["groups"], results["runs"]
    what = [f"`{config['size']}` model"] if "size" in config else []
    what += [f"{name} {config[name]}" for name in ("cell", "recipe") if name in config]
    what += [f"{config['epochs']} epochs"] if "epochs" in config else []
    if "data" in config:
        what.append(f"corpus `{Path(config['data']).name}`")
    unit, measure = "", "Perplexity"
    if config.get("tokenizer") == "char" and all("valid_bits" in run for run in runs):
        unit, measure = "_bits", "Bits per character"
    elif any(run["valid_per_word"] != run["valid"] for run in runs):
        # Tokens may be others in each run, words are not.
        unit, measure = "_per_word", "Perplexity per word"
    number = "{:.4f}" if unit == "_bits" else "{:.2f}"
    words = (
        f"{', '.join(what)}. {measure} of the model that validated best, "
        "over every token of the text in one stream with carried state; mean ± standard deviation "
        "over the finished runs of each row."
    )
    unknown = [unknown_words(runs, split) for split in ("valid", "test")]
    if any(unknown):
        words += f" Unknown words: {', '.join(filter(None, unknown))} of the tokens."
    by_name = {run["name"]: run for run in runs}
    heads = ["weights", "valid", "test", "runs", "parameters", "deployed", "of these recurrent"]
    rows = [
        [
            group["label"].replace("|", "\\|"),
            _with_spread(group["valid" + unit], number),
            _with_spread(group["test" + unit], number),
            _counted([by_name[name] for name in group["runs"]]),
            *(f"{group['parameters'][name]:,}" for name in COUNTS),
            _with_spread(group["best_epoch"], "{:.1f}"),
            _with_spread(group["seconds"], "{:.2f}", 1 / 60),
        ]
        for group in groups
    ]
    each = [
        [
            run["name"],
            run["state"],
            _or_dash(run["valid" + unit], number),
            _or_dash(run["test" + unit], number),
            _or_dash(run["best_epoch"], "{}"),
            f"{run['seconds'] / 60:.2f}",
        ]
        for run in runs
    ]
    return [
        words,
        _table([*heads, "best epoch", "minutes"], rows),
        _table(["run", "state", "valid", "test", "best epoch", "minutes"], each),
    ]


def unknown_words(runs: Sequence[dict[str, Any]], split: str) -> str:
    """How much of a text is unknown to the models: "test 4.76 %", or from the least to the most."""
    shares = {run[f"{split}_unknown"] for run in runs} - {None}
    if not shares:
        return ""
    least, most = (f"{share:.2%}" for share in (min(shares), max(shares)))
    return f"{split} {least}" if least == most else f"{split} {least} to {most}"


def _with_spread(value: dict[str, Any], form: str, scale: float = 1.0) -> str:
    if value["mean"] is None:
        return "–"
    mean = form.format(value["mean"] * scale)
    return mean if value["std"] is None else f"{mean} ± {form.format(value['std'] * scale)}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _counted(runs: Sequence[dict[str, Any]]) -> str:
    """How many runs of a group the mean is over: "5", "3 of 5", "3 of 5, 1 failed"."""
    finished = sum(run["finished"] for run in runs)
    failed = sum(run["state"] == "failed" for run in runs)
    words = str(finished) if finished == len(runs) else f"{finished} of {len(runs)}"
    return f"{words}, {failed} failed" if failed else words


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


def plan_table(runs: Sequence[PlannedRun]) -> str:
    """A Markdown table of groups: their parameters, and the seeds that they are to be run with."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    rows = [
        [
            label,
            *(f"{group[0].parameters[name]:,}" for name in COUNTS),
            ", ".join(str(run.config["seed"]) for run in group),
        ]
        for label, group in groups.items()
    ]
    return _table(["weights", "parameters", "deployed", "of these recurrent", "seeds"], rows)


def text_of(results: dict[str, Any]) -> str:
    """The table with how it was made, in Markdown."""
    return "\n\n".join([made_with(results), *markdown(results)]) + "\n"


def write_table(folder: Path, results: dict[str, Any]) -> None:
    """Write table.md and table.json into the sweep's folder.

    Raises UserError if they cannot be written.
    """
    contents = {"table.md": text_of(results), "table.json": to_json(results, "results", 1) + "\n"}
    for name, text in contents.items():
        replace_text(folder / name, text)
