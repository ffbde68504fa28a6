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


def choose(name: str, input: Tensor, batch_sizes: Tensor | None, hidden_size: int) -> Backend:
    """The backend called ``name``; for "auto" the one that is fastest for this input.

    On a CPU PyTorch's operator re-packs all weights on every call. For a step or a few without
    gradients that costs more than the steps themselves, and the scripted loop, which reads the
    weights where they lie, is faster: by how much stands in results/backends.md, and the bounds
    below come from there. Everywhere else the vendor's operator is. Autocast goes to the vendor's
    too, so that the dtype of the output is that of ``nn.LSTM`` at any length.
    """
    if name != "auto":
        return BACKENDS[name]
    scripted = (
        input.device.type == "cpu"
        and batch_sizes is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _few(input.size(0), input.size(1), hidden_size)
    )
    return BACKENDS["script" if scripted else "vendor"]


def _few(steps: int, batch: int, hidden_size: int) -> bool:
    """Whether re-packing the weights would cost more than the scripted loop over the steps."""
    if steps == 1:
        return 0 < batch <= 20
    return hidden_size >= 650 and 0 < steps * batch <= 8
