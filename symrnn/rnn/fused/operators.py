"""The native kernels as operators of PyTorch: ``torch.ops.symrnn``.

- ``layer``: one layer in one direction, all steps, with gradients;
- ``layer_backward``: its backward pass through time;
- ``hidden_gradients``: the gradients of the hidden weights, from what that found;
- ``matmul``: a product of dense matrices, of the shapes of a training step faster than PyTorch's;
- ``two_layers``: on a GPU two layers, all their steps in one launch, with gradients;
- ``two_layers_backward``: their backward pass through time, in one launch as well.

One implementation serves CPUs and NVIDIA GPUs: what differs stands in :mod:`symrnn.rnn.fused.cpu`
and :mod:`symrnn.rnn.fused.cuda`, under the same names. The operators have shape functions, and
gradients in :mod:`symrnn.rnn.fused.autograd`, so that autograd, torch.compile and torch.export know
them. On a CPU arithmetic is in the dtype of the numbers given, float32 or float64; under autocast
in float32. There products may be in bfloat16, with float32 for their sums and all else: of
``layer``, those over all rows (of the input, its gradient and those of the weights) if that is what
``input`` and ``w_ih`` are, and the recurrent ones of both passes if the hidden weights are packed
so besides.

Shapes: T time, B batch, B_t the sequences that step t runs, R the sum of all B_t, I input,
H hidden, G gates. Sequences are sorted by falling length; without ``batch_sizes`` all B_t are B.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from symrnn.rnn.fused import cpu, cuda
from symrnn.rnn.fused.packing import (
    Plan,
    check_shape,
    joined_biases,
    layer_structure,
    plan_of,
)
from symrnn.rnn.modes import MODES

LIBRARY = torch.library.Library("symrnn", "DEF")

LIBRARY.define(
    "layer(Tensor input, Tensor w_ih, Tensor? bias_ih, Tensor? bias_hh, Tensor[] hidden, "
    "Tensor h0, Tensor? c0, Tensor? batch_sizes, Tensor? state_mask, str mode, str form, "
    "str symmetric, bool reverse, ScalarType packed_dtype) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "layer_backward(Tensor packed, Tensor output, Tensor gates, Tensor cells, Tensor h0, "
    "Tensor? c0, Tensor? batch_sizes, Tensor? state_mask, Tensor? d_output, Tensor? d_hn, "
    "Tensor? d_cn, str mode, str form, str symmetric, bool reverse) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "hidden_gradients(Tensor d_hidden, Tensor[] hidden, Tensor output, Tensor h0, "
    "Tensor? batch_sizes, Tensor? state_mask, str mode, str form, str symmetric, bool reverse) "
    "-> Tensor[]"
)
LIBRARY.define("matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor")
LIBRARY.define(
    "two_layers(Tensor input, Tensor w_ih, Tensor? bias_ih, Tensor? bias_hh, Tensor[] hidden, "
    "Tensor w_ih_above, Tensor? bias_ih_above, Tensor? bias_hh_above, Tensor[] hidden_above, "
    "Tensor h0, Tensor? c0, Tensor? state_masks, Tensor? between, str mode, str form, "
    "str symmetric) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "two_layers_backward(Tensor packed, Tensor packed_above, Tensor w_ih_above, Tensor output, "
    "Tensor gates, Tensor cells, Tensor h0, Tensor? c0, Tensor? state_masks, Tensor? between, "
    "Tensor? d_output, Tensor? d_hn, Tensor? d_cn, str mode, str form, str symmetric) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def kernels_for(tensor: Tensor) -> ModuleType:
    """The kernels for the device that the tensor is on."""
    return cuda if tensor.is_cuda else cpu


def hidden_plan(mode: str, side: int, form: str, symmetric: str) -> Plan:
    """How the hidden weights of a layer of this mode are packed."""
    if mode not in MODES:
        raise ValueError(f"mode should be one of {', '.join(MODES)}, got: {mode!r}")
    side = int(side)  # traced with symbols for sizes, it is one of these
    return plan_of(MODES[mode].gates, side, side, form, symmetric)


# ---- checks ------------------------------------------------------------------------------------


def _sizes_of(input: Tensor, h0: Tensor) -> tuple[int, int, int]:
    """R, B and H; ValueError unless both have 2 dimensions."""
    if input.dim() != 2 or h0.dim() != 2:
        raise ValueError(
            "input and h0 should have 2 dimensions, got: "
            f"shapes {tuple(input.shape)} and {tuple(h0.shape)}"
        )
    return input.size(0), h0.size(0), h0.size(1)


def _check_c0(mode: str, c0: Tensor | None) -> None:
    if (c0 is None) == ("c" in MODES[mode].states):
        raise ValueError(f"c0 should be given for an LSTM and no other mode, got: mode={mode!r}")


def check_lengths(batch_sizes: Tensor | None, rows: int, batch: int) -> int:
    """T; ValueError unless the steps have ``rows`` rows in all, of ``batch`` sequences."""
    if batch_sizes is None:
        if batch == 0 or rows % batch:
            raise ValueError(
                f"input should have a multiple of {batch} rows, as many as h0 has, got: {rows}"
            )
        return rows // batch
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ValueError(
            "batch_sizes should be int64 of one dimension on the device cpu, got: "
            f"{batch_sizes.dtype} of {batch_sizes.dim()} dimensions on {batch_sizes.device}"
        )
    sizes = batch_sizes.tolist()
    falling = all(a >= b for a, b in pairwise(sizes))
    if not sizes or sizes[0] != batch or sizes[-1] < 1 or not falling or sum(sizes) != rows:
        raise ValueError(
            f"batch_sizes should fall from {batch}, the rows of h0, to 1 at least and sum to "
            f"{rows}, the rows of input, got: {sizes}"
        )
    return len(sizes)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


# ---- forward pass ------------------------------------------------------------------------------


def _layer(
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    hidden: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    state_mask: Tensor | None,
    mode: str,
    form: str,
    symmetric: str,
    reverse: bool,
    packed_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """input (R, I), w_ih (G·H, I), biases (G·H,), h0 and c0 (B, H), batch_sizes int64 (T,).

    hidden, form, symmetric: the hidden weights, as :class:`symrnn.rnn.fused.packing.Source`.
    packed_dtype: what they are packed as: that of all numbers, or bfloat16, or for inference int8.
        If int8, w_ih is rounded so too, as a full matrix.
    input and w_ih may be bfloat16 where all else is float32. If packed_dtype is so too, then so is
        what multiplies the hidden weights: h, times the mask, and in the backward pass gradients.
        (A skew part takes these as they are.) With an input of float32 packed_dtype bfloat16 is for
        inference alone.
    state_mask: (B, H), what h is multiplied by before the hidden weights; a constant.

    Returns output (R, H), h and c after the last step (B, H); and for the backward pass the
    activated gates (R, G·H), the saved cells (R, H), which are one more number of each unit and
    step, and the packed weights. What a mode has not is empty.
    """
    kernels = kernels_for(input)
    rows, batch, side = _sizes_of(input, h0)
    plan = hidden_plan(mode, side, form, symmetric)
    weights = {f"hidden[{k}]": tensor for k, tensor in enumerate(hidden)}
    kernels.check(
        input=input, w_ih=w_ih, bias_ih=bias_ih, bias_hh=bias_hh, h0=h0, c0=c0,
        state_mask=state_mask, **weights,
    )  # fmt: skip
    check_shape("w_ih", w_ih, plan.gates * side, input.size(1))
    check_shape("bias_ih", bias_ih, plan.gates * side)
    check_shape("bias_hh", bias_hh, plan.gates * side)
    check_shape("c0", c0, batch, side)
    check_shape("state_mask", state_mask, batch, side)
    _check_c0(mode, c0)
    bias, bias_n = joined_biases(mode, bias_ih, bias_hh)
    packed = kernels.pack(plan, hidden, packed_dtype)
    output, hn, cn, gates, cells = _empty_results(input, h0, mode)
    if rows == 0 and batch == 0:
        return output, hn, cn, gates, cells, packed
    steps = check_lengths(batch_sizes, rows, batch)
    linear = cpu.linear_int8 if packed_dtype == torch.int8 else kernels.linear
    gates = linear(input, w_ih, bias)
    # The parts of the structure are held here until the kernels have read them.
    rounds = input.dtype == packed.dtype == torch.bfloat16 != h0.dtype
    product, mask = plan.product(packed, rounds), _contiguous(state_mask)
    structure = layer_structure(mode, product, bias_n=bias_n, state_mask=mask)
    kernels.forward(
        structure, steps, _contiguous(batch_sizes), reverse, gates, cells, h0.contiguous(),
        _contiguous(c0), output, hn, cn,
    )  # fmt: skip
    return output, hn, cn, gates, cells, packed


def _empty_results(input: Tensor, h0: Tensor, mode: str) -> tuple[Tensor, ...]:
    """Output, hn, cn, gates and cells of ``layer``, uninitialized."""
    kind, rows, (batch, side) = MODES[mode], input.size(0), h0.shape
    wide = torch.promote_types(h0.dtype, torch.float32)  # the type of a cell's state
    return (
        h0.new_empty(rows, side),
        h0.new_empty(batch, side),
        h0.new_empty((batch, side) if "c" in kind.states else (0,)),
        h0.new_empty(rows, len(kind.gates) * side),
        h0.new_empty((rows, side) if kind.saves_cells else (0,), dtype=wide),
    )


def _layer_shapes(
    input: Tensor, w_ih: Tensor, bias_ih: Any, bias_hh: Any, hidden: Any, h0: Tensor, c0: Any,
    batch_sizes: Any, state_mask: Any, mode: str, form: str, symmetric: str, reverse: bool,
    packed_dtype: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    plan = hidden_plan(mode, h0.size(1), form, symmetric)
    packed = h0.new_empty(plan.length(packed_dtype), dtype=packed_dtype)
    return (*_empty_results(input, h0, mode), packed)


# ---- two layers --------------------------------------------------------------------------------


def _two_layers(
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    hidden: list[Tensor],
    w_ih_above: Tensor,
    bias_ih_above: Tensor | None,
    bias_hh_above: Tensor | None,
    hidden_above: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    state_masks: Tensor | None,
    between: Tensor | None,
    mode: str,
    form: str,
    symmetric: str,
) -> tuple[Tensor, ...]:
    """Two layers, one above the other, from the first step on; all sequences take all steps.

    Arguments are those of ``layer``, of the lower layer and of the one above.
    h0, c0, state_masks: (2, B, H).  between: (R, H), what the lower layer's output is multiplied by
    on its way up; a constant, or None.

    Returns of both layers, the lower first: output (2, R, H), h and c after the last step
    (2, B, H), the activated gates (2, R, G·H) and the saved cells (2, R, H); then the packed
    weights of each.
    """
    _check_two(input, h0)
    rows, batch, side = _sizes_of(input, h0[0])
    plan = hidden_plan(mode, side, form, symmetric)
    weights = {f"hidden[{k}]": tensor for k, tensor in enumerate([*hidden, *hidden_above])}
    cuda.check(
        input=input, w_ih=w_ih, bias_ih=bias_ih, bias_hh=bias_hh, w_ih_above=w_ih_above,
        bias_ih_above=bias_ih_above, bias_hh_above=bias_hh_above, h0=h0, c0=c0,
        state_masks=state_masks, between=between, **weights,
    )  # fmt: skip
    wide = plan.gates * side
    check_shape("w_ih", w_ih, wide, input.size(1))
    check_shape("w_ih_above", w_ih_above, wide, side)
    biases = {"bias_ih": bias_ih, "bias_hh": bias_hh}
    biases |= {"bias_ih_above": bias_ih_above, "bias_hh_above": bias_hh_above}
    for name, bias in biases.items():
        check_shape(name, bias, wide)
    check_shape("c0", c0, 2, batch, side)
    check_shape("state_masks", state_masks, 2, batch, side)
    check_shape("between", between, rows, side)
    _check_c0(mode, c0)
    steps = check_lengths(None, rows, batch)
    bias, bias_n = joined_biases(mode, bias_ih, bias_hh)
    bias_above, bias_n_above = joined_biases(mode, bias_ih_above, bias_hh_above)
    packed, packed_above = (cuda.pack(plan, w, h0.dtype) for w in (hidden, hidden_above))
    output, hn, cn, gates, cells = _empty_results_of_two(input, h0, mode)
    gates[0].copy_(cuda.linear(input, w_ih, bias))
    # What the structures point to is held here until the kernels have read it.
    products = plan.product(packed), plan.product(packed_above)
    masks = _masks_of(state_masks)
    structures = (
        layer_structure(mode, products[0], bias_n=bias_n, state_mask=masks[0]),
        layer_structure(
            mode, products[1], bias=bias_above, bias_n=bias_n_above, state_mask=masks[1]
        ),
    )
    cuda.forward_two(
        structures, steps, w_ih_above.contiguous(), _contiguous(between), gates, cells,
        h0.contiguous(), _contiguous(c0), output, hn, cn,
    )  # fmt: skip
    return output, hn, cn, gates, cells, packed, packed_above


def _check_two(input: Tensor, h0: Tensor) -> None:
    if kernels_for(input) is not cuda:
        raise RuntimeError(f"two layers run in one launch on a GPU only, got: {input.device}")
    if h0.dim() != 3 or len(h0) != 2:
        raise ValueError(f"h0 should be of shape (2, B, H), got: {tuple(h0.shape)}")


def _masks_of(both: Tensor | None) -> list[Tensor | None]:
    return [None, None] if both is None else [mask.contiguous() for mask in both]


def _empty_results_of_two(input: Tensor, h0: Tensor, mode: str) -> tuple[Tensor, ...]:
    """Output, hn, cn, gates and cells of ``two_layers``, uninitialized."""
    shapes = (
        (one.new_empty((2, *one.shape)) if one.dim() > 1 else one)
        for one in _empty_results(input, h0[0], mode)
    )
    return tuple(shapes)


def _two_layers_shapes(
    input: Tensor, w_ih: Any, bias_ih: Any, bias_hh: Any, hidden: Any, w_ih_above: Any,
    bias_ih_above: Any, bias_hh_above: Any, hidden_above: Any, h0: Tensor, c0: Any,
    state_masks: Any, between: Any, mode: str, form: str, symmetric: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    length = hidden_plan(mode, h0.size(2), form, symmetric).length(h0.dtype)
    packed = (h0.new_empty(length) for _ in range(2))
    return (*_empty_results_of_two(input, h0, mode), *packed)


# ---- backward pass -----------------------------------------------------------------------------


def _layer_backward(
    packed: Tensor,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    state_mask: Tensor | None,
    d_output: Tensor | None,
    d_hn: Tensor | None,
    d_cn: Tensor | None,
    mode: str,
    form: str,
    symmetric: str,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """From what ``layer`` took and gave, and the gradients of its results, None for zeros.

    packed: if bfloat16 where all else is float32, ``input`` was bfloat16 as well.

    Returns the gradients of the input's part of the gates (R, G·H), of a GRU's hidden part
    (R, G·H), which differs in n (of the others the two are the same, and this one is empty), of h0
    and of c0 (B, H).
    """
    kernels = kernels_for(output)
    rows, (batch, side) = output.size(0), h0.shape
    plan = hidden_plan(mode, side, form, symmetric)
    kernels.check(
        packed, output=output, gates=gates, cells=cells, h0=h0, c0=c0, d_output=d_output,
        d_hn=d_hn, d_cn=d_cn, state_mask=state_mask,
    )  # fmt: skip
    check_shape("packed", packed, plan.length(packed.dtype))
    check_shape("output", output, rows, side)
    check_shape("gates", gates, rows, plan.gates * side)
    check_shape("cells", cells, *((rows, side) if MODES[mode].saves_cells else (0,)))
    check_shape("d_output", d_output, rows, side)
    of_state = {"c0": c0, "d_hn": d_hn, "d_cn": d_cn, "state_mask": state_mask}
    for name, tensor in of_state.items():
        check_shape(name, tensor, batch, side)
    _check_c0(mode, c0)
    results = _backward_results(gates, h0, mode)
    if rows == 0 and batch == 0:
        return results
    # What is made contiguous is held here until the kernels have read it.
    given = [_contiguous(t) for t in (gates, cells, h0, c0, output, d_output, d_hn, d_cn)]
    rounds = packed.dtype == torch.bfloat16 != h0.dtype
    product, mask = plan.product(packed, rounds), _contiguous(state_mask)
    kernels.backward(
        layer_structure(mode, product, state_mask=mask), check_lengths(batch_sizes, rows, batch),
        _contiguous(batch_sizes), reverse, given, results,
    )  # fmt: skip
    return results


def _backward_results(gates: Tensor, h0: Tensor, mode: str) -> tuple[Tensor, ...]:
    """What ``layer_backward`` returns, or that of two layers, uninitialized."""
    return (
        gates.new_empty(gates.shape),
        gates.new_empty(gates.shape if MODES[mode].separate_bias else (0,)),
        h0.new_empty(h0.shape),
        h0.new_empty(h0.shape if "c" in MODES[mode].states else (0,)),
    )


def _layer_backward_shapes(
    packed: Any, output: Any, gates: Tensor, cells: Any, h0: Tensor, c0: Any, batch_sizes: Any,
    state_mask: Any, d_output: Any, d_hn: Any, d_cn: Any, mode: str, form: str, symmetric: str,
    reverse: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _backward_results(gates, h0, mode)


def _two_layers_backward(
    packed: Tensor,
    packed_above: Tensor,
    w_ih_above: Tensor,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    state_masks: Tensor | None,
    between: Tensor | None,
    d_output: Tensor | None,
    d_hn: Tensor | None,
    d_cn: Tensor | None,
    mode: str,
    form: str,
    symmetric: str,
) -> tuple[Tensor, ...]:
    """From what ``two_layers`` took and gave, and the gradients of its results, None for zeros.

    d_output (2, R, H): of the lower layer without what comes to it through the one above.

    Returns of both layers, the lower first, what ``layer_backward`` does of one: (2, R, G·H) twice,
    then (2, B, H) twice.
    """
    _check_two(output, h0)
    (_, rows, _), (_, batch, side) = output.shape, h0.shape
    plan = hidden_plan(mode, side, form, symmetric)
    cuda.check(
        packed, packed_above=packed_above, w_ih_above=w_ih_above, output=output, gates=gates,
        cells=cells, h0=h0, c0=c0, state_masks=state_masks, between=between, d_output=d_output,
        d_hn=d_hn, d_cn=d_cn,
    )  # fmt: skip
    check_shape("packed", packed, plan.length(packed.dtype))
    check_shape("packed_above", packed_above, plan.length(packed.dtype))
    check_shape("w_ih_above", w_ih_above, plan.gates * side, side)
    check_shape("output", output, 2, rows, side)
    check_shape("gates", gates, 2, rows, plan.gates * side)
    check_shape("cells", cells, *((2, rows, side) if MODES[mode].saves_cells else (0,)))
    check_shape("between", between, rows, side)
    check_shape("d_output", d_output, 2, rows, side)
    of_state = {"c0": c0, "d_hn": d_hn, "d_cn": d_cn, "state_masks": state_masks}
    for name, tensor in of_state.items():
        check_shape(name, tensor, 2, batch, side)
    _check_c0(mode, c0)
    results = _backward_results(gates, h0, mode)
    # What is made contiguous is held here until the kernels have read it.
    given = [_contiguous(t) for t in (gates, cells, h0, c0, output, d_output, d_hn, d_cn)]
    products, masks = (plan.product(packed), plan.product(packed_above)), _masks_of(state_masks)
    lower, upper = (
        layer_structure(mode, product, state_mask=mask)
        for product, mask in zip(products, masks, strict=True)
    )
    cuda.backward_two(
        (lower, upper), check_lengths(None, rows, batch), w_ih_above.contiguous(),
        _contiguous(between), given, results,
    )  # fmt: skip
    return results


def _two_layers_backward_shapes(
    packed: Any, packed_above: Any, w_ih_above: Any, output: Any, gates: Tensor, cells: Any,
    h0: Tensor, c0: Any, state_masks: Any, between: Any, d_output: Any, d_hn: Any, d_cn: Any,
    mode: str, form: str, symmetric: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _backward_results(gates, h0, mode)


def _hidden_gradients(
    d_hidden: Tensor,
    hidden: list[Tensor],
    output: Tensor,
    h0: Tensor,
    batch_sizes: Tensor | None,
    state_mask: Tensor | None,
    mode: str,
    form: str,
    symmetric: str,
    reverse: bool,
) -> list[Tensor]:
    """The gradients of ``hidden`` of ``layer`` from that of the hidden part of the gates (R, G·H).

    hidden, output (R, H), h0 and state_mask (B, H): as ``layer`` took and gave them. Where they are
    float32, d_hidden may be bfloat16, in which the products are then taken.
    """
    kernels = kernels_for(output)
    rows, batch, side = _sizes_of(output, h0)
    plan = hidden_plan(mode, side, form, symmetric)
    low = d_hidden.dtype == torch.bfloat16 and output.dtype == torch.float32
    weights = {f"hidden[{k}]": tensor for k, tensor in enumerate(hidden)}
    d_like = output if low else d_hidden
    kernels.check(d_hidden=d_like, output=output, h0=h0, state_mask=state_mask, **weights)
    plan.check(hidden)
    check_shape("output", output, rows, side)
    check_shape("state_mask", state_mask, batch, side)
    check_shape("d_hidden", d_hidden, rows, plan.gates * side)
    if batch_sizes is not None or batch > 0:
        check_lengths(batch_sizes, rows, batch)
    before = states_before(output, h0, batch_sizes, reverse)
    if state_mask is not None:
        lengths = [batch] * (rows // batch) if batch_sizes is None else batch_sizes.tolist()
        before = before * torch.cat([state_mask[:length] for length in lengths])
    by_gate = d_hidden.unflatten(1, (plan.gates, plan.rows))

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        product: Tensor = kernels.matmul(a.to(d_hidden.dtype), b.to(d_hidden.dtype), None)
        return product.to(output.dtype)

    return plan.gradients(by_gate, before, hidden, matmul)


def _hidden_gradients_shapes(
    d_hidden: Any, hidden: Any, output: Tensor, h0: Tensor, batch_sizes: Any, state_mask: Any,
    mode: str, form: str, symmetric: str, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    plan = hidden_plan(mode, h0.size(1), form, symmetric)
    return [output.new_empty(shape) for shape in plan.shapes()]


def states_before(output: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """Output (R, H) and h0 (B, H) to the h that each row was computed from, (R, H)."""
    if batch_sizes is None:
        batch = len(h0)
        return torch.cat([output[batch:], h0] if reverse else [h0, output[: len(output) - batch]])
    sizes = batch_sizes.tolist()
    steps = output.split(sizes)
    before: list[Tensor] = []
    if not reverse:
        for size, old in zip(sizes, [h0, *steps], strict=False):
            before.append(old[:size])
    else:
        for size, old in zip(sizes, [*steps[1:], h0[:0]], strict=True):
            before += [old, h0[len(old) : size]]
    return torch.cat(before)


# ---- products ----------------------------------------------------------------------------------


def _matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a (M, K) times b (K, N), plus bias (N,): (M, N). Either may be a transposed view."""
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"a and b should have 2 dimensions, got: {a.dim()} and {b.dim()}")
    check_shape("b", b, a.size(1), b.size(1))
    check_shape("bias", bias, b.size(1))
    result: Tensor = kernels_for(a).matmul(a, b, bias)
    return result


def _matmul_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.size(0), b.size(1))


# ---- what PyTorch is told ----------------------------------------------------------------------


def _on_one_device(shapes: Callable[..., Any]) -> Callable[..., Any]:
    """The shape function, with a ValueError for numbers of more than one device.

    It is called where any tensor is on "meta", and what it allocates elsewhere would pass for
    results.
    """

    @wraps(shapes)
    def checked(*arguments: Any) -> Any:
        given = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
        tensors = [t for t in given if isinstance(t, Tensor) and t.is_floating_point()]
        devices = sorted({str(t.device) for t in tensors})
        if len(devices) > 1:
            raise ValueError(f"tensors should be on one device, got: {', '.join(devices)}")
        return shapes(*arguments)

    return checked


def _refuse_vmap(*_: Any) -> Any:
    raise RuntimeError('symrnn\'s native kernels cannot run under vmap: use backend="reference"')


for _name, _function, _shapes in (
    ("layer", _layer, _layer_shapes),
    ("layer_backward", _layer_backward, _layer_backward_shapes),
    ("hidden_gradients", _hidden_gradients, _hidden_gradients_shapes),
    ("matmul", _matmul, _matmul_shape),
    ("two_layers", _two_layers, _two_layers_shapes),
    ("two_layers_backward", _two_layers_backward, _two_layers_backward_shapes),
):
    for _device in ("CPU", "CUDA"):
        torch.library.impl(LIBRARY, _name, _device)(_function)
    torch.library.register_fake(f"symrnn::{_name}", _on_one_device(_shapes), lib=LIBRARY)
    torch.library.register_autocast(f"symrnn::{_name}", "cpu", torch.float32, lib=LIBRARY)
    torch.library.register_vmap(f"symrnn::{_name}", _refuse_vmap, lib=LIBRARY)
