"""The ways to run a layer, by name, and which of them ``auto`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symrnn import native
from symrnn.rnn import folded, fused, reference, script, vendor
from symrnn.rnn.prepared import is_plain
from symrnn.rnn.stack import Backend, State, stacked

if TYPE_CHECKING:
    from symrnn.rnn.keeping import GatedModule

BACKENDS: dict[str, Backend] = {
    "reference": stacked(reference.layer),
    "script": stacked(script.layer),
    "vendor": vendor.run,
    "folded": stacked(folded.layer),
    "fused": fused.run,
}


def list_backends() -> list[str]:
    """The names of the ways to run a layer, "auto" first."""
    return ["auto", *BACKENDS]


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is a backend or "auto"."""
    if name not in list_backends():
        raise ValueError(f"backend should be one of {', '.join(list_backends())}, got: {name!r}")


def choose(
    module: GatedModule, input: Tensor, batch_sizes: Tensor | None, state: State | None = None
) -> str:
    """The backend that is fastest for this input, by rules measured on a CPU; elsewhere "vendor".

    So on a GPU too, until the kernels for it have been measured there (results/gpu).

    - The native kernels, where they are faster than all else (:func:`fused_pays`).
    - Forms that fold are folded where that is faster than PyTorch's operator on expanded weights
      (results/folding.md, for the LSTM and the GRU).
    - PyTorch's LSTM re-packs all weights on every call. For a step or a few without gradients that
      costs more than the steps themselves, and the scripted loop, which reads the weights where
      they lie, is faster (results/backends.md, for the LSTM).
    - Everywhere else the vendor's operator is. Autocast goes there too, so that the dtype of the
      output is that of PyTorch's layer at any length.

    input: (T, B, I), or (sum of B_t, I) with batch_sizes.
    state: what comes with it.
    """
    if input.device.type != "cpu" or _is_traced() or torch.is_autocast_enabled("cpu"):
        return "vendor"
    if batch_sizes is None:
        steps, batch = input.size(0), input.size(1)
    else:
        steps, batch = batch_sizes.size(0), int(batch_sizes[0])
    if _takes_fused(module, steps, batch, [input, *(state or ())]):
        return "fused"
    if folding_pays(module, steps):
        return "folded"
    if (
        module.mode == "LSTM"
        and batch_sizes is None
        and not torch.is_grad_enabled()
        and _few(steps, batch, module.hidden_size)
    ):
        return "script"
    return "vendor"


def choose_for_cell(module: GatedModule, input: Tensor, state: State | None = None) -> str:
    """As :func:`choose`, for one step of a cell: input (B, I)."""
    if input.device.type != "cpu" or _is_traced() or torch.is_autocast_enabled("cpu"):
        return "vendor"
    if _takes_fused(module, 1, input.size(0), [input, *(state or ())]):
        return "fused"
    return "folded" if folding_pays(module, 1) else "vendor"


def fused_pays(module: GatedModule, steps: int, batch: int) -> bool:
    """Whether the native kernels are faster than all else, for float32 weights on a CPU.

    By results/backends.md. Without gradients they are, as the weights stay packed from call to
    call. In training the weights are packed at every call, for which a few steps do not pay; then
    PyTorch's own GRU and RNN are far behind, its LSTM is not: there it takes a large layer, and one
    whose product folds, or few sequences, for which the reading of the weights is what takes time.
    """
    if not torch.is_grad_enabled():
        return True
    if steps < 8:
        return False
    if module.mode != "LSTM":
        return True
    if module.hidden_size < 650:
        return False
    if batch <= 4:
        return True
    if module.symmetry is None or module.symm_hh != module.GATES:
        return False
    return module.folds or (
        module.symmetry.own_transpose and module.hidden_size >= 1500 and batch <= 20
    )


def _takes_fused(module: GatedModule, steps: int, batch: int, tensors: list[Tensor]) -> bool:
    """Whether ``auto`` takes the native kernels; a notice where it would, and there are none.

    tensors: input and state. What is wrong with them is left to the vendor's operator to say.
    """
    if module.proj_size or not fused_pays(module, steps, batch) or not is_plain():
        return False
    if any(t.dtype != torch.float32 or not t.is_cpu for t in (module._some_weight(), *tensors)):
        return False
    native.notice()
    return native.available()


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
