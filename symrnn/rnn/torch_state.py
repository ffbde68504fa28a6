"""The private corners of torch that have no public door, each with what it is needed for.

Nothing else in :mod:`symrnn.rnn` names a private function of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

without_modes: Callable[[], Any] = _disable_current_modes
"""A context in which no mode of a tracer acts: for constants of our own, made meanwhile."""

_transforms = torch._C._functorch.peek_interpreter_stack
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_mode = torch._C._is_torch_function_mode_enabled
_tracer = torch._C._get_tracing_state
_any_autocast = torch._C._is_any_autocast_enabled


Function = TypeVar("Function", bound=Callable[..., Any])


def constant_in_graphs(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``: run while a graph is made, its result a constant.

    That one imports the compiler, 70 MiB that a process without graphs does not want; the mark is
    all that it sets.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_transformed() -> bool:
    """Whether a transform of torch.func is about to take the call."""
    return not torch.compiler.is_compiling() and _transforms() is not None


def are_batched(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a batch of gradients is being taken at once, these among them.

    By a transform of torch.func, or by ``torch.autograd.grad(..., is_grads_batched=True)``, which
    vectorizes on its own.
    """
    if torch.compiler.is_compiling():
        return False
    return is_transformed() or any(t is not None and _is_batched(t) for t in tensors)


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return forward_ad._current_level >= 0


def has_tangent(tensors: Sequence[Tensor]) -> bool:
    """Whether forward-mode derivatives are being taken of any of them."""
    if not in_forward_mode():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def can_bypass_dispatcher() -> bool:
    """Whether a call is nothing but numbers: no tracing, transform, mode, autocast or tangent.

    Only then may the kernels be called past PyTorch's dispatcher. A default device that is the CPU
    is a mode too, and does nothing here.
    """
    return (
        not torch.compiler.is_compiling()
        and _transforms() is None
        and _dispatch_modes() == 0
        and (not _function_mode() or _is_default_cpu())
        and _tracer() is None
        and not (_any_autocast() and torch.is_autocast_enabled("cpu"))
        and forward_ad._current_level < 0
    )


def _forward_level() -> int:
    return forward_ad._current_level


GUARDS: tuple[Any, ...] = (
    *(_transforms, None, _dispatch_modes, 0, _function_mode, False, _tracer, None),
    *(_any_autocast, False, _forward_level, -1),
)
"""Functions and what each gives where :func:`can_bypass_dispatcher` is sure to, in turn.

(Under a compiler they are not called.)
"""


def _is_default_cpu() -> bool:
    """Whether the one function mode is ``torch.set_default_device("cpu")``."""
    modes = _get_current_function_mode_stack()
    return len(modes) == 1 and type(modes[0]) is DeviceContext and modes[0].device.type == "cpu"


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether every tensor's numbers lie in its memory: none of a class of its own, or negated."""
    return all(type(t) in (Tensor, Parameter) and not t.is_neg() for t in tensors)


def rounds_to_tf32() -> bool:
    """Whether float32 products of recurrent layers may be rounded to TF32 on a GPU."""
    # What torch.backends.cudnn.rnn.fp32_precision reads; in some versions a module of the same name
    # hides that, once it has been imported.
    precision: str = torch._C._get_fp32_precision_getter("cuda", "rnn")
    return precision == "tf32"


def cudnn_takes(tensors: Sequence[Tensor]) -> bool:
    """Whether the vendor's operator would run cuDNN on weights made of these."""
    first = tensors[0]
    if not first.is_cuda or any(tensor.dtype != first.dtype for tensor in tensors):
        return False
    if not torch._use_cudnn_rnn_flatten_weight():  # another vendor's library
        return False
    if first.dtype == torch.bfloat16:  # which `is_acceptable` does not know of yet
        capable = torch.cuda.get_device_capability(first.device) >= (8, 0)
        return capable and torch.backends.cudnn.enabled
    return torch.backends.cudnn.is_acceptable(first)


def cudnn_layout(
    mode: str,
    shapes: tuple[tuple[int, ...], ...],
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[int], int]:
    """Where in its buffer cuDNN has tensors of these shapes, and how long the buffer is.

    In elements. There is no public way to ask, so tensors of these shapes are flattened once, as
    ``nn.LSTM.flatten_parameters`` does, and the places read off.
    """
    from torch.backends.cudnn import rnn

    tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    with torch.cuda.device(device), torch.no_grad():
        buffer = torch._cudnn_rnn_flatten_weight(
            tensors,
            len(shapes) // (num_layers * (2 if bidirectional else 1)),
            shapes[0][1],
            rnn.get_cudnn_mode(mode),
            hidden_size,
            proj_size,
            num_layers,
            False,  # batch_first, which the layout does not depend on
            bidirectional,
        )
    return [int(tensor.storage_offset()) for tensor in tensors], buffer.numel()


# ---- programs with a free length of time ---------------------------------------------------------

_RECURRENT = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)


@contextmanager
def free_time() -> Iterator[None]:
    """``torch.export`` of PyTorch's recurrent layers, with a dimension of time that is free.

    It finds an operator's shapes by what it decomposes into. A recurrent one becomes a loop over
    the steps, so that their number is the example's for good; but its shapes depend on no steps,
    and the program holds the operator itself. Meanwhile here the shapes are what it decomposes
    into. (PyTorch's ``torch.export._patches`` puts a ``while_loop`` there in the same way, which a
    program then holds.)
    """
    former = [dict(operator.py_kernels) for operator in _RECURRENT]
    try:
        for operator in _RECURRENT:
            operator.py_kernels.update(dict.fromkeys(operator.py_kernels, _shapes))
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in zip(_RECURRENT, former, strict=True):
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()


def _shapes(
    input: Tensor,
    hx: Tensor | list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Results of a recurrent operator (T, B, I), (L·D, B, P) without their numbers."""
    state = [hx] if isinstance(hx, Tensor) else hx
    width = state[0].shape[-1] * (2 if bidirectional else 1)
    output = input.new_empty((*input.shape[:2], width))
    return output, *(part.new_empty(part.shape) for part in state)
