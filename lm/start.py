"""Starting a model from the weights of another one, of the same sizes and vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from data import Codec
from lm.adaptive import AdaptiveDecoder
from lm.model import LanguageModel
from lm.saved import load_saved
from symrnn.files import UserError


def start_from(model: LanguageModel, path: str | Path, codec: Codec) -> str:
    """Copy the weights of a trained model into ``model``, each matrix to the nearest of its form.

    That is exact where the form holds the matrix: full weights hold any.

    path: as of :func:`lm.saved.load_saved`.
    codec: of ``model``.

    Returns which model that is, and how far its recurrent weights were from the form, in words.

    Raises UserError for a file that is none, and for a model of other sizes or another vocabulary.
    """
    like = model.encoder.weight
    precision = "fp64" if like.dtype == torch.float64 else "fp32"
    saved = load_saved(path, like.device, precision=precision)
    _check(model, saved.model, path)
    if saved.codec.fingerprint() != codec.fingerprint():
        raise UserError(
            f"--init-from {path}: its model has another vocabulary than the corpus, of the same "
            f"{len(codec):,} types"
        )
    former, new = [], []
    for layer, rnn in zip(saved.model.layers, model.layers, strict=True):
        plain = layer.to_plain()
        nearest = rnn.from_plain(plain, rnn.symm, rnn.symm_hh, rnn.symm_ih, backend=rnn.backend)
        rnn.load_state_dict(nearest.state_dict())
        former.append(_flat(plain))
        new.append(_flat(nearest.to_plain()))
    with torch.no_grad():
        like.copy_(saved.model.encoder.weight)
    # With tied weights that is the embedding again, and of their projection both have one or none.
    decoder = saved.model.decoder if model.tied else saved.model.whole_decoder()
    model.decoder.load_state_dict(decoder.state_dict())
    if model.tied:
        model.projection.load_state_dict(saved.model.projection.state_dict())
    norm = torch.cat(former).norm()
    share = ((torch.cat(new) - torch.cat(former)).norm() / norm).item()
    return f"{saved.path}, recurrent weights moved by {share:.2%} of their norm"


def _check(model: LanguageModel, other: LanguageModel, path: str | Path) -> None:
    """Raise UserError unless the weights of ``other`` fit into ``model``."""
    for what, of in {
        "vocabulary size": lambda m: m.encoder.num_embeddings,
        "kind of layers": lambda m: type(m.layers[0]).__name__,
        "number of layers": lambda m: sum(layer.num_layers for layer in m.layers),
        "number of layers in each module": lambda m: m.layers[0].num_layers,
        "hidden size": lambda m: m.layers[0].hidden_size,
        "size of the last layer": lambda m: m.layers[-1].hidden_size,
        "embedding size": lambda m: m.encoder.embedding_dim,
        "adaptive softmax": _cutoffs,
    }.items():
        found, wanted = of(other), of(model)
        if found != wanted:
            raise UserError(
                f"--init-from {path}: its model has another {what}: {found}, not {wanted}"
            )
    if model.tied and not other.tied:
        raise UserError(
            f"--init-from {path}: its decoder and embedding share no weights, as --tied asks for"
        )


def _cutoffs(model: LanguageModel) -> str:
    if not isinstance(model.decoder, AdaptiveDecoder):
        return "none"
    return " ".join(map(str, model.decoder.softmax.cutoffs[:-1]))


def _flat(plain: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
