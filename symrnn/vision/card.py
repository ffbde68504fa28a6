"""The card of an image network: what it is, how it was trained, what it was measured to be."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from symrnn import __version__, count_parameters
from symrnn.card import Card, Result
from symrnn.hub import KINDS, HubKind
from symrnn.vision.models.network import Network
from symrnn.vision.saved import model_of, save_best

SYMMETRIC = """\
An image network of symrnn, with *symmetric* weights: entries that a symmetry maps onto each other
are one parameter, and are stored once."""

FULL = "An image network of symrnn, with full weights."

USAGE = """\
import torch
from symrnn.vision import fold_for_inference, from_pretrained

model = from_pretrained("{title}")  # the folder, or USER/NAME of the hub
network = fold_for_inference(model)  # plain layers: faster, and the same numbers
"""

TRAINED = """
images = torch.rand(1, 3, {side}, {side})  # red, green, blue, each from 0 to 1
mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
with torch.no_grad():
    logits = network((images - mean) / std)
print(model.classes[int(logits[0].argmax())])
"""

UNTRAINED = """
with torch.no_grad():
    logits = network(torch.randn(1, 3, {side}, {side}))
print(logits.shape)
"""


def card_of(
    model: Network,
    config: Mapping[str, Any],
    title: str,
    *,
    data: str | None = None,
    epoch: int | None = None,
    results: Sequence[Result] = (),
    license: str | None = None,
) -> Card:
    """The card of a network that a configuration describes: of a run, or the network's own.

    data: the name of what it was trained on.  epoch: after which it was the best.
    """
    side = config["image_size"] or model.image_size
    symm, where = config["symm"], config["where"]
    facts = {
        "network": model.name,
        "images": f"{side}×{side}, {model.num_classes:,} classes",
        "symmetry": "none: full weights",
    }
    if symm != "none":
        place = "" if where is None else f", of {where}"
        facts["symmetry"] = f"{symm}, over {config['axes']}{place}"
    if config["share"] != "none":
        facts["shared convolutions"] = config["share"]
    if config["dropout"]:
        facts["dropout"] = f"{config['dropout']:g}"
    if data is not None:
        facts |= {"trained on": data, **_training(config, epoch)}
    facts["saved with"] = (
        f"symrnn {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    )
    count = count_parameters(model)
    trained = None not in (model.classes, model.mean, model.std)
    return Card(
        title=title,
        task="image-classification",
        tags=[model.name, *([] if symm == "none" else ["weight-symmetry", symm])],
        summary=FULL if symm == "none" else SYMMETRIC,
        facts=facts,
        counts={"training": f"{count.training:,}", "deployed": f"{count.deployed:,}"},
        usage=(USAGE + (TRAINED if trained else UNTRAINED)).format(title=title, side=side),
        data=data,
        results=results,
        license=license,
    )


def _training(config: Mapping[str, Any], epoch: int | None) -> dict[str, str]:
    best = "" if epoch is None else f"; the best on the validation set after {epoch}"
    said = {"recipe": config["recipe"]}
    if config.get("soft_symmetry"):
        said["soft symmetry"] = f"penalty {config['soft_symmetry']:g}, hardened"
    return {
        **said,
        "epochs": f"{config['epochs']}{best}",
        "batch": f"{config['batch_size']} images",
        **{name: str(config[name]) for name in ("seed", "precision")},
    }


def _write(network: Network, path: Path) -> None:
    trained = {name: getattr(network, name) for name in ("classes", "mean", "std")}
    known = {name: value for name, value in trained.items() if value is not None}
    save_best(path, network, network.configuration(), **known)


KINDS[Network.hub_kind] = HubKind(
    write=_write,
    read=model_of,
    card=lambda network, title: card_of(network, network.configuration(), title),
)
