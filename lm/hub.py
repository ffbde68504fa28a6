"""``python -m lm.hub``: a trained model as a folder of Hugging Face's hub, with its card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from data import DataError, list_corpora
from lm.card import card_of
from lm.saved import Saved, load_saved, save_best
from symrnn.card import Card, Result
from symrnn.files import run_program
from symrnn.hub import hub_parser, run_hub_program, write_folder
from symrnn.training.command_line import print_table
from symrnn.training.published import lines_with, published

EXAMPLE = """\
examples:
  python -m lm.hub                                    the newest run in ./runs
  python -m lm.hub runs/ptb-small-avg-seed1 --out ptb-small-avg
  python -m lm.hub runs/ptb-small-avg-seed1 --push USER/ptb-small-avg --private

The folder has the model and its vocabulary, packed; its configuration; and a card, README.md, with
what the run has recorded. LanguageModel.from_pretrained(FOLDER) is the model again, and the
programs take FOLDER as they take a run.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Make of a trained model a folder of Hugging Face's hub, with a model card."
    options = hub_parser("lm.hub", description, EXAMPLE).parse_args(arguments)
    saved = load_saved(options.checkpoint, torch.device("cpu"))
    card = card_of_run(saved, license=options.license)
    print_table({"model": saved.path})
    print_table(run_hub_program(options, saved.path, saved.model, _writer(saved), card))
    return 0


def save_run(run: str | Path, folder: str | Path, *, license: str | None = None) -> None:
    """Write the best model of a run, or a file's, into a folder, with what the run has recorded.

    license: the model's, as the hub names it, such as "mit".

    Raises UserError as :func:`lm.saved.load_saved` and :func:`symrnn.hub.write_folder` do.
    """
    saved = load_saved(run, torch.device("cpu"))
    card = card_of_run(saved, license=license)
    write_folder(saved.model, Path(folder), _writer(saved), lambda: card)


def _writer(saved: Saved) -> Callable[[Path], None]:
    config = published(saved.config, list_corpora())
    outcome = {
        name: saved.meta[name] for name in ("epoch", "valid_perplexity") if name in saved.meta
    }
    return lambda path: save_best(path, saved.model, config, saved.codec, **outcome)


def card_of_run(saved: Saved, *, license: str | None = None) -> Card:
    """The card of a run's model; its numbers are those that the run has recorded."""
    data = saved.config.get("data")
    measured = measured_by(saved)
    return card_of(
        saved.model,
        saved.config,
        saved.path.resolve().parent.name,
        data=Path(data).name if isinstance(data, str) else None,
        epoch=saved.meta.get("epoch"),
        results=[*results_of(measured)],
        unknown={
            split: values["unknown_share"]
            for split, values in measured.items()
            if "unknown_share" in values
        },
        license=license,
    )


def measured_by(saved: Saved) -> dict[str, dict[str, float]]:
    """What the run of a best model has measured of that: by split, and there by name.

    From the file and the metrics.jsonl beside it. A test counts if it came after the validation
    that chose the model, which a run that is continued may do again.
    """
    perplexity, epoch = saved.meta.get("valid_perplexity"), saved.meta.get("epoch")
    if perplexity is None:
        return {}
    metrics = saved.path.with_name("metrics.jsonl")
    chosen = [
        line
        for line in lines_with(metrics, "valid/perplexity")
        if line["valid/perplexity"] == perplexity and line.get("epoch") == epoch
    ]
    found = {"validation": {"perplexity": perplexity}}
    if chosen:
        found["validation"] = _named(chosen[-1], "valid/")
        tests = lines_with(metrics, "test/perplexity")
        if tests and tests[-1]["step"] >= chosen[-1]["step"]:
            found["test"] = _named(tests[-1], "test/")
    return found


def _named(line: dict[str, Any], split: str) -> dict[str, float]:
    return {
        name.removeprefix(split): value
        for name, value in line.items()
        if name.startswith(split) and isinstance(value, float) and math.isfinite(value)
    }


def results_of(measured: dict[str, dict[str, float]]) -> Iterator[Result]:
    """Of each split the perplexity per token, and per word where that is another."""
    for split, values in measured.items():
        token, word = values.get("perplexity"), values.get("word_perplexity")
        if token is not None and word in (None, token):
            yield Result("perplexity", "perplexity", token, split)
        elif token is not None and word is not None:
            yield Result("perplexity", "perplexity per token", token, split)
            yield Result("perplexity", "perplexity per word", word, split)


if __name__ == "__main__":
    run_program(main, DataError)
