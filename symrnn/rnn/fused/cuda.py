"""The kernels for NVIDIA GPUs, as :mod:`symrnn.rnn.fused.operators` calls them.

A layer's hidden weights are packed as symmetric matrices, all gates together, and stay on the chip
for the whole sequence. So there is nothing folded here, no gate that is not symmetric, and no
sequence that ends before the others: :func:`why_not` says whether a layer is such.

All tensors are of one dtype, float32, bfloat16 or float16, but for the saved cells, which are
float32. Products of float32 are rounded to TF32 where PyTorch lets cuDNN's recurrent layers do so:
``torch.backends.cudnn.rnn.fp32_precision``, or the older ``cudnn.allow_tf32``. Work is put on the
current stream and nothing is waited for, so a call may be captured into a CUDA graph.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn import native
from symrnn.native import cuda
from symrnn.native.interface import Dtype, Fit, Kernel
from symrnn.rnn.fused.packing import Plan, address, library
from symrnn.rnn.modes import MODES
from symrnn.rnn.torch_state import constant_in_graphs, rounds_to_tf32
from symrnn.rnn.weights import LayerWeights

DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: Dtype.FLOAT,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.HALF,
}
"""The types of all numbers."""

KERNEL = Kernel.ANY
"""By rows where the full matrices fit, packed else; :attr:`Fit.kernel` says which."""

WAVEFRONT = False
"""Whether two layers run in one launch where they can. It has not been measured on a GPU."""

_MODE_NAMES = {mode.native: name for name, mode in MODES.items()}


# ---- whether a layer fits ----------------------------------------------------------------------


def why_not(
    w: LayerWeights, mode: str, dtype: torch.dtype, batch: int, device: torch.device
) -> str:
    """Why the kernels cannot run a layer in this dtype on this GPU; "" if they can."""
    layout, symmetry = w.hh.layout, w.hh.symmetry
    if symmetry is None or layout.symmetric != layout.gates:
        some = f"{layout.symmetric!r} of {layout.gates!r} are"
        return f"the hidden weights of all gates should be symmetric: {some}"
    if not symmetry.own_transpose:
        return f"matrices of symm={symmetry.name!r} are not their own transposes"
    if dtype not in DTYPES:
        return f"they have no {dtype}"
    if batch == 0:
        return "there are no sequences"
    return _why_not_there(device.index or 0, mode, dtype, layout.rows, int(batch))


@constant_in_graphs
def _why_not_there(device: int, mode: str, dtype: torch.dtype, side: int, batch: int) -> str:
    if not native.available():
        return native.why_not()
    if cuda.machine(device) is None:
        return cuda.why_not(device)
    for backward in (False, True):
        if fit(device, MODES[mode].native, dtype, side, batch, backward) is None:
            return f"hidden_size={side} in {dtype} does not fit on the chip of GPU {device}"
    return ""


@constant_in_graphs
def wavefront_fits(
    mode: str, dtype: torch.dtype, side: int, batch: int, device: torch.device, backward: bool
) -> bool:
    """Whether two such layers, each of which fits, run in one launch."""
    number = MODES[mode].native
    return fit(device.index or 0, number, dtype, side, batch, backward, two_layers=True) is not None


@lru_cache(maxsize=256)
def fit(
    device: int,
    mode: int,
    dtype: torch.dtype,
    side: int,
    batch: int,
    backward: bool,
    two_layers: bool = False,
) -> Fit | None:
    """How such a layer is laid out on a GPU; None if its weights do not fit on the chip.

    mode: its number in symrnn.h.  side: H.  batch: B.  backward: for the backward pass.
    two_layers: for two of them, in one launch.

    Raises RuntimeError if the kernels do not run on this GPU.
    """
    machine = cuda.machine(device)
    if machine is None:
        raise RuntimeError(cuda.why_not(device))
    found, kernel = Fit(), Kernel.WAVEFRONT if two_layers else KERNEL
    status = library().symrnn_fit_gpu(
        machine, kernel, mode, DTYPES[dtype], side, batch, backward, ctypes.byref(found)
    )
    if status == native.Status.FIT:
        return None
    native.check(status)
    return found


# ---- what every call passes --------------------------------------------------------------------


def place(tensor: Tensor) -> tuple[int, int]:
    """The number of the GPU and the address of its current stream."""
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def _workspace(
    structure: native.Layer, h0: Tensor, backward: bool
) -> tuple[Tensor, tuple[int, int]]:
    """Memory for a call, and its address and size in bytes. RuntimeError if it does not fit.

    h0: (B, H), or of two layers (2, B, H).
    """
    (batch, side), (device, _) = h0.shape[-2:], place(h0)
    two = h0.dim() == 3
    found = fit(device, structure.mode, h0.dtype, side, batch, backward, two)
    if found is None:
        whose = "two layers of " if two else ""
        raise RuntimeError(
            f"hidden weights of {whose}{_MODE_NAMES[structure.mode]} with hidden_size={side} in "
            f'{h0.dtype} do not fit on the chip of GPU {device}: use backend="vendor"'
        )
    size = int(found.workspace_bytes)
    memory = torch.empty(size, dtype=torch.uint8, device=h0.device)
    return memory, (memory.data_ptr(), size)


def _library() -> ctypes.CDLL:
    found = cuda.library()
    if found is None:
        raise RuntimeError(cuda.why_not())
    return found


_precision = threading.Lock()


@contextmanager
def _products_as_recurrent(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 matrices by the switch of the recurrent layers, as in cuDNN's.

    PyTorch's matrix products have a switch of their own, which is for the whole process: it is
    set for as long as it takes to put the product on the stream. What other threads put on
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


# ---- the kernels -------------------------------------------------------------------------------


def check(packed: Tensor | None = None, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all are on one GPU and of one dtype, which the kernels know."""
    named = {"packed": packed, **tensors}
    name, first = next((n, t) for n, t in named.items() if t is not None)
    if first.dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"{name} should be one of {names}, got: {first.dtype}")
    if packed is not None and not packed.is_contiguous():
        raise ValueError("packed should be contiguous")
    for other, tensor in named.items():
        if tensor is None:
            continue
        if tensor.device != first.device:
            raise ValueError(f"{other} should be on {first.device}, got: {tensor.device}")
        dtype = torch.float32 if other == "cells" else first.dtype
        if tensor.dtype != dtype:
            raise ValueError(f"{other} should be {dtype}, as {name} is {first.dtype}")


def pack(plan: Plan, hidden: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The packed numbers (plan.length,) of symmetric matrices of all gates, given whole."""
    plan.check(hidden)
    if dtype != hidden[0].dtype:
        raise ValueError(f"packed_dtype should be {hidden[0].dtype}, as hidden is, got: {dtype}")
    group = plan.groups[0]
    if len(plan.groups) != 1 or not group.symmetric or group.staircase is not None or group.maps:
        raise ValueError("on a GPU hidden should be the symmetric matrices of all gates, whole")
    (given,) = hidden
    given = given if given.stride(2) == 1 else given.contiguous()
    packed = given.new_empty(plan.length(dtype), dtype=dtype)
    status = _library().symrnn_cuda_pack(
        *(plan.rows, plan.gates, DTYPES[given.dtype], given.data_ptr(), given.stride(0)),
        *(given.stride(1), DTYPES[dtype], packed.data_ptr(), *place(given)),
    )
    cuda.check(status)
    return packed


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, with the recurrent layers' precision."""
    with _products_as_recurrent(x.dtype):
        return F.linear(x, w, bias)


def matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own, with the recurrent layers' precision."""
    with _products_as_recurrent(a.dtype):
        return a @ b if bias is None else torch.addmm(bias, a, b)


def _check_whole(batch_sizes: Tensor | None) -> None:
    if batch_sizes is not None:
        raise ValueError("batch_sizes should be None: on a GPU all sequences take all steps")


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
    """``symrnn_cuda_forward``, on tensors that are contiguous."""
    _check_whole(batch_sizes)
    memory, workspace = _workspace(structure, h0, False)
    tensors = (gates, cells, h0, c0, output, hn, cn)
    status = _library().symrnn_cuda_forward(
        *(structure, KERNEL, rounds_to_tf32(), steps, h0.size(0), reverse),
        *map(address, tensors), *workspace, *place(h0),
    )  # fmt: skip
    cuda.check(status)
    del memory  # PyTorch gives it to others only after what is on the stream now


def forward_two(
    structures: tuple[native.Layer, native.Layer],
    steps: int,
    w_ih: Tensor,
    between: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    output: Tensor,
    hn: Tensor,
    cn: Tensor,
) -> None:
    """``symrnn_cuda_forward_wavefront``, on tensors that are contiguous."""
    memory, workspace = _workspace(structures[0], h0, False)
    tensors = (w_ih, between, gates, cells, h0, c0, output, hn, cn)
    status = _library().symrnn_cuda_forward_wavefront(
        *((native.Layer * 2)(*structures), rounds_to_tf32(), steps, h0.size(1)),
        *map(address, tensors), *workspace, *place(h0),
    )  # fmt: skip
    cuda.check(status)
    del memory  # as above


def backward_two(
    structures: tuple[native.Layer, native.Layer],
    steps: int,
    w_ih: Tensor,
    between: Tensor | None,
    given: Sequence[Tensor | None],
    results: Sequence[Tensor],
) -> None:
    """``symrnn_cuda_backward_wavefront``; given and results as of :func:`backward`."""
    h0 = given[2]
    assert h0 is not None
    memory, workspace = _workspace(structures[0], h0, True)
    status = _library().symrnn_cuda_backward_wavefront(
        *((native.Layer * 2)(*structures), rounds_to_tf32(), steps, h0.size(1)),
        *map(address, (w_ih, between, *given, *results)), *workspace, *place(h0),
    )  # fmt: skip
    cuda.check(status)
    del memory  # as above


def backward(
    structure: native.Layer,
    steps: int,
    batch_sizes: Tensor | None,
    reverse: bool,
    given: Sequence[Tensor | None],
    results: Sequence[Tensor],
) -> None:
    """``symrnn_cuda_backward``; the arguments of :func:`symrnn.rnn.fused.cpu.backward`."""
    _check_whole(batch_sizes)
    h0 = given[2]
    assert h0 is not None
    memory, workspace = _workspace(structure, h0, True)
    status = _library().symrnn_cuda_backward(
        *(structure, KERNEL, rounds_to_tf32(), steps, h0.size(0), reverse),
        *map(address, given), *map(address, results), *workspace, *place(h0),
    )  # fmt: skip
    cuda.check(status)
    del memory
