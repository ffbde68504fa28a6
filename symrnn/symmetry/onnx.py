"""A word to whoever writes an ONNX file of symmetric weights."""

from __future__ import annotations

import warnings

import torch

_said = False


def notice() -> None:
    """Warn, once in a process, while PyTorch writes an ONNX file, that weights are not constant."""
    global _said
    if _said or not torch.onnx.is_in_onnx_export():
        return
    _said = True
    warnings.warn(
        "this ONNX file computes its symmetric weights from their parameters at every call; "
        "runtimes that want constant ones refuse it, or do not optimize it: export "
        'symrnn.deploy(model, form="plain")',
        UserWarning,
        stacklevel=2,
    )
