"""Layers that fold their input, against PyTorch's layers on the whole weight."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from symrnn import list_symmetries
from symrnn.layers import FoldedConv1d, FoldedConv2d, FoldedConv3d, FoldedLinear
from symrnn.surgery import symmetrize, unsymmetrize
from symrnn.symmetry import SymmetricTensor, get_symmetry

FOLDING = [name for name in list_symmetries() if get_symmetry(name, 4).folding is not None]
# One form for each way to fold: in halves, both sides, once more, columns, rows.
SOME = ["tri4", "avg8", "block16", "chunk2", "chunk4:rows"]

FOLDED = {
    nn.Linear: FoldedLinear,
    nn.Conv1d: FoldedConv1d,
    nn.Conv2d: FoldedConv2d,
    nn.Conv3d: FoldedConv3d,
}
SPATIAL = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
convolutions = pytest.mark.parametrize("kind", list(SPATIAL))


@pytest.fixture(autouse=True)
def _folding_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of these tests are far below the size from which on folding is faster."""
    monkeypatch.setattr("symrnn.layers.PAYS", 0)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def pair(layer: nn.Module, symm: str, axes: str = "channel") -> tuple[nn.Module, nn.Module]:
    """The layer made symmetric, and a plain one that knows nothing of it."""
    plain = copy.deepcopy(layer)
    assert len(symmetrize(layer, symm, axes=axes)) == 1
    assert isinstance(layer, FOLDED[type(plain)])
    assert layer.parametrizations.weight[0].folding is not None
    return layer, plain


def outputs_and_gradients(
    layer: nn.Module, plain: nn.Module | None, x: Tensor
) -> dict[str, Tensor]:
    """What a call gives; of the plain layer, if given, called on the weight of the other."""
    numbers = layer.parametrizations.weight.original
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if plain is None:
        output = layer(x)
    else:
        weights = {"weight": layer.parametrizations.weight[0](numbers)}
        if layer.bias is not None:
            weights["bias"] = layer.bias
        output = functional_call(plain, weights, (x,))
    wanted = {"x": x, "numbers": numbers, "bias": layer.bias}
    wanted = {name: tensor for name, tensor in wanted.items() if tensor is not None}
    torch.manual_seed(1)
    loss = (output.double() * draw(*output.shape)).sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def check(layer: nn.Module, plain: nn.Module, x: Tensor, atol: float = 1e-12) -> None:
    """atol: for a tensor whose entries are not above 1, otherwise in proportion."""
    found = outputs_and_gradients(layer, None, x)
    expected = outputs_and_gradients(layer, plain, x)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        size = max([1.0, *expected[name].abs().flatten().tolist()])
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=atol * size, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- equal results -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "lead"),
    [
        *((name, 5, (3,)) for name in FOLDING),
        *itertools.product(SOME, [2, 5, 8], [(), (3,), (2, 1, 3), (0,), (2, 0)]),
    ],
    ids=str,
)
def test_linear(name: str, side: int, lead: tuple[int, ...]) -> None:
    bias = side != 5
    layer, plain = pair(nn.Linear(side, side, bias, dtype=torch.float64), name)
    check(layer, plain, draw(*lead, side))


OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "dilation": 2, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "bias": False},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 2, "groups": 3, "bias": False},
]


# All options by one form and one kind, all forms and kinds by some options.
CONVOLUTIONS = [
    *(("tri4", options, nn.Conv2d) for options in OPTIONS),
    *itertools.product(SOME[1:], [OPTIONS[k] for k in (1, 6, 8)], [nn.Conv2d]),
    *itertools.product(SOME[:2], [OPTIONS[k] for k in (2, 3, 5, 9)], [nn.Conv1d]),
    *itertools.product(SOME[1:3], [OPTIONS[k] for k in (1, 5, 6, 8)], [nn.Conv3d]),
]


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    CONVOLUTIONS,
    ids=lambda value: str(list(value.values())) if isinstance(value, dict) else None,
)
def test_convolutions(name: str, options: dict[str, Any], kind: Any) -> None:
    if options.get("padding_mode") == "reflect" and kind is nn.Conv3d:
        options = {**options, "padding_mode": "zeros"}  # torch has no double precision for it
    for side in (4, 5):
        channels = side * options.get("groups", 1)
        layer, plain = pair(kind(channels, channels, **options, dtype=torch.float64), name)
        space = [5, 4, 6][: SPATIAL[kind]]
        check(layer, plain, draw(2, channels, *space))
        check(layer, plain, draw(channels, *space))  # unbatched
        check(layer, plain, draw(0, channels, *space))


@pytest.mark.parametrize("name", FOLDING)
def test_every_form_of_a_convolution_in_groups(name: str) -> None:
    layer, plain = pair(nn.Conv2d(12, 12, 3, padding=1, groups=2, dtype=torch.float64), name)
    check(layer, plain, draw(2, 12, 4, 5))


@pytest.mark.parametrize("name", SOME)
def test_channels_fold_where_the_kernel_is_symmetric_too(name: str) -> None:
    layer, plain = pair(nn.Conv2d(8, 8, 3, groups=2, dtype=torch.float64), name, "both")
    check(layer, plain, draw(2, 8, 4, 5))
    layer, plain = pair(nn.Conv3d(5, 5, (2, 3, 3), dtype=torch.float64), name, "both")
    check(layer, plain, draw(2, 5, 3, 4, 5))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", FOLDING)
def test_single_channels(name: str, groups: int) -> None:
    """A depthwise convolution has nothing to fold, but may be symmetric in space."""
    layer = nn.Conv2d(groups, groups, 3, groups=groups, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    symmetrize(layer, name, axes="both")
    check(layer, plain, draw(2, groups, 4, 4))


def test_strided_input() -> None:
    layer, plain = pair(nn.Conv2d(8, 8, 3, dtype=torch.float64), "tri4")
    x = draw(2, 8, 5, 6)
    check(layer, plain, x.to(memory_format=torch.channels_last))
    check(layer, plain, x.transpose(2, 3))
    layer, plain = pair(nn.Conv2d(8, 8, 3, dtype=torch.float64), "block4")
    layer.to(memory_format=torch.channels_last)
    check(layer, plain, x.to(memory_format=torch.channels_last))
    layer, plain = pair(nn.Linear(8, 8, dtype=torch.float64), "tri8")
    check(layer, plain, x.transpose(1, 3).transpose(2, 3).contiguous().transpose(-1, -3)[:, :5].mT)


@pytest.mark.parametrize("name", SOME)
def test_gradients_against_differences(name: str) -> None:
    layer = nn.Conv1d(4, 4, 2, groups=2, dtype=torch.float64)
    symmetrize(layer, name)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = draw(1, 4, 3).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert gradcheck(run, (x, *parameters), check_forward_ad=True)


# ---- precisions --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOME)
def test_precisions(name: str, dtype: torch.dtype) -> None:
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(16, 16), draw(3, 16)),
        (nn.Conv2d(16, 16, 3, groups=2), draw(2, 16, 4, 4)),
    ]
    for layer, x in layers:
        exact, _ = pair(copy.deepcopy(layer).to(dtype), name)
        layer = copy.deepcopy(exact)
        exact = exact.double()
        found = layer(x.to(dtype))
        assert found.dtype == dtype
        expected = exact(x.to(dtype).double())
        # Of 16 products, or 72, each of a weight below 1/4 and an input that is folded before it
        # is rounded: as many as 4 of size 4 add up. What it comes to is below 2 for most.
        atol = torch.finfo(dtype).eps * 8
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SOME)
def test_autocast(name: str) -> None:
    """Types are those that the plain layer gives."""
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(16, 16), torch.randn(3, 16)),
        (nn.Conv1d(16, 16, 3), torch.randn(2, 16, 4)),
    ]
    for layer, x in layers:
        layer, plain = pair(layer, name)
        exact = copy.deepcopy(layer).double()(x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Inputs and weights are rounded to 8 bits, then the output: see above.
            check(layer, plain, x, atol=2**-8 * 8)
            found = layer(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2**-8 * 8)


# ---- work --------------------------------------------------------------------------------------


def operations(layer: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("tri", 1),
        ("tri4", 1 / 2),
        ("tri8", 1 / 4),
        ("avg8", 1 / 4),
        ("block4", 1 / 4),
        ("block16", 1 / 16),
        ("chunk8", 1 / 8),
        ("chunk8:rows", 1 / 8),
        ("ldl", 1),
    ],
)
def test_folding_saves_multiplications(name: str, fraction: float) -> None:
    x = torch.randn(256, 128)
    layer = nn.Linear(128, 128)
    whole = operations(layer, x)
    symmetrize(layer, name)
    if name == "ldl":  # whose product L diag(d) Lᵀ counts as well
        with parametrize.cached():
            layer.weight  # noqa: B018
            assert operations(layer, x) == whole
    else:
        assert operations(layer, x) == whole * fraction
    unsymmetrize(layer)
    assert operations(layer, x) == whole
    if name == "ldl":
        return
    x = torch.randn(2, 128, 8, 8)
    layer = nn.Conv2d(128, 128, 3, groups=2)
    whole = operations(layer, x)
    symmetrize(layer, name)
    assert operations(layer, x) == whole * fraction


# ---- errors ------------------------------------------------------------------------------------


def test_small_layers_use_their_whole_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("symrnn.layers.PAYS", 2**15)

    def multiplications(side: int, fold: bool | None) -> int:
        layer = nn.Linear(side, side)
        symmetrize(layer, "block4")
        layer.fold = fold
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, side))
        return counter.get_total_flops() // 2

    assert multiplications(180, None) == multiplications(180, False) == 180**2
    assert multiplications(184, None) == multiplications(184, True) == 92**2


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            nn.Linear(8, 8),
            (3, 7),
            r"input has 7 channels in shape \[3, 7\]; expected 8",
        ),
        (
            nn.Conv2d(8, 8, 3),
            (2, 16, 5, 5),
            r"input has 16 channels in shape \[2, 16, 5, 5\]; expected 8",
        ),
        (
            nn.Conv1d(8, 8, 3, groups=2),
            (4, 5),
            r"input has 4 channels in shape \[4, 5\]; expected 8",
        ),
    ],
)
def test_another_number_of_channels(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    layer = copy.deepcopy(layer)
    symmetrize(layer, "block4")
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        layer(torch.randn(shape))


@convolutions
@pytest.mark.parametrize("more", [-1, 2])
def test_another_number_of_dimensions(kind: Any, more: int) -> None:
    layer, plain = pair(kind(8, 8, 3), "block4")
    x = torch.randn([8] * (SPATIAL[kind] + 1 + more))
    with pytest.raises(RuntimeError) as expected:
        plain(x)
    with pytest.raises(RuntimeError) as found:
        layer(x)
    assert str(found.value) == str(expected.value)


# ---- as modules of PyTorch ---------------------------------------------------------------------


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 16),
        nn.Linear(16, 16),
        nn.Linear(16, 2),
    )
    return model.double()


@pytest.mark.parametrize("name", ["avg8", "chunk4:rows", "tri"])
def test_export(name: str) -> None:
    model = network()
    symmetrize(model, name)
    x = draw(4, 3, 6, 6)
    batch = torch.export.Dim("batch", min=2, max=64)
    other = copy.deepcopy(model)  # a program goes on using the parameters that it was made with
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    for x in (draw(7, 3, 6, 6), draw(2, 3, 6, 6)):
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-12)
    unsymmetrize(other)
    torch.testing.assert_close(program.module()(x), other(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "backend"), [("avg4", "aot_eager"), ("block16", "eager")])
def test_compile(name: str, backend: str) -> None:
    torch.compiler.reset()
    model = network()
    symmetrize(model, name)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = draw(4, 3, 6, 6)
    found, expected = compiled(x), model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.sum(), parameters) for out in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SOME)
def test_an_ensemble_under_vmap(name: str) -> None:
    models = [network() for _ in range(3)]
    for model in models:
        symmetrize(model, name)
    parameters, buffers = stack_module_state(models)
    x = draw(2, 3, 6, 6)

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x,))

    found = vmap(run)(parameters, buffers)
    expected = torch.stack([model(x) for model in models])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_weight_as_others_read_it() -> None:
    layer, plain = pair(nn.Linear(6, 6, dtype=torch.float64), "tri8")
    weight = layer.weight
    assert weight.shape == (6, 6)
    assert torch.equal(weight, weight.T)
    layer.weight = plain.weight.detach()  # assigned: the nearest
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-15)
    with parametrize.cached():
        assert layer.weight is layer.weight
        check(layer, plain, draw(3, 6))


def test_a_plain_parametrization_does_not_fold() -> None:
    """As for weights that someone has parametrized by other means, or twice."""
    layer, plain = pair(nn.Linear(8, 8, dtype=torch.float64), "block4")
    before = layer.weight.detach().clone()

    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    parametrize.register_parametrization(layer, "weight", Doubled())
    x = draw(3, 8)
    expected = x @ (2 * before).T + plain.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert isinstance(layer.parametrizations.weight[0], SymmetricTensor)


@pytest.mark.parametrize("name", SOME)
def test_equal_but_for_the_cost_at_a_real_size(name: str) -> None:
    layer, plain = pair(nn.Conv2d(96, 96, 3, padding=1), name)
    x = torch.randn(2, 96, 9, 9)
    found, exact = layer(x), copy.deepcopy(layer).double()(x.double())
    # 864 products of size 1/√864 · 1, added in another order.
    atol = torch.finfo(torch.float32).eps * math.sqrt(864)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=atol)
    expected = functional_call(plain, {"weight": layer.weight}, (x,))
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * atol)
