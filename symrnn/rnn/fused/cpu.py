"""The kernels for CPUs, as :mod:`symrnn.rnn.fused.operators` calls them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn import native
from symrnn.native.openmp import release_threads
from symrnn.rnn.fused.packing import (
    DTYPES,
    Plan,
    address,
    check_numbers,
    library,
    plan_of,
)
from symrnn.rnn.torch_state import constant_in_graphs

ENOUGH_ROWS = 64
"""From so many rows on ``matmul`` is the faster product; for a few PyTorch's packs nothing."""


@constant_in_graphs
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by units of its own, rather than as float32."""
    return _has_bfloat16_units()


@lru_cache(maxsize=1)
def _has_bfloat16_units() -> bool:
    ask = getattr(torch.cpu, "get_capabilities", None)  # older versions of PyTorch do not say
    has = {} if ask is None else ask()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def check(
    packed: Tensor | None = None, *, cells: Tensor | None = None, **tensors: Tensor | None
) -> None:
    """Raise ValueError unless all are numbers that the kernels know, of one dtype.

    But ``input`` and ``w_ih`` may both be bfloat16 where the others are float32, and so may
    ``packed``.
    """
    input, w_ih = tensors.get("input"), tensors.get("w_ih")
    low = input is not None and w_ih is not None and input.dtype == w_ih.dtype == torch.bfloat16
    if low and tensors["h0"].dtype == torch.float32:  # type: ignore[union-attr]
        del tensors["input"], tensors["w_ih"]
    check_numbers(**tensors, cells=cells)
    if packed is None:
        return
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor is not None)
    if packed.dtype != dtype and (packed.dtype, dtype) != (torch.bfloat16, torch.float32):
        raise ValueError(f"packed should be {dtype}, got: {packed.dtype}")
    if not packed.is_cpu or not packed.is_contiguous() or packed.data_ptr() % 64:
        raise ValueError("packed should be contiguous on the device cpu and aligned to 64 bytes")


def pack(plan: Plan, hidden: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The packed numbers (plan.length,) of what each group of the plan is packed from."""
    return plan.pack(hidden, dtype)


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of x (R, I) and w (M, I), by the faster product; not differentiable.

    Of bfloat16 it is rounded to that, and float32 then, to which a bias of float32 is added.
    """
    if x.dtype == torch.bfloat16:
        product = F.linear(x, w).float()
        return product if bias is None else product.add_(bias)
    return matmul(x, w.mT, bias) if x.size(0) >= ENOUGH_ROWS else F.linear(x, w, bias)


def linear_int8(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of x (R, I) and w (M, I), both rounded to int8 as symrnn.h says."""
    plan = plan_of("w", *w.shape, "", "")
    packed = plan.pack([w.unsqueeze(0)], torch.int8)
    rows, y = x.contiguous(), x.new_empty(x.size(0), w.size(0))
    status = library().symrnn_multiply(
        plan.product(packed), False, len(rows), rows.data_ptr(), y.data_ptr(), 1,
        torch.get_num_threads(),
    )  # fmt: skip
    native.check(status)
    return y if bias is None else y + bias


def matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a (M, K) times b (K, N), plus bias (N,): (M, N). Either may be a transposed view."""
    if a.dtype == b.dtype == torch.bfloat16 and bias is None:
        return a @ b
    check_numbers(a=a, b=b, bias=bias)
    result = a.new_empty(a.size(0), b.size(1))
    if result.numel() == 0:
        return result
    bias = None if bias is None else bias.contiguous()
    # What lies transposed is read so.
    transposed = [t.mT.is_contiguous() and not t.is_contiguous() for t in (a, b)]
    a, b = (t.mT if way else t.contiguous() for t, way in zip((a, b), transposed, strict=True))
    inner = a.size(0 if transposed[0] else 1)
    release_threads(result.numel() * inner)
    status = library().symrnn_matmul(
        DTYPES[result.dtype],
        *(result.size(0), result.size(1), inner),
        *(a.data_ptr(), transposed[0], b.data_ptr(), transposed[1]),
        *(address(bias), result.data_ptr(), torch.get_num_threads()),
    )
    native.check(status)
    return result


def forward(
    structure: native.Layer,
    steps: int,
    batch_sizes: Tensor | None,
    reverse: bool,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    output: Tensor,
    hn: Tensor,
    cn: Tensor,
) -> None:
    """``symrnn_forward``, on tensors that are contiguous."""
    release_threads(gates.numel() * h0.size(1))
    status = library().symrnn_forward(
        structure, steps, h0.size(0), address(batch_sizes), reverse, None, gates.data_ptr(),
        address(cells), h0.data_ptr(), address(c0), output.data_ptr(), hn.data_ptr(), address(cn),
        torch.get_num_threads(),
    )  # fmt: skip
    native.check(status)


def backward(
    structure: native.Layer,
    steps: int,
    batch_sizes: Tensor | None,
    reverse: bool,
    given: Sequence[Tensor | None],
    results: Sequence[Tensor],
) -> None:
    """``symrnn_backward``, on tensors that are contiguous.

    given: gates, cells, h0, c0, output, d_output, d_hn, d_cn.
    results: d_gates, d_hidden, d_h0, d_c0, each empty where the mode has none.
    """
    gates, h0 = given[0], given[2]
    assert gates is not None
    assert h0 is not None
    release_threads(gates.numel() * h0.size(1))
    status = library().symrnn_backward(
        structure, steps, h0.size(0), address(batch_sizes), reverse,
        *map(address, given), *map(address, results), torch.get_num_threads(),
    )  # fmt: skip
    native.check(status)
