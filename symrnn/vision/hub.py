"""``python -m symrnn.vision.hub``: a trained network as a folder of Hugging Face's hub."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from symrnn import open_packed
from symrnn.card import Card, Result
from symrnn.files import run_program
from symrnn.hub import hub_parser, run_hub_program, write_folder
from symrnn.storage import Packed
from symrnn.training.command_line import checkpoint_file, print_table
from symrnn.training.published import lines_with, published
from symrnn.vision.card import card_of
from symrnn.vision.datasets import list_datasets
from symrnn.vision.models.network import Network
from symrnn.vision.saved import model_of, save_best

EXAMPLE = """\
examples:
  python -m symrnn.vision.hub                         the newest run in ./runs
  python -m symrnn.vision.hub runs/cifar10-wrn-16-1-bottleneck-tri-seed1 --out wrn-16-1-tri
  python -m symrnn.vision.hub runs/cifar10-wrn-16-1-bottleneck-tri-seed1 --push USER/wrn-16-1-tri

The folder has the network, packed; its configuration; and a card, README.md, with what the run has
recorded. symrnn.vision.from_pretrained(FOLDER) is the network again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Make of a trained network a folder of Hugging Face's hub, with a model card."
    options = hub_parser("symrnn.vision.hub", description, EXAMPLE).parse_args(arguments)
    packed = open_packed(checkpoint_file(options.checkpoint, "symrnn.vision.train"))
    model = model_of(packed)
    card = card_of_run(model, packed, license=options.license)
    print_table({"model": packed.path})
    print_table(run_hub_program(options, packed.path, model, _writer(model, packed), card))
    return 0


def save_run(run: str | Path, folder: str | Path, *, license: str | None = None) -> None:
    """Write the best network of a run, or a file's, into a folder, with what the run has recorded.

    license: the network's, as the hub names it, such as "mit".

    Raises UserError as :func:`symrnn.vision.saved.load_model` and :func:`symrnn.hub.write_folder`
    do.
    """
    packed = open_packed(checkpoint_file(run, "symrnn.vision.train"))
    model = model_of(packed)
    card = card_of_run(model, packed, license=license)
    write_folder(model, Path(folder), _writer(model, packed), lambda: card)


def _writer(model: Network, packed: Packed) -> Callable[[Path], None]:
    meta = dict(packed.meta)
    config = published(meta.pop("config"), list_datasets())
    return lambda path: save_best(path, model, config, **meta)


def card_of_run(model: Network, packed: Packed, *, license: str | None = None) -> Card:
    """The card of a run's network; its numbers are those that the run has recorded."""
    config = packed.meta["config"]
    data = config.get("data")
    return card_of(
        model,
        config,
        packed.path.resolve().parent.name,
        data=Path(data).name if isinstance(data, str) else None,
        epoch=packed.meta.get("epoch"),
        results=results_of(packed.path.with_name("metrics.jsonl"), packed.meta),
        license=license,
    )


def results_of(metrics: Path, meta: Mapping[str, Any]) -> list[Result]:
    """The accuracy of a best network, in percent, and of the five likeliest classes if known."""
    accuracy, epoch = meta.get("accuracy"), meta.get("epoch")
    if not isinstance(accuracy, float) or not math.isfinite(accuracy):
        return []
    results = [Result("accuracy", "accuracy, %", accuracy, "validation")]
    for line in lines_with(metrics, "valid/accuracy5"):
        five = line["valid/accuracy5"]
        chosen = line.get("valid/accuracy") == accuracy and line.get("epoch") == epoch
        if chosen and isinstance(five, float):
            results[1:] = [Result("accuracy", "top five accuracy, %", five, "validation")]
    return results


if __name__ == "__main__":
    run_program(main)
