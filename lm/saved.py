"""A trained model and its vocabulary, in one file: what training writes and the others read.

The best model of a run is a packed one (:mod:`symrnn.storage`), with configuration and vocabulary
for its meta; a checkpoint, from which a run goes on, holds as much and more, and is read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import Codec, DataError, codec_from_state
from lm.model import LanguageModel
from symrnn import count_parameters, native, open_packed, save_packed
from symrnn.files import UserError
from symrnn.storage import Packed, is_packed
from symrnn.training import Checkpoint, CheckpointError, load_checkpoint

MODEL = "model/"
"""What the names of the model's tensors begin with in a checkpoint."""

PRECISIONS = ("fp32", "bf16", "fp64")
"""--precision: bf16 is autocast over float32 weights; the others are the weights' own type."""

WEIGHTS = ("float32", "bfloat16")
"""--weights: as what the recurrent weights are packed for inference."""


@dataclass(frozen=True)
class Saved:
    """A model read from a file, in evaluation mode, with all that belongs to it.

    config: that of its training, with the backend and precision that it is to run with.
    meta: as kept; of a best model its epoch and valid_perplexity.
    """

    path: Path
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
            tied=config["tied"],
            cell=config["cell"],
            symm=config["symm"],
            symm_hh=config["symm_hh"],
            symm_ih=config["symm_ih"],
            backend=config["backend"],
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    return model.double() if config["precision"] == "fp64" else model


def precision_of(
    config: Mapping[str, Any], device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context in which the model of ``config`` runs on ``device``."""
    if config["precision"] != "bf16":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's tensors by the names they have in a checkpoint."""
    return {MODEL + name: tensor for name, tensor in model.state_dict().items()}


def restore_model(model: LanguageModel, checkpoint: Checkpoint) -> None:
    """Fill ``model`` from a checkpoint; CheckpointError if it holds another model."""
    tensors = {
        name.removeprefix(MODEL): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(MODEL)
    }
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        what = " ".join(str(error).partition(":")[2].split())  # one line, without the heading
        raise CheckpointError(
            f"{checkpoint.path}: not the checkpoint of this model: {what}"
        ) from error


def save_best(
    path: Path, model: LanguageModel, config: Mapping[str, Any], codec: Codec, **meta: Any
) -> None:
    """Write ``model``, which ``config`` describes, as a packed model; ``meta`` goes with it."""
    save_packed(model, path, meta={"config": dict(config), "codec": codec.state(), **meta})


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
    file = _checkpoint_file(path)
    kept = open_packed(file) if is_packed(file) else load_checkpoint(file)
    try:
        config = {**kept.meta["config"], "backend": backend}
        config["precision"] = precision or config["precision"]
        if weights is not None:
            config["weights"] = weights
        check_machine(config, device)
        codec = codec_from_state(kept.meta["codec"])
        model = build_model(config, len(codec))
    except KeyError as error:
        raise CheckpointError(f"{file}: not a language model: its meta lacks {error}") from error
    except (TypeError, DataError) as error:
        raise CheckpointError(f"{file}: not a language model: {error}") from error
    if isinstance(kept, Packed):
        kept.load_into(model)
    else:
        restore_model(model, kept)
    if config.get("weights") == "bfloat16":
        model.rnn.inference_dtype = torch.bfloat16
    return Saved(file, model.to(device).eval(), codec, config, kept.meta)


def check_machine(config: Mapping[str, Any], device: torch.device) -> None:
    """Raise UserError if what ``config`` asks of the recurrent layers cannot run on ``device``."""
    backend, precision = config["backend"], config["precision"]
    if backend == "fused" and device.type not in ("cpu", "cuda"):
        raise UserError(f"--backend fused is for CPUs and NVIDIA GPUs, got: --device {device}")
    if config.get("weights", "float32") == "float32":
        return
    option = "--weights bfloat16 is for the native kernels"
    if device.type != "cpu":
        raise UserError(f"{option} for CPUs, got: --device {device}")
    if precision != "fp32":
        raise UserError(f"{option} in float32, got: --precision {precision}")
    if backend not in ("auto", "fused"):
        raise UserError(f"{option}, --backend auto or fused, got: --backend {backend}")
    if not native.available():
        raise UserError(f"{option}: {native.why_not()}")


def _checkpoint_file(path: str | Path | None) -> Path:
    if path is None:
        found = sorted(Path("runs").glob("*/best.safetensors"), key=lambda f: f.stat().st_mtime)
        if not found:
            raise UserError(
                "no checkpoint given, and there is no trained run in ./runs: "
                "train one with python -m lm.train, or name a checkpoint"
            )
        return found[-1]
    path = Path(path)
    if not path.is_dir():
        return path
    best, last = path / "best.safetensors", path / "last.safetensors"
    if not best.exists() and last.exists():
        raise UserError(
            f"{path}: there is no best checkpoint before the first validation; {last} can be named"
        )
    return best


def print_configuration(saved: Saved, device: torch.device) -> None:
    """Print what --dry-run of evaluate and generate says."""
    print(f"checkpoint            {saved.path}")
    for name, value in {**saved.config, "device": str(device)}.items():
        if name not in ("threads", "save_every", "log_every"):  # of the training
            print(f"{name:21} {value}")
    print_counts(saved.model, saved.codec)


def print_counts(model: LanguageModel, codec: Codec) -> None:
    """Print how many parameters the model has."""
    count = count_parameters(model)
    print(f"vocabulary size       {len(codec):,}")
    print(f"parameters, training  {count.training:,}")
    print(f"parameters, deployed  {count.deployed:,}")
    print(f"parameters, recurrent {count.recurrent:,}")
