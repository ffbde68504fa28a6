"""The weights of recurrent layers, packed once: values, for models and files that leave.

What :mod:`symrnn.rnn.fused.inference` packs for a module's own calls, it packs when they come, and
keeps the parameters. Here all is packed, and nothing else is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from symrnn.rnn.fused.packing import Plan, check_numbers, joined_biases, plan_of, source_of
from symrnn.rnn.weights import GateMatrix, LayerWeights


class PackedMatrix(NamedTuple):
    """A stacked gate matrix.

    plan: how it is packed; ``plan.product(numbers)`` is what the kernels take.
    numbers: (plan.length(dtype),) of float32, float64, bfloat16 or int8, on the CPU, aligned to 64
        bytes: the groups of the plan, one after another, each a multiple of 64 bytes. In int8 they
        hold the scales too, and the factors of a skew part as the bytes of float32.
    """

    plan: Plan
    numbers: Tensor


class PackedLayer(NamedTuple):
    """A layer in one direction. Biases are of the dtype that it computes in, float32 or float64.

    bias: (G·H,), what is added to the gates; None without biases.
    bias_n: (H,), a GRU's hidden bias of n; else None.
    reverse: whether the last step is run first.
    """

    hh: PackedMatrix
    ih: PackedMatrix
    bias: Tensor | None
    bias_n: Tensor | None
    reverse: bool


@torch.no_grad()
def pack_matrix(matrix: GateMatrix, dtype: torch.dtype) -> PackedMatrix:
    """A stacked gate matrix on the CPU, of float32 or float64; ``dtype`` as of pack_layers."""
    layout = matrix.layout
    for tensor in matrix.tensors:
        check_numbers(**{layout.name: tensor})
    form, symmetric, tensors = source_of(matrix)
    plan = plan_of(layout.gates, layout.rows, layout.columns, form, symmetric)
    return PackedMatrix(plan, plan.pack(tensors, dtype))


@torch.no_grad()
def pack_layers(
    weights: Sequence[LayerWeights], mode: str, bidirectional: bool, dtype: torch.dtype
) -> list[PackedLayer]:
    """Every layer and direction of a recurrent module, in PyTorch's order.

    weights: on the CPU, all float32 or all float64; without projections.
    dtype: of the packed numbers: that of the weights, or of float32 bfloat16 or int8.

    Raises ValueError for other numbers, and RuntimeError where the kernels are not.
    """

    layers = []
    for k, w in enumerate(weights):
        bias, bias_n = joined_biases(mode, w.bias_ih, w.bias_hh)
        reverse = bidirectional and k % 2 == 1
        hh, ih = (pack_matrix(matrix, dtype) for matrix in (w.hh, w.ih))
        layers.append(PackedLayer(hh, ih, bias, bias_n, reverse))
    return layers
