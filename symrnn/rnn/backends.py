"""The ways to run an LSTM, by name, and which of them ``auto`` takes."""

from __future__ import annotations

import torch
from torch import Tensor

from symrnn.rnn import reference, script, vendor
from symrnn.rnn.stack import Backend, stacked

BACKENDS: dict[str, Backend] = {
    "reference": stacked(reference.layer),
    "script": stacked(script.layer),
    "vendor": vendor.lstm,
}


def list_backends() -> list[str]:
    """The names of the ways to run an LSTM, "auto" first."""
    return ["auto", *BACKENDS]


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is a backend or "auto"."""
    if name not in list_backends():
        raise ValueError(f"backend should be one of {', '.join(list_backends())}, got: {name!r}")


def choose(name: str, input: Tensor, batch_sizes: Tensor | None) -> Backend:
    """The backend called ``name``; for "auto" the one that is fastest for this input.

    On a CPU PyTorch's operator re-packs all weights on every call. For a handful of steps without
    gradients that costs more than the steps themselves, and the scripted loop, which reads the
    weights where they lie, is faster. Everywhere else the vendor's operator is. Autocast goes to
    the vendor's too, so that the dtype of the output is that of ``nn.LSTM`` at any length.
    """
    if name != "auto":
        return BACKENDS[name]
    few = (
        input.device.type == "cpu"
        and batch_sizes is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and 0 < input.size(0) * input.size(1) <= FEW_STEPS
    )
    return BACKENDS["script" if few else "vendor"]


FEW_STEPS = 4
"""T·B up to which the scripted loop wins on a CPU; see results/backends.md."""
