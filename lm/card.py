"""The card of a language model: what it is, how it was trained, what it was measured to be."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data import Codec
from lm.model import LanguageModel
from lm.saved import DROPOUTS, model_of, save_best
from symrnn import __version__, count_parameters
from symrnn.card import Card, Result
from symrnn.hub import KINDS, HubKind

SYMMETRIC = """\
A recurrent language model of symrnn, whose recurrent weight matrices are *symmetric*: entries that
a symmetry maps onto each other are one parameter, and are stored once."""

FULL = "A recurrent language model of symrnn, with full weight matrices."

USAGE = """\
# In a clone of symrnn's repository.
import torch
from lm.model import LanguageModel

model = LanguageModel.from_pretrained("{title}")  # the folder, or USER/NAME of the hub
"""

WITH_CODEC = """
codec = model.codec
ids = torch.tensor([codec.eos_id, *codec.encode_line("{word}")[:-1]])
with torch.no_grad():
    logits, state = model(ids[:, None])  # (time, batch)
print(codec.token(int(logits[-1, 0].argmax())))
"""

WITHOUT_CODEC = """
with torch.no_grad():
    logits, state = model(torch.zeros(1, 1, dtype=torch.int64))  # (time, batch)
print(logits.shape)
"""


def card_of(
    model: LanguageModel,
    config: Mapping[str, Any],
    title: str,
    *,
    data: str | None = None,
    epoch: int | None = None,
    results: Sequence[Result] = (),
    unknown: Mapping[str, float] | None = None,
    license: str | None = None,
) -> Card:
    """The card of a model that a configuration describes: of a run, or the model's own.

    data: the name of what it was trained on.  epoch: after which it was the best.
    unknown: of each text that it was measured on, the share of words that it does not know.
    """
    cell, symm = config["cell"], config["symm"]
    symmetric = {"hidden": config["symm_hh"], "input": config["symm_ih"]}
    where = [f"{weights} {gates}" for weights, gates in symmetric.items() if gates]
    facts = {
        "layers": f"{config['num_layers']} of {cell}, {config['hidden_size']} units"
        + (f", the last {last}" if (last := config.get("last_hidden_size")) else ""),
        "embedding": f"{config['embedding_size']}{', tied to the decoder' * config['tied']}",
        "symmetry": f"{symm} ({', '.join(where)})" if where else "none: full weights",
    }
    codec = model.codec
    if codec is not None:
        kinds = {"word": "words", "sentencepiece": "pieces of sentencepiece"}
        facts["vocabulary"] = f"{len(codec):,} {kinds.get(codec.kind, 'tokens')}"
    if data is not None:
        facts |= {"trained on": data, **_training(config, epoch)}
    if unknown:
        shares = (f"{split} {share:.2%}" for split, share in unknown.items())
        facts["unknown words"] = ", ".join(shares)
    facts["saved with"] = (
        f"symrnn {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    )
    count = count_parameters(model)
    usage = USAGE.format(title=title)
    if codec is None:
        usage += WITHOUT_CODEC
    else:
        usage += WITH_CODEC.format(word=_word_of(codec))
    return Card(
        title=title,
        task="text-generation",
        tags=["language-model", cell, "weight-symmetry", symm],
        summary=SYMMETRIC if where else FULL,
        facts=facts,
        counts={
            "training": f"{count.training:,}",
            "deployed": f"{count.deployed:,}",
            "recurrent, of the deployed": f"{count.recurrent:,}",
        },
        usage=usage,
        data=data,
        results=results,
        notes=_notes(config) if results else (),
        license=license,
    )


def _training(config: Mapping[str, Any], epoch: int | None) -> dict[str, str]:
    said = {"recipe": f"{config['recipe']}, {config['size']}"}
    if config.get("soft_symmetry"):
        said["soft symmetry"] = f"penalty {config['soft_symmetry']:g}, hardened"
    said["dropout"] = f"{config['dropout']:g}"
    for name in DROPOUTS:
        if config.get(name):
            said[name.replace("_", " ")] = f"{config[name]:g}"
    if config.get("optimizer", "sgd") != "sgd":
        said["optimizer"] = config["optimizer"]
    best = "" if epoch is None else f"; the best on the validation text after {epoch}"
    said["epochs"] = f"{config['epochs']}{best}"
    said["batch"] = f"{config['batch_size']} streams of {config['steps']} steps"
    said |= {name: str(config[name]) for name in ("seed", "precision")}
    return said


def _notes(config: Mapping[str, Any]) -> list[str]:
    unknown = ""
    if config.get("trained_unknown") == 0:
        unknown = " The train text had no `<unk>`: the model did not learn what to expect of it."
    return [
        "Every token is predicted, in one stream whose state is carried over; a line end is a "
        "token, `<eos>`. Perplexities per word compare between vocabularies; unknown words are one "
        f"token, `<unk>`, and many of them make a perplexity low.{unknown}"
    ]


def _word_of(codec: Codec) -> str:
    """A word that the vocabulary has, for an example."""
    special = (codec.eos_id, codec.unk_id)
    words = [codec.decode([id]) for id in range(len(codec)) if id not in special]
    plain = [word for word in words if word.isascii() and word.isalnum()]
    return "the" if "the" in plain else next(iter(plain), "")


KINDS[LanguageModel.hub_kind] = HubKind(
    write=lambda model, path: save_best(path, model, model.configuration(), model.codec),
    read=model_of,
    card=lambda model, title: card_of(model, model.configuration(), title),
)
