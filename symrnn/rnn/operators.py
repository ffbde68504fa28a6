"""The native kernels as operators of PyTorch: ``torch.ops.symrnn``.

- ``pack``: the matrices of a layer's gates to one packed tensor;
- ``layer``: one layer in one direction, all steps, with gradients;
- ``layer_backward``: its way back through time;
- ``states_before``: the state that each row of a layer's output started from;
- ``matmul``: a product of dense matrices, of the shapes of a training step faster than PyTorch's.

They have shape functions and gradients, so that autograd, torch.compile and torch.export know them.
Here they run on CPUs: arithmetic is in the dtype of the numbers given, float32 or float64; under
autocast in float32. :mod:`symrnn.rnn.operators_gpu` has them for GPUs.

Shapes: T time, B batch, B_t the sequences that step t runs, R the sum of all B_t, I input,
H hidden, G gates. Sequences are sorted by falling length; without ``batch_sizes`` all B_t are B.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn import native
from symrnn.rnn.packing import DTYPES, Plan, check_numbers, check_shape, library, plan_of
from symrnn.rnn.pointwise import POINTWISE

GATES: dict[str, str] = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "h", "RNN_RELU": "h"}
"""The gates of each mode, by letter, in PyTorch's order."""

MODES: dict[str, native.Mode] = {
    "LSTM": native.Mode.LSTM,
    "GRU": native.Mode.GRU,
    "RNN_TANH": native.Mode.RNN_TANH,
    "RNN_RELU": native.Mode.RNN_RELU,
}

ENOUGH_ROWS = 64
"""From so many rows on ``matmul`` is the faster product; for a few PyTorch's packs nothing."""

_LIBRARY = torch.library.Library("symrnn", "DEF")

_LIBRARY.define(
    "pack(Tensor[] matrices, str gates, int rows, int columns, str symm, str symmetric, "
    "ScalarType dtype) -> Tensor"
)
_LIBRARY.define(
    "layer(Tensor input, Tensor w_ih, Tensor? bias_ih, Tensor? bias_hh, Tensor[] matrices, "
    "Tensor packed, Tensor h0, Tensor? c0, Tensor? batch_sizes, str mode, str symm, "
    "str symmetric, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "layer_backward(Tensor packed, Tensor output, Tensor gates, Tensor cells, Tensor h0, "
    "Tensor? c0, Tensor? batch_sizes, Tensor? d_output, Tensor? d_hn, Tensor? d_cn, str mode, "
    "str symm, str symmetric, bool reverse) -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "states_before(Tensor output, Tensor h0, Tensor? batch_sizes, bool reverse) -> Tensor"
)
_LIBRARY.define("matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor")


def hidden_plan(mode: str, side: int, symm: str, symmetric: str) -> Plan:
    """How the hidden weights of a layer of this mode are packed."""
    if mode not in GATES:
        raise ValueError(f"mode should be one of {', '.join(GATES)}, got: {mode!r}")
    side = int(side)  # traced with symbols for sizes, it is one of these
    return plan_of(GATES[mode], side, side, symm, symmetric)


def joined_biases(
    mode: str, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the input product (G·H,), and of a GRU the hidden bias of n (H,).

    That one the reset gate scales. ValueError if only one of the biases is given.
    """
    if (bias_ih is None) != (bias_hh is None):
        raise ValueError("bias_ih and bias_hh should both be given or neither")
    if bias_ih is None or bias_hh is None:
        return None, None
    if mode != "GRU":
        return bias_ih + bias_hh, None
    side = len(bias_hh) // 3
    ahead, n = bias_hh.split([2 * side, side])
    return bias_ih + F.pad(ahead, (0, side)), n.contiguous()


def layer_structure(
    mode: str,
    hh: native.Product,
    ih: native.Product | None = None,
    bias: Tensor | None = None,
    bias_n: Tensor | None = None,
) -> native.Layer:
    """A layer as the kernels take it. Valid as long as what it was made of lives."""
    return native.Layer(
        MODES[mode],
        ctypes.pointer(hh),
        None if ih is None else ctypes.pointer(ih),
        _address(bias),
        _address(bias_n),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ---- checks ------------------------------------------------------------------------------------


def _check_packed(plan: Plan, packed: Tensor, allowed: Sequence[torch.dtype]) -> None:
    check_shape("packed", packed, plan.length)
    if packed.dtype not in allowed:
        names = " or ".join(map(str, allowed))
        raise ValueError(f"packed should be {names}, got: {packed.dtype}")
    if not packed.is_cpu or not packed.is_contiguous() or packed.data_ptr() % 64:
        raise ValueError("packed should be contiguous on the device cpu and aligned to 64 bytes")


def sizes_of(input: Tensor, h0: Tensor) -> tuple[int, int, int]:
    """R, B and H; ValueError unless both have 2 dimensions."""
    if input.dim() != 2 or h0.dim() != 2:
        raise ValueError(
            "input and h0 should have 2 dimensions, got: "
            f"shapes {tuple(input.shape)} and {tuple(h0.shape)}"
        )
    return input.size(0), h0.size(0), h0.size(1)


def check_layer(
    mode: str,
    plan: Plan,
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of ``layer`` fit one another."""
    check_shape("w_ih", w_ih, plan.gates * plan.rows, input.size(1))
    check_shape("bias_ih", bias_ih, plan.gates * plan.rows)
    check_shape("bias_hh", bias_hh, plan.gates * plan.rows)
    check_shape("c0", c0, *h0.shape)
    _check_c0(mode, c0)


def check_layer_backward(
    mode: str,
    plan: Plan,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    d_output: Tensor | None,
    d_hn: Tensor | None,
    d_cn: Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of ``layer_backward`` fit one another."""
    rows, (batch, side) = output.size(0), h0.shape
    check_shape("output", output, rows, side)
    check_shape("gates", gates, rows, plan.gates * side)
    check_shape("cells", cells, *((rows, side) if mode in ("LSTM", "GRU") else (0,)))
    check_shape("d_output", d_output, rows, side)
    for name, tensor in (("c0", c0), ("d_hn", d_hn), ("d_cn", d_cn)):
        check_shape(name, tensor, batch, side)
    _check_c0(mode, c0)


def _check_c0(mode: str, c0: Tensor | None) -> None:
    if (c0 is None) == (mode == "LSTM"):
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


# ---- pack --------------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "pack", "CPU")
def _pack(
    matrices: list[Tensor],
    gates: str,
    rows: int,
    columns: int,
    symm: str,
    symmetric: str,
    dtype: torch.dtype,
) -> Tensor:
    return plan_of(gates, rows, columns, symm, symmetric).pack(matrices, dtype)


@torch.library.register_fake("symrnn::pack", lib=_LIBRARY)
def _pack_shape(
    matrices: list[Tensor],
    gates: str,
    rows: int,
    columns: int,
    symm: str,
    symmetric: str,
    dtype: torch.dtype,
) -> Tensor:
    return matrices[0].new_empty(plan_of(gates, rows, columns, symm, symmetric).length, dtype=dtype)


# ---- layer -------------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "layer", "CPU")
def _layer(
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    matrices: list[Tensor],
    packed: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    symm: str,
    symmetric: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """input (R, I), w_ih (G·H, I), biases (G·H,), h0 and c0 (B, H), batch_sizes int64 (T,).

    matrices: the hidden weights as :func:`symrnn.rnn.packing.matrices_of` gives them: what the
        gradients are for.
    packed: the same numbers, packed: what is multiplied by.

    Returns output (R, H), h and c after the last step (B, H); and for the way back the activated
    gates (R, G·H) and, but for a plain RNN, one more number of each unit and step (R, H). What a
    mode has not is empty.
    """
    rows, batch, side = sizes_of(input, h0)
    plan = hidden_plan(mode, side, symm, symmetric)
    check_numbers(input=input, w_ih=w_ih, bias_ih=bias_ih, bias_hh=bias_hh, h0=h0, c0=c0)
    check_layer(mode, plan, input, w_ih, bias_ih, bias_hh, h0, c0)
    bias, bias_n = joined_biases(mode, bias_ih, bias_hh)
    _check_packed(plan, packed, [input.dtype, torch.bfloat16][: 1 + (input.dtype == torch.float32)])

    output, hn, cn, gates, cells = _layer_shapes(
        input, w_ih, bias_ih, bias_hh, matrices, packed, h0, c0, batch_sizes, mode, symm,
        symmetric, reverse,
    )  # fmt: skip
    if rows == 0 and batch == 0:
        return output, hn, cn, gates, cells
    steps = check_lengths(batch_sizes, rows, batch)
    gates = linear(input, w_ih, bias)
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    structure = layer_structure(mode, plan.product(packed), bias_n=bias_n)
    status = library().symrnn_forward(
        structure,
        steps,
        batch,
        _address(batch_sizes),
        reverse,
        None,
        gates.data_ptr(),
        cells.data_ptr() if cells.numel() else None,
        h0.data_ptr(),
        _address(c0),
        output.data_ptr(),
        hn.data_ptr(),
        cn.data_ptr() if cn.numel() else None,
        torch.get_num_threads(),
    )
    native.check(status)
    return output, hn, cn, gates, cells


@torch.library.register_fake("symrnn::layer", lib=_LIBRARY)
def _layer_shapes(
    input: Tensor,
    w_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    matrices: list[Tensor],
    packed: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    symm: str,
    symmetric: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, (batch, side) = input.size(0), h0.shape
    output = input.new_empty(rows, side)
    hn = input.new_empty(batch, side)
    cn = input.new_empty((batch, side) if mode == "LSTM" else (0,))
    gates = input.new_empty(rows, len(GATES[mode]) * side)
    wide = torch.promote_types(input.dtype, torch.float32)  # what a cell remembers
    cells = input.new_empty((rows, side) if mode in ("LSTM", "GRU") else (0,), dtype=wide)
    return output, hn, cn, gates, cells


# ---- the way back ------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "layer_backward", "CPU")
def _layer_backward(
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
    """From what ``layer`` took and gave, and the gradients of its results, None for zeros.

    Returns the gradients of the input's part of the gates (R, G·H), of a GRU's hidden part
    (R, G·H), which differs in n (of the others the two are the same, and this one is empty), of h0
    and of c0 (B, H).
    """
    rows, (batch, side) = output.size(0), h0.shape
    plan = hidden_plan(mode, side, symm, symmetric)
    check_numbers(
        output=output, gates=gates, cells=cells, h0=h0, c0=c0, d_output=d_output, d_hn=d_hn,
        d_cn=d_cn,
    )  # fmt: skip
    _check_packed(plan, packed, [output.dtype])
    check_layer_backward(mode, plan, output, gates, cells, h0, c0, d_output, d_hn, d_cn)

    results = _layer_backward_shapes(
        packed, output, gates, cells, h0, c0, batch_sizes, d_output, d_hn, d_cn, mode, symm,
        symmetric, reverse,
    )  # fmt: skip
    if rows == 0 and batch == 0:
        return results
    d_gates, d_hidden, d_h0, d_c0 = results
    steps = check_lengths(batch_sizes, rows, batch)
    dense = [
        None if tensor is None or tensor.numel() == 0 else tensor.contiguous()
        for tensor in (batch_sizes, gates, cells, h0, c0, output, d_output, d_hn, d_cn)
    ]
    lengths, *addresses = map(_address, dense)
    status = library().symrnn_backward(
        layer_structure(mode, plan.product(packed)),
        steps,
        batch,
        lengths,
        reverse,
        *addresses,
        d_gates.data_ptr(),
        d_hidden.data_ptr() if mode == "GRU" else None,
        d_h0.data_ptr(),
        d_c0.data_ptr() if mode == "LSTM" else None,
        torch.get_num_threads(),
    )
    native.check(status)
    return results


@torch.library.register_fake("symrnn::layer_backward", lib=_LIBRARY)
def _layer_backward_shapes(
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
    d_gates = gates.new_empty(gates.shape)
    d_hidden = gates.new_empty(gates.shape if mode == "GRU" else (0,))
    d_h0 = h0.new_empty(h0.shape)
    d_c0 = h0.new_empty(h0.shape if mode == "LSTM" else (0,))
    return d_gates, d_hidden, d_h0, d_c0


@torch.library.impl(_LIBRARY, "states_before", "CPU")
def _states_before(output: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
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


@torch.library.register_fake("symrnn::states_before", lib=_LIBRARY)
def _states_before_shape(
    output: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool
) -> Tensor:
    return output.new_empty(output.shape)


@torch.library.impl(_LIBRARY, "matmul", "CPU")
def _matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a (M, K) times b (K, N), plus bias (N,): (M, N). Either may be a transposed view."""
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"a and b should have 2 dimensions, got: {a.dim()} and {b.dim()}")
    check_numbers(a=a, b=b, bias=bias)
    check_shape("b", b, a.size(1), b.size(1))
    check_shape("bias", bias, b.size(1))
    result = _matmul_shape(a, b, bias)
    if result.numel() == 0:
        return result
    bias = None if bias is None else bias.contiguous()
    # What lies transposed is read so.
    turned = [t.mT.is_contiguous() and not t.is_contiguous() for t in (a, b)]
    a, b = (t.mT if way else t.contiguous() for t, way in zip((a, b), turned, strict=True))
    status = library().symrnn_matmul(
        DTYPES[result.dtype],
        *(result.size(0), result.size(1), a.size(0 if turned[0] else 1)),
        *(a.data_ptr(), turned[0], b.data_ptr(), turned[1]),
        *(_address(bias), result.data_ptr(), torch.get_num_threads()),
    )
    native.check(status)
    return result


@torch.library.register_fake("symrnn::matmul", lib=_LIBRARY)
def _matmul_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.size(0), b.size(1))


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of x (R, I) and w (M, I), by the faster product; not differentiable."""
    return _matmul(x, w.mT, bias) if x.size(0) >= ENOUGH_ROWS else F.linear(x, w, bias)


# ---- gradients ---------------------------------------------------------------------------------


def _note(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the way back needs."""
    input, w_ih, bias_ih, bias_hh, matrices, packed, h0, c0, batch_sizes, *how = inputs
    h, _, cn, gates, cells = output
    ctx.how = how
    ctx.mark_non_differentiable(gates, cells, *([] if c0 is not None else [cn]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        input, w_ih, bias_ih, bias_hh, h0, c0, packed, batch_sizes, h, gates, cells, *matrices
    )


def _gradients(ctx: Any, d_output: Any, d_hn: Any, d_cn: Any, *_: None) -> tuple[Any, ...]:
    """The gradients of all arguments of ``layer``, None where none is wanted."""
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    taken, noted, matrices = saved[:6], saved[6:11], saved[11:]
    wanted = ctx.needs_input_grad
    d_cn = d_cn if ctx.how[0] == "LSTM" else None  # a tracer gives one even so
    if torch.is_grad_enabled():
        found = _gradients_of_gradients(
            ctx.how, noted[1], wanted, taken, matrices, d_output, d_hn, d_cn
        )
    else:
        with torch.autocast(taken[0].device.type, enabled=False):
            found = _way_back(ctx.how, wanted, taken, noted, d_output, d_hn, d_cn)
    d_input, d_w_ih, d_bias_ih, d_bias_hh, d_matrices, d_h0, d_c0 = found
    return (
        *(d_input, d_w_ih, d_bias_ih, d_bias_hh, d_matrices, None, d_h0, d_c0, None),
        *(None for _ in ctx.how),
    )


def _way_back(
    how: Sequence[Any],
    wanted: Sequence[Any],
    taken: Sequence[Tensor],
    noted: Sequence[Tensor],
    *d_results: Tensor | None,
) -> tuple[Any, ...]:
    input, w_ih, _, _, h0, c0 = taken
    packed, batch_sizes, output, gates, cells = noted
    mode, symm, symmetric, reverse = how
    d_gates, d_hidden, d_h0, d_c0 = torch.ops.symrnn.layer_backward(
        packed, output, gates, cells, h0, c0, batch_sizes, *d_results, *how
    )
    if mode != "GRU":
        d_hidden = d_gates
    wants_input, wants_w_ih, wants_bias_ih, wants_bias_hh, wants_matrices = wanted[:5]
    d_input = None
    if wants_input:
        many = d_gates.is_cuda or d_gates.size(0) >= ENOUGH_ROWS
        d_input = torch.ops.symrnn.matmul(d_gates, w_ih, None) if many else d_gates @ w_ih
    d_w_ih = torch.ops.symrnn.matmul(d_gates.mT, input, None) if wants_w_ih else None
    d_bias_ih = d_gates.sum(0) if wants_bias_ih else None
    d_bias_hh = None
    if wants_bias_hh:  # a copy, for the gradients of two arguments are not to share their memory
        same = d_bias_ih is not None and d_hidden is d_gates
        d_bias_hh = d_bias_ih.clone() if same else d_hidden.sum(0)  # type: ignore
    d_matrices: list[Tensor | None] = [None] * len(wants_matrices)
    if any(wants_matrices):
        plan = hidden_plan(mode, h0.size(1), symm, symmetric)
        before = torch.ops.symrnn.states_before(output, h0, batch_sizes, reverse)
        by_gate = d_hidden.unflatten(1, (plan.gates, plan.rows))
        d_matrices = list(plan.gradients(by_gate, before))
    return d_input, d_w_ih, d_bias_ih, d_bias_hh, d_matrices, d_h0, d_c0 if mode == "LSTM" else None


def _gradients_of_gradients(
    how: Sequence[Any],
    batch_sizes: Tensor | None,
    wanted: Sequence[Any],
    taken: Sequence[Any],
    matrices: Sequence[Any],
    *d_results: Tensor | None,
) -> tuple[Any, ...]:
    """As :func:`_way_back`, by autograd, where a gradient of the gradient is wanted."""
    # Aliases, so that none has a part in another's history: a cell's input may be made of its
    # state, two biases may be one tensor. What is saved would be found once more behind itself.
    arguments = [None if t is None else t.view_as(t) for t in (*taken, *matrices)]
    taken, matrices = arguments[: len(taken)], arguments[len(taken) :]
    wants = [*wanted[:4], *wanted[6:8], *wanted[4]]
    leaves = [t for t, wants_it in zip(arguments, wants, strict=True) if wants_it and t is not None]
    results = _plainly(how, batch_sizes, taken, matrices)
    pairs = [(r, d) for r, d in zip(results, d_results, strict=False) if d is not None]
    gradients = iter(
        torch.autograd.grad(
            [r for r, _ in pairs],
            leaves,
            [d for _, d in pairs],
            create_graph=True,
            materialize_grads=True,
        )
    )
    found = [next(gradients) if wants_it else None for wants_it in wants]
    return *found[:4], found[6:], *found[4:6]


def _plainly(
    how: Sequence[Any], batch_sizes: Tensor | None, taken: Sequence[Any], matrices: Sequence[Any]
) -> tuple[Tensor, ...]:
    """The results of ``layer`` in plain operators: output (R, H), h and of an LSTM c (B, H)."""
    input, w_ih, bias_ih, bias_hh, h0, c0 = taken
    mode, symm, symmetric, reverse = how
    plan = hidden_plan(mode, h0.size(1), symm, symmetric)
    batch = len(h0)
    steps = F.linear(input, w_ih, bias_ih)
    x = steps.split(batch or 1) if batch_sizes is None else steps.split(batch_sizes.tolist())
    state = [h0] if c0 is None else [h0, c0]
    outputs: dict[int, Tensor] = {}
    for t in range(len(x))[:: -1 if reverse else 1]:
        running = len(x[t])
        old = [part[:running] for part in state]
        hidden = plan.multiply(old[0], matrices).flatten(1)
        new = POINTWISE[mode](x[t], hidden if bias_hh is None else hidden + bias_hh, old)
        outputs[t] = new[0]
        state = [torch.cat([a, b[running:]]) for a, b in zip(new, state, strict=True)]
    return torch.cat([outputs[t] for t in range(len(x))]), *state


torch.library.register_autograd("symrnn::layer", _gradients, setup_context=_note, lib=_LIBRARY)

# ---- autocast and vmap -------------------------------------------------------------------------


def _refuse_vmap(*_: Any) -> Any:
    raise RuntimeError('symrnn\'s native kernels cannot run under vmap: use backend="reference"')


for _name in ("pack", "layer", "layer_backward", "states_before", "matmul"):
    torch.library.register_autocast(f"symrnn::{_name}", "cpu", torch.float32, lib=_LIBRARY)
    torch.library.register_vmap(f"symrnn::{_name}", _refuse_vmap, lib=_LIBRARY)
