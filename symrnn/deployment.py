"""Models ready to leave: for inference, in layers that know nothing of this library."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from symrnn.layers import FOLDED
from symrnn.rnn.module import GatedModule
from symrnn.surgery import unsymmetrize

FORMS = ("plain",)
"""What a model can be deployed as."""

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def deploy(model: nn.Module, form: str = "plain", dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the model for inference, with constant weights; the model is left as it was.

    It is in evaluation mode, none of its parameters requires a gradient, and it gives the same
    outputs to the rounding of their type.

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
    dtype: float64, float32, float16 or bfloat16, of all floating point parameters and buffers;
        None leaves them as they are.

    A module that stands in several places still does, and tied weights are tied. Parametrizations
    that are not ours stay.

    Raises TypeError unless model is a module, and ValueError for another form or dtype, for a
    symmetric weight with further parametrizations, and for a class derived from one of our
    recurrent modules, whose own code a plain layer would not run.

    >>> model = nn.Sequential(nn.Embedding(100, 8), SymLSTM(8, 8, symm="avg"))
    >>> deploy(model)
    Sequential(
      (0): Embedding(100, 8)
      (1): LSTM(8, 8)
    )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be an nn.Module, got: {type(model).__name__}")
    if form not in FORMS:
        raise ValueError(f"form should be one of {', '.join(FORMS)}, got: {form!r}")
    if dtype is not None and dtype not in DTYPES:
        allowed = ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype should be None or one of {allowed}, got: {dtype!r}")
    return plain_layers(model).requires_grad_(False).to(dtype)


def plain_layers(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in PyTorch's own layers; parameters want gradients as before."""
    for name, part in model.named_modules():
        if isinstance(part, GatedModule) and not type(part).__module__.startswith("symrnn."):
            raise ValueError(
                f"{name or 'model'} is a {type(part).__name__}, a class derived from "
                f"{_ours(part)}: put {_ours(part)} itself in its place"
            )
    made = copy.deepcopy(model).eval()
    unsymmetrize(made)
    for part in list(made.modules()):
        if type(part) in MAKE_PLAIN:
            MAKE_PLAIN[type(part)](part)
    return made


def _ours(part: GatedModule) -> str:
    """The name of the class of ours that a module's class is derived from."""
    return next(kind.__name__ for kind in type(part).mro() if kind.__module__.startswith("symrnn."))


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
