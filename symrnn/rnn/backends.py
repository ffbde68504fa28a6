"""The ways to run a layer, by name, and which of them ``auto`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symrnn.rnn import folded, reference, script, vendor
from symrnn.rnn.stack import Backend, stacked

if TYPE_CHECKING:
    from symrnn.rnn.keeping import GatedModule

BACKENDS: dict[str, Backend] = {
    "reference": stacked(reference.layer),
    "script": stacked(script.layer),
    "vendor": vendor.run,
    "folded": stacked(folded.layer),
}


def list_backends() -> list[str]:
    """The names of the ways to run a layer, "auto" first."""
    return ["auto", *BACKENDS]


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is a backend or "auto"."""
    if name not in list_backends():
        raise ValueError(f"backend should be one of {', '.join(list_backends())}, got: {name!r}")


def choose(module: GatedModule, input: Tensor, batch_sizes: Tensor | None) -> str:
    """The backend that is fastest for this input, by rules measured on a CPU; elsewhere "vendor".

    - Forms that fold are folded where that is faster than PyTorch's operator on expanded weights
      (results/folding.md, for the LSTM and the GRU).
    - PyTorch's LSTM re-packs all weights on every call. For a step or a few without gradients that
      costs more than the steps themselves, and the scripted loop, which reads the weights where
      they lie, is faster (results/backends.md, for the LSTM).
    - Everywhere else the vendor's operator is. Autocast goes there too, so that the dtype of the
      output is that of PyTorch's layer at any length.

    input: (T, B, I), or (sum of B_t, I) with batch_sizes.
    """
    if input.device.type != "cpu" or _is_traced() or torch.is_autocast_enabled("cpu"):
        return "vendor"
    if folding_pays(module, input.size(0) if batch_sizes is None else batch_sizes.size(0)):
        return "folded"
    if (
        module.mode == "LSTM"
        and batch_sizes is None
        and not torch.is_grad_enabled()
        and _few(input.size(0), input.size(1), module.hidden_size)
    ):
        return "script"
    return "vendor"


def choose_for_cell(module: GatedModule, input: Tensor) -> str:
    """As :func:`choose`, for one step of a cell: input (B, I)."""
    if input.device.type != "cpu" or _is_traced() or torch.is_autocast_enabled("cpu"):
        return "vendor"
    return "folded" if folding_pays(module, 1) else "vendor"


def folding_pays(module: GatedModule, steps: int) -> bool:
    """Whether folding is faster than the vendor's operator on weights to be expanded, on a CPU."""
    if not module.folds or module.mode not in ("LSTM", "GRU"):
        return False
    assert module.symmetry is not None
    quarter = module.symmetry.cost < 0.3  # a quarter, and a bit more on odd sides
    large = module.hidden_size >= 1500
    if torch.is_grad_enabled():
        return large or (quarter and module.hidden_size >= 650)
    # By the table, any two of these outweigh the few operations that fold.
    return sum((quarter, large, steps == 1)) >= 2


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _few(steps: int, batch: int, hidden_size: int) -> bool:
    """Whether re-packing the weights would cost more than the scripted loop over the steps."""
    if steps == 1:
        return 0 < batch <= 20
    return hidden_size >= 650 and 0 < steps * batch <= 8
