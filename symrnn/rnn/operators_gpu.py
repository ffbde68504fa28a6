"""The operators of :mod:`symrnn.rnn.operators` on NVIDIA GPUs: the same names, for CUDA tensors.

A layer's hidden weights are packed as symmetric matrices, all gates together, and stay on the chip
for the whole sequence. So there is nothing folded here, no gate that is not symmetric, and no
sequence that ends before the others: whoever calls sees to that (:mod:`symrnn.rnn.fused_gpu`).

All tensors are of one dtype, float32, bfloat16 or float16, but for what a cell keeps for the way
back, which is float32. Products of float32 are rounded to TF32 where PyTorch lets cuDNN's recurrent
layers do so: ``torch.backends.cudnn.rnn.fp32_precision``, or the older ``cudnn.allow_tf32``. Work
is put on the current stream and nothing is waited for, so a call may be captured into a CUDA graph.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn import native
from symrnn.native import cuda
from symrnn.native.interface import Dtype, Fit
from symrnn.rnn import operators
from symrnn.rnn.operators import hidden_plan, joined_biases, layer_structure
from symrnn.rnn.packing import check_shape, library, plan_of

SYMM = "avg"
"""What the operators are to take the form of the weights for: any whose matrices are symmetric."""

DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: Dtype.FLOAT,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.HALF,
}
"""The types of all numbers."""


def fit(
    device: int, mode: str, dtype: torch.dtype, side: int, batch: int, backward: bool
) -> Fit | None:
    """How such a layer is laid out on a GPU; None if its weights do not fit on the chip.

    side: H.  batch: B.  backward: for the way back.

    Raises RuntimeError if the kernels do not run on this GPU.
    """
    machine = cuda.machine(device)
    if machine is None:
        raise RuntimeError(cuda.why_not(device))
    found = Fit()
    status = library().symrnn_fit_gpu(
        machine, operators.MODES[mode], DTYPES[dtype], side, batch, backward, ctypes.byref(found)
    )
    if status == native.Status.FIT:
        return None
    native.check(status)
    return found


def rounds_to_tf32() -> bool:
    """Whether products of float32 in recurrent layers may be rounded to TF32."""
    # What torch.backends.cudnn.rnn.fp32_precision reads; in some versions a module of the same name
    # hides that, once it has been imported.
    precision: str = torch._C._get_fp32_precision_getter("cuda", "rnn")
    return precision == "tf32"


# ---- what every call hands over ----------------------------------------------------------------


def _place(tensor: Tensor) -> tuple[int, int]:
    """The number of the GPU and the address of its current stream."""
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def _workspace(
    like: Tensor, mode: str, side: int, batch: int, backward: bool
) -> tuple[Tensor, int]:
    """Memory for a call, and its size in bytes. Raises RuntimeError if the layer does not fit."""
    device, _ = _place(like)
    found = fit(device, mode, like.dtype, side, batch, backward)
    if found is None:
        raise RuntimeError(
            f"hidden weights of {mode} with hidden_size={side} in {like.dtype} do not fit on the "
            f'chip of GPU {device}: use backend="vendor"'
        )
    size = int(found.workspace_bytes)
    return torch.empty(size, dtype=torch.uint8, device=like.device), size


def _check(packed: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all are on one GPU and of one dtype, which the kernels know."""
    if packed.dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"packed should be one of {names}, got: {packed.dtype}")
    if not packed.is_contiguous():
        raise ValueError("packed should be contiguous")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != packed.device:
            raise ValueError(f"{name} should be on {packed.device}, got: {tensor.device}")
        dtype = torch.float32 if name == "cells" else packed.dtype
        if tensor.dtype != dtype:
            raise ValueError(f"{name} should be {dtype}, as packed is {packed.dtype}")


def _check_whole(batch_sizes: Tensor | None) -> None:
    if batch_sizes is not None:
        raise ValueError("batch_sizes should be None: on a GPU all sequences take all steps")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


_precision = threading.Lock()


@contextmanager
def _products_as_recurrent(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 matrices by the switch of the recurrent layers, as in cuDNN's.

    PyTorch's matrix products have a switch of their own, which is for the whole process: it is
    turned for as long as it takes to put the product on the stream. What other threads put on
    theirs in this moment is rounded as here, and the older ``allow_tf32`` cannot be read then.
    """
    wanted = "tf32" if rounds_to_tf32() else "ieee"
    switch = torch.backends.cuda.matmul
    if dtype != torch.float32:
        yield
        return
    with _precision:
        before = switch.fp32_precision
        if (before == "tf32") == (wanted == "tf32"):
            yield
            return
        switch.fp32_precision = wanted
        try:
            yield
        finally:
            switch.fp32_precision = before


# ---- the operators -----------------------------------------------------------------------------


def pack(
    matrices: Sequence[Tensor],
    gates: str,
    rows: int,
    columns: int,
    symm: str,
    symmetric: str,
    dtype: torch.dtype,
) -> Tensor:
    """``pack`` of one tensor (G, H, H) of symmetric matrices."""
    plan = plan_of(gates, rows, columns, symm, symmetric)
    shapes = [tuple(m.shape) for m in matrices]
    if shapes != plan.shapes() or len(shapes) != 1 or not plan.groups[0].symmetric:
        raise ValueError(f"matrices should be symmetric ones of all gates, got: {shapes}")
    (given,) = matrices
    if given.dtype not in DTYPES or dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"matrices and dtype should be of {names}, got: {given.dtype}, {dtype}")
    given = given if given.stride(2) == 1 else given.contiguous()
    packed = given.new_empty(plan.length, dtype=dtype)
    device, stream = _place(given)
    status = _library().symrnn_cuda_pack(
        *(rows, len(gates), DTYPES[given.dtype], given.data_ptr(), given.stride(0)),
        *(given.stride(1), DTYPES[dtype], packed.data_ptr(), device, stream),
    )
    cuda.check(status)
    return packed


def layer(
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    matrices: Sequence[Tensor],
    packed: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    symm: str,
    symmetric: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``layer``: see there for arguments and results."""
    rows, batch, side = operators.sizes_of(input, h0)
    plan = hidden_plan(mode, side, symm, symmetric)
    _check_whole(batch_sizes)
    _check(packed, input=input, w_ih=w_ih, bias_ih=bias_ih, bias_hh=bias_hh, h0=h0, c0=c0)
    check_shape("packed", packed, plan.length)
    operators.check_layer(mode, plan, input, w_ih, bias_ih, bias_hh, h0, c0)
    output, hn = input.new_empty(rows, side), input.new_empty(batch, side)
    cn = input.new_empty((batch, side) if mode == "LSTM" else (0,))
    remembers = mode in ("LSTM", "GRU")
    cells = input.new_empty((rows, side) if remembers else (0,), dtype=torch.float32)
    if rows == 0 and batch == 0:
        return output, hn, cn, input.new_empty(0, plan.gates * side), cells
    steps = operators.check_lengths(None, rows, batch)
    bias, bias_n = joined_biases(mode, bias_ih, bias_hh)
    with _products_as_recurrent(input.dtype):
        gates = F.linear(input, w_ih, bias)
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    space, size = _workspace(input, mode, side, batch, False)
    structure = layer_structure(mode, plan.product(packed), bias_n=bias_n)
    status = _library().symrnn_cuda_forward(
        *(structure, rounds_to_tf32(), steps, batch, reverse),
        *(gates.data_ptr(), _address(cells), h0.data_ptr(), _address(c0)),
        *(output.data_ptr(), hn.data_ptr(), _address(cn)),
        *(space.data_ptr(), size, *_place(input)),
    )
    cuda.check(status)
    return output, hn, cn, gates, cells


def layer_backward(
    packed: Tensor,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    d_output: Tensor | None,
    d_hn: Tensor | None,
    d_cn: Tensor | None,
    mode: str,
    symm: str,
    symmetric: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``layer_backward``: see there for arguments and results."""
    rows, (batch, side) = output.size(0), h0.shape
    plan = hidden_plan(mode, side, symm, symmetric)
    _check_whole(batch_sizes)
    _check(
        packed, output=output, gates=gates, cells=cells, h0=h0, c0=c0, d_output=d_output,
        d_hn=d_hn, d_cn=d_cn,
    )  # fmt: skip
    check_shape("packed", packed, plan.length)
    operators.check_layer_backward(mode, plan, output, gates, cells, h0, c0, d_output, d_hn, d_cn)
    results = operators._layer_backward_shapes(
        packed, output, gates, cells, h0, c0, None, d_output, d_hn, d_cn, mode, symm, symmetric,
        reverse,
    )  # fmt: skip
    if rows == 0 and batch == 0:
        return results
    d_gates, d_hidden, d_h0, d_c0 = results
    steps = operators.check_lengths(None, rows, batch)
    # Named, so that they live until the call is on the stream.
    dense = [
        None if tensor is None else tensor.contiguous()
        for tensor in (gates, cells, h0, c0, output, d_output, d_hn, d_cn)
    ]
    space, size = _workspace(gates, mode, side, batch, True)
    status = _library().symrnn_cuda_backward(
        *(layer_structure(mode, plan.product(packed)), rounds_to_tf32(), steps, batch, reverse),
        *map(_address, dense),
        *(d_gates.data_ptr(), _address(d_hidden), d_h0.data_ptr(), _address(d_c0)),
        *(space.data_ptr(), size, *_place(gates)),
    )
    cuda.check(status)
    return results


def matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """``matmul``: PyTorch's own, with the recurrent layers' precision."""
    with _products_as_recurrent(a.dtype):
        return a @ b if bias is None else torch.addmm(bias, a, b)


def _library() -> ctypes.CDLL:
    found = cuda.library()
    if found is None:
        raise RuntimeError(cuda.why_not())
    return found


for _name, _function in (
    ("pack", pack),
    ("layer", layer),
    ("layer_backward", layer_backward),
    ("states_before", operators._states_before),
    ("matmul", matmul),
):
    torch.library.impl(operators._LIBRARY, _name, "CUDA")(_function)
