"""The fused backend: what the reference loop gives, outputs, states and gradients, by any way."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from symrnn import (
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    deploy,
    list_symmetries,
    native,
)
from symrnn.rnn import dispatch

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())

LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}

CELLS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTMCell,
    "GRU": SymGRUCell,
    "tanh": SymRNNCell,
    "ReLU": functools.partial(SymRNNCell, nonlinearity="relu"),
}

GATES = {"LSTM": "ifgo", "GRU": "rzn", "tanh": "h", "ReLU": "h"}

# A float32 step rounds sums of up to 33 products of numbers below 1, a few times in a row.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}


def pair(
    make: Callable[..., Any], *sizes: int, against: str = "reference", **options: Any
) -> tuple[Any, Any]:
    """Two modules with the same numbers: one fused, the other run another way."""
    fused = make(*sizes, backend="fused", **{"dtype": torch.float64, **options})
    if ":skew" in options.get("symm", ""):
        leave_symmetry(fused)
    other = copy.deepcopy(fused)
    other.backend = against
    return fused, other


def leave_symmetry(module: Any) -> None:
    """New numbers for a module whose skew parts begin at zero."""
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)


def tensors(result: Any) -> list[Tensor]:
    """All tensors of numbers in a module's result, whatever it is nested in."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [] if result is None else [tensor for part in result for tensor in tensors(part)]


def check(fused: Any, other: Any, *inputs: Any, seed: int = 0) -> None:
    """Same results every way, and same gradients of inputs and parameters for one loss."""
    dtype = next(fused.parameters()).dtype
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    results, gradients = [], []
    for module in (fused, other):
        torch.manual_seed(seed)
        found = tensors(module(*inputs))
        weights = [torch.linspace(-1, 1, part.numel()).view_as(part) for part in found]
        loss = sum((part * weight).sum() for part, weight in zip(found, weights, strict=True))
        leaves = [*tensors(inputs), *module.parameters()]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        results.append([part.detach() for part in found])
        gradients.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(results[0], results[1], **tolerance)
    # Sums over steps, rows and an orbit's entries.
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=1e3 * TOLERANCE[dtype], atol=1e2 * TOLERANCE[dtype]
    )
    with torch.no_grad():
        for _ in range(2):  # the first call packs
            torch.manual_seed(seed)
            torch.testing.assert_close(tensors(fused(*inputs)), results[1], **tolerance)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def state_of(kind: str, *shape: int) -> Any:
    return (random(*shape), random(*shape)) if kind == "LSTM" else random(*shape)


# ---- the numbers -------------------------------------------------------------------------------

SIDES = [1, 2, 5, 16, 17, 33]
# Chunks differ in their number alone: three of them on every side, the others on one. What a form
# is packed from is the same for every kind of layer.
CHUNKS = [name for name in list_symmetries() if name.startswith("chunk")]
OTHERS = ["none", *(name for name in list_symmetries() if name not in CHUNKS)]
SOME_CHUNKS = ["chunk2", "chunk4:rows", "chunk64"]
CASES = [
    *itertools.product(["LSTM"], [*OTHERS, *SOME_CHUNKS], SIDES),
    *(("LSTM", name, 17) for name in CHUNKS if name not in SOME_CHUNKS),
    *itertools.product(
        ["GRU", "tanh", "ReLU"], ["none", "avg", "tri4", "block4", "eigen"], [1, 16, 33]
    ),
]


@needs_kernels
@pytest.mark.parametrize(("kind", "symm", "side"), CASES)
def test_every_form_on_even_and_odd_sides(kind: str, symm: str, side: int) -> None:
    check(*pair(LAYERS[kind], 3, side, symm=symm), random(4, 2, 3), state_of(kind, 1, 2, side))


@needs_kernels
@pytest.mark.parametrize(
    ("symm", "kind", "symm_hh", "symm_ih"),
    [
        *(
            (symm, "LSTM", *gates)
            for symm in ("avg", "avg:diag2", "avg:skew2", "tri4", "block4", "eigen")
            for gates in (("fo", ""), ("ifgo", "ifgo"), ("i", "go"), ("", "f"))
        ),
        ("avg", "GRU", "rn", "z"),
        ("tri4", "GRU", "rzn", "rzn"),
        ("block4", "tanh", "", "h"),
        ("eigen", "ReLU", "h", "h"),
    ],
)
def test_gates_are_chosen_one_by_one(kind: str, symm_hh: str, symm_ih: str, symm: str) -> None:
    layers = pair(LAYERS[kind], 7, 7, 2, symm=symm, symm_hh=symm_hh, symm_ih=symm_ih)
    check(*layers, random(3, 2, 7))
    check(*layers, random(40, 2, 7))  # more rows than the kernels multiply input weights for


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "symm", "bias"),
    [
        *itertools.product(["LSTM"], ["avg", "tri8", "none"], [True, False]),
        ("GRU", "avg", True),
        ("GRU", "tri8", False),
        ("tanh", "tri8", True),
        ("ReLU", "none", False),
    ],
)
def test_layers_over_layers_in_both_directions(kind: str, symm: str, bias: bool) -> None:
    options = {"num_layers": 3, "bidirectional": True, "bias": bias, "symm": symm}
    layers = pair(LAYERS[kind], 3, 6, **options)
    check(*layers, random(5, 2, 3), state_of(kind, 6, 2, 6))
    check(*layers, random(5, 2, 3))
    check(*layers, random(5, 3))  # unbatched
    check(*layers, random(5, 3), state_of(kind, 6, 6))


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        *(("LSTM", batch) for batch in (1, 2, 3, 4, 5, 6, 21, 33)),
        *itertools.product(["GRU", "tanh", "ReLU"], [1, 4, 33]),
    ],
)
def test_any_batch(kind: str, batch: int) -> None:
    for steps, dtype in ((1, torch.float64), (3, torch.float64), (3, torch.float32)):
        layers = pair(LAYERS[kind], 5, 18, 2, symm="avg", dtype=dtype)
        check(*layers, random(steps, batch, 5, dtype=dtype))


@needs_kernels
@pytest.mark.parametrize(
    ("symm", "kind"),
    [("avg:diag16", "LSTM"), ("tri:diag32", "GRU"), ("avg:skew3", "LSTM"), ("avg:skew16", "GRU")],
)
@pytest.mark.parametrize("batch", [1, 4, 5, 20])
def test_free_blocks_and_skew_parts(symm: str, kind: str, batch: int) -> None:
    """Nine steps, from which on the matrices may be expanded, and few."""
    layers = pair(LAYERS[kind], 3, 50, symm=symm)
    for steps in (2, 9):
        check(*layers, random(steps, batch, 3), state_of(kind, 1, batch, 50))


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
def test_an_empty_batch(kind: str) -> None:
    check(*pair(LAYERS[kind], 3, 6, 2, bidirectional=True), random(4, 0, 3))


@needs_kernels
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_sequences_of_unequal_length(kind: str, bidirectional: bool) -> None:
    layers = pair(LAYERS[kind], 3, 5, 2, symm="tri4", bidirectional=bidirectional)
    for lengths in ([2, 4, 1], [3, 3], [30, 28, 20]):
        packed = pack_sequence([torch.randn(n, 3).double() for n in lengths], enforce_sorted=False)
        state = state_of(kind, 4 if bidirectional else 2, len(lengths), 5)
        check(*layers, packed)
        check(*layers, PackedSequence(packed.data.requires_grad_(), *packed[1:]), state)


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
def test_batch_first_and_strided(kind: str) -> None:
    layers = pair(LAYERS[kind], 3, 5, symm="avg", batch_first=True)
    for shape in ((4, 2, 3), (4, 1, 3), (1, 4, 3)):
        check(*layers, random(*shape))
        check(*layers, random(*shape), state_of(kind, 1, shape[0], 5))
    layers = pair(LAYERS[kind], 3, 5, 2, symm="avg")
    x = torch.randn(8, 3, 2, dtype=torch.float64)[::2].transpose(1, 2)
    h, c = (torch.randn(2, 2, 5, dtype=torch.float64).transpose(0, 1) for _ in "hc")
    check(*layers, x, (h, c) if kind == "LSTM" else h)


@needs_kernels
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_the_numbers_that_other_backends_draw(bidirectional: bool) -> None:
    options = {"dropout": 0.4, "bidirectional": bidirectional, "num_layers": 3}
    for against in ("reference", "script", "vendor"):
        layers = pair(SymLSTM, 3, 6, against=against, **options)
        check(*layers, random(5, 2, 3), seed=3)
        packed = pack_sequence([torch.randn(n, 3).double() for n in (4, 2)])
        check(*layers, packed, seed=3)
        for layer in layers:
            layer.eval()
        check(*layers, random(5, 2, 3))


@needs_kernels
@pytest.mark.parametrize("against", ["script", "vendor"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_other_implementations(against: str, dtype: torch.dtype) -> None:
    for make in (SymLSTM, SymGRU, SymRNN):
        layers = pair(make, 30, 33, 2, against=against, dtype=dtype, bidirectional=True)
        check(*layers, random(21, 3, 30, dtype=dtype))


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "symm"),
    [
        *(("LSTM", symm) for symm in ("avg", "tri4", "chunk4", "none")),
        ("GRU", "avg"),
        ("GRU", "tri4"),
        ("tanh", "none"),
        ("ReLU", "avg"),
    ],
)
def test_every_kind_of_cell(kind: str, symm: str) -> None:
    for bias in (True, False):
        cells = pair(CELLS[kind], 3, 5, symm=symm, bias=bias)
        check(*cells, random(2, 3), state_of(kind, 2, 5))
        check(*cells, random(3), state_of(kind, 5))
        check(*cells, random(70, 3))
        check(*cells, random(0, 3))


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("LSTM", [("tri4", "ifgo"), ("avg", "i")]),
        ("GRU", [("tri4", "rzn")]),
        ("tanh", [("avg", "h"), ("avg:diag2", "h"), ("avg:skew1", "h")]),
    ],
)
def test_gradients_are_the_slopes_and_so_are_theirs(
    kind: str, forms: list[tuple[str, str]]
) -> None:
    """Against finite differences, which know of no other implementation."""
    for symm, symm_hh in forms:
        layer = LAYERS[kind](2, 3, symm=symm, symm_hh=symm_hh, backend="fused", dtype=torch.float64)
        leave_symmetry(layer)
        names = dict(layer.named_parameters())

        def run(
            x: Tensor, state: Tensor, *values: Tensor, layer: Any = layer, names: Any = names
        ) -> tuple[Tensor, ...]:
            given = dict(zip(names, values, strict=True))
            hx = (state, 2 * state) if kind == "LSTM" else state
            output, last = torch.func.functional_call(layer, given, (x, hx))
            return output, *tensors(last)

        inputs = (random(2, 2, 2), random(1, 2, 3), *names.values())
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@needs_kernels
def test_second_derivatives_of_sequences_of_unequal_length() -> None:
    layer = SymGRU(2, 3, symm="avg", backend="fused", bidirectional=True, dtype=torch.float64)
    packed = pack_sequence([torch.randn(n, 2, dtype=torch.float64) for n in (3, 1)])

    def run(data: Tensor, *_: Tensor) -> Tensor:
        return layer(PackedSequence(data, packed.batch_sizes))[0].data

    inputs = (packed.data.clone().requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def _in_a_loop() -> tuple[Tensor, list[Tensor]]:
    """The state of a step is made of that of the step before."""
    cell = SymLSTMCell(3, 4, backend="fused", dtype=torch.float64)
    x, state = random(4, 2, 3), None
    for step in x:
        state = cell(step, state)
    assert state is not None
    return state[0].square().sum() + state[1].sum(), [x, *cell.parameters()]


def _with_one_bias() -> tuple[Tensor, list[Tensor]]:
    layer = SymGRU(3, 4, backend="fused", dtype=torch.float64)
    layer.bias_ih_l0 = layer.bias_hh_l0
    x = random(4, 2, 3)
    return layer(x)[0].square().sum(), [x, *layer.parameters()]


def _with_a_state_of_the_input() -> tuple[Tensor, list[Tensor]]:
    layer = SymRNN(3, 3, 2, backend="fused", dtype=torch.float64)
    packed = pack_sequence([random(3, 3), random(1, 3)])
    data = packed.data.detach().requires_grad_()
    output, last = layer(packed._replace(data=data), 2 * data[:4].view(2, 2, 3))
    return output.data.square().sum() + last.sum(), [data, *layer.parameters()]


def _with_carried_state() -> tuple[Tensor, list[Tensor]]:
    layer = SymLSTM(4, 4, 2, symm="tri4", backend="fused", dtype=torch.float64)
    x = random(2, 2, 4)
    output, state = layer(x)
    output, _ = layer(output, state)
    return output.square().sum(), [x, *layer.parameters()]


@needs_kernels
@pytest.mark.parametrize(
    "run", [_in_a_loop, _with_one_bias, _with_a_state_of_the_input, _with_carried_state]
)
def test_gradients_of_gradients_do_not_change_the_gradients(
    run: Callable[[], tuple[Tensor, list[Tensor]]],
) -> None:
    """Where what the layer took is made of other things that it took."""
    loss, leaves = run()
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    found = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


@needs_kernels
def test_under_a_checkpoint() -> None:
    layer = SymLSTM(3, 4, 2, backend="fused", dtype=torch.float64)
    x = random(5, 2, 3)
    leaves = [x, *layer.parameters()]
    found = []
    for run in (layer, functools.partial(checkpoint, layer, use_reentrant=False)):
        output = run(x)[0]
        found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("make", [SymLSTM, SymGRUCell])
def test_weights_that_are_no_parameters(make: Any) -> None:
    """A network makes them, and wants their gradients."""
    fused, other = pair(make, 3, 4)
    made = {name: parameter.detach().clone() for name, parameter in fused.named_parameters()}
    factor, x = random(1), torch.randn(2, 3, dtype=torch.float64)
    found = []
    for module in (fused, other):
        for name, value in made.items():
            delattr(module, name)
            setattr(module, name, value * factor)
        output = tensors(module(x))[0]
        assert output.requires_grad
        found.append([output, *torch.autograd.grad(output.square().sum(), factor)])
        with torch.no_grad():
            found[-1].append(tensors(module(x))[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    with forward_ad.dual_level():
        fused.bias_ih_l0 = fused.bias_ih = forward_ad.make_dual(torch.ones(()), torch.ones(()))
        with pytest.raises(RuntimeError, match="no derivatives in forward mode"):
            fused(x)


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
def test_one_bias_without_the_other_is_refused(grad: bool) -> None:
    layer = SymLSTM(3, 4, backend="fused")
    layer.bias_hh_l0 = None
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match="bias_ih and bias_hh should both be given or neither"),
    ):
        layer(torch.randn(2, 1, 3))


@needs_kernels
@pytest.mark.parametrize("cpu", ["portable", "avx2", "avx512"])
def test_kernels_for_every_processor(cpu: str, kernels: Callable[[str], None]) -> None:
    kernels(cpu)
    for dtype in TOLERANCE:
        for kind, make in LAYERS.items():
            layers = pair(make, 19, 35, 2, symm="avg", symm_hh=GATES[kind][:2], dtype=dtype)
            for steps, batch in ((1, 1), (3, 2), (4, 5), (2, 40)):
                check(*layers, random(steps, batch, 19, dtype=dtype))


@pytest.fixture
def kernels() -> Iterator[Callable[[str], None]]:
    """`kernels(name)` takes those for one processor, and skips where they do not run."""
    lib = native.library()
    assert lib is not None
    before = lib.symrnn_cpu()

    def take(name: str) -> None:
        if lib.symrnn_use_cpu(name.encode()):
            pytest.skip(f"this processor, or this build, has no {name} kernels")

    yield take
    lib.symrnn_use_cpu(before)


# ---- in PyTorch's hands ------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
def test_inputs_and_states_are_left_alone(grad: bool) -> None:
    layer = SymLSTM(3, 4, 2, backend="fused")
    x, state = torch.randn(5, 2, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    before = [tensor.clone() for tensor in (x, *state)]
    with torch.set_grad_enabled(grad):
        layer(x, state), layer(x, state)
    assert all(map(torch.equal, before, (x, *state)))


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
def test_states_may_be_changed_in_place(kind: str) -> None:
    gradients = []
    for change in (False, True):
        torch.manual_seed(0)
        layer = LAYERS[kind](3, 4, backend="fused")
        output, state = layer(torch.randn(5, 2, 3))
        if change:
            with torch.no_grad():
                for tensor in tensors(state):
                    tensor.zero_()
        gradients.append(torch.autograd.grad(output.sum(), list(layer.parameters())))
    assert all(map(torch.equal, *gradients))


@needs_kernels
def test_a_loss_of_one_part_of_the_result() -> None:
    for kind, make in LAYERS.items():
        layers = pair(make, 3, 5, 2)
        x = torch.randn(4, 2, 3, dtype=torch.float64)
        for part in range(3 if kind == "LSTM" else 2):
            found = []
            for layer in layers:
                loss = tensors(layer(x))[part].square().sum()
                found.append(torch.autograd.grad(loss, list(layer.parameters())))
            torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@needs_kernels
def test_frozen_weights_get_no_gradient() -> None:
    layer = SymLSTM(3, 4, backend="fused")
    layer.weight_ih_l0.requires_grad_(False)
    layer(torch.randn(2, 1, 3))[0].sum().backward()
    assert layer.weight_ih_l0.grad is None
    assert layer.weight_hh_l0_avg.grad is not None
    layer.requires_grad_(False)
    x = torch.randn(2, 1, 3, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad is not None
    assert not layer(x.detach())[0].requires_grad


@needs_kernels
def test_a_second_pass_backwards_gives_the_same() -> None:
    layer = SymGRU(2, 4, backend="fused")
    loss = layer(torch.randn(3, 1, 2))[0].sum()
    parameters = list(layer.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, parameters)


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_under_autocast_is_in_float32(kind: str, dtype: torch.dtype) -> None:
    layer = LAYERS[kind](8, 8, 2, backend="fused")
    x = torch.randn(5, 2, 8)
    exact = tensors(layer(x))
    for mode in (torch.enable_grad, torch.no_grad):
        with torch.autocast("cpu", dtype), mode():
            found = tensors(layer(x))
        for part, expected in zip(found, exact, strict=True):
            assert torch.equal(part, expected.to(part.dtype))  # rounded once, if at all
    with torch.autocast("cpu", dtype):
        loss = layer(x)[0].float().sum()
        loss.backward()  # here too
    under_autocast = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient.dtype == torch.float32 for gradient in under_autocast)
    layer.zero_grad()
    layer(x)[0].sum().backward()
    for found_gradient, parameter in zip(under_autocast, layer.parameters(), strict=True):
        # That of a sum is one, whatever the dtype of its terms.
        torch.testing.assert_close(found_gradient, parameter.grad, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_autocast_of_cells_and_of_float64(kind: str) -> None:
    cell = CELLS[kind](4, 5, backend="fused")
    plain = cell.to_plain()
    double = LAYERS[kind](4, 5, backend="fused", dtype=torch.float64)
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            found, expected = tensors(cell(given)), tensors(plain(given))
            assert [part.dtype for part in found] == [part.dtype for part in expected]
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
        assert {part.dtype for part in tensors(double(x.double()))} == {torch.float64}


@needs_kernels
@pytest.mark.parametrize(("kind", "symm"), [("LSTM", "avg"), ("GRU", "tri4")])
def test_compiled_in_one_piece(kind: str, symm: str) -> None:
    torch.compiler.reset()
    layer = LAYERS[kind](3, 5, 2, symm=symm, bidirectional=True, backend="fused")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 2, 3)
    results = []
    for run in (layer, compiled):
        with torch.no_grad():
            quiet = run(x)
        layer.zero_grad()
        run(x)[0].square().sum().backward()
        results.append([*tensors(quiet), *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    with torch.no_grad():  # nothing packed is kept in a compiled program
        layer.bias_ih_l0.add_(1.0)
        for parameter in layer.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)
    torch.compiler.reset()


@needs_kernels
@pytest.mark.parametrize(("kind", "strict"), [("LSTM", False), ("GRU", True)])
def test_exported_with_a_free_batch(kind: str, strict: bool) -> None:
    layer = LAYERS[kind](3, 5, 2, symm="avg", symm_hh="r"[kind == "LSTM" :], backend="fused").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        layer, (torch.randn(4, 3, 3),), strict=strict, dynamic_shapes=({1: batch},)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(4, 7, 3)
    torch.testing.assert_close(torch.export.load(file).module()(x), layer(x))
    assert set(program.state_dict) == set(layer.state_dict())


@needs_kernels
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_and_scripted() -> None:
    layer = SymGRU(3, 6, symm="tri4", backend="fused")
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(torch.jit.trace(layer, (x,), check_trace=False)(x), layer(x))
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("of", [SymLSTM, SymLSTMCell])
def test_what_would_lose_a_derivative_is_refused(of: Any, grad: bool) -> None:
    module = of(4, 4, backend="fused")
    x = torch.randn(3, 2, 4)[: 3 if of is SymLSTM else 1].squeeze(0)
    with torch.no_grad():
        module(x)  # packs
    with torch.set_grad_enabled(grad):
        for transform in (
            lambda: torch.func.vmap(lambda y: module(y)[0])(torch.stack([x, x])),
            lambda: torch.func.grad(lambda y: module(y)[0].sum())(x),
            lambda: torch.func.jvp(lambda y: module(y)[0], (x,), (x,)),
        ):
            with pytest.raises(RuntimeError, match=r'cannot run under torch\.func.*"reference"'):
                transform()
        with (
            forward_ad.dual_level(),
            pytest.raises(RuntimeError, match='no derivatives in forward mode: use backend="ref'),
        ):
            module(forward_ad.make_dual(x, x))
        automatic = copy.deepcopy(module)
        automatic.backend = "auto"
        torch.func.grad(lambda y: automatic(y)[0].sum())(x)  # takes another way


@needs_kernels
def test_many_threads_at_once() -> None:
    torch.manual_seed(0)
    layer = SymLSTM(20, 40, 2, backend="fused")
    inputs = [torch.randn(3, 2, 20) for _ in range(8)]
    with torch.no_grad():
        expected = [layer(x)[0] for x in inputs]
    layer.flatten_parameters()
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(layer(inputs[k])[0], expected[k]):
                    wrong.append(k)
        x = inputs[k].clone().requires_grad_()
        layer(x)[0].sum().backward()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _in_a_child(layer: Any, x: Tensor, results: Any) -> None:
    with torch.no_grad():
        results.put(layer(x)[0].tolist())
    torch.set_num_threads(1)  # PyTorch's own operators want this of a child
    results.put(torch.autograd.grad(layer(x)[0].sum(), layer.bias_ih_l0)[0].tolist())


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_after_fork(threads: int) -> None:
    """As in a DataLoader's workers; also when the parent has started its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer, x = SymLSTM(40, 70, backend="fused"), torch.randn(3, 5, 40)
        with torch.no_grad():
            expected = layer(x)[0].tolist()
        gradient = torch.autograd.grad(layer(x)[0].sum(), layer.bias_ih_l0)[0].tolist()
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        child = context.Process(target=_in_a_child, args=(layer, x, results), daemon=True)
        child.start()
        child.join(600)
        assert child.exitcode == 0
        assert results.get() == expected
        torch.testing.assert_close(results.get(), gradient)
    finally:
        torch.set_num_threads(before)


# ---- what cannot be run ------------------------------------------------------------------------


@needs_kernels
def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    layer = SymLSTM(3, 4, backend="fused")
    x = torch.randn(2, 1, 3)
    state = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match=r"hx should be torch.float32, as the weights are"):
        layer(x, (state.double(), state))
    with pytest.raises(ValueError, match=r"hx\[1\] should be torch.float32, as the weights are"):
        layer(x, (state, state.double()))
    with pytest.raises(ValueError, match="hx should be on the device cpu, got: meta"):
        layer(x, (state.to("meta"), state))
    for dtype in (torch.float16, torch.bfloat16):
        low = copy.deepcopy(layer).to(dtype)
        with pytest.raises(ValueError, match=f"takes weights of float32 or float64, got: {dtype}"):
            low(x.to(dtype))
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        layer(torch.randn(0, 1, 3))
    with pytest.raises(ValueError, match=r"input dtype .torch.float64. does not match"):
        layer(x.double())
    away = layer.to("meta")
    assert away(x.to("meta"))[0].shape == (2, 1, 4)
    with pytest.raises(ValueError, match="input should be on the device meta, got: cpu"):
        away(x)


@needs_kernels
@pytest.mark.parametrize("grad", [True, False])
def test_a_packed_sequence_that_contradicts_itself_is_refused(grad: bool) -> None:
    layer = SymLSTM(3, 4, backend="fused")
    with torch.set_grad_enabled(grad):
        for sizes in ([2, 2], [2, 2, 2], [2, 1, 2], [2, 2, 1, 0], [3, 2]):
            wrong = PackedSequence(torch.randn(5, 3), torch.tensor(sizes))
            if sizes == [3, 2]:  # nothing wrong with this one
                layer(wrong)
                continue
            with pytest.raises(ValueError, match="batch_sizes should fall from 2, the rows of h0"):
                layer(wrong)


@needs_kernels
def test_numbers_that_are_negated_when_read() -> None:
    layer = SymGRU(3, 4, backend="fused")
    x, h = torch.randn(2, 1, 3), torch.randn(1, 1, 4)
    with torch.no_grad():
        for _ in range(2):
            expected = layer(-x, -h)
            torch.testing.assert_close(layer(torch._neg_view(x), torch._neg_view(h)), expected)


@needs_kernels
def test_projections_are_refused() -> None:
    with pytest.raises(ValueError, match='backend="fused" has no projections, got: proj_size=2'):
        SymLSTM(3, 4, proj_size=2, symm_hh="", backend="fused")
    layer = SymLSTM(3, 4, proj_size=2, symm_hh="")
    with pytest.raises(ValueError, match='backend="fused" has no projections, got: proj_size=2'):
        layer.backend = "fused"


@pytest.mark.parametrize("of", [SymLSTM, SymLSTMCell])
def test_without_the_library_there_is_an_error_and_auto_goes_another_way(
    of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed: list[None] = []
    module, x = of(3, 4), torch.randn(2, 3)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "not built: no compiler")
    monkeypatch.setattr(native, "notice", lambda: noticed.append(None))
    with pytest.raises(RuntimeError, match='"fused" cannot run here: not built: no compiler'):
        of(3, 4, backend="fused")
    module(x)
    assert not noticed  # it would have gone another way anyhow
    with torch.no_grad():
        found = tensors(module(x))
    assert noticed
    module.backend = "reference"
    torch.testing.assert_close(found, tensors(module(x)))
    with pytest.raises(RuntimeError, match='"fused" cannot run here: not built: no compiler'):
        module.backend = "fused"
    with pytest.raises(RuntimeError, match=r"^the native kernels are not here: not built: no comp"):
        deploy(module)


# ---- what auto takes ---------------------------------------------------------------------------


@needs_kernels
def test_auto_takes_the_kernels_where_they_can_run_and_pay(choice: Any) -> None:
    def chosen(layer: Any, **options: Any) -> str:
        weight = next(layer.parameters())
        return choice(layer, torch.empty(3, 1, 3, dtype=weight.dtype, **options))

    lstm = SymLSTM(3, 8)
    with torch.no_grad():
        assert chosen(lstm) == "fused"
        assert chosen(SymGRU(3, 8, symm="none")) == "fused"
        assert choice(SymGRUCell(3, 8), torch.empty(2, 3)) == "fused"
        assert chosen(SymRNN(3, 8)) == "fused"
        assert chosen(SymLSTM(3, 8, dtype=torch.float64)) == "vendor"
        assert chosen(SymLSTM(3, 8, proj_size=2, symm_hh="")) == "vendor"
        assert chosen(lstm, device="meta") == "vendor"
        with torch.autocast("cpu"):
            assert chosen(lstm) == "vendor"
        assert choice(lstm, torch.empty(4, 3), torch.tensor([2, 1, 1])) == "fused"
    assert chosen(lstm) == "vendor"


@needs_kernels
def test_auto_goes_by_the_rule(choice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def rule(_: Any, steps: int, batch: int, wants_gradient: bool) -> bool:
        assert not wants_gradient
        asked.append((steps, batch))
        return False

    monkeypatch.setattr(dispatch, "fused_pays", rule)
    layer = SymLSTM(3, 8, batch_first=True)
    with torch.no_grad():
        assert choice(layer, torch.empty(5, 2, 3)) == "vendor"
        layer(torch.empty(2, 5, 3))
        layer(pack_sequence([torch.randn(4, 3), torch.randn(1, 3)]))
    assert asked == [(5, 2), (5, 2), (4, 2)]


@needs_kernels
@pytest.mark.parametrize("make", [SymLSTM, SymLSTMCell])
def test_auto_asks_whether_a_gradient_is_wanted_and_not_whether_one_could_be(make: Any) -> None:
    module = make(8, 8).eval().requires_grad_(False)
    module.inference_dtype = torch.int8
    x = torch.randn(2, 8) if module.IS_CELL else torch.randn(3, 2, 8)
    found = module(x)
    with torch.no_grad():
        torch.testing.assert_close(found, module(x), rtol=0, atol=0)
    full = tensors(module(x.clone().requires_grad_()))
    assert full[0].requires_grad
    assert not torch.equal(full[0], tensors(found)[0])


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
def test_auto_gives_the_same_either_way(kind: str) -> None:
    layer = LAYERS[kind](3, 8)
    x = torch.randn(6, 2, 3)
    with torch.no_grad():
        state = None
        for step in x.split(1):
            output, state = layer(step, state)
    torch.testing.assert_close(output[0], layer(x)[0][-1])


def test_it_is_a_backend() -> None:
    assert "fused" in dispatch.list_backends()
