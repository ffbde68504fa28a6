"""The gradients of ``torch.ops.symrnn.layer`` and ``two_layers``, of any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn import torch_state
from symrnn.rnn.fused.cpu import ENOUGH_ROWS
from symrnn.rnn.fused.cuda import wavefront_fits
from symrnn.rnn.fused.operators import LIBRARY, hidden_plan
from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import steps_of, with_ended


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward pass needs."""
    input, w_ih, bias_ih, bias_hh, hidden, h0, c0, batch_sizes, mask, *attributes, _ = inputs
    h, _, cn, gates, cells, packed = output
    ctx.attributes = attributes
    ctx.mark_non_differentiable(gates, cells, packed, *([] if c0 is not None else [cn]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *(input, w_ih, bias_ih, bias_hh, h0, c0, packed, batch_sizes, mask, h, gates, cells),
        *hidden,
    )


def _gradients(ctx: Any, d_output: Any, d_hn: Any, d_cn: Any, *_: None) -> tuple[Any, ...]:
    """The gradients of all arguments of ``layer``, None where none is wanted."""
    tensors = ctx.saved_tensors  # once: a checkpoint gives them no second time
    inputs, saved, hidden = tensors[:6], tensors[6:12], tensors[12:]
    d_cn = d_cn if ctx.attributes[0] == "LSTM" else None  # a tracer gives one even so
    with torch.autocast(inputs[0].device.type, enabled=False):
        d_input, d_w_ih, d_bias_ih, d_bias_hh, d_hidden, d_h0, d_c0 = _layer_gradients(
            ctx.attributes, ctx.needs_input_grad, inputs, saved, hidden, d_output, d_hn, d_cn
        )
    return (
        *(d_input, d_w_ih, d_bias_ih, d_bias_hh, d_hidden, d_h0, d_c0, None, None),
        *(None for _ in ctx.attributes),
        None,
    )


def _layer_gradients(
    attributes: Sequence[Any],
    wanted: Sequence[Any],
    inputs: Sequence[Any],
    saved: Sequence[Any],
    hidden: Sequence[Tensor],
    *d_results: Tensor | None,
) -> tuple[Any, ...]:
    """Those of input, w_ih, bias_ih, bias_hh, hidden, h0 and c0 of a layer."""
    packed, h0 = saved[0], inputs[4]
    rounds = packed.dtype == torch.bfloat16 != h0.dtype
    if rounds and inputs[0].dtype != packed.dtype:  # for inference
        raise ValueError(f"packed should be {h0.dtype}, got: {packed.dtype}")
    if _wants_composite(d_results):
        constants = *saved[1:3], rounds
        return _composite_backward(attributes, constants, wanted, inputs, hidden, *d_results)
    return _backward(attributes, wanted, inputs, saved, hidden, *d_results)


def _wants_composite(d_results: Sequence[Tensor | None]) -> bool:
    """Whether a gradient of the gradient is wanted, or gradients of many losses at once."""
    return torch.is_grad_enabled() or torch_state.are_batched(d_results)


def _backward(
    attributes: Sequence[Any],
    wanted: Sequence[Any],
    inputs: Sequence[Tensor],
    saved: Sequence[Tensor],
    hidden: Sequence[Tensor],
    *d_results: Tensor | None,
) -> tuple[Any, ...]:
    input, w_ih, _, _, h0, c0 = inputs
    packed, batch_sizes, mask, output, gates, cells = saved
    d_gates, d_hidden, d_h0, d_c0 = torch.ops.symrnn.layer_backward(
        packed, output, gates, cells, h0, c0, batch_sizes, mask, *d_results, *attributes
    )
    states = output, h0, batch_sizes, mask
    of_products = _gradients_of_products(
        attributes, wanted, input, w_ih, hidden, states, d_gates, d_hidden
    )
    return *of_products, d_h0, d_c0 if attributes[0] == "LSTM" else None


def _gradients_of_products(
    attributes: Sequence[Any],
    wanted: Sequence[Any],
    input: Tensor,
    w_ih: Tensor,
    hidden: Sequence[Tensor],
    states: Sequence[Tensor | None],
    d_gates: Tensor,
    d_hidden: Tensor,
) -> tuple[Any, ...]:
    """Those of input, w_ih, bias_ih, bias_hh and hidden of a layer, from those of its gates.

    states: output, h0, batch_sizes and state_mask.  d_gates, d_hidden: as of ``layer_backward``.
    """
    separate = MODES[attributes[0]].separate_bias
    if not separate:
        d_hidden = d_gates
    wants_input, wants_w_ih, wants_bias_ih, wants_bias_hh, wants_hidden = wanted[:5]
    d_input = None
    d_product = d_gates.to(input.dtype)  # that of the products over all rows
    if wants_input:
        many = d_gates.is_cuda or d_gates.size(0) >= ENOUGH_ROWS
        d_input = torch.ops.symrnn.matmul(d_product, w_ih, None) if many else d_product @ w_ih
    d_w_ih = torch.ops.symrnn.matmul(d_product.mT, input, None) if wants_w_ih else None
    d_bias_ih = d_gates.sum(0) if wants_bias_ih else None
    d_bias_hh = None
    if wants_bias_hh:  # a copy, for the gradients of two arguments are not to share their memory
        same = d_bias_ih is not None and d_hidden is d_gates
        d_bias_hh = d_bias_ih.clone() if same else d_hidden.sum(0)  # type: ignore
    d_weights: list[Tensor | None] = [None] * len(wants_hidden)
    if any(wants_hidden):
        d_weights = torch.ops.symrnn.hidden_gradients(
            d_hidden.to(input.dtype) if separate else d_product,
            *(list(hidden), *states, *attributes),
        )
    return d_input, d_w_ih, d_bias_ih, d_bias_hh, d_weights


def _composite_backward(
    attributes: Sequence[Any],
    constants: Sequence[Any],
    wanted: Sequence[Any],
    inputs: Sequence[Any],
    hidden: Sequence[Any],
    *d_results: Tensor | None,
) -> tuple[Any, ...]:
    """As :func:`_backward`, by autograd.

    Where a gradient of the gradient is wanted, or gradients of a whole batch of losses at once.
    """
    # Aliases, so that none has a part in another's history: a cell's input may be made of its
    # state, two biases may be one tensor. What is saved would be found once more behind itself.
    with torch.enable_grad():
        arguments = [None if t is None else t.view_as(t) for t in (*inputs, *hidden)]
    inputs, hidden = arguments[: len(inputs)], arguments[len(inputs) :]
    wants = [*wanted[:4], *wanted[5:7], *wanted[4]]
    leaves = [t for t, wants_it in zip(arguments, wants, strict=True) if wants_it and t is not None]
    with torch.enable_grad():
        results = _composite(attributes, constants, inputs, hidden)
    pairs = [(r, d) for r, d in zip(results, d_results, strict=False) if d is not None]
    gradients = iter(
        torch.autograd.grad(
            [r for r, _ in pairs],
            leaves,
            [d for _, d in pairs],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    )
    found = [next(gradients) if wants_it else None for wants_it in wants]
    return *found[:4], found[6:], *found[4:6]


def _composite(
    attributes: Sequence[Any],
    constants: Sequence[Any],
    inputs: Sequence[Any],
    hidden: Sequence[Any],
) -> tuple[Tensor, ...]:
    """The results of ``layer`` in PyTorch's operators: output (R, H), h and of an LSTM c (B, H).

    constants: batch_sizes, state_mask, and whether the recurrent products are of bfloat16.
    """
    batch_sizes, state_mask, rounds = constants
    input, w_ih, bias_ih, bias_hh, h0, c0 = inputs
    mode, form, symmetric, reverse = attributes
    plan = hidden_plan(mode, h0.size(1), form, symmetric)
    from_input = F.linear(input, w_ih).to(h0.dtype)  # as ``layer`` rounds it
    if bias_ih is not None:
        from_input = from_input + bias_ih
    steps = steps_of(from_input, batch_sizes, h0.size(0))
    state = [h0] if c0 is None else [h0, c0]
    outputs = []
    for x in reversed(steps) if reverse else steps:
        old = [part[: x.size(0)] for part in state]
        h = old[0] if state_mask is None else old[0] * state_mask[: x.size(0)]
        product = plan.multiply(h, hidden, rounds).flatten(1)
        new = MODES[mode].pointwise(x, product if bias_hh is None else product + bias_hh, old)
        outputs.append(new[0])
        state = with_ended(new, state)
    return torch.cat(outputs[::-1] if reverse else outputs), *state


torch.library.register_autograd(
    "symrnn::layer", _gradients, setup_context=_setup_context, lib=LIBRARY
)


# ---- two layers --------------------------------------------------------------------------------


def _setup_context_of_two(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, *weights = inputs[:9]
    lower, upper = weights[:4], weights[4:]
    h0, c0, masks, between, *attributes = inputs[9:]
    h, _, cn, gates, cells, packed, packed_above = output
    ctx.attributes = (*attributes, False)
    ctx.count = len(lower[3])
    ctx.mark_non_differentiable(
        *(gates, cells, packed, packed_above, *([] if c0 is not None else [cn]))
    )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *(input, *lower[:3], *upper[:3], h0, c0, masks, between, h, gates, cells),
        *(packed, packed_above, *lower[3], *upper[3]),
    )


def _gradients_of_two(ctx: Any, d_output: Any, d_hn: Any, d_cn: Any, *_: None) -> tuple[Any, ...]:
    """In one launch where that fits; else layer by layer."""
    tensors = ctx.saved_tensors
    input, *weights = tensors[:7]
    h0, c0, masks, between, h, gates, cells, *packed = tensors[7:16]
    hidden = tensors[16 : 16 + ctx.count], tensors[16 + ctx.count :]
    wanted = ctx.needs_input_grad
    d_cn = d_cn if ctx.attributes[0] == "LSTM" else None

    def of(k: int, both: Tensor | None) -> Tensor | None:
        return both if both is None or both.dim() == 1 else both[k]

    def gradients(k: int, x: Tensor, wants: Sequence[Any], d_h: Tensor | None) -> tuple[Any, ...]:
        return _layer_gradients(
            ctx.attributes,
            (*wants, *wanted[9:11]),
            (x, *weights[3 * k : 3 * k + 3], of(k, h0), of(k, c0)),
            (packed[k], None, of(k, masks), h[k], gates[k], of(k, cells)),
            *(hidden[k], d_h, of(k, d_hn), of(k, d_cn)),
        )

    def layer_by_layer(x: Tensor) -> tuple[Any, ...]:
        # That of the upper one's input goes on as that of the lower one's output.
        d_x, *d_upper, d_h0_above, d_c0_above = gradients(
            1, x, (True, *wanted[5:9]), of(1, d_output)
        )
        d_h = d_x if between is None else d_x * between
        if d_output is not None:
            d_h = d_h + d_output[0]
        d_input, *d_lower, d_h0, d_c0 = gradients(0, input, wanted[:5], d_h)
        d_h0 = None if d_h0 is None else torch.stack([d_h0, d_h0_above])
        d_c0 = None if d_c0 is None else torch.stack([d_c0, d_c0_above])
        return d_input, *d_lower, *d_upper, d_h0, d_c0

    def together(x: Tensor) -> tuple[Any, ...]:
        d_gates, d_hidden, d_h0, d_c0 = torch.ops.symrnn.two_layers_backward(
            *(*packed, weights[3], h, gates, cells, h0, c0, masks, between),
            *(d_output, d_hn, d_cn, *ctx.attributes[:3]),
        )

        def of_products(k: int, x: Tensor, wants: Sequence[Any]) -> tuple[Any, ...]:
            states = h[k], h0[k], None, of(k, masks)
            ways = d_gates[k], d_hidden if d_hidden.dim() == 1 else d_hidden[k]
            return _gradients_of_products(
                ctx.attributes, wants, x, weights[3 * k], hidden[k], states, *ways
            )

        d_input, *d_lower = of_products(0, input, wanted[:5])
        _, *d_upper = of_products(1, x, (False, *wanted[5:9]))
        return d_input, *d_lower, *d_upper, d_h0, None if c0 is None else d_c0

    with torch.autocast(input.device.type, enabled=False):
        x = h[0] if between is None else h[0] * between
        fits = not _wants_composite((d_output, d_hn, d_cn)) and wavefront_fits(
            ctx.attributes[0], h0.dtype, int(h0.size(2)), int(h0.size(1)), h0.device, True
        )
        found = together(x) if fits else layer_by_layer(x)
    return *found, None, None, None, None, None


torch.library.register_autograd(
    "symrnn::two_layers", _gradients_of_two, setup_context=_setup_context_of_two, lib=LIBRARY
)
