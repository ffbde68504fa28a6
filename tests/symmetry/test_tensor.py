"""Weights symmetric over channels, space or both, against means over the group written out."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.nn.utils import parametrize

from symrnn import get_symmetry, list_symmetries
from symrnn.symmetry import SymmetricTensor, parameter_shape

NAMES = list_symmetries()
LINEAR = [name for name in NAMES if name not in ("avg:skew8", "eigen", "ldl")]
FOLDING = [name for name in LINEAR if get_symmetry(name, 4).folding is not None]

Shape = tuple[int, ...]
# Weights and the groups of their first axis; even sides and odd ones, up to three of space.
CHANNELS: list[tuple[Shape, int]] = [
    ((4, 4), 1),
    ((5, 5), 1),
    ((12, 4), 3),  # query, key and value
    ((1, 1), 1),
    ((4, 4, 3), 1),
    ((6, 3, 2), 2),
    ((5, 5, 3, 3), 1),
    ((8, 4, 2, 3), 2),  # a kernel need not be square for its channels to be
    ((4, 1, 3, 3), 4),  # depthwise
    ((3, 3, 2, 1, 2), 1),
    ((6, 2, 1, 2, 2), 3),
]
SPACE: list[tuple[Shape, int]] = [
    ((2, 3, 3, 3), 1),
    ((4, 4, 4, 4), 1),
    ((6, 1, 5, 5), 6),
    ((2, 3, 2, 3, 3), 1),  # of three axes the last two
    ((2, 2, 1, 1), 1),
]
BOTH: list[tuple[Shape, int]] = [
    ((4, 4, 3, 3), 1),
    ((5, 5, 4, 4), 1),
    ((6, 3, 3, 3), 2),
    ((3, 3, 2, 3, 3), 1),
    ((6, 2, 2, 3, 3), 3),
    ((3, 1, 3, 3), 3),
]
CASES = {"channel": CHANNELS, "space": SPACE, "both": BOTH}
ALL = [(axes, shape, groups) for axes, cases in CASES.items() for shape, groups in cases]
everywhere = pytest.mark.parametrize(("axes", "shape", "groups"), ALL)
# A form meets shapes through one code: all forms on one shape of each sort, some on all.
SORTS = [ALL[k] for k in (1, 5, 8, 13, 17, 20)]
SOME = ["avg", "tri8", "block4", "chunk4:rows", "ldl"]
forms_and_shapes = pytest.mark.parametrize(
    ("name", "axes", "shape", "groups"),
    [
        (name, *case)
        for name in NAMES
        for case in (ALL if name in SOME else SORTS)
        if case[0] != "both" or name in LINEAR
    ],
)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def free_numbers(form: SymmetricTensor) -> Tensor:
    return form.right_inverse(draw(*form.shape))


@forms_and_shapes
def test_the_shape_of_the_parameters_without_the_form(
    name: str, axes: str, shape: Shape, groups: int
) -> None:
    form = SymmetricTensor(name, shape, axes, groups)
    wanted = form.right_inverse(torch.zeros(shape)).shape
    assert parameter_shape(name, shape, axes, groups) == wanted


def matrices(w: Tensor, axes: str, groups: int) -> Tensor:
    """The square matrices of one kind (..., N, N), channels or space; a copy."""
    if axes == "space":
        return w.clone()
    blocks = torch.stack(w.chunk(groups))  # (groups, N, N, *kernel)
    return blocks.permute(0, *range(3, blocks.dim()), 1, 2)


def weight_of(blocks: Tensor, axes: str) -> Tensor:
    """The inverse of :func:`matrices`."""
    if axes == "space":
        return blocks
    w = blocks.permute(0, -2, -1, *range(1, blocks.dim() - 2))
    return torch.cat(list(w))


def mean_of(name: str, w: Tensor) -> Tensor:
    """The mean of matrices (..., N, N) over the group; the side may be odd but for chunk2."""
    if name in ("tri", "avg", "avg:full"):
        return (w + w.mT) / 2
    if name == "block4":
        return (w + w.flip(-1) + w.flip(-2) + w.flip(-1, -2)) / 4
    assert name == "chunk2"
    assert w.size(-1) % 2 == 0
    return (w + w.roll(w.size(-1) // 2, -1)) / 2


def group_mean(name: str, w: Tensor, axes: str, groups: int) -> Tensor:
    for kind in ("channel", "space") if axes == "both" else (axes,):
        w = weight_of(mean_of(name, matrices(w, kind, groups)), kind)
    return w


def can_halve(shape: Shape, axes: str) -> bool:
    sides = {"channel": shape[1:2], "space": shape[-1:], "both": (shape[1], shape[-1])}[axes]
    return all(side % 2 == 0 for side in sides)


@everywhere
@pytest.mark.parametrize("name", ["tri", "avg", "avg:full", "block4", "chunk2"])
def test_the_nearest_weight_is_the_mean_over_the_group(
    name: str, axes: str, shape: Shape, groups: int
) -> None:
    if name == "chunk2" and not can_halve(shape, axes):
        return
    form = SymmetricTensor(name, shape, axes, groups)
    w = draw(*shape)
    nearest = form(form.right_inverse(w))
    expected = group_mean(name, w, axes, groups)
    torch.testing.assert_close(nearest, expected, rtol=0, atol=1e-14)
    assert nearest.is_contiguous()


@everywhere
def test_weights_are_left_as_they_are_by_the_generators(
    axes: str, shape: Shape, groups: int
) -> None:
    """Exactly: the entries of an orbit are one number."""
    moves: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "tri": [lambda m: m.mT],
        "tri4": [lambda m: m.mT, lambda m: m.flip(-1, -2).mT],
        "tri8": [lambda m: m.mT, lambda m: m.flip(-1)],
        "block4": [lambda m: m.flip(-1), lambda m: m.flip(-2)],
    }
    for name, generators in moves.items():
        form = SymmetricTensor(name, shape, axes, groups)
        w = form(draw(*free_numbers(form).shape))
        assert w.shape == shape
        for kind in ("channel", "space") if axes == "both" else (axes,):
            blocks = matrices(w, kind, groups)
            for move in generators:
                assert torch.equal(move(blocks), blocks)


@forms_and_shapes
def test_projection_is_idempotent_and_leaves_a_residual_at_right_angles(
    name: str, axes: str, shape: Shape, groups: int
) -> None:
    form = SymmetricTensor(name, shape, axes, groups)
    w = draw(*shape)
    v = form.right_inverse(w)
    nearest = form(v)
    assert nearest.shape == shape
    # Without pivots, LDL divides by minors that chance has made small.
    atol = 1e-8 if name == "ldl" else 1e-13
    again = form(form.right_inverse(nearest))
    torch.testing.assert_close(again, nearest, rtol=0, atol=atol)
    residual = w - nearest
    # To all weights of a linear form; to the nearest itself and its multiples for the others.
    others = [nearest]
    if name in LINEAR:
        others += [form(draw(*v.shape)) for _ in range(3)]
    for other in others:
        assert abs((residual * other).sum()) < 10 * atol * max(1, other.norm()) * w.norm()


@pytest.mark.parametrize("axes", ["channel", "space"])
def test_eigen_takes_the_largest_eigenvalues_of_every_matrix(axes: str) -> None:
    form = SymmetricTensor("eigen:2", (8, 4, 4, 4), axes, groups=2)
    w = draw(8, 4, 4, 4)
    blocks = matrices(w, axes, 2)
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    smallest = values.abs().argsort(-1)[..., :2]
    values = values.scatter(-1, smallest, 0.0)
    expected = weight_of(vectors * values.unsqueeze(-2) @ vectors.mT, axes)
    nearest = form(form.right_inverse(w))
    torch.testing.assert_close(nearest, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("axes", "shape", "groups", "numbers"),
    [
        ("channel", (4, 4), 1, (10,)),
        ("channel", (12, 4), 3, (3, 10)),
        ("channel", (4, 4, 5), 1, (5, 10)),
        ("channel", (8, 4, 2, 3), 2, (2, 2, 3, 10)),
        ("channel", (4, 4, 2, 3, 5), 1, (2, 3, 5, 10)),
        ("space", (2, 3, 4, 4), 1, (2, 3, 10)),
        ("space", (6, 3, 4, 4), 2, (6, 3, 10)),
        ("space", (2, 3, 5, 4, 4), 1, (2, 3, 5, 10)),
        ("both", (4, 4, 3, 3), 1, (6, 10)),
        ("both", (8, 4, 3, 3), 2, (2, 6, 10)),
        ("both", (8, 4, 5, 3, 3), 2, (2, 5, 6, 10)),
    ],
)
def test_the_free_numbers_lie_as_documented(
    axes: str, shape: Shape, groups: int, numbers: Shape
) -> None:
    form = SymmetricTensor("tri", shape, axes, groups)
    v = form.right_inverse(draw(*shape))
    assert v.shape == numbers
    assert v.is_contiguous()
    assert form.numel == form.deployed == v.numel()
    # Number by number: an orbit's first entry in row-major order, of the right matrix.
    w = form(v)
    if axes == "channel":
        first = matrices(w, "channel", groups)[..., 0, 1]
        assert torch.equal(v[..., 1].reshape(first.shape), first)
    if axes == "space":
        assert torch.equal(v[..., 1], w[..., 0, 1])
    if axes == "both":
        first = matrices(w, "channel", groups)[..., 0, 2, 0, 1]  # space, then channels
        assert torch.equal(v[..., 2, 1].reshape(first.shape), first)


def formula(name: str, side: int) -> tuple[int, int]:
    """Numbers trained for a matrix of an even side, and different ones in it, as tabulated."""
    half = side // 2
    triangle = side * (side + 1) // 2
    if name.startswith("chunk"):
        pieces = int(name.removeprefix("chunk").removesuffix(":rows"))
        return (side**2 // pieces,) * 2
    count = {
        **dict.fromkeys(["tri", "avg", "ldl", "avg:full"], triangle),
        **dict.fromkeys(["tri4", "avg4"], side * (side + 2) // 4),
        **dict.fromkeys(["tri8", "avg8"], half * (half + 1) // 2),
        "block4": half**2,
        "block16": (side // 4) ** 2,
        "eigen": side * half + half,
        **dict.fromkeys(["tri:diag16", "avg:diag16"], triangle + side * 15 // 2),
        "avg:skew8": triangle + 16 * side,
    }[name]
    most = triangle if name == "eigen" else side**2
    return {"avg:full": side**2}.get(name, count), min(count, most)


@pytest.mark.parametrize("name", NAMES)
def test_counts(name: str) -> None:
    training, deployed = formula(name, 64)
    points = {(64, 64): 1, (192, 64): 3, (64, 64, 5): 5, (128, 64, 3, 2): 12}
    for shape, factor in points.items():
        form = SymmetricTensor(name, shape, groups=shape[0] // 64)
        assert (form.numel, form.deployed) == (factor * training, factor * deployed)
    form = SymmetricTensor(name, (3, 2, 5, 64, 64), "space")
    assert (form.numel, form.deployed) == (30 * training, 30 * deployed)
    if name in LINEAR:
        form = SymmetricTensor(name, (128, 64, 3, 64, 64), "both", groups=2)
        assert (form.numel, form.deployed) == (6 * training**2, 6 * deployed**2)


@forms_and_shapes
def test_counts_are_those_of_the_numbers_there_are(
    name: str, axes: str, shape: Shape, groups: int
) -> None:
    """Odd sides too, and those that a number of chunks does not divide."""
    if name not in LINEAR:
        return
    form = SymmetricTensor(name, shape, axes, groups)
    v = free_numbers(form)
    assert form.numel == v.numel()
    assert form.deployed == len(form(draw(*v.shape)).unique())  # chance makes all differ


@pytest.mark.parametrize(
    ("name", "axes", "scale"),
    [
        ("tri", "channel", 10 / 16),
        ("tri", "space", 6 / 9),
        ("tri", "both", 10 / 16 * 6 / 9),
        ("block4", "both", 1 / 4 * 4 / 9),
        ("chunk2", "channel", 1 / 2),
        ("tri:diag2", "channel", 12 / 16),
        *((name, axes, 1.0) for name in ("avg", "avg:full", "avg:diag2") for axes in CASES),
        ("avg:skew8", "channel", 1.0),
        ("eigen", "channel", 1.0),
        ("ldl", "space", 1.0),
    ],
)
def test_learning_rates_are_scaled_by_the_mean_orbit(name: str, axes: str, scale: float) -> None:
    form = SymmetricTensor(name, (8, 4, 3, 3), axes, groups=2)
    assert form.lr_scale == pytest.approx(scale, rel=1e-15)
    if scale != 1:
        assert form.lr_scale == pytest.approx(form.numel / (8 * 4 * 9), rel=1e-15)


CONVOLUTIONS = {2: F.linear, 3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@pytest.mark.parametrize("axes", ["channel", "both"])
@pytest.mark.parametrize("name", FOLDING)
def test_folded_products_equal_those_by_the_whole_weight(name: str, axes: str) -> None:
    for shape, groups in CASES[axes]:
        form = SymmetricTensor(name, shape, axes, groups)
        if len(shape) == 2 and groups > 1:  # stacked matrices, which no operator takes
            continue
        if shape[1] == 1:  # depthwise
            assert form.folding is None
            continue
        v = free_numbers(form)
        product = CONVOLUTIONS[len(shape)]
        side, dim = shape[1], 1 - len(shape) if len(shape) > 2 else -1
        x = draw(2, groups * side, *[5] * (len(shape) - 2))
        if len(shape) > 2:
            product = partial(product, groups=groups, padding=1)
        inputs = form.folding.inputs(x.unflatten(dim, (groups, side)), dim)
        small = form.matrices(v)
        cost = form.folding.cost(side)
        assert sum(w.numel() for w in small) == pytest.approx(cost * form(v).numel())
        products = [
            product(part.flatten(dim - 1, dim), w).unflatten(dim, (groups, -1))
            for part, w in zip(inputs, small, strict=True)
        ]
        folded = form.folding.outputs(products, side, dim).flatten(dim - 1, dim)
        torch.testing.assert_close(folded, product(x, form(v)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FOLDING)))
def test_forms_that_have_nothing_to_save_do_not_fold(name: str) -> None:
    form = SymmetricTensor(name, (4, 4, 3, 3))
    assert form.folding is None
    with pytest.raises(ValueError, match=f"^{name} does not fold$"):
        form.matrices(free_numbers(form))


def test_space_alone_does_not_fold() -> None:
    form = SymmetricTensor("block4", (4, 4, 3, 3), "space")
    assert form.folding is None
    with pytest.raises(ValueError, match=r"^block4 over space alone does not fold$"):
        form.matrices(free_numbers(form))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("axes", "shape", "groups"),
    [("channel", (6, 3, 2), 2), ("space", (2, 1, 3, 3), 1), ("both", (4, 2, 2, 2), 2)],
)
def test_gradients(name: str, axes: str, shape: Shape, groups: int) -> None:
    """Along a random direction: test_linear.py has those of the matrices number by number."""
    if axes == "both" and name not in LINEAR:
        return
    form = SymmetricTensor(name, shape, axes, groups)
    v = draw(*free_numbers(form).shape).requires_grad_()
    assert gradcheck(form, (v,), check_forward_ad=True, fast_mode=True)
    if form.folding is not None:
        assert gradcheck(form.matrices, (v,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axes", CASES)
@pytest.mark.parametrize("name", ["tri", "avg8", "block16"])
def test_precisions(name: str, axes: str, dtype: torch.dtype) -> None:
    form = SymmetricTensor(name, (8, 4, 3, 3), axes, groups=2)
    w = draw(8, 4, 3, 3)
    exact = form(form.right_inverse(w))
    form = form.to(dtype)  # its maps are whole numbers, and stay so
    v = form.right_inverse(w.to(dtype))
    assert v.dtype == form(v).dtype == dtype
    # Sums of at most 16 · 8 entries, their sizes' roots, and the rounding of w: below 2 for each.
    atol = torch.finfo(dtype).eps * 8
    torch.testing.assert_close(form(v).double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("shape", "groups", "axes", "message"),
    [
        ((4, 5), 1, "channel", "shape [4, 5] has no square matrices of channels"),
        ((8, 4, 3, 3), 1, "channel", "shape [8, 4, 3, 3] has no square matrices of channels"),
        ((8, 4), 3, "channel", "shape [8, 4] in 3 groups has no square matrices of channels"),
        ((4, 4), 2, "both", "shape [4, 4] in 2 groups has no square matrices of channels"),
        ((4,), 1, "channel", "shape [4] has no square matrices of channels"),
        ((), 1, "channel", "shape [] has no square matrices of channels"),
        ((0, 0), 1, "channel", "shape [0, 0] has no square matrices of channels"),
        ((4, 4), 0, "channel", "shape [4, 4] in 0 groups has no square matrices of channels"),
        ((4, 4, 3, 2), 1, "space", "shape [4, 4, 3, 2] has no square kernel"),
        ((4, 4, 3, 3, 2), 1, "both", "shape [4, 4, 3, 3, 2] has no square kernel"),
        ((3, 3, 3), 1, "space", "shape [3, 3, 3] has no square kernel"),
        ((3, 3), 1, "space", "shape [3, 3] has no square kernel"),
        ((3, 3, 0, 0), 1, "space", "shape [3, 3, 0, 0] has no square kernel"),
        ((3, 3), 1, "time", "axes should be one of channel, space, both, got: 'time'"),
    ],
)
def test_what_is_not_square_is_refused(shape: Shape, groups: int, axes: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SymmetricTensor("tri", shape, axes, groups)


@pytest.mark.parametrize("name", ["eigen", "eigen:1", "ldl", "avg:skew1"])
def test_both_axes_want_a_linear_form(name: str) -> None:
    with pytest.raises(ValueError, match=f'^axes="both" wants a linear form, got: {name!r}$'):
        SymmetricTensor(name, (4, 4, 3, 3), "both")


def test_unknown_names_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^name should be one of tri, .*, got: 'trio'$"):
        SymmetricTensor("trio", (4, 4))
    form = SymmetricTensor("tri", (4, 4, 3))
    for shape in ((4, 4), (4, 4, 5), (8, 4, 3)):
        message = f"w has shape {shape}; this form has (4, 4, 3)"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            form.right_inverse(draw(*shape))


@everywhere
def test_its_arguments_make_it_again(axes: str, shape: Shape, groups: int) -> None:
    form = SymmetricTensor("avg4", shape, axes, groups)
    spec = json.loads(json.dumps(form.spec()))
    assert spec.pop("kind") == "tensor"
    again = SymmetricTensor(**spec)
    assert again.spec() == form.spec()
    w = draw(*shape)
    assert torch.equal(again(form.right_inverse(w)), form(again.right_inverse(w)))


def test_repr() -> None:
    assert SymmetricTensor("tri", (4, 4)).extra_repr() == "'tri', [4, 4], axes='channel', numel=10"
    assert SymmetricTensor("block4", (8, 4, 3, 3), "both", 2).extra_repr() == (
        "'block4', [8, 4, 3, 3], axes='both', groups=2, numel=32"
    )


@everywhere
@pytest.mark.parametrize("name", ["tri", "avg8", "chunk4", "ldl"])
def test_copies_and_pickles(name: str, axes: str, shape: Shape, groups: int) -> None:
    if axes == "both" and name not in LINEAR:
        return
    form = SymmetricTensor(name, shape, axes, groups)
    v = free_numbers(form)
    assert form.state_dict() == {}
    assert list(form.parameters()) == []
    file = io.BytesIO()
    torch.save(form, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(form), pickle.loads(pickle.dumps(form)), loaded):
        assert torch.equal(other(v), form(v))
        assert other.spec() == form.spec()


def test_many_forms_over_one_shape_share_nothing_that_changes() -> None:
    form = SymmetricTensor("tri", (4, 4))
    other = copy.deepcopy(form).to("meta")
    assert other(torch.empty(10, device="meta")).device.type == "meta"
    assert form(draw(10)).device.type == "cpu"


def uniform(t: Tensor) -> Tensor:
    return t.uniform_(-1, 1)


@everywhere
def test_starting_values(axes: str, shape: Shape, groups: int) -> None:
    """Raw numbers are drawn as entries; ``avg`` is the mean of a full weight drawn so."""
    form = SymmetricTensor("block4", shape, axes, groups)
    v = free_numbers(form)
    torch.manual_seed(1)
    form.initialize(v, uniform)
    torch.manual_seed(1)
    assert torch.equal(v, uniform(torch.empty_like(v)))
    for name in ("avg", "avg:full"):
        form = SymmetricTensor(name, shape, axes, groups)
        v = free_numbers(form)
        passed: list[int] = []

        def counted(t: Tensor, passed: list[int] = passed) -> Tensor:
            passed.append(t.numel())
            return t.fill_(1.0)

        form.initialize(v, counted)
        assert passed == [torch.Size(shape).numel()]
        torch.testing.assert_close(form(v), torch.ones(shape, dtype=torch.float64))
        form.initialize(v, uniform)
        w = form(v)
        torch.testing.assert_close(w, group_mean("avg", w, axes, groups))
        assert w.abs().max() <= 1


def test_works_as_a_parametrization() -> None:
    layer = torch.nn.Conv2d(8, 8, 3, groups=2, dtype=torch.float64)
    old = layer.weight.detach().clone()
    form = SymmetricTensor("tri", old.shape, "both", 2)
    parametrize.register_parametrization(layer, "weight", form)
    expected = group_mean("tri", old, "both", 2)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-14)
    assert layer.parametrizations.weight.original.shape == (2, 6, 10)
    layer.weight = old + 1
    torch.testing.assert_close(layer.weight.detach(), expected + 1, rtol=0, atol=1e-14)
