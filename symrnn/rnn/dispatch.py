"""Which backend a call runs on: the one place where "auto" is decided.

The rules are measured (results/backends.md, results/folding.md), on a CPU; that for the plain loop
was measured for the TorchScript loop, whose time is about the same. On a GPU "auto" is the vendor's
operator, until the kernels for it have been measured there (results/gpu).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from symrnn import native
from symrnn.rnn import folded, reference, torch_state, torchscript, vendor
from symrnn.rnn.autocast import as_pytorch
from symrnn.rnn.fused import backend as fused
from symrnn.rnn.stack import Backend
from symrnn.symmetry import onnx

BACKENDS: dict[str, Backend] = {
    "reference": as_pytorch(reference.BACKEND),
    "script": as_pytorch(torchscript.BACKEND),
    "vendor": vendor.BACKEND,
    "folded": as_pytorch(folded.BACKEND),
    "fused": as_pytorch(fused.BACKEND),
}


def list_backends() -> list[str]:
    """The names of the ways to run a layer, "auto" first."""
    return ["auto", *BACKENDS]


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is a backend or "auto"."""
    if name not in list_backends():
        raise ValueError(f"backend should be one of {', '.join(list_backends())}, got: {name!r}")


class Traits(NamedTuple):
    """What of a module decides how it is run fastest.

    mode: PyTorch's name of the kind.
    projects: whether there is a projection.
    fold_cost: of the folded product, as a fraction of the whole one's; 1 where hidden weights do
        not fold.
    is_cell: whether it runs a single step, for which PyTorch packs no weights.
    computes_weights: whether some weights are symmetric, and so computed from parameters.
    masks_state: whether this call multiplies h by a mask before the hidden weights.
    """

    mode: str
    hidden_size: int
    projects: bool
    fold_cost: float
    is_cell: bool
    computes_weights: bool = False
    masks_state: bool = False

    @property
    def folds(self) -> bool:
        return self.fold_cost < 1


def resolve(
    backend: str,
    traits: Traits,
    tensors: Sequence[Tensor],
    steps: int,
    batch: int,
    wants_gradient: bool,
) -> str:
    """The backend that a call runs on: the one asked for, or the fastest for "auto".

    But for programs made of the call. A trace holds the steps of a loop one by one, as many as the
    example has, and ONNX knows no operators but PyTorch's: there PyTorch's operator stands in.
    """
    tracing = torch.jit.is_tracing()
    if (tracing or torch.compiler.is_exporting()) and torch.onnx.is_in_onnx_export():
        if traits.computes_weights:
            onnx.notice()
        return "vendor"
    if tracing and backend != "fused":
        return "vendor"
    if backend != "auto":
        return backend
    return choose(traits, tensors, steps, batch, wants_gradient)


def choose(
    traits: Traits, tensors: Sequence[Tensor], steps: int, batch: int, wants_gradient: bool
) -> str:
    """The backend that is fastest for a call.

    - The native kernels, where they are faster than all else (:func:`fused_pays`).
    - Forms that fold are folded where that is faster than PyTorch's operator on expanded weights
      (:func:`folding_pays`).
    - PyTorch's LSTM re-packs all weights on every call. For a step or a few without gradients that
      costs more than the steps themselves, and the plain loop is faster.
    - Everywhere else the vendor's operator is.
    - Under autocast the native kernels are in training (:func:`bfloat16_pays`), where the processor
      has units for bfloat16; else the vendor's operator is.
    - PyTorch's operators know no mask of the state: the native kernels run it, or the plain loop.
    - torch.func and forward-mode derivatives take the plain loop: its operators have all the rules
      that they want, the vendor's not.

    tensors: the input, a weight, and the state. What is wrong with them is left to the vendor's
        operator to say.
    wants_gradient: whether a gradient of the results may be asked for.
    """
    if torch_state.is_transformed() or torch_state.in_forward_mode():
        return "reference"
    if traits.masks_state:
        return "fused" if _takes_masks(traits, tensors) else "reference"
    if torch.compiler.is_compiling() or not tensors[0].is_cpu:
        return "vendor"
    if torch.is_autocast_enabled("cpu"):
        takes = wants_gradient and _takes_bfloat16(traits, tensors, steps, batch)
        return "fused" if takes else "vendor"
    if _takes_fused(traits, tensors, steps, batch, wants_gradient):
        return "fused"
    if folding_pays(traits, steps, wants_gradient):
        return "folded"
    if traits.mode == "LSTM" and not wants_gradient and _few(traits, steps, batch):
        return "reference"
    return "vendor"


def fused_pays(traits: Traits, steps: int, batch: int, wants_gradient: bool) -> bool:
    """Whether the native kernels are faster than all else, for float32 weights on a CPU.

    By results/backends.md. Without gradients they are, as the weights stay packed from call to
    call. In training the weights are packed at every call, for which a few steps do not pay; then
    PyTorch's own GRU and RNN are far behind, its LSTM is not (results/cpu_training.md): there it
    takes a large layer whose product folds, or few sequences, for which the reading of the weights
    is what takes time.
    """
    if not wants_gradient:
        return True
    if steps < 8:
        return False
    if traits.mode != "LSTM":
        return True
    if traits.hidden_size < 650:
        return False
    return batch <= 4 or traits.folds


def bfloat16_pays(traits: Traits, steps: int, batch: int) -> bool:
    """Whether the kernels train faster than PyTorch's operator where both take bfloat16.

    By results/cpu_training.md, which has H = 200 and 650; at 512 they are about equal.
    """
    if steps < 8:
        return False
    return traits.mode != "LSTM" or traits.hidden_size >= 512


def _takes_bfloat16(traits: Traits, tensors: Sequence[Tensor], steps: int, batch: int) -> bool:
    """Whether ``auto`` takes the native kernels under autocast, in training."""
    weight = tensors[1]
    if traits.projects or not bfloat16_pays(traits, steps, batch):
        return False
    if not fused.multiplies_in_bfloat16(weight.dtype, steps * batch):
        return False
    native.notice()
    return native.available()


def _takes_fused(
    traits: Traits, tensors: Sequence[Tensor], steps: int, batch: int, wants_gradient: bool
) -> bool:
    """Whether ``auto`` takes the native kernels; a notice where it would, and there are none."""
    if traits.projects or not fused_pays(traits, steps, batch, wants_gradient):
        return False
    if not torch_state.can_bypass_dispatcher():
        return False
    if any(t.dtype != torch.float32 or not t.is_cpu for t in tensors):
        return False
    native.notice()
    return native.available()


def _takes_masks(traits: Traits, tensors: Sequence[Tensor]) -> bool:
    """Whether the native kernels run a call that masks the state."""
    if traits.projects or any(not t.is_cpu for t in tensors):
        return False
    weight = tensors[1]
    same = all(t.dtype == weight.dtype for t in tensors) or torch.is_autocast_enabled("cpu")
    return same and weight.dtype in (torch.float32, torch.float64) and _has_kernels()


@torch_state.constant_in_graphs
def _has_kernels() -> bool:
    native.notice()
    return native.available()


def folding_pays(traits: Traits, steps: int, wants_gradient: bool) -> bool:
    """Whether folding is faster than the vendor's operator on weights to be expanded, on a CPU.

    By results/folding.md, for the LSTM and the GRU.
    """
    if not traits.folds or traits.mode not in ("LSTM", "GRU"):
        return False
    quarter = traits.fold_cost < 0.3  # a quarter, and a bit more on odd sides
    large = traits.hidden_size >= 1500
    if wants_gradient:
        return large or (quarter and traits.hidden_size >= 650)
    # By the table, any two of these outweigh the few operations that fold.
    return sum((quarter, large, steps == 1)) >= 2


def _few(traits: Traits, steps: int, batch: int) -> bool:
    """Whether re-packing the weights would cost more than the plain loop over the steps."""
    if traits.is_cell:
        return False
    if steps == 1:
        return 0 < batch <= 20
    return traits.hidden_size >= 650 and 0 < steps * batch <= 8
