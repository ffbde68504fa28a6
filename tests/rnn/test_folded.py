"""The folded backend: the same outputs and gradients as the whole matrices give, by less work."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from symrnn import (
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    get_symmetry,
    list_symmetries,
)

FOLDING = [name for name in list_symmetries() if get_symmetry(name, 4).folding is not None]

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


def pair(make: Callable[..., Any], *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Two modules with the same numbers: one folds, the other is the reference loop."""
    folded = make(*sizes, backend="folded", dtype=torch.float64, **options)
    expanded = copy.deepcopy(folded)
    expanded.backend = "reference"
    return folded, expanded


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a module's result, whatever it is nested in."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [] if result is None else [tensor for part in result for tensor in tensors(part)]


def check(folded: Any, expanded: Any, *inputs: Any) -> None:
    """Same results, and same gradients of inputs and parameters for one random loss."""
    results, gradients = [], []
    for module in (folded, expanded):
        found = tensors(module(*inputs))
        weights = [torch.linspace(-1, 1, part.numel()).view_as(part) for part in found]
        loss = sum((part * weight).sum() for part, weight in zip(found, weights, strict=True))
        leaves = [*tensors(inputs), *module.parameters()]
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        results.append(found)
        gradients.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def state_of(kind: str, *shape: int) -> Any:
    return (random(*shape), random(*shape)) if kind == "LSTM" else random(*shape)


def test_these_forms_fold() -> None:
    others = ["tri", "avg", "avg:full", "tri:diag16", "avg:diag16", "avg:skew8", "eigen", "ldl"]
    assert sorted([*FOLDING, *others]) == sorted(list_symmetries())


@pytest.mark.parametrize(
    ("symm", "side"),
    [
        (symm, side)
        for symm in FOLDING  # of chunks, which differ in their number alone, most on one side
        for side in (
            [1, 2, 5, 8, 11]
            if not symm.startswith("chunk") or symm in ("chunk2", "chunk4:rows", "chunk64")
            else [11]
        )
    ],
)
def test_every_form_on_even_and_odd_sides(symm: str, side: int) -> None:
    check(*pair(SymLSTM, 3, side, symm=symm), random(4, 2, 3), state_of("LSTM", 1, 2, side))


@pytest.mark.parametrize(
    ("kind", "symm", "bias"),
    [
        *(("LSTM", symm, True) for symm in ("tri4", "block16", "chunk4", "chunk2:rows")),
        ("LSTM", "tri4", False),
        ("GRU", "block16", True),
        ("GRU", "tri4", False),
        ("tanh", "chunk4", True),
        ("ReLU", "chunk2:rows", False),
    ],
)
def test_every_kind_of_layer(kind: str, symm: str, bias: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "bias": bias, "symm": symm}
    folded, expanded = pair(LAYERS[kind], 3, 6, **options)
    check(folded, expanded, random(5, 2, 3), state_of(kind, 4, 2, 6))
    check(folded, expanded, random(5, 3))  # unbatched, from zeros


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_sequences_of_unequal_length(kind: str, bidirectional: bool) -> None:
    layers = pair(LAYERS[kind], 3, 5, symm="tri4", bidirectional=bidirectional)
    packed = pack_sequence([torch.randn(n, 3).double() for n in (2, 4, 1)], enforce_sorted=False)
    check(*layers, packed, state_of(kind, 2 if bidirectional else 1, 3, 5))


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 3), (4, 0)])
@pytest.mark.parametrize("kind", LAYERS)
def test_one_step_and_an_empty_batch(kind: str, steps: int, batch: int) -> None:
    check(*pair(LAYERS[kind], 3, 6, symm="block4"), random(steps, batch, 3))


@pytest.mark.parametrize(
    ("kind", "symm"),
    [
        *(("LSTM", symm) for symm in ("tri4", "tri8", "chunk4")),
        ("GRU", "tri4"),
        ("tanh", "tri8"),
        ("ReLU", "chunk4"),
    ],
)
def test_every_kind_of_cell(kind: str, symm: str) -> None:
    check(*pair(CELLS[kind], 3, 5, symm=symm), random(2, 3), state_of(kind, 2, 5))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_the_slopes(kind: str) -> None:
    """Against finite differences, which know of no other implementation."""
    layer = LAYERS[kind](2, 4, symm="tri4", backend="folded", dtype=torch.float64)
    names = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x,))[0]

    assert torch.autograd.gradcheck(run, (random(3, 2, 2), *names.values()))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
def test_second_derivatives(kind: str) -> None:
    layer = LAYERS[kind](2, 4, symm="tri4", backend="folded", dtype=torch.float64)
    names = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, given, (x,))[0]

    assert torch.autograd.gradgradcheck(run, (random(2, 1, 2), *names.values()), fast_mode=True)


def test_a_second_pass_backwards_gives_the_same() -> None:
    layer = SymLSTM(2, 4, symm="block4", backend="folded")
    loss = layer(torch.randn(3, 1, 2))[0].sum()
    parameters = list(layer.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))


@pytest.mark.parametrize("grad", [True, False])
def test_inputs_and_states_are_left_alone(grad: bool) -> None:
    layer = SymLSTM(3, 4, symm="tri8", backend="folded")
    x, state = torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    before = [tensor.clone() for tensor in (x, *state)]
    with torch.set_grad_enabled(grad):
        layer(x, state)
    assert all(map(torch.equal, before, (x, *state)))


@pytest.mark.parametrize("kind", LAYERS)
def test_results_may_be_changed_in_place(kind: str) -> None:
    gradients = []
    for change in (False, True):
        torch.manual_seed(0)
        layer = LAYERS[kind](3, 4, symm="block4", backend="folded")
        output, state = layer(torch.randn(5, 2, 3))
        if change:
            with torch.no_grad():
                for tensor in tensors(state):
                    tensor.zero_()
        gradients.append(torch.autograd.grad(output.sum(), list(layer.parameters())))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_multiplies_in_its_dtype(kind: str) -> None:
    folded = LAYERS[kind](8, 8, symm="block4", backend="folded")
    x = torch.randn(5, 2, 8)
    exact, _ = folded(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = folded(x)
        like = folded.to_plain()(x)[0]
    assert output.dtype == like.dtype
    assert torch.equal(output, output.bfloat16().to(output.dtype))  # of so many digits
    # bfloat16 rounds to 2**-9; five steps of a few roundings each.
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=0.05)
    output.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in folded.parameters())


def test_frozen_weights_get_no_gradient() -> None:
    layer = SymLSTM(3, 4, symm="block4", backend="folded")
    layer.weight_ih_l0.requires_grad_(False)
    layer(torch.randn(2, 1, 3))[0].sum().backward()
    assert layer.weight_ih_l0.grad is None
    assert layer.weight_hh_l0_block4.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"symm": "avg"},
        {"symm": "none"},
        {"symm": "block4", "symm_hh": "if"},
        {"symm": "block4", "symm_hh": "", "symm_ih": "ifgo"},
    ],
)
@pytest.mark.parametrize("of", [SymLSTM, SymLSTMCell])
def test_weights_that_do_not_fold_are_refused(of: type, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match='backend="folded" wants hidden weights of all gates'):
        of(4, 4, backend="folded", **options)


def test_it_can_be_exported() -> None:
    layer = SymGRU(3, 4, symm="tri4", backend="folded").eval()
    x = torch.randn(5, 2, 3)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


def test_it_trains_in_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SymLSTM(3, 4, symm="block4", backend="folded"))
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ("of", "side", "symm", "steps", "grad", "backend"),
    [
        (SymLSTM, 650, "block4", 35, True, "folded"),
        (SymLSTM, 651, "chunk4", 35, True, "folded"),
        (SymGRU, 650, "tri8", 35, True, "folded"),
        (SymLSTM, 650, "tri4", 35, True, "vendor"),
        (SymLSTM, 1500, "tri4", 35, True, "folded"),
        (SymLSTM, 200, "block16", 35, True, "vendor"),
        (SymLSTM, 650, "block4", 35, False, "vendor"),
        (SymLSTM, 1500, "block4", 35, False, "folded"),
        (SymLSTM, 200, "block4", 1, False, "folded"),
        (SymLSTM, 1500, "tri4", 1, False, "folded"),
        (SymGRU, 650, "tri4", 1, False, "vendor"),
        (SymLSTM, 1500, "avg", 35, True, "vendor"),
        (SymRNN, 1500, "block4", 35, True, "vendor"),
    ],
)
def test_auto_folds_where_it_was_measured_to_be_faster(
    choice: Any, of: type, side: int, symm: str, steps: int, grad: bool, backend: str
) -> None:
    layer = of(3, side, symm=symm, device="meta")
    with torch.set_grad_enabled(grad):
        assert choice(layer, torch.empty(steps, 1, 3)) == backend
        assert choice(layer, torch.empty(steps, 3), torch.ones(steps)) == backend
        with torch.autocast("cpu"):
            assert choice(layer, torch.empty(steps, 1, 3)) == "vendor"


def test_auto_gives_the_same_either_way() -> None:
    layer = SymLSTM(3, 8, symm="tri8", dtype=torch.float64)
    x = random(6, 2, 3)
    with torch.no_grad():
        state = None
        for step in x.split(1):  # one step at a time it folds
            output, state = layer(step, state)
    torch.testing.assert_close(output[0], layer(x)[0][-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_functional_gradients(kind: str) -> None:
    folded, expanded = pair(LAYERS[kind], 3, 6, symm="tri4")
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def slopes(layer: nn.Module) -> dict[str, Tensor]:
        def loss(numbers: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(layer, numbers, (x,))[0].square().sum()

        return torch.func.grad(loss)(dict(layer.named_parameters()))

    torch.testing.assert_close(slopes(folded), slopes(expanded), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_it_can_be_traced(kind: str) -> None:
    layer = LAYERS[kind](3, 6, symm="tri4", backend="folded")
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(torch.jit.trace(layer, (x,), check_trace=False)(x), layer(x))


def test_what_the_backward_pass_needs_is_saved_where_pytorch_saves_it() -> None:
    """So that it is freed when used, and may be stored elsewhere meanwhile."""
    layer = SymLSTM(3, 8, symm="block4", backend="folded")
    numbers = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal numbers
        numbers += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output, _ = layer(torch.randn(50, 20, 3))
    assert numbers > 50 * 20 * 8 * 7  # four gates, h, c and tanh c
    output.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.sum().backward()


def test_export_leaves_the_batch_open() -> None:
    layer = SymLSTM(3, 4, symm="block4", backend="folded").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    example = torch.randn(5, 3, 3)
    program = torch.export.export(layer, (example,), dynamic_shapes=({1: batch},))
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])
