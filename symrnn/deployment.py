"""Models ready to leave: for inference, with packed weights, or in PyTorch's own layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from symrnn.layers import FOLDED, PackedLinear, can_be_packed
from symrnn.rnn.module import GatedModule
from symrnn.rnn.packed import PACKED, PackedModule, PackedRecurrent
from symrnn.surgery import bake_in, become, check_derived, unsymmetrize

FORMS = ("packed", "plain")
"""What a model can be deployed as."""

DTYPES = {
    "packed": (torch.float32, torch.bfloat16, torch.int8),
    "plain": (torch.float64, torch.float32, torch.float16, torch.bfloat16),
}


def deploy(model: nn.Module, form: str = "packed", dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the model for inference, with constant weights; the model is left as it was.

    It is in evaluation mode, none of its parameters requires a gradient, and it gives the same
    outputs to the rounding of their type.

    form: "packed", for CPUs: what the native kernels read is all that is held.

        - ``SymLSTM``, ``SymGRU``, ``SymRNN`` and their cells become
          :class:`symrnn.rnn.packed.PackedLSTM` and its siblings, also those of ``symm="none"``;
          those with projections become PyTorch's own.
        - Symmetric linear layers become :class:`symrnn.layers.PackedLinear`, if they are float32
          or float64. But those of ``nn.TransformerEncoderLayer`` become plain: its fast path reads
          their weights.
        - All else is as in "plain"; PyTorch's own layers, ``nn.LSTM`` among them, are left alone.

        In the process where symrnn is installed it runs as it is, pickles, and has ``stream()``
        where the layers have it. ``torch.compile``, ``torch.export`` and AOTInductor make one
        operator of a recurrent module (:mod:`symrnn.native.torch`), which a C++ program runs too.
        There are no gradients.

    form: "plain", PyTorch's own layers:

        - ``SymLSTM``, ``SymGRU``, ``SymRNN`` and their cells become ``nn.LSTM`` and its siblings,
          also those of ``symm="none"``; how they ran (``backend``, ``inference_dtype``) goes with
          them.
        - Linear layers, convolutions and attention that are symmetric get their expanded weight as
          a parameter (:func:`symrnn.unsymmetrize`). Soft symmetry is no form but a penalty:
          :func:`symrnn.harden` first, where the upper triangles are meant.
        - Of :mod:`symrnn.vision`, Dirac and strided shared convolutions become ``nn.Conv2d``.
          Batch norm stays; :func:`symrnn.vision.fold_for_inference` folds it, before this.

        What tools see that look for PyTorch's layers, or want constant weights (ONNX's runtimes,
        quantization), is PyTorch's layers with constant weights. Pickled by ``torch.save``, it
        loads where this library is not, if the classes around the layers do.
    dtype: None leaves types as they are. Packed: float32, bfloat16 or int8, of the packed weights
        of recurrent modules, which must be float32 (None: their ``inference_dtype`` if it is set).
        Plain: float64, float32, float16 or bfloat16, of all floating point parameters and buffers.

    A module that stands in several places still does, and tied weights are tied; but recurrent
    modules that share a weight get one each. Parametrizations that are not ours stay, and pruning,
    but of recurrent modules and of what is packed, where the values that they give are baked in.

    Raises TypeError unless model is a module, and ValueError for another form or dtype, for a
    symmetric weight with further parametrizations, and for a class derived from one of our
    recurrent modules, whose own code another layer would not run. Packed, also for recurrent
    modules that are not float32 or float64 or not on the CPU; plain, for one that is packed.
    RuntimeError where packed weights are wanted and there are no kernels.

    >>> model = nn.Sequential(nn.Embedding(100, 8), SymLSTM(8, 8, symm="avg"))
    >>> deploy(model)
    Sequential(
      (0): Embedding(100, 8)
      (1): PackedLSTM(8, 8, packed_dtype=torch.float32)
    )
    >>> deploy(model, form="plain")
    Sequential(
      (0): Embedding(100, 8)
      (1): LSTM(8, 8)
    )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got: {type(model).__name__}")
    if form not in FORMS:
        raise ValueError(f"form should be one of {', '.join(FORMS)}, got: {form!r}")
    if dtype is not None and dtype not in DTYPES[form]:
        allowed = ", ".join(map(str, DTYPES[form]))
        raise ValueError(
            f"dtype of form={form!r} should be None or one of {allowed}, got: {dtype!r}"
        )
    if form == "packed":
        return packed_layers(model, dtype).requires_grad_(False)
    return plain_layers(model).requires_grad_(False).to(dtype)


def _copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    # What pruning and norms of weights compute is no leaf of autograd, and deepcopy takes no other.
    computed = {
        id(value): value.detach().clone()
        for part in model.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed).eval()


@torch.inference_mode(False)  # whose tensors could never be loaded into
@torch.no_grad()
def packed_layers(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in evaluation mode, with packed weights where they can be had, else plain layers."""
    check_derived(model)
    made = _copy(model)
    read = {
        linear
        for part in made.modules()
        if isinstance(part, nn.TransformerEncoderLayer)
        for linear in part.children()
    }
    for name, part in list(made.named_modules()):
        packed: nn.Module
        if isinstance(part, PackedRecurrent) and dtype not in (None, part.packed_dtype):
            raise ValueError(
                f"{name or 'model'} is packed already, as {part.packed_dtype}: dtype should be "
                f"None or that, got: {dtype}"
            )
        try:
            if isinstance(part, GatedModule) and not part.proj_size:
                bake_in(part)
                packed = PACKED[part.PLAIN](part, dtype)
            elif can_be_packed(part) and part not in read:
                bake_in(part)
                packed = PackedLinear(part)
            else:
                continue
        except ValueError as error:
            raise ValueError(f"{name or 'model'} cannot be packed: {error}") from None
        become(part, packed)
    return _plain_in_place(made)


@torch.inference_mode(False)
@torch.no_grad()
def plain_layers(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in PyTorch's own layers; parameters want gradients as before."""
    check_derived(model)
    for name, part in model.named_modules():
        if isinstance(part, PackedModule):
            raise ValueError(f"{name or 'model'} is packed: deploy the model that it was made of")
    return _plain_in_place(_copy(model))


def _plain_in_place(made: nn.Module) -> nn.Module:
    unsymmetrize(made)
    for part in list(made.modules()):
        if type(part) in MAKE_PLAIN:
            MAKE_PLAIN[type(part)](part)
    return made


def _to(plain: type[nn.Module]) -> Callable[[nn.Module], None]:
    def make_plain(part: nn.Module) -> None:
        part.__class__ = plain

    return make_plain


MAKE_PLAIN: dict[type[nn.Module], Callable[[Any], None]] = {
    folded: _to(plain) for plain, folded in FOLDED.items()
}
"""For each of our layers that is not symmetric by itself, what turns one into PyTorch's, in place.

Symmetric weights in it are expanded before. Modules that define such a layer add it.
"""
