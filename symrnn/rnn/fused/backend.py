"""``backend="fused"``: a layer on the native kernels by the operators of PyTorch.

Everything but the plainest call goes this way: gradients, torch.compile, torch.export, autocast,
transforms. (Where nothing but numbers is wanted on a CPU, :mod:`symrnn.rnn.fused.inference` calls
the kernels past PyTorch's dispatcher.) On an NVIDIA GPU PyTorch's own operator runs what the
kernels cannot, with one warning; under autocast everything is cast to its dtype, as there. On a CPU
with units for bfloat16, autocast to it acts on the operands of all products, and on the results of
those over all rows; sums, states and what is done number by number are float32.

Shapes: R rows of all steps, B batch, I input, H hidden, G gates.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor

import symrnn.rnn.fused.autograd  # noqa: F401  (the operators and their gradients)
from symrnn import native
from symrnn.rnn import torch_state, vendor
from symrnn.rnn.dropout import dropout
from symrnn.rnn.fused import cuda
from symrnn.rnn.fused.cpu import ENOUGH_ROWS, multiplies_bfloat16
from symrnn.rnn.fused.packing import source_of
from symrnn.rnn.stack import Attributes, Backend, State, autocast_on, run_layers
from symrnn.rnn.weights import LayerWeights


def run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Run`."""
    check(input, state, weights, attributes)
    if input.is_cuda:
        return _run_cuda(input, batch_sizes, state, weights, attributes)
    output, state = _run_cpu(input, batch_sizes, state, weights, attributes)
    # A copy: the backward pass reads the output, and users change theirs in place. (A trace is to
    # be the same with and without gradients.)
    return output.clone(), state


def cell(x: Tensor, state: State, w: LayerWeights, attributes: Attributes) -> State:
    """A :data:`symrnn.rnn.stack.Cell`."""
    check(x, state, [w], attributes)
    parts = [part.unsqueeze(0) for part in state]
    run_there = _run_cuda if x.is_cuda else _run_cpu
    _, new = run_there(x.unsqueeze(0), None, parts, [w], attributes)
    return [part.squeeze(0) for part in new]


BACKEND = Backend(run, cell)


def _run_cpu(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    dtype = weights[0].hh.tensors[0].dtype
    low = None if wants_gradient(input, state, weights) else attributes.inference_dtype
    rows = input.size(0) if batch_sizes is not None else input.size(0) * input.size(1)
    autocasts = low != torch.int8 and multiplies_in_bfloat16(dtype, rows)
    packed_dtype = torch.bfloat16 if autocasts else low or dtype

    def layer(k: int, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, State]:
        w = weights[k]
        w_ih = w.ih.dense()
        if low == torch.bfloat16:
            w_ih = w_ih.to(low).to(dtype)
        if autocasts:
            x, w_ih = x.bfloat16(), w_ih.bfloat16()
        form, symmetric, hidden = source_of(w.hh)
        c0 = state[1] if len(state) == 2 else None
        mask = None if w.state_mask is None else w.state_mask.to(dtype)
        output, hn, cn, *_ = torch.ops.symrnn.layer(
            x, w_ih, w.bias_ih, w.bias_hh, hidden, state[0], c0, batch_sizes, mask,
            attributes.mode, form, symmetric, reverse, packed_dtype,
        )  # fmt: skip
        return output, [hn] if c0 is None else [hn, cn]

    if not autocasts:
        return run_layers(input, batch_sizes, state, attributes, layer)
    with torch.autocast("cpu", enabled=False):  # which would make all float32
        cast = [part.to(dtype) for part in state]
        return run_layers(input, batch_sizes, cast, attributes, layer)


def multiplies_in_bfloat16(dtype: torch.dtype, rows: int) -> bool:
    """Whether autocast lets a layer on a CPU, its weights of ``dtype``, take products in bfloat16.

    rows: of the input. The weights are rounded at every call, which for a few does not pay.
    """
    return (
        dtype == torch.float32
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and multiplies_bfloat16()
        and rows >= ENOUGH_ROWS  # last: an exported program holds to what was asked of its sizes
    )


def _run_cuda(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    attributes: Attributes,
) -> tuple[Tensor, State]:
    dtype = weights[0].hh.tensors[0].dtype
    if torch.is_autocast_enabled("cuda") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
    why = "" if batch_sizes is None else "sequences of a PackedSequence may end before others"
    why = why or cuda.why_not(weights[0], attributes.mode, dtype, state[0].size(1), input.device)
    if why:
        _notice(why)
        return vendor.run(input, batch_sizes, state, weights, attributes)
    if cuda.WAVEFRONT and _are_wavefront(input, state, attributes, dtype):
        with torch.autocast("cuda", enabled=False):  # as below
            cast = [part.to(dtype) for part in state]
            return _run_wavefront(input.to(dtype), cast, weights, attributes)

    def layer(k: int, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, State]:
        w = weights[k]
        *tensors, form, symmetric = _whole(w, dtype)
        c0 = state[1] if len(state) == 2 else None
        mask = None if w.state_mask is None else w.state_mask.to(dtype)
        output, hn, cn, *_ = torch.ops.symrnn.layer(
            x, *tensors, state[0], c0, None, mask, attributes.mode, form, symmetric, reverse, dtype,
        )  # fmt: skip
        return output, [hn] if c0 is None else [hn, cn]

    # Autocast would look at every product within, and has been obeyed by then.
    with torch.autocast("cuda", enabled=False):
        cast = [part.to(dtype) for part in state]
        return run_layers(input.to(dtype), None, cast, attributes, layer)


def _whole(w: LayerWeights, dtype: torch.dtype) -> list[Any]:
    """w_ih, bias_ih, bias_hh, hidden, form and symmetric, as the operators take them on a GPU."""
    given = (w.ih.dense(), w.bias_ih, w.bias_hh)
    form, symmetric, hidden = source_of(w.hh, whole=True)
    tensors = [None if weight is None else weight.to(dtype) for weight in given]
    return [*tensors, [matrix.to(dtype) for matrix in hidden], form, symmetric]


def _are_wavefront(input: Tensor, state: State, attributes: Attributes, dtype: torch.dtype) -> bool:
    """Whether these layers, which the kernels can run, can run in one launch."""
    if attributes.num_layers != 2 or attributes.bidirectional or input.size(0) == 0:
        return False
    _, batch, side = state[0].shape
    return cuda.wavefront_fits(attributes.mode, dtype, side, int(batch), input.device, False)


def _run_wavefront(
    input: Tensor, state: State, weights: list[LayerWeights], attributes: Attributes
) -> tuple[Tensor, State]:
    """Two layers; input (T, B, I) and state are of the dtype that they run in."""
    dtype, x = input.dtype, input.flatten(0, 1)
    *lower, form, symmetric = _whole(weights[0], dtype)
    *upper, _, _ = _whole(weights[1], dtype)
    h0, c0 = state if len(state) == 2 else (state[0], None)
    masks = [w.state_mask for w in weights if w.state_mask is not None]
    # Drawn as for the loop over layers.
    drops = attributes.training and attributes.dropout > 0
    between = dropout(x.new_ones(x.size(0), h0.size(2)), attributes.dropout) if drops else None
    output, hn, cn, *_ = torch.ops.symrnn.two_layers(
        x, *lower, *upper, h0, c0, torch.stack(masks).to(dtype) if masks else None, between,
        attributes.mode, form, symmetric,
    )  # fmt: skip
    return output[1].unflatten(0, input.shape[:2]), [hn] if c0 is None else [hn, cn]


_said: set[str] = set()
_lock = threading.Lock()


def _notice(why: str) -> None:
    """Warn, once for each reason, that PyTorch's operator stands in."""
    if torch.compiler.is_compiling():
        return
    with _lock:
        if why in _said:
            return
        _said.add(why)
    warnings.warn(
        f'backend="fused" runs on PyTorch\'s operator here: {why}',
        UserWarning,
        stacklevel=native.users_frame(),
    )


# ---- what the kernels take ---------------------------------------------------------------------


def wants_gradient(input: Tensor, state: State, weights: list[LayerWeights]) -> bool:
    """Whether a gradient of the results may be asked for."""
    if not torch.is_grad_enabled():
        return False
    # In training the first weight ends the search.
    weighted = any(tensor.requires_grad for w in weights for tensor in w.tensors)
    return weighted or any(tensor.requires_grad for tensor in (input, *state))


def check_fused(proj_size: int) -> None:
    """ValueError for a module that the kernels cannot run, RuntimeError if there are none."""
    if proj_size:
        raise ValueError(
            f'backend="fused" has no projections, got: proj_size={proj_size}; '
            'use backend="vendor" or proj_size=0'
        )
    if native.library() is None:
        raise RuntimeError(f'backend="fused" cannot run here: {native.why_not()}')


def check(input: Tensor, state: State, weights: list[LayerWeights], attributes: Attributes) -> None:
    """Raise ValueError for weights, or input and state, that the kernels do not take."""
    weight = weights[0].hh.tensors[0]
    dtype, device = weight.dtype, weight.device
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f'backend="fused" runs on the devices cpu and cuda, got: {device}')
    if device.type != "cuda" and dtype not in (torch.float32, torch.float64):
        raise ValueError(f'backend="fused" takes weights of float32 or float64, got: {dtype}')
    low = attributes.inference_dtype
    if low is not None and dtype != torch.float32:
        raise ValueError(f"inference_dtype={low} is for weights of float32, got: {dtype}")
    for name, tensor in zip(("input", "hx", "hx[1]"), (input, *state), strict=False):
        if tensor.device != device:
            raise ValueError(f"{name} should be on the device {device}, got: {tensor.device}")
        if tensor.dtype != dtype and not autocast_on(device.type):
            raise ValueError(f"{name} should be {dtype}, as the weights are, got: {tensor.dtype}")
    if torch.compiler.is_compiling():
        return
    check_fused(0 if weights[0].hr is None else weights[0].hr.size(0))
    if torch_state.is_transformed():  # rather than lose a derivative
        raise RuntimeError(
            'backend="fused" cannot run under torch.func, vmap and grad and the others: '
            'use backend="reference"'
        )
    if torch_state.has_tangent([input, *state, *(t for w in weights for t in w.tensors)]):
        raise RuntimeError(
            'backend="fused" has no derivatives in forward mode: use backend="reference"'
        )
