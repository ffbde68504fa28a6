"""Training under autocast to bfloat16: what is rounded, and what is not.

A bfloat16 has 8 bits, so it is off by up to 2⁻⁹ of itself. A product of rounded operands, rounded
again, is off by about three such errors; sums of many such products by no more of their norm, as
the errors are of either sign.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, native
from symrnn.rnn import dispatch
from symrnn.rnn.fused import backend as fused

pytestmark = pytest.mark.skipif(not native.available(), reason="no native kernels")

EPSILON = 2.0**-9
FORWARD = 3 * EPSILON  # of the norm of the output; the gates' slopes are at most 1
BACKWARD = 2 * FORWARD  # the error of what was saved, and that of the backward pass
KINKS = 2 * EPSILON**0.5  # of a share of about ε of all ReLUs the slope is 0 for 1, or 1 for 0

MAKERS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}
OPTIONS: list[dict[str, Any]] = [
    {"symm": "avg"},
    {"symm": "none", "bias": False},
    {"symm": "tri", "num_layers": 2, "bidirectional": True},
    {"symm": "avg8"},  # which folds
]
IN, H = 21, 33


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with units for bfloat16; PyTorch multiplies on any."""
    monkeypatch.setattr(fused, "multiplies_bfloat16", lambda: True)


def rows_of(result: Any) -> Tensor:
    output = result[0] if isinstance(result, tuple) and not isinstance(result, Tensor) else result
    return output.data if isinstance(output, PackedSequence) else output


def off(found: Tensor, exact: Tensor) -> float:
    """The relative error in norm."""
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


def exact_of(layer: nn.Module) -> Any:
    exact = copy.deepcopy(layer).double()
    exact.backend = "reference"
    return exact


def packed(dtype: torch.dtype, leaf: Tensor) -> PackedSequence:
    """Sequences of 40, 30 and 20 steps, of the rows of a leaf (90, I)."""
    return pack_sequence(list(leaf.to(dtype).split([40, 30, 20])))


def batch(dtype: torch.dtype, leaf: Tensor) -> Tensor:
    return leaf.to(dtype).view(30, 3, -1)


@pytest.mark.parametrize("form", [batch, packed])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["symm"])
@pytest.mark.parametrize("kind", MAKERS)
def test_numbers(kind: str, options: dict[str, Any], form: Any) -> None:
    torch.manual_seed(0)
    layer = MAKERS[kind](IN, H, **options, backend="fused")
    exact, x = exact_of(layer), torch.randn(90, IN)
    results = []
    for module, dtype in ((layer, torch.float32), (exact, torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=module is layer):
            output = rows_of(module(form(dtype, leaf)))
        (output.double() * torch.linspace(-1, 1, output.size(-1)).double()).sum().backward()
        assert {p.grad.dtype for p in module.parameters()} == {leaf.dtype} == {leaf.grad.dtype}
        named = {name: p.grad for name, p in module.named_parameters()}
        results.append({"output": output.detach(), "input": leaf.grad, **named})
    layers = options.get("num_layers", 1)
    for name, found in results[0].items():
        error = off(found, results[1][name])
        backward = KINKS if kind == "ReLU" else BACKWARD
        assert error < layers * (FORWARD if name == "output" else backward), name
        if name.startswith("weight"):  # which no float32 products would give
            assert error > EPSILON / 8, name


@pytest.mark.parametrize("rows", [3, 70])
def test_nothing_is_rounded_but_the_operands_of_products(rows: int) -> None:
    """In one step, forth and back; the results of the products over all rows are exact here."""
    torch.manual_seed(0)
    x = torch.zeros(rows, IN)
    x[:, 0] = torch.randint(-4, 4, (rows,))
    w_ih = (torch.randint(-4, 4, (4 * H, IN)) / 8).bfloat16()
    biases, (h0, c0) = torch.randn(2, 4 * H), torch.randn(2, rows, H)
    hidden = torch.randn(4, H, H) / 6
    source = ("LSTM", "", "", False)
    results = torch.ops.symrnn.layer(
        x.bfloat16(), w_ih, *biases, [hidden], h0, c0, None, None, *source, torch.bfloat16
    )
    output, _, cn, gates, cells, packed = results
    w, low = hidden.bfloat16().double().flatten(0, 1), h0.bfloat16().double()
    i, f, g, o = (x.double() @ w_ih.double().mT + biases.double().sum(0) + low @ w.mT).chunk(4, 1)
    c = f.sigmoid() * c0.double() + i.sigmoid() * g.tanh()
    torch.testing.assert_close(cn.double(), c, rtol=0, atol=5e-6)
    torch.testing.assert_close(output.double(), o.sigmoid() * c.tanh(), rtol=0, atol=5e-6)

    d_output = torch.randn(rows, H)
    d_gates, _, d_h0, _ = torch.ops.symrnn.layer_backward(
        packed, output, gates, cells, h0, c0, None, None, d_output, None, None, *source
    )
    exact = d_gates.bfloat16().double() @ w
    torch.testing.assert_close(d_h0.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", MAKERS)
def test_on_other_processors_products_are_float32(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "multiplies_bfloat16", lambda: False)
    layer, x = MAKERS[kind](IN, H, backend="fused"), torch.randn(30, 3, IN)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)[0]
    assert torch.equal(found, expected.to(found.dtype))


def test_products_of_few_rows_are_float32() -> None:
    cell, x = SymGRUCell(IN, H, backend="fused"), torch.randn(3, IN)
    expected = cell(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = cell(x)
    assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize("make", [SymLSTMCell, SymGRUCell])
def test_a_cell_of_many_rows(make: Any) -> None:
    torch.manual_seed(0)
    cell, x = make(IN, H, backend="fused"), torch.randn(90, IN)
    exact = rows_of(exact_of(cell)(x.double()))
    with torch.autocast("cpu", torch.bfloat16):
        found = rows_of(cell(x))
    found.float().sum().backward()
    assert off(found, exact) < FORWARD
    assert {p.grad.dtype for p in cell.parameters()} == {torch.float32}


@pytest.mark.parametrize("of_input", [torch.float32, torch.bfloat16])
def test_input_and_state_may_be_of_either_dtype(of_input: torch.dtype) -> None:
    layer = SymLSTM(IN, H, backend="fused")
    x = torch.randn(30, 3, IN).to(of_input).requires_grad_()
    h0 = torch.randn(1, 3, H).to(of_input).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x, (h0, h0))[0]
    output.float().sum().backward()
    assert x.grad.dtype == h0.grad.dtype == of_input


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_of_gradients(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = MAKERS[kind](IN, H, symm="avg", backend="fused"), torch.randn(90, IN)
    found = []
    for module, dtype in ((layer, torch.float32), (exact_of(layer), torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=module is layer):
            output = module(batch(dtype, leaf))[0]
        (first,) = torch.autograd.grad(output.double().square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), module.weight_hh_l0_avg)
        found.append(second)
    assert off(*found) < 2 * BACKWARD


@pytest.mark.parametrize("symm", ["avg", "tri", "avg8", "avg:skew4"])
def test_gradients_that_have_gradients_are_the_same(symm: str) -> None:
    """They are of the same rounded operands; in their own products nothing is rounded."""
    torch.manual_seed(0)
    layer, x = SymLSTM(IN, H, symm=symm, backend="fused"), torch.randn(30, 3, IN)
    found = []
    for differentiable in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x)[0].double().square().sum()
        found.append(torch.autograd.grad(loss, [*layer.parameters()], create_graph=differentiable))
    for one, other in zip(*found, strict=True):
        assert off(one, other) < 2 * EPSILON


def test_compiled() -> None:
    layer, x = SymLSTM(IN, H, backend="fused"), torch.randn(30, 3, IN)
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x)[0], layer(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_operators() -> None:
    given = torch.randn(66, IN).bfloat16(), torch.randn(4 * H, IN).bfloat16()
    x, w = (t.requires_grad_() for t in given)
    bias, h0 = torch.randn(2, 4 * H), torch.randn(2, 2, H)
    hidden = [torch.randn(4, H, H) / 6]
    source = ("LSTM", "", "", False)
    for packed in (torch.float32, torch.bfloat16):
        call = (x, w, *bias, hidden, *h0, None, None, *source, packed)
        torch.library.opcheck(torch.ops.symrnn.layer.default, call)
    d_gates, output = torch.randn(66, 4 * H).bfloat16(), torch.randn(66, H)
    torch.library.opcheck(
        torch.ops.symrnn.hidden_gradients.default,
        (d_gates, hidden, output, h0[0], None, None, *source),
    )
    torch.library.opcheck(torch.ops.symrnn.matmul.default, (d_gates.mT, given[0].detach(), None))
    with pytest.raises(
        ValueError, match=r"input should be float32 or float64, got: torch\.bfloat16"
    ):
        torch.ops.symrnn.layer(x, w.float(), *call[2:])


@pytest.mark.parametrize(
    ("mode", "size", "steps", "has_units", "expected"),
    [
        ("LSTM", 650, 35, True, "fused"),
        ("LSTM", 650, 35, False, "vendor"),
        ("LSTM", 256, 35, True, "vendor"),
        ("GRU", 64, 35, True, "fused"),
        ("GRU", 64, 7, True, "vendor"),
        ("RNN_TANH", 64, 35, True, "fused"),
    ],
)
def test_auto(
    mode: str,
    size: int,
    steps: int,
    has_units: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "multiplies_bfloat16", lambda: has_units)
    traits = dispatch.Traits(mode, size, False, 1.0, False)
    tensors = [torch.zeros(1)] * 3
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.choose(traits, tensors, steps, 20, True) == expected
        assert dispatch.choose(traits, tensors, steps, 20, False) == "vendor"
    with torch.autocast("cpu", torch.float16):
        assert dispatch.choose(traits, tensors, steps, 20, True) == "vendor"


def test_weights_of_int8_stay_so() -> None:
    layer, x = SymLSTM(IN, H, backend="fused"), torch.randn(30, 3, IN)
    layer.inference_dtype = torch.int8
    with torch.no_grad():
        expected = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x)[0]
    assert torch.equal(found, expected.to(found.dtype))
