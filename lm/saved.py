"""A trained model and its vocabulary, in one file: what training writes and the others read.

The best model of a run is a packed one (:mod:`symrnn.storage`), with configuration and vocabulary
for its meta; a checkpoint, from which a run goes on, holds as much and more, and is read as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data import Codec, DataError, codec_from_state
from lm.adaptive import AdaptiveDecoder
from lm.model import LanguageModel
from symrnn import count_parameters, native, open_packed, save_packed
from symrnn.files import UserError
from symrnn.rnn import RecurrentLayer
from symrnn.storage import Packed, is_packed
from symrnn.symmetry import check_symmetry_name
from symrnn.training import (
    Checkpoint,
    CheckpointError,
    check_shapes,
    load_checkpoint,
    resolve_device,
    restore_model,
    set_threads,
)
from symrnn.training.command_line import checkpoint_file

PRECISIONS = ("fp32", "bf16", "fp64")
"""--precision: bf16 is autocast over float32 weights; the others are the weights' own type."""

WEIGHTS = ("float32", "bfloat16", "int8")
"""--weights: as what the recurrent weights are packed for inference."""


DROPOUTS = (
    "input_dropout",
    "output_dropout",
    "state_dropout",
    "weight_dropout",
    "embedding_dropout",
)
"""What a configuration says of dropout besides; those of former models do not."""

_LATER: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(DROPOUTS, (int, float, type(None))),
    "fixed_masks": (bool,),
    "last_hidden_size": (int, type(None)),
}
"""What else a configuration says of the model, by type; those of former models do not."""


@dataclass(frozen=True)
class Saved:
    """A model read from a file, in evaluation mode, with all that belongs to it.

    config: that of its training, with the backend and precision that it is to run with.
    meta: as stored; of a best model its epoch and valid_perplexity.
    """

    path: Path
    device: torch.device
    model: LanguageModel
    codec: Codec
    config: dict[str, Any]
    meta: dict[str, Any]


def build_model(config: Mapping[str, Any], vocab_size: int) -> LanguageModel:
    """The model that a training configuration describes, on the CPU.

    Raises UserError for a combination that the model refuses.
    """
    try:
        model = LanguageModel(
            vocab_size,
            config["embedding_size"],
            config["hidden_size"],
            config["num_layers"],
            config["dropout"],
            **{name: config[name] for name in _LATER if name in config},
            tied=config["tied"],
            adaptive=config.get("adaptive_softmax"),
            cell=config["cell"],
            symm=config["symm"],
            symm_hh=config["symm_hh"],
            symm_ih=config["symm_ih"],
            backend=config["backend"],
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    return model.double() if config["precision"] == "fp64" else model


def save_best(
    path: Path, model: LanguageModel, config: Mapping[str, Any], codec: Codec | None, **meta: Any
) -> None:
    """Write ``model``, which ``config`` describes, as a packed model; ``meta`` goes with it.

    codec: its vocabulary; without one the programs refuse the file, and :func:`model_of` does not.
    """
    vocabulary = None if codec is None else codec.state()
    save_packed(model, path, meta={"config": dict(config), "codec": vocabulary, **meta})


def model_of(packed: Packed) -> LanguageModel:
    """The model of a packed file, on the CPU and in evaluation mode, with its vocabulary if it has.

    In float32, or in float64 if it was so. Raises UserError if the file holds something else.
    """
    with _described(packed.path):
        return _fill(packed, {**packed.meta["config"], "backend": "auto"}, without_codec=True)


def load_saved(
    path: str | Path | None,
    device: torch.device,
    *,
    backend: str = "auto",
    precision: str | None = None,
    weights: str | None = None,
) -> Saved:
    """The model in a file, packed or a checkpoint, in a run's folder (its best), or of the newest.

    backend, precision: what it is to run with; without a precision, the one it was trained with.
    weights: as what its recurrent weights are packed for inference, one of :data:`WEIGHTS`.

    Raises UserError if there is none, if the file is damaged or something else, or if it cannot run
    so.
    """
    file = checkpoint_file(path, "lm.train")
    stored = open_packed(file) if is_packed(file) else load_checkpoint(file)
    with _described(file):
        config = {**stored.meta["config"], "backend": backend}
        config["precision"] = precision or config["precision"]
        if weights is not None:
            config["weights"] = weights
        _check_types(config, stored.meta)
        check_machine(config, device)
        model = _fill(stored, config)
    if config.get("weights", "float32") != "float32":
        for layer in model.layers:
            layer.inference_dtype = getattr(torch, config["weights"])
    assert model.codec is not None
    return Saved(file, device, model.to(device), model.codec, config, stored.meta)


@contextmanager
def _described(file: Path) -> Iterator[None]:
    """Says of a file that it holds no language model, where its meta is not that of one."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{file}: not a language model: its meta lacks {error}") from error
    except (TypeError, DataError) as error:
        raise CheckpointError(f"{file}: not a language model: {error}") from error


def _fill(
    stored: Packed | Checkpoint, config: dict[str, Any], *, without_codec: bool = False
) -> LanguageModel:
    """The model of a file, its configuration checked before it is built.

    without_codec: whether the file may say that there is no vocabulary.

    Raises KeyError, TypeError and DataError for what a language model's file does not say.
    """
    _check_types(config, stored.meta)
    state = stored.meta["codec"]
    codec = None if state is None and without_codec else codec_from_state(state)
    size = len(stored.tensors["encoder.weight"]) if codec is None else len(codec)
    _check_sizes(config, size, stored)
    with torch.random.fork_rng(devices=[]):  # a run that reads a model goes on as if it had not
        model = build_model(config, size)
    model.codec = codec
    if isinstance(stored, Packed):
        stored.load_into(model)
    else:
        restore_model(model, stored)
    if isinstance(model.decoder, AdaptiveDecoder):
        try:
            model.decoder.check()
        except ValueError as error:
            raise TypeError(str(error)) from error
    return model.eval()


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("embedding_size", "hidden_size", "num_layers"), (int,)),
    "dropout": (int, float),
    "tied": (bool,),
    **dict.fromkeys(("cell", "symm", "symm_hh", "symm_ih", "precision"), (str,)),
}
"""What a configuration says of the model, and of which type it is."""

_OUTCOME: dict[str, tuple[type, ...]] = {"epoch": (int,), "valid_perplexity": (int, float)}
"""What else the meta of a best model says."""


def _check_types(config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Raise TypeError for a part of what is stored that is not of its type."""
    stored = {name: config[name] for name in _KINDS}
    stored |= {name: meta[name] for name in _OUTCOME if name in meta}
    stored |= {name: config[name] for name in _LATER if name in config}
    for name, value in stored.items():
        kinds = (_KINDS | _OUTCOME | _LATER)[name]
        if type(value) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"its {name} should be of type {wanted}, got: {value!r}")
    cutoffs = config.get("adaptive_softmax")  # which former models do not have
    if cutoffs is not None and (
        type(cutoffs) is not list or any(type(cutoff) is not int for cutoff in cutoffs)
    ):
        raise TypeError(f"its adaptive_softmax should be integers, got: {cutoffs!r}")
    if config["precision"] not in PRECISIONS:
        raise TypeError(
            f"its precision should be one of {', '.join(PRECISIONS)}, got: {config['precision']!r}"
        )


def _check_sizes(config: Mapping[str, Any], vocab_size: int, stored: Packed | Checkpoint) -> None:
    """Raise an error unless the tensors of a file have the sizes that its configuration says.

    Before a model of these sizes is built, for they may be any.
    """
    if config["num_layers"] > len(stored.tensors):  # each layer has some of its own
        raise TypeError(
            f"its num_layers are {config['num_layers']}, but it has {len(stored.tensors)} tensors"
        )
    symm, tied = config["symm"], config["tied"]
    try:
        check_symmetry_name("its symm", symm, "none")
        with torch.device("meta"):
            model = build_model({**config, "symm": "none", "backend": "auto"}, vocab_size)
    except (UserError, ValueError) as error:
        raise TypeError(str(error)) from error
    if isinstance(stored, Packed):
        stored.check_plain(model)
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for path, part in model.named_modules():
        if symm == "none" or not isinstance(part, RecurrentLayer):
            continue
        for layout in part.gate_layouts():
            gates = config["symm_hh" if layout.name.startswith("weight_hh") else "symm_ih"]
            del shapes[f"{path}.{layout.name}"]
            stored_as = replace(layout, symmetric=gates, form=symm).shapes
            shapes |= {f"{path}.{name}": shape for name, shape in stored_as.items()}
    check_shapes(stored, shapes, tied=["decoder.weight"] if tied else [])


def load_by_options(options: argparse.Namespace) -> Saved:
    """The model that the options of ``model_parser`` ask for; this process is made ready for it."""
    set_threads(options.threads)
    return load_saved(
        options.checkpoint,
        resolve_device(options.device or "auto"),
        backend=options.backend or "auto",
        precision=options.precision,
        weights=options.weights,
    )


def check_machine(config: Mapping[str, Any], device: torch.device) -> None:
    """Raise UserError if what ``config`` asks of the recurrent layers cannot run on ``device``."""
    backend, precision = config["backend"], config["precision"]
    if backend == "fused" and device.type not in ("cpu", "cuda"):
        raise UserError(f"--backend fused is for CPUs and NVIDIA GPUs, got: --device {device}")
    weights = config.get("weights", "float32")
    if weights == "float32":
        return
    option = f"--weights {weights} is for the native kernels"
    if device.type != "cpu":
        raise UserError(f"{option} for CPUs, got: --device {device}")
    if precision != "fp32":
        raise UserError(f"{option} in float32, got: --precision {precision}")
    if backend not in ("auto", "fused"):
        raise UserError(f"{option}, --backend auto or fused, got: --backend {backend}")
    if not native.available():
        raise UserError(f"{option}: {native.why_not()}")


def saved_configuration(saved: Saved) -> dict[str, object]:
    """What --dry-run of evaluate and generate says."""
    of_training = ("threads", "save_every", "log_every", "keep", "init_from")
    config = {name: value for name, value in saved.config.items() if name not in of_training}
    counts = counts_of(saved.model, saved.codec)
    return {"checkpoint": saved.path, **config, "device": str(saved.device), **counts}


def counts_of(model: LanguageModel, codec: Codec) -> dict[str, str]:
    """How many parameters the model has."""
    count = count_parameters(model)
    return {
        "vocabulary size": f"{len(codec):,}",
        "parameters, training": f"{count.training:,}",
        "parameters, deployed": f"{count.deployed:,}",
        "parameters, recurrent": f"{count.recurrent:,}",
    }
