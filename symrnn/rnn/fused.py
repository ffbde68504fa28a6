"""A layer on the native kernels: packed weights, all steps in one call.

For CPUs there are two roads. Where nothing but numbers is wanted the kernels are called past
PyTorch's dispatcher, on weights that are kept packed (:mod:`symrnn.rnn.prepared`). Everything else
(gradients, torch.compile, torch.export, autocast, transforms) goes through the operators of
:mod:`symrnn.rnn.operators`. On NVIDIA GPUs :mod:`symrnn.rnn.fused_gpu` takes over.

Shapes: T time, B batch, B_t the sequences that step t runs, R the sum of all B_t, I input,
H hidden, G gates, L layers, D directions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from symrnn.rnn import fused_gpu
from symrnn.rnn.operators import check_lengths
from symrnn.rnn.packing import library, matrices_of
from symrnn.rnn.prepared import is_plain, is_transformed, prepare, tensors_of
from symrnn.rnn.stack import StackOptions, State, autocast_on, over_layers

if TYPE_CHECKING:
    from symrnn.rnn.keeping import GatedModule


class FusedWeights:
    """The weights of one layer in one direction, read when the road is chosen.

    module: that keeps them.  suffix: of their names, such as "_l1_reverse".
    """

    def __init__(self, module: GatedModule, suffix: str) -> None:
        self.module = module
        self.suffix = suffix

    def layer(
        self, x: Tensor, h0: Tensor, c0: Tensor | None, batch_sizes: Tensor | None, *, rounded: bool
    ) -> tuple[Tensor, State]:
        """x (R, I) and the state (B, H) to the output (R, H) and the new state, by operators.

        rounded: whether the weights are to be of the module's ``inference_dtype``, if it has one.
        """
        module, suffix = self.module, self.suffix
        matrix = module._matrices[f"weight_hh{suffix}"]
        matrices = matrices_of(matrix, module, module.symmetry)
        w_ih = module._weight(f"weight_ih{suffix}")
        low = module.inference_dtype if rounded else None
        packed = torch.ops.symrnn.pack(
            [m.detach() for m in matrices],
            module.GATES,
            matrix.rows,
            matrix.columns,
            module.symm,
            matrix.symmetric,
            low or module._dtype(),
        )
        output, hn, cn, *_ = torch.ops.symrnn.layer(
            x,
            w_ih if low is None else w_ih.to(low).to(w_ih.dtype),
            module._weight(f"bias_ih{suffix}"),
            module._weight(f"bias_hh{suffix}"),
            matrices,
            packed,
            h0,
            c0,
            batch_sizes,
            module.mode,
            module.symm,
            matrix.symmetric,
            suffix.endswith("_reverse"),
        )
        return output, [hn] if c0 is None else [hn, cn]


def run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[FusedWeights],
    options: StackOptions,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Backend`."""
    if input.size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    module = weights[0].module
    everything = [input, *state, *tensors_of(module)]
    _check(module, [input, *state], everything)
    if input.is_cuda:
        return fused_gpu.run(input, batch_sizes, state, weights, options)
    output, state = _run(input, batch_sizes, state, weights, options, everything)
    if _autocast_acts(module, "cpu"):  # as it would have on PyTorch's operators
        low = torch.get_autocast_dtype("cpu")
        return output.to(low), [part.to(low) for part in state]
    return output, state


def cell(mode: str, x: Tensor, state: State, w: FusedWeights) -> State:
    """One step of a cell; the arguments of :func:`symrnn.rnn.reference.cell`."""
    everything = [x, *state, *tensors_of(w.module)]
    _check(w.module, [x, *state], everything)
    options = StackOptions(mode, 1, False, 0.0, w.module.training)
    parts = [part.unsqueeze(0) for part in state]
    if x.is_cuda:
        _, new = fused_gpu.run(x.unsqueeze(0), None, parts, [w], options)
    else:
        _, new = _run(x.unsqueeze(0), None, parts, [w], options, everything)
    new = [part.squeeze(0) for part in new]
    if _autocast_acts(w.module, x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        if mode in ("LSTM", "GRU"):  # PyTorch's meet the state in its own dtype
            dtype = torch.promote_types(dtype, state[-1].dtype)
        return [part.to(dtype) for part in new]
    return new


def _autocast_acts(module: GatedModule, device_type: str) -> bool:
    """Whether autocast is on, and the weights are not float64, which it leaves alone."""
    return autocast_on(device_type) and module._dtype() != torch.float64


def _run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[FusedWeights],
    options: StackOptions,
    everything: list[Tensor],
) -> tuple[Tensor, State]:
    """As :func:`run`. everything: input, state and what the weights are made of."""
    module = weights[0].module
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in everything)
    shape, batch = input.shape[:-1], state[0].size(1)
    if not wanted and batch > 0 and input.is_cpu and is_plain() and _are_plain(everything):
        steps = check_lengths(batch_sizes, math.prod(shape), batch)
        lengths = None if batch_sizes is None else batch_sizes.contiguous()
        return prepare(module).run(
            module,
            input.contiguous(),
            shape,
            steps,
            batch,
            0 if lengths is None else lengths.data_ptr(),
            [part.contiguous() for part in state],
            state[0].shape,
            options.dropout if options.training else 0.0,
        )

    def layer(k: int, x: Tensor, parts: State) -> tuple[Tensor, State]:
        h0, c0 = parts[0], parts[1] if len(parts) == 2 else None
        return weights[k].layer(x, h0, c0, batch_sizes, rounded=not wanted)

    x = input.flatten(0, 1) if batch_sizes is None else input
    output, last = over_layers(x, state, options, layer)
    return output.unflatten(0, shape) if batch_sizes is None else output, last


# ---- which road, and whether there is any ------------------------------------------------------


def _are_plain(tensors: list[Tensor]) -> bool:
    """Whether every tensor's numbers lie in its memory: none of a class of its own, or negated."""
    return all(type(t) in (Tensor, Parameter) and not t.is_neg() for t in tensors)


def check_fused(module: GatedModule) -> None:
    """ValueError for a module that the kernels cannot run, RuntimeError if there are none."""
    if module.proj_size:
        raise ValueError(
            f'backend="fused" has no projections, got: proj_size={module.proj_size}; '
            'use backend="vendor" or proj_size=0'
        )
    library()


def _check(module: GatedModule, tensors: list[Tensor], everything: list[Tensor]) -> None:
    """Raise ValueError for weights, or input and state, that the kernels do not take.

    tensors: input and state.  everything: these and what the weights are made of.
    """
    weight = module._some_weight()
    dtype, device = weight.dtype, weight.device
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f'backend="fused" runs on the devices cpu and cuda, got: {device}')
    if device.type != "cuda" and dtype not in (torch.float32, torch.float64):
        raise ValueError(f'backend="fused" takes weights of float32 or float64, got: {dtype}')
    if module.inference_dtype is not None and dtype != torch.float32:
        raise ValueError(
            f"inference_dtype={module.inference_dtype} is for weights of float32, got: {dtype}"
        )
    for name, tensor in zip(("input", "hx", "hx[1]"), tensors, strict=False):
        if tensor.device != device:
            raise ValueError(f"{name} should be on the device {device}, got: {tensor.device}")
        if tensor.dtype != dtype and not autocast_on(device.type):
            raise ValueError(f"{name} should be {dtype}, as the weights are, got: {tensor.dtype}")
    if not torch.compiler.is_compiling():
        check_fused(module)
        _check_derivatives(everything)


def _check_derivatives(tensors: list[Tensor]) -> None:
    """Raise RuntimeError rather than lose a derivative, where only plain operators have it."""
    if is_transformed():
        raise RuntimeError(
            'backend="fused" cannot run under torch.func, vmap and grad and the others: '
            'use backend="reference"'
        )
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            'backend="fused" has no derivatives in forward mode: use backend="reference"'
        )
