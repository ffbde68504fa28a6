"""What holds for every form: its name, its life as a module, and its errors."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from symrnn import get_symmetry, list_symmetries
from symrnn.symmetry import Symmetry, check_symmetry_name, numel_of
from symrnn.symmetry.orbits import find_orbits

CHUNKS = [f"chunk{k}" for k in (2, 4, 8, 16, 32, 64)]
NAMES = [
    "tri", "avg", "avg:full", "tri:diag16", "avg:diag16", "avg:skew8", "tri4", "avg4", "tri8",
    "avg8", "block4", "block16",
    *CHUNKS, *(f"{chunk}:rows" for chunk in CHUNKS), "eigen", "ldl",
]  # fmt: skip
FORMS = [*NAMES, "avg:diag2", "avg:skew1", "eigen:2"]
# One of each class, of orbits with weights and without, of maps of either kind.
SOME = [
    "tri", "avg", "avg:full", "tri8", "block16", "chunk4:rows", "avg:diag2", "avg:skew1", "eigen:2",
    "ldl",
]  # fmt: skip


class Product(nn.Module):
    """A layer that expands its weight itself."""

    def __init__(self, symmetry: Symmetry) -> None:
        super().__init__()
        self.symmetry = symmetry

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return x @ self.symmetry(v).mT


def test_names() -> None:
    assert list_symmetries() == NAMES
    for name in FORMS:
        s = get_symmetry(name, 4)
        assert (s.name, s.side) == (name, 4)
        assert repr(s) == f"{type(s).__name__}({name!r}, 4, numel={s.numel})"
        check_symmetry_name("symm", name)
    check_symmetry_name("symm", "none", "none")
    with pytest.raises(ValueError, match=r"^symm should be one of none, tri, .*, got: 'both'$"):
        check_symmetry_name("symm", "both", "none")
    with pytest.raises(ValueError, match=r"^name should be one of tri, .*, got: 'both'$"):
        get_symmetry("both", 4)


@pytest.mark.parametrize("name", FORMS)
def test_the_number_of_parameters_without_the_form(name: str) -> None:
    for side in [*range(2, 36), 64, 65]:
        assert numel_of(name, side) == get_symmetry(name, side).numel
    if name != "eigen:2":
        assert numel_of(name, 1) == get_symmetry(name, 1).numel
    assert numel_of(name, 2**40) > 2**40  # whose map would have 2⁸⁰ entries


def test_a_side_whose_positions_have_no_numbers() -> None:
    for side in (46_341, 2**70):
        with pytest.raises(ValueError, match=rf"^side should be at most 46,340, got: {side:,}$"):
            get_symmetry("tri", side)


@pytest.mark.parametrize("name", FORMS)
def test_as_a_parametrization(name: str) -> None:
    layer = nn.Linear(5, 5, dtype=torch.float64)
    s = get_symmetry(name, 5)
    exact = get_symmetry(name, 5)
    before = exact.expand(exact.project(layer.weight.detach()))
    parametrize.register_parametrization(layer, "weight", s)
    assert torch.equal(layer.weight, before)
    assert layer.parametrizations.weight.original.numel() == s.numel
    assigned = torch.randn(5, 5, dtype=torch.float64)
    layer.weight = assigned
    assert torch.equal(layer.weight, exact.expand(exact.project(assigned)))
    assert torch.equal(parametrized_again(layer).weight, layer.weight)
    layer(torch.randn(2, 5, dtype=torch.float64)).sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert gradient.shape == (s.numel,)
    assert gradient.abs().max() > 0
    assert sorted(layer.state_dict()) == ["bias", "parametrizations.weight.original"]


def parametrized_again(layer: nn.Linear) -> nn.Linear:
    """A new layer of the same form with the old one's state."""
    new = nn.Linear(5, 5, dtype=torch.float64)
    form = layer.parametrizations.weight[0]
    parametrize.register_parametrization(new, "weight", get_symmetry(form.name, 5))
    new.load_state_dict(layer.state_dict())
    return new


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_copies_and_pickles_are_equal_and_stay_on_their_device(name: str, device: str) -> None:
    s = get_symmetry(name, 6).to(device)
    file = io.BytesIO()
    torch.save(s, file)
    file.seek(0)
    copies = [copy.deepcopy(s), pickle.loads(pickle.dumps(s)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other) is type(s)
        assert (other.name, other.side, other.numel, other.deployed, other.lr_scale) == (
            s.name, s.side, s.numel, s.deployed, s.lr_scale,
        )  # fmt: skip
        assert list(other.buffers()) == []
        assert repr(other) == repr(s)
        assert other.folding == s.folding
        v, x = torch.randn(s.numel, device=device), torch.randn(6, device=device)
        assert other(v).device.type == device
        if device == "cpu":
            assert torch.equal(other(v), s(v))
            assert torch.equal(other.fold(x, v), s.fold(x, v))
    file.seek(0)
    elsewhere = torch.load(file, weights_only=False, map_location="meta")
    assert elsewhere(torch.empty(s.numel, device="meta")).device.type == "meta"


@pytest.mark.parametrize("name", FORMS)
def test_pickles_hold_no_index_maps(name: str) -> None:
    assert len(pickle.dumps(get_symmetry(name, 300))) < 4000  # a map alone has 90,000 entries


@pytest.mark.parametrize("name", FORMS)
def test_it_has_no_state_and_outlives_a_stay_on_the_meta_device(name: str) -> None:
    s, fresh = get_symmetry(name, 6), get_symmetry(name, 6)
    assert s.state_dict() == {}
    assert list(s.parameters()) == []
    s.load_state_dict({})
    s.to("meta").to_empty(device="cpu").to(torch.float16)
    v, x = torch.randn(s.numel), torch.randn(6)
    assert torch.equal(s(v), fresh(v))
    assert torch.equal(s.fold(x, v), fresh.fold(x, v))


@pytest.mark.parametrize("name", FORMS)
def test_on_the_meta_device_there_are_shapes(name: str) -> None:
    with torch.device("meta"):
        s = get_symmetry(name, 6)
        v, w, x = torch.empty(2, s.numel), torch.empty(2, 6, 6), torch.empty(2, 6)
    found = [s.expand(v), s.project(w), s.fold(x, v[0])]
    assert [t.shape for t in found] == [(2, 6, 6), (2, s.numel), (2, 6)]
    assert {t.device.type for t in found} == {"meta"}
    v, real = torch.randn(s.numel), get_symmetry(name, 6)
    assert torch.equal(s.to_empty(device="cpu")(v), real(v))


@pytest.mark.parametrize("name", SOME)
def test_in_torchscript(name: str) -> None:
    layer = Product(get_symmetry(name, 6))
    scripted = torch.jit.script(layer)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in [(), (2,)]:
        x, v = torch.randn(*batch, 3, 6), torch.randn(*batch, layer.symmetry.numel)
        assert torch.equal(scripted(x, v), layer(x, v))
        assert torch.equal(loaded(x, v), layer(x, v))
    with pytest.raises(torch.jit.Error, match=f"{name} expands"):
        scripted(x, v[..., 1:])


@pytest.mark.parametrize("name", SOME)
def test_in_an_exported_program(name: str) -> None:
    layer = Product(get_symmetry(name, 6))
    arguments = (torch.randn(3, 6), torch.randn(layer.symmetry.numel))
    exported = torch.export.export(layer, arguments).module()
    x, v = torch.randn(3, 6), torch.randn(layer.symmetry.numel)
    assert torch.equal(exported(x, v), layer(x, v))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("triangle", 4), ValueError, ["'triangle'", "eigen:R", *NAMES]),
        (("", 4), ValueError, ["''", *NAMES]),
        (("none", 4), ValueError, ["'none'", *NAMES]),
        (("Tri", 4), ValueError, ["'Tri'", *NAMES]),
        (("chunk3", 4), ValueError, ["'chunk3'", *NAMES]),
        (("tri\n", 4), ValueError, [r"'tri\n'", *NAMES]),
        ((None, 4), ValueError, ["None", *NAMES]),
        (("avg:diag", 4), ValueError, ["'avg:diag'", "avg:diagB", "tri:diagB", "avg:skewR"]),
        (("avg:diag0", 4), ValueError, ["'avg:diag0'"]),
        (("avg4:diag2", 4), ValueError, ["'avg4:diag2'"]),
        (("tri:skew2", 4), ValueError, ["'tri:skew2'", "avg:skewR (R planes)"]),
        (("avg:skew", 4), ValueError, ["'avg:skew'"]),
        (("eigen:", 4), ValueError, ["'eigen:'", "eigen:R"]),
        (("eigen:0", 4), ValueError, ["'eigen:0'", "eigen:R"]),
        (("eigen:02", 4), ValueError, ["'eigen:02'", "eigen:R"]),
        (("eigen:-1", 4), ValueError, ["'eigen:-1'", "eigen:R"]),
        (("eigen:1.5", 4), ValueError, ["'eigen:1.5'", "eigen:R"]),
        (("eigen:2\n", 4), ValueError, [r"'eigen:2\n'", "eigen:R"]),
        (("eigen:5", 4), ValueError, ["'eigen:5'", "rank 5", "side 4", "1 to 4"]),
        (("avg", 0), ValueError, ["side", "at least 1", "0"]),
        (("ldl", -1), ValueError, ["side", "at least 1", "-1"]),
        (("avg", 2.0), TypeError, ["side", "int", "float"]),
        (("eigen", True), TypeError, ["side", "int", "bool"]),
        (("chunk2", "4"), TypeError, ["side", "int", "str"]),
    ],
)
def test_errors_of_get_symmetry(
    arguments: tuple[Any, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        get_symmetry(*arguments)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("name", FORMS)
def test_errors_of_shapes_name_what_came_and_what_was_wanted(name: str) -> None:
    s = get_symmetry(name, 3)
    n = s.numel
    wrong: list[tuple[Any, tuple[Tensor, ...], tuple[int, ...]]] = [
        (s.expand, (torch.zeros(n + 1),), (n + 1, n)),
        (s.expand, (torch.zeros(()),), (n,)),
        (s.project, (torch.zeros(3, 4),), (3, 4)),
        (s.project, (torch.zeros(4, 4),), (4, 3)),
        (s.project, (torch.zeros(3),), (3,)),
        (s.fold, (torch.zeros(4), torch.zeros(n)), (4, 3)),
        (s.fold, (torch.zeros(()), torch.zeros(n)), (3,)),
        (s.fold, (torch.zeros(3), torch.zeros(n - 1)), (n - 1, n)),
        (s.fold, (torch.zeros(3), torch.zeros(2, n)), (2, n)),
    ]
    if s.folding is not None:
        wrong.append((s.matrices, (torch.zeros(2, n + 1),), (2, n + 1, n)))
    for method, arguments, numbers in wrong:
        with pytest.raises(ValueError, match="has shape") as raised:
            method(*arguments)
        assert name in str(raised.value)
        assert [k for k in numbers if str(k) not in str(raised.value)] == []


@pytest.mark.parametrize("name", FORMS)
def test_maps_follow_the_numbers_of_a_state_dict(name: str) -> None:
    """Modules made on "meta" and filled from a state_dict, whose tensors take their place."""

    def make() -> nn.Module:
        layer = nn.Linear(8, 8)
        nn.utils.parametrize.register_parametrization(layer, "weight", get_symmetry(name, 8))
        return layer

    real = make()
    with torch.device("meta"):
        copied = make()
    copied.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(copied.weight, real.weight)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_made_elsewhere_than_on_the_default_device(name: str) -> None:
    with torch.device("meta"):
        s = get_symmetry(name, 8).to("cpu")
    v = torch.randn(s.numel)
    assert torch.equal(s.expand(v), get_symmetry(name, 8).expand(v))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_first_met_in_inference_mode_trains_later(name: str) -> None:
    find_orbits.cache_clear()
    with torch.inference_mode():
        s = get_symmetry(name, 7)
        s.to("cpu")
    for form in (s, get_symmetry(name, 7)):
        v = torch.randn(form.numel, requires_grad=True)
        form.expand(v).sum().backward()
        assert v.grad is not None
