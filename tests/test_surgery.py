"""Surgery on models: weights made symmetric and plain again, softened, counted and grouped."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from symrnn import (
    ParameterCount,
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    count_parameters,
    get_symmetry,
    list_symmetries,
)
from symrnn.surgery import (
    Where,
    harden,
    parameter_groups,
    soft_symmetry_penalty,
    symmetrize,
    unsymmetrize,
)
from symrnn.symmetry import SymmetricTensor

# ---- counts of parameters, worked out by hand --------------------------------------------------

# One layer of 200 units: 4 gates of 200 × 200 input weights, as many hidden ones, 8 × 200 biases.
INPUT, FULL, BIASES = 160_000, 160_000, 1_600
SYMMETRIC = 4 * 200 * 201 // 2  # 80,400


@pytest.mark.parametrize(
    ("options", "training", "recurrent"),
    [
        ({"symm": "none"}, INPUT + FULL + BIASES, FULL),
        ({"symm": "avg"}, INPUT + SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "tri"}, INPUT + SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "avg", "symm_hh": "if"}, INPUT + 40_200 + 80_000 + BIASES, 40_200 + 80_000),
        ({"symm": "avg", "symm_hh": ""}, INPUT + FULL + BIASES, FULL),
        ({"symm": "tri", "symm_ih": "ifgo"}, 2 * SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "avg", "symm_hh": "", "symm_ih": "g"}, 120_000 + 20_100 + FULL + BIASES, FULL),
        ({"symm": "avg", "bias": False}, INPUT + SYMMETRIC, SYMMETRIC),
        ({"symm": "avg", "num_layers": 2}, 2 * (INPUT + SYMMETRIC + BIASES), 2 * SYMMETRIC),
        (
            {"symm": "avg", "num_layers": 2, "bidirectional": True},
            2 * (INPUT + SYMMETRIC + BIASES) + 2 * (2 * INPUT + SYMMETRIC + BIASES),
            4 * SYMMETRIC,
        ),
        (
            {"symm_hh": "", "proj_size": 50},
            INPUT + 40_000 + BIASES + 50 * 200,
            40_000,
        ),
    ],
)
def test_sym_lstm(options: dict[str, Any], training: int, recurrent: int) -> None:
    lstm = SymLSTM(200, 200, **options)
    assert count_parameters(lstm) == ParameterCount(training, training, recurrent)
    assert training == sum(p.numel() for p in lstm.parameters())


@pytest.mark.parametrize("module", [SymLSTM, SymLSTMCell])
def test_avg_full_trains_the_full_matrices_and_ships_the_orbits(module: type[nn.Module]) -> None:
    assert count_parameters(module(200, 200, symm="avg:full")) == ParameterCount(
        training=INPUT + FULL + BIASES,
        deployed=INPUT + SYMMETRIC + BIASES,
        recurrent=SYMMETRIC,
    )
    mixed = module(200, 200, symm="avg:full", symm_hh="i", symm_ih="fo")
    assert count_parameters(mixed) == ParameterCount(
        training=INPUT + FULL + BIASES,
        deployed=(80_000 + 40_200) + (120_000 + 20_100) + BIASES,
        recurrent=120_000 + 20_100,
    )


@pytest.mark.parametrize(
    ("hidden", "plain", "symmetric"), [(200, 4_653_200, 4_494_000), (650, 19_780_400, 18_093_000)]
)
def test_the_language_models_of_the_recipes(hidden: int, plain: int, symmetric: int) -> None:
    """10,000 words, embedding and decoder of their own, two layers; Zaremba's small and medium."""
    for symm, expected in (("none", plain), ("avg", symmetric)):
        with torch.device("meta"):
            model = nn.Sequential(
                nn.Embedding(10_000, hidden),
                SymLSTM(hidden, hidden, 2, symm=symm),
                nn.Linear(hidden, 10_000),
            )
        assert count_parameters(model).training == expected
        assert expected == 20_000 * hidden + 10_000 + 2 * (
            4 * hidden**2
            + 8 * hidden
            + 4 * (hidden**2 if symm == "none" else hidden * (hidden + 1) // 2)
        )


def test_parameters_that_are_shared_count_once() -> None:
    lstm = SymLSTM(20, 20, symm="avg:full")
    once = count_parameters(lstm)
    assert count_parameters(nn.ModuleList([lstm, lstm])) == once
    other = SymLSTM(20, 20, symm="avg:full")
    other.weight_hh_l0_avg_full = lstm.weight_hh_l0_avg_full
    both = count_parameters(nn.ModuleList([lstm, other]))
    assert both == ParameterCount(
        training=2 * once.training - 1600, deployed=2 * once.deployed - 840, recurrent=840
    )
    embedding, decoder = nn.Embedding(100, 20), nn.Linear(20, 100, bias=False)
    decoder.weight = embedding.weight
    tied = nn.Sequential(embedding, lstm, decoder)
    assert count_parameters(tied).training == once.training + 2000


@pytest.mark.parametrize(("name", "training"), [("tri", 210), ("avg", 210), ("avg:full", 400)])
def test_layers_with_a_symmetric_parametrization(name: str, training: int) -> None:
    layer = nn.Linear(20, 20)
    assert count_parameters(layer) == ParameterCount(420, 420, 0)
    parametrize.register_parametrization(layer, "weight", get_symmetry(name, 20))
    assert count_parameters(nn.Sequential(layer, nn.Linear(20, 3))) == ParameterCount(
        training + 20 + 63, 210 + 20 + 63, 0
    )
    layer.requires_grad_(False)
    assert count_parameters(layer) == ParameterCount(training + 20, 230, 0)
    recurrent = nn.RNN(7, 20)
    parametrize.register_parametrization(recurrent, "weight_hh_l0", get_symmetry(name, 20))
    assert count_parameters(recurrent) == ParameterCount(140 + training + 40, 140 + 210 + 40, 210)


def test_plain_recurrent_layers() -> None:
    assert count_parameters(nn.LSTM(7, 20, 2, bidirectional=True)) == ParameterCount(
        *[2 * (4 * 20 * (7 + 20) + 160) + 2 * (4 * 20 * (40 + 20) + 160)] * 2, 4 * 1600
    )
    assert count_parameters(nn.GRUCell(7, 20)) == ParameterCount(1740, 1740, 1200)
    assert count_parameters(nn.Linear(3, 2)) == ParameterCount(8, 8, 0)
    assert count_parameters(nn.Identity()) == ParameterCount(0, 0, 0)


# ---- symmetrising: which weights ---------------------------------------------------------------


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def network() -> nn.Sequential:
    """Of every kind a weight that can be symmetric and one that cannot."""
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 6, 3, padding=1),
            mix=nn.Conv2d(6, 6, 3, padding=1),
            grouped=nn.Conv2d(6, 6, 1, groups=2),
            depthwise=nn.Conv2d(6, 6, 3, padding=1, groups=6),
            act=nn.Tanh(),
            flat=nn.Flatten(2),
            along=nn.Conv1d(6, 6, 2),
            narrow=nn.Linear(8, 6),
            square=nn.Linear(6, 6),
            lstm=LastOutput(nn.LSTM(6, 6, 2, batch_first=True)),
            gru=LastOutput(nn.GRU(6, 5, bidirectional=True)),
            head=nn.Linear(10, 2),
        )
    )
    return model.double()


class LastOutput(nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


IMAGE = (2, 3, 3, 3)  # 9 positions, of which the convolution along them leaves 8

# Blocks of 16 are whole matrices here.
FORMS = [name for name in list_symmetries() if "diag" not in name] + ["tri:diag2", "avg:diag2"]
SQUARE = ["mix.weight", "grouped.weight", "along.weight", "square.weight"]
LSTM = ["lstm.layer.weight_hh_l0", "lstm.layer.weight_hh_l1"]
LSTM_INPUT = ["lstm.layer.weight_ih_l0", "lstm.layer.weight_ih_l1"]
GRU = ["gru.layer.weight_hh_l0", "gru.layer.weight_hh_l0_reverse"]


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[type[nn.Module]]]:
    """The state and the types of a model, to be compared with later."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, [type(part) for part in model.modules()]


def same(a: tuple[dict[str, Tensor], list[Any]], b: tuple[dict[str, Tensor], list[Any]]) -> bool:
    return (
        a[1] == b[1]
        and list(a[0]) == list(b[0])
        and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    )


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, [*SQUARE, *LSTM, *GRU]),
        ("mix", ["mix.weight"]),
        ("mix.weight", ["mix.weight"]),
        ("*.layer", [*LSTM, *GRU]),
        ("lstm.*", LSTM),
        ("lstm.layer.weight_ih*", LSTM_INPUT),
        ("lstm.layer.weight_hh_l?", LSTM),
        ("[ms]*[xe]", ["mix.weight", "square.weight"]),
        (nn.Conv1d, ["along.weight"]),
        (nn.LSTM, LSTM),
        ((nn.Conv1d, nn.GRU), ["along.weight", *GRU]),
        (nn.RNNBase, [*LSTM, *GRU]),
        (lambda name, module: "mix" in name, ["mix.weight"]),
        (
            lambda name, module: isinstance(module, nn.LSTM) or name == "square.weight",
            ["square.weight", LSTM_INPUT[0], LSTM[0], LSTM_INPUT[1], LSTM[1]],
        ),
    ],
)
def test_where_names_weights(where: Where | None, names: list[str]) -> None:
    model = network()
    old = dict(model.named_parameters())
    report = symmetrize(model, "tri", where)
    assert [change.name for change in report] == names
    for change in report:
        module, _, attribute = change.name.rpartition(".")
        w = getattr(model.get_submodule(module), attribute)
        assert change.shape == tuple(w.shape)
        blocks = w.unflatten(0, (-1, w.size(1)))
        assert torch.equal(blocks, blocks.transpose(1, 2))
    for name, parameter in model.named_parameters():
        if name in old and name not in names:
            assert parameter.numel() == old[name].numel()
    assert model(draw(*IMAGE)).shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("where", "axes", "message"),
    [
        ("stem", "channel", "stem.weight of shape [6, 3, 3, 3] cannot be symmetric: shape"),
        ("narrow*", "channel", "narrow.weight of shape [6, 8] cannot be symmetric: shape [6, 8] "),
        (nn.Linear, "channel", "narrow.weight of shape [6, 8] cannot be symmetric: shape [6, 8] "),
        ("*", "channel", "stem.weight of shape [6, 3, 3, 3] cannot be symmetric: shape [6, 3, 3"),
        ("square", "space", "square.weight of shape [6, 6] cannot be symmetric: shape [6, 6] has"),
        ("along", "both", "along.weight of shape [6, 6, 2] cannot be symmetric: shape [6, 6, 2] "),
        (
            "gru.layer.weight_ih*",
            "channel",
            "gru.layer.weight_ih_l0 of shape [15, 6] cannot be symmetric: shape [15, 6] in 3 grou",
        ),
        (
            "lstm.*",
            "space",
            "lstm.layer.weight_hh_l0 of shape [24, 6] cannot be symmetric: recurrent weights want "
            "axes=\"channel\", got: 'space'",
        ),
        (
            "*hh_l0",
            "channel",
            "lstm.layer.weight_hh_l0 cannot be symmetric without lstm.layer.weight_hh_l1: a "
            "recurrent module keeps the same form in all its layers",
        ),
        (
            "linear",
            "channel",
            "where='linear' names no weight that could be made symmetric; there are: mix.weight, "
            "grouped.weight, depthwise.weight, along.weight, square.weight, lstm.layer.weight_ih_",
        ),
        ("mix.bias", "channel", "where='mix.bias' names no weight that could be made symmetric; "),
        (nn.Embedding, "channel", "where=<class 'torch.nn.modules.sparse.Embedding'> names no we"),
        ("mix", "time", "axes should be one of channel, space, both, got: 'time'"),
    ],
)
def test_what_cannot_be_symmetric_is_refused_and_nothing_changed(
    where: Where, axes: str, message: str
) -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        symmetrize(model, "tri", where, axes)
    assert same(snapshot(model), before)


def test_forms_that_do_not_exist_are_refused_and_nothing_changed() -> None:
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"^symm should be one of tri, avg, .*, got: 'none'$"):
        symmetrize(model, "none")
    message = "grouped.weight of shape [6, 3, 1, 1] cannot be eigen:4: 'eigen:4' has rank 4"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        symmetrize(model, "eigen:4", "grouped")
    message = 'mix.weight of shape [6, 6, 3, 3] cannot be ldl: axes="both" wants a linear form'
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        symmetrize(model, "ldl", axes="both")
    assert same(snapshot(model), before)


def test_what_is_symmetric_already_is_passed_over_or_refused_by_name() -> None:
    model = network()
    symmetrize(model, "tri", "mix")
    symmetrize(model, "avg", nn.LSTM)
    before = snapshot(model)
    refused = {
        "mix": "mix.weight of shape [6, 6, 3, 3] cannot be symmetric: it has a parametrization",
        "lstm.*": "lstm.layer.weight_hh_l0 of shape [24, 6] cannot be symmetric: its module is",
    }
    for where, message in refused.items():
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            symmetrize(model, "block4", where)
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            soft_symmetry_penalty(model, where=where)
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            harden(model, where)
    assert same(snapshot(model), before)
    report = symmetrize(model, "block4")
    assert [change.name for change in report] == [*SQUARE[1:], *GRU]
    assert symmetrize(model, "block4") == ()


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ("space", ["stem.weight", "mix.weight", "depthwise.weight"]),
        ("both", ["mix.weight", "grouped.weight", "depthwise.weight"]),
    ],
)
def test_axes_of_convolutions(axes: str, names: list[str]) -> None:
    model = network()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = symmetrize(model, "tri", axes=axes)
    assert [change.name for change in report] == names
    for change in report:
        w = model.get_submodule(change.name.removesuffix(".weight")).weight
        nearest = old[change.name]
        nearest = (nearest + nearest.mT) / 2
        if axes == "both":
            blocks = nearest.unflatten(0, (-1, w.size(1)))
            nearest = (blocks + blocks.transpose(1, 2)).flatten(0, 1) / 2
        torch.testing.assert_close(w, nearest, rtol=0, atol=1e-15)
    assert model(draw(*IMAGE)).shape == (2, 6, 2)


def test_shared_weights_stay_as_they_are() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    before = snapshot(model)
    for where in ("a", "b", nn.Linear):
        message = r"^[ab].weight of shape \[4, 4\] cannot be symmetric: another module shares it"
        with pytest.raises(ValueError, match=message):
            symmetrize(model, "tri", where)
    assert same(snapshot(model), before)
    assert [change.name for change in symmetrize(model, "tri")] == ["c.weight"]
    assert model["a"].weight is model["b"].weight


@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM])
def test_parameters_are_new_ones(kind: Any) -> None:
    """Whoever else holds the old ones, outside of the model, keeps what they hold."""
    inside, outside = kind(4, 4), kind(4, 4)
    for name, parameter in inside.named_parameters():
        setattr(outside, name, parameter)
    held = list(inside.parameters())
    before = [parameter.detach().clone() for parameter in held]
    symmetrize(inside, "tri")
    free = [p for p in inside.parameters() if all(p is not other for other in held)]
    assert free
    numbers = [parameter.detach().clone() for parameter in free]
    unsymmetrize(inside)
    for parameter, value in zip(held + free, before + numbers, strict=True):
        assert torch.equal(parameter, value)
    outside(torch.randn(2, 4))


def test_layers_that_share_their_free_numbers_become_plain_one_by_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    symmetrize(model, "tri")
    numbers = model[0].parametrizations.weight.original
    model[1].parametrizations.weight.original = numbers
    assert count_parameters(model).training == 10 + 8
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 3
    x = torch.randn(3, 4)
    expected = model(x)
    unsymmetrize(model)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model[0].weight, model[1].weight)


def test_a_module_that_stands_in_two_places_changes_once() -> None:
    for layer in (nn.Linear(4, 4), nn.LSTM(4, 4)):
        model = nn.ModuleDict({"a": layer, "b": layer})
        report = symmetrize(model, "tri")
        assert len(report) == 1
        assert model["a"] is model["b"]
        assert type(model["b"]).__name__ in ("ParametrizedFoldedLinear", "SymLSTM")
        assert soft_symmetry_free(model)
        unsymmetrize(model)
        assert model["a"] is model["b"]
        assert type(model["a"]) in (nn.Linear, nn.LSTM)


def soft_symmetry_free(model: nn.Module) -> bool:
    """Whether no square weight is left that is not symmetric."""
    return symmetrize(copy.deepcopy(model), "tri") == ()


def test_a_model_without_square_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    before = snapshot(model)
    report = symmetrize(model, "tri")
    assert report == ()
    assert str(report).splitlines() == [
        "tensor  shape  form  before  after  relative error",
        "in all                    0      0",
    ]
    with pytest.raises(ValueError, match=r"^where='\*' names no .*; there are: none$"):
        symmetrize(nn.BatchNorm1d(4), "tri", "*")
    assert harden(model) == ()
    unsymmetrize(model)
    assert same(snapshot(model), before)


# ---- symmetrising: what becomes of them --------------------------------------------------------


def test_types_and_counts_of_what_is_made() -> None:
    model = network()
    symmetrize(model, "tri")
    kinds = {name: type(part).__name__ for name, part in model.named_children()}
    assert kinds["mix"] == kinds["grouped"] == "ParametrizedFoldedConv2d"
    assert kinds["along"] == "ParametrizedFoldedConv1d"
    assert kinds["square"] == "ParametrizedFoldedLinear"
    assert (kinds["stem"], kinds["head"], kinds["depthwise"]) == ("Conv2d", "Linear", "Conv2d")
    assert isinstance(model.mix, nn.Conv2d)
    assert isinstance(model.square, nn.Linear)
    assert type(model.lstm.layer) is SymLSTM
    assert type(model.gru.layer) is SymGRU
    assert model.mix.parametrizations.weight.original.shape == (3, 3, 21)
    assert model.grouped.parametrizations.weight.original.shape == (2, 1, 1, 6)
    assert count_parameters(model) == ParameterCount(
        *[
            (6 * 27 + 6)
            + (21 * 9 + 6)
            + (2 * 6 + 6)
            + (6 * 9 + 6)
            + (21 * 2 + 6)
            + (48 + 6)
            + (21 + 6)
            + 2 * (4 * (36 + 21) + 48)
            + 2 * (3 * (30 + 15) + 30)
            + 22
        ]
        * 2,
        recurrent=2 * 4 * 21 + 2 * 3 * 15,
    )


@pytest.mark.parametrize("symm", FORMS)
def test_the_report_counts_what_changed_and_by_how_much(symm: str) -> None:
    model = network()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = count_parameters(model).training
    report = symmetrize(model, symm)
    assert [change.name for change in report] == [*SQUARE, *LSTM, *GRU]
    for change in report:
        module, _, attribute = change.name.rpartition(".")
        before = old[change.name]
        w = getattr(model.get_submodule(module), attribute).detach()
        assert change.shape == tuple(before.shape)
        assert (change.form, change.before) == (symm, before.numel())
        assert change.error == pytest.approx(float((w - before).norm() / before.norm()), rel=1e-12)
        assert change.error > 0
    saved = sum(change.before - change.after for change in report)
    assert count_parameters(model).training == training - saved


@pytest.mark.parametrize("symm", ["tri", "tri8", "chunk2:rows"])
def test_weights_that_are_symmetric_lose_nothing(symm: str) -> None:
    model = network()
    symmetrize(model, symm)
    unsymmetrize(model)
    before = snapshot(model)
    report = symmetrize(model, symm)
    assert max(change.error for change in report) < 1e-15
    assert {change.form for change in report} == {symm}
    unsymmetrize(model)
    after = snapshot(model)
    assert before[1] == after[1]
    for key, value in before[0].items():
        torch.testing.assert_close(after[0][key], value, rtol=1e-14, atol=0)


def test_the_report_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(64, 64, 3, groups=2), nn.LSTM(3, 8))
    for p in model.parameters():
        nn.init.ones_(p)
    with torch.no_grad():
        model[2].weight_hh_l0[1, 0] = 3.0  # 1 and 3 become 2: an error of √2 of √(256 + 8)
    report = symmetrize(model, "tri")
    assert str(report).splitlines() == [
        "tensor          shape      form  before  after  relative error",
        "1.weight        64×32×3×3  tri   18,432  9,504          0.0000",
        "2.weight_hh_l0  32×8       tri      256    144          0.0870",
        "in all                           18,688  9,648",
    ]
    assert isinstance(report, tuple)
    assert report[1] == ("2.weight_hh_l0", (32, 8), "tri", 256, 144, report[1].error)
    assert report[1].error == pytest.approx((2 / 264) ** 0.5)
    conv = nn.Conv2d(4, 4, 3)
    (change,) = symmetrize(conv, "avg", axes="both")
    assert (change.name, change.form) == ("weight", "avg, both")
    assert change.after == 10 * 6


LAYERS = {nn.LSTM: SymLSTM, nn.GRU: SymGRU, nn.RNN: SymRNN}
CELLS = {nn.LSTMCell: SymLSTMCell, nn.GRUCell: SymGRUCell, nn.RNNCell: SymRNNCell}
RECURRENT = {**LAYERS, **CELLS}
recurrent = pytest.mark.parametrize("kind", list(RECURRENT))


@recurrent
@pytest.mark.parametrize("symm", ["tri", "avg:full", "block4", "ldl"])
def test_a_recurrent_module_as_the_whole_model(kind: Any, symm: str) -> None:
    options = {"nonlinearity": "relu"} if kind in (nn.RNN, nn.RNNCell) else {}
    module = kind(6, 6, dtype=torch.float64, **options)
    old = {name: p.detach().clone() for name, p in module.named_parameters()}
    where = lambda name, module: True  # noqa: E731
    report = symmetrize(module, symm, where if symm == "tri" else None)
    assert type(module) is RECURRENT[kind]
    assert len(report) == (2 if symm == "tri" else 1)
    plain = kind(6, 6, dtype=torch.float64, **options)
    changed = {change.name for change in report}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            w = getattr(module, name)
            parameter.copy_(w)
            if name not in changed:
                assert torch.equal(w, old[name])
            elif symm == "tri":
                blocks = old[name].unflatten(0, (-1, 6))
                expected = ((blocks + blocks.mT) / 2).flatten(0, 1)
                torch.testing.assert_close(w, expected, rtol=0, atol=1e-15)
    x = draw(2, 6) if kind in CELLS else draw(3, 2, 6)
    for found, expected in zip(flat(module(x)), flat(plain(x)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    before = flat(module(x))
    unsymmetrize(module)
    assert type(module) is kind
    assert list(dict(module.named_parameters())) == list(old)
    for found, expected in zip(flat(module(x)), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


@pytest.mark.parametrize("kind", list(RECURRENT.values()))
def test_symmetric_modules_that_are_none_yet(kind: Any) -> None:
    module = kind(4, 4, symm="none", backend="reference")
    (change,) = symmetrize(module, "avg")
    assert change.name.startswith("weight_hh")
    assert (type(module), module.symm, module.symm_ih) == (kind, "avg", "")
    assert module.symm_hh == kind.GATES
    assert module.backend == "reference"


def test_input_weights_alone() -> None:
    lstm = nn.LSTM(4, 4, 2)
    symmetrize(lstm, "tri", "weight_ih*")
    assert (lstm.symm_hh, lstm.symm_ih) == ("", "ifgo")
    gru = nn.GRU(4, 4, 2, bidirectional=True)
    with pytest.raises(ValueError, match=r"^weight_ih_l1 of shape \[12, 8\] cannot be symmetric"):
        symmetrize(gru, "tri", "*weight_ih*")
    projected = nn.LSTM(4, 4, proj_size=2)
    assert symmetrize(projected, "tri") == ()
    with pytest.raises(ValueError, match=r"^weight_hh_l0 of shape \[16, 2\] cannot be symmetric"):
        symmetrize(projected, "tri", nn.LSTM)


# ---- models that nobody here wrote -------------------------------------------------------------


@pytest.mark.parametrize("symm", ["tri", "tri4", "block4", "eigen"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_encoder(symm: str, batch_first: bool) -> None:
    """In evaluation it takes PyTorch's own operator for a whole layer, which reads the weights."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first).double()
    report = symmetrize(model, symm)
    assert [change.name for change in report] == [
        f"layers.{k}.{name}.weight".replace("in_proj.", "in_proj_")
        for k in range(2)
        for name in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    ]
    plain = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first).double()
    for name, parameter in plain.named_parameters():
        module, _, attribute = name.rpartition(".")
        parameter.data.copy_(getattr(model.get_submodule(module), attribute))
    if symm != "eigen":
        for part in model.layers:
            for block in part.self_attn.in_proj_weight.chunk(3):
                mean = block if symm == "block4" else block.mT
                torch.testing.assert_close(mean, block, rtol=0, atol=1e-15)
    x = draw(3, 5, 8)
    mask = torch.zeros(*([3, 5] if batch_first else [5, 3]), dtype=torch.bool)
    mask[-1, -2:] = True
    for options in ({}, {"src_key_padding_mask": mask}):
        for training in (True, False):
            model.train(training)
            plain.train(training)
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    found, expected = model(x, **options), plain(x, **options)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    before = model(x)
    unsymmetrize(model)
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_attention_whose_keys_are_of_another_size() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, dtype=torch.float64)
    model = nn.ModuleDict({"attention": attention})
    for which, shape in (("k", [8, 6]),):
        message = f"attention.{which}_proj_weight of shape {shape} cannot be symmetric: shape"
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            symmetrize(model, "tri", "attention.*")
    report = symmetrize(model, "tri")
    names = [change.name.removeprefix("attention.") for change in report]
    assert names == ["q_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert torch.equal(attention.q_proj_weight, attention.q_proj_weight.mT)
    query, key, value = draw(3, 2, 8), draw(4, 2, 6), draw(4, 2, 8)
    found = attention(query, key, value)[0]
    unsymmetrize(model)
    assert type(attention) is nn.MultiheadAttention
    torch.testing.assert_close(attention(query, key, value)[0], found, rtol=0, atol=1e-13)
    report = symmetrize(model, "tri", "attention.q_proj_weight")
    assert [change.name for change in report] == ["attention.q_proj_weight"]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "regnetx_002"])
@pytest.mark.parametrize("symm", ["tri", "block4"])
def test_a_model_of_timm(name: str, symm: str) -> None:
    timm = pytest.importorskip("timm", reason="needs timm, which nothing else here does")
    model = timm.create_model(name, num_classes=5).eval().double()
    before = count_parameters(model).training
    report = symmetrize(model, symm)
    assert len(report) > 2
    saved = sum(change.before - change.after for change in report)
    assert count_parameters(model).training == before - saved
    size = 224 if name.startswith("vit") else 64
    x = draw(2, 3, size, size)
    with torch.no_grad():
        found = model(x)
        unsymmetrize(model)
        expected = model(x)
    assert found.shape == (2, 5)
    assert count_parameters(model).training == before
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# ---- what of a model stays ---------------------------------------------------------------------


def test_hooks_and_modes_stay() -> None:
    called: list[str] = []
    model = network()
    model.lstm.eval()
    model.mix.eval()
    for part in (model.mix, model.square, model.lstm.layer):
        name = type(part).__name__
        part.register_forward_hook(lambda *_, name=name: called.append(name))
        part.register_forward_pre_hook(lambda *_, name=name: called.append(f"before {name}"))
    expected = ["before Conv2d", "Conv2d", "before Linear", "Linear", "before LSTM", "LSTM"]
    modes = {name: part.training for name, part in model.named_modules()}
    model(draw(*IMAGE))
    symmetrize(model, "tri")
    model(draw(*IMAGE))
    found = {name: part.training for name, part in model.named_modules()}
    assert found.items() >= modes.items()
    unsymmetrize(model)
    model(draw(*IMAGE))
    assert called == expected * 3
    assert {name: part.training for name, part in model.named_modules()} == modes


@pytest.mark.parametrize("no_grad", [False, True])
def test_frozen_weights_stay_frozen(no_grad: bool) -> None:
    model = network()
    model.mix.requires_grad_(False)
    model.square.bias.requires_grad_(False)
    model.lstm.layer.weight_hh_l1.requires_grad_(False)
    model.lstm.layer.bias_ih_l0.requires_grad_(False)
    model.gru.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.set_grad_enabled(not no_grad):
        symmetrize(model, "tri")
        for name, parameter in model.named_parameters():
            original = name.replace("parametrizations.", "").removesuffix(".original")
            assert parameter.requires_grad == wanted[original.removesuffix("_tri")]
        unsymmetrize(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_stays(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    report = symmetrize(model, "tri8")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(0 < change.error < 1.1 for change in report)
    model.double()
    assert model(draw(*IMAGE)).dtype == torch.float64
    model.to(dtype)
    unsymmetrize(model)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_models_without_storage() -> None:
    """To count the numbers of a model that is too large to be made."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(256, 256), nn.LSTM(256, 256))
    report = symmetrize(model, "tri")
    assert all(math.isnan(change.error) for change in report)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    triangle = 256 * 257 // 2
    assert [change.after for change in report] == [triangle, 4 * triangle]
    small = nn.Linear(4, 4, device="meta")
    symmetrize(small, "block4")
    small.to_empty(device="cpu")
    nn.init.ones_(small.parametrizations.weight.original)
    assert torch.equal(small.weight, torch.ones(4, 4))


def test_copies_are_independent() -> None:
    model = network()
    symmetrize(model, "block4")
    x = draw(*IMAGE)
    expected = model(x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(model(x), expected)
    third, fourth = copy.deepcopy(model), copy.deepcopy(model)
    unsymmetrize(third)  # the copy is plain, the original is not
    assert type(third.mix) is nn.Conv2d
    torch.testing.assert_close(third(x), expected, rtol=0, atol=1e-12)
    assert torch.equal(model(x), expected)
    assert torch.equal(fourth(x), expected)
    unsymmetrize(model)  # and the other way round
    assert torch.equal(fourth(x), expected)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    assert isinstance(fourth.mix.parametrizations.weight[0], SymmetricTensor)
    assert same(snapshot(model), snapshot(third))


def test_states_pass_between_models_of_one_form() -> None:
    one, two = network(), network()
    symmetrize(one, "avg4")
    symmetrize(two, "avg4")
    x = draw(*IMAGE)
    assert not torch.equal(one(x), two(x))
    assert two.load_state_dict(one.state_dict()).missing_keys == []
    assert torch.equal(one(x), two(x))
    with pytest.raises(RuntimeError, match=r"mix\.parametrizations\.weight\.original"):
        network().load_state_dict(one.state_dict())


@pytest.mark.parametrize("symm", FORMS)
def test_undoing_leaves_plain_layers_with_equal_outputs(symm: str) -> None:
    model = network()
    before = snapshot(model)
    symmetrize(model, symm)
    x = draw(*IMAGE)
    output = model(x)
    output.sum().backward()
    unsymmetrize(model)
    after = snapshot(model)
    assert before[1] == after[1]
    assert {k: v.shape for k, v in before[0].items()} == {k: v.shape for k, v in after[0].items()}
    torch.testing.assert_close(model(x), output, rtol=0, atol=1e-12)
    for parameter in model.parameters():
        assert parameter.is_leaf
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
    model(x).sum().backward()


def test_further_parametrizations_are_in_the_way_of_undoing() -> None:
    model = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    symmetrize(model, "tri")
    parametrize.register_parametrization(model[2], "weight", nn.Identity())
    before = snapshot(model)
    message = "2.weight has 2 parametrizations; remove those that came after its symmetry first"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unsymmetrize(model)
    with pytest.raises(ValueError, match=r"^weight has 2 parametrizations"):
        unsymmetrize(model[2])
    assert same(snapshot(model), before)


def test_parametrizations_of_others_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"^0.weight of shape \[4, 4\] cannot be symmetric: it "):
        symmetrize(model, "tri", "*")
    assert [change.name for change in symmetrize(model, "tri")] == ["1.weight"]
    unsymmetrize(model)
    assert parametrize.is_parametrized(model[0], "weight")
    assert type(model[1]) is nn.Linear


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("symm", ["tri", "avg8", "block4", "chunk2", "ldl"])
def test_a_model_learns_and_stays_symmetric(symm: str) -> None:
    model = network()
    symmetrize(model, symm)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.2), lr=0.2, momentum=0.9)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    x, target = draw(*IMAGE), draw(2, 6, 2) / 2
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    unsymmetrize(model)
    report = symmetrize(model, symm)
    assert max(change.error for change in report) < (1e-6 if symm == "ldl" else 1e-14)


# ---- soft symmetry -----------------------------------------------------------------------------


def mixed() -> nn.ModuleDict:
    modules = {
        "linear": nn.Linear(4, 4),
        "narrow": nn.Linear(4, 3),
        "conv": nn.Conv2d(6, 6, 2, groups=2),
        "lstm": nn.LSTM(3, 3),
        "cell": SymGRUCell(2, 3, symm="none"),
        "attention": nn.MultiheadAttention(4, 2),
    }
    return nn.ModuleDict(modules).double()


def blocks_of(model: nn.ModuleDict) -> dict[str, list[Tensor]]:
    """The square matrices (N, N, *kernel) that the default means, cut out by hand."""
    attention = model["attention"]
    return {
        "linear.weight": [model["linear"].weight],
        "conv.weight": [model["conv"].weight[:3], model["conv"].weight[3:]],
        "lstm.weight_hh_l0": [model["lstm"].weight_hh_l0[k : k + 3] for k in (0, 3, 6, 9)],
        "cell.weight_hh": [model["cell"].weight_hh[k : k + 3] for k in (0, 3, 6)],
        "attention.in_proj_weight": [attention.in_proj_weight[k : k + 4] for k in (0, 4, 8)],
        "attention.out_proj.weight": [attention.out_proj.weight],
    }


@pytest.mark.parametrize("p", [1, 2])
def test_penalty(p: int) -> None:
    model = mixed()
    norms = {
        name: sum((w - w.transpose(0, 1)).abs().pow(p).sum() ** (1 / p) for w in blocks)
        for name, blocks in blocks_of(model).items()
    }
    found = soft_symmetry_penalty(model, p)
    assert found.shape == ()
    torch.testing.assert_close(found, sum(norms.values()), rtol=1e-13, atol=0)
    for name, expected in norms.items():
        found = soft_symmetry_penalty(model, p, where=name)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    found = soft_symmetry_penalty(model, p, where=nn.MultiheadAttention)
    torch.testing.assert_close(found, norms["attention.in_proj_weight"], rtol=1e-13, atol=0)
    if p == 2:
        torch.testing.assert_close(soft_symmetry_penalty(model), sum(norms.values()))


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_of_the_penalty(p: int) -> None:
    model = mixed()
    names = [name for name, _ in model.named_parameters()]

    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return soft_symmetry_penalty(self.model, p)

    def run(*parameters: Tensor) -> Tensor:
        values = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
        return functional_call(Penalty(), values, ())

    parameters = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert gradcheck(run, parameters)
    soft_symmetry_penalty(model, p).backward()
    for name, parameter in model.named_parameters():
        counted = any(name == weight for weight in blocks_of(model))
        assert (parameter.grad is not None) == counted


@pytest.mark.parametrize("p", [1, 2])
def test_hardened_weights_have_no_penalty(p: int) -> None:
    model = mixed()
    old = {name: [w.detach().clone() for w in ws] for name, ws in blocks_of(model).items()}
    rest = {name: w.detach().clone() for name, w in model.named_parameters() if name not in old}
    types = [type(part) for part in model.modules()]
    report = harden(model)
    assert [change.name for change in report] == list(old)
    assert [type(part) for part in model.modules()] == types
    numbers = {
        "linear.weight": (16, 10),
        "conv.weight": (72, 48),
        "lstm.weight_hh_l0": (36, 24),
        "cell.weight_hh": (27, 18),
        "attention.in_proj_weight": (48, 30),
        "attention.out_proj.weight": (16, 10),
    }
    for change, (name, blocks) in zip(report, blocks_of(model).items(), strict=True):
        for w, before in zip(blocks, old[name], strict=True):
            for i in range(len(w)):
                for j in range(len(w)):
                    assert torch.equal(w[i, j], before[min(i, j), max(i, j)])
        assert change.form == "upper"
        assert (change.before, change.after) == numbers[name]
        now, before = torch.stack(blocks), torch.stack(old[name])
        assert change.shape == (len(blocks) * now.size(1), *now.shape[2:])
        assert change.error == pytest.approx(float((now - before).detach().norm() / before.norm()))
    for name, parameter in model.named_parameters():
        if name in rest:
            assert torch.equal(parameter, rest[name])
    penalty = soft_symmetry_penalty(model, p)
    assert penalty.item() == 0
    penalty.backward()
    assert all(w.grad is None or not w.grad.any() for w in model.parameters())
    assert [change.error for change in harden(model)] == [0] * 6
    symmetric = symmetrize(model, "tri")
    assert [change.error for change in symmetric] == [0] * 6
    assert [change.after for change in symmetric] == [after for _, after in numbers.values()]


def test_hardening_some_weights_only() -> None:
    model = mixed()
    report = harden(model, lambda name, module: name in ("lstm.weight_ih_l0", "linear.weight"))
    assert [change.name for change in report] == ["linear.weight", "lstm.weight_ih_l0"]
    assert soft_symmetry_penalty(model, where="linear").item() == 0
    assert soft_symmetry_penalty(model, where="lstm.weight_ih*").item() == 0
    assert soft_symmetry_penalty(model).item() > 0
    with pytest.raises(ValueError, match=r"^narrow.weight of shape \[3, 4\] cannot be symmetric"):
        harden(model, nn.Linear)


def test_soft_symmetry_of_a_layer_that_is_none() -> None:
    lstm = SymLSTM(5, 4, 2, symm="none", dtype=torch.float64)
    blocks = torch.cat([lstm.weight_hh_l0, lstm.weight_hh_l1]).unflatten(0, (8, 4))
    expected = (blocks - blocks.mT).flatten(1).norm(dim=1).sum()
    torch.testing.assert_close(soft_symmetry_penalty(lstm), expected, rtol=1e-13, atol=0)
    assert [change.after for change in harden(lstm)] == [40, 40]
    assert soft_symmetry_penalty(lstm).item() == 0
    x = draw(3, 2, 5)
    output, _ = lstm(x)
    assert max(change.error for change in symmetrize(lstm, "tri")) == 0
    torch.testing.assert_close(lstm(x)[0], output, rtol=0, atol=1e-13)


def test_a_penalty_makes_weights_symmetric_by_training() -> None:
    model = mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = soft_symmetry_penalty(model).item()
    for _ in range(40):
        optimizer.zero_grad()
        soft_symmetry_penalty(model).backward()
        optimizer.step()
    assert soft_symmetry_penalty(model).item() < 0.5 * before


def test_penalties_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^p should be 1 or 2, got: 3$"):
        soft_symmetry_penalty(mixed(), p=3)
    model = nn.Sequential(nn.Linear(4, 4))
    symmetrize(model, "tri")
    with pytest.raises(ValueError, match=r"^the model has no square weight that is not symmetric "):
        soft_symmetry_penalty(model)
    assert harden(model) == ()


# ---- groups for an optimizer -------------------------------------------------------------------


def test_rates_by_form() -> None:
    model = nn.ModuleDict(
        {
            "tri": nn.Linear(32, 32),
            "block16": nn.Linear(32, 32),
            "chunk8": nn.Conv1d(64, 64, 3, groups=2),
            "avg": nn.Linear(32, 32),
            "ldl": nn.Linear(32, 32),
            "gru": nn.GRU(3, 32),
            "plain": nn.Linear(3, 2),
        }
    )
    for symm in ("tri", "block16", "chunk8", "avg", "ldl"):
        symmetrize(model, symm, symm)
    symmetrize(model, "tri8", nn.GRU)
    groups = parameter_groups(model, lr=0.5)
    scales = {
        "tri.parametrizations.weight.original": 33 / 64,
        "block16.parametrizations.weight.original": 1 / 16,
        "chunk8.parametrizations.weight.original": 1 / 8,
        "gru.weight_hh_l0_tri8": 17 / 128,
    }
    found = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["lr_scale"] == scales.get(name, 1.0)
        assert group["lr"] == 0.5 * group["lr_scale"]
    assert len(groups) == 5
    assert groups[0]["lr_scale"] == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_rates_and_counts_of_what_is_pruned_or_parametrized() -> None:
    def scaled(module: nn.Module) -> list[tuple[str, float]]:
        names = {id(p): name for name, p in module.named_parameters()}
        _, *others = parameter_groups(module, 1.0)
        return [(names[id(p)], group["lr"]) for group in others for p in group["params"]]

    lstm = SymLSTM(8, 8, symm="block16")
    prune.random_unstructured(lstm, "weight_hh_l0_block16", 0.3)
    assert scaled(lstm) == [("weight_hh_l0_block16_orig", 1 / 16)]
    lstm = SymLSTM(8, 8, symm="block16")
    parametrize.register_parametrization(lstm, "weight_hh_l0_block16", nn.Tanh())
    name = "parametrizations.weight_hh_l0_block16.original"
    assert scaled(lstm) == [(name, 1 / 16)]
    linear = nn.Linear(8, 8)
    symmetrize(linear, "block16")
    prune.random_unstructured(linear.parametrizations.weight, "original", 0.3)
    assert scaled(linear) == [("parametrizations.weight.original_orig", 1 / 16)]

    full = SymLSTM(8, 8, symm="avg:full")
    count = count_parameters(full)
    prune.random_unstructured(full, "weight_hh_l0_avg_full", 0.3)
    assert count_parameters(full) == count
    # Of weight norm's two parameters neither is the number of an orbit.
    normed = nn.Sequential(nn.utils.weight_norm(SymLSTM(8, 8, symm="tri"), "weight_hh_l0_tri"))
    with pytest.raises(ValueError, match=r"^0.weight_hh_l0_tri is computed from several"):
        parameter_groups(normed, 1.0)
    assert count_parameters(normed).recurrent == count_parameters(SymLSTM(8, 8)).recurrent + 4


def test_rates_under_an_optimizer_and_a_schedule() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    symmetrize(model, "block4")
    optimizer = torch.optim.SGD(parameter_groups(model, 0.8), momentum=0.9)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.8, 0.2])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.1])
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 0.25]


def test_groups_of_models_without_symmetry_and_of_tied_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    (group,) = parameter_groups(model, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert len(group["params"]) == 3
    layer = nn.Linear(4, 4)
    symmetrize(layer, "block4", "weight")
    groups = parameter_groups(nn.ModuleList([layer, nn.ModuleList([layer])]), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert parameter_groups(nn.Identity(), 0.1) == []
    numbers = nn.Linear(4, 4, bias=False)
    symmetrize(numbers, "block4")
    assert [group["lr"] for group in parameter_groups(numbers, 0.1)] == [0.025]


def path(model: nn.Module, weight: Callable[[], Tensor], groups: Any) -> list[Tensor]:
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    passed = []
    for _ in range(8):
        x = torch.randn(7, 6, dtype=torch.float64, generator=generator)
        target = torch.randn(7, 6, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        passed.append(weight().detach().clone())
    return passed


class MeanOverMirrors(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return (w + w.flip(0) + w.flip(1) + w.flip(0, 1)) / 4


def test_raw_numbers_take_the_path_of_the_averaged_full_matrix() -> None:
    """For a form whose orbits are all of one size, exactly, with momentum."""
    layers: list[nn.Module] = [nn.Linear(6, 6, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    raw, full = layers
    symmetrize(raw, "block4")
    parametrize.register_parametrization(full, "weight", MeanOverMirrors())
    found = path(raw, lambda: raw.weight, parameter_groups(raw, 0.3))
    expected = path(full, lambda: full.weight, full.parameters())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    other = copy.deepcopy(raw)
    faster = path(other, lambda: other.weight, other.parameters())
    assert (faster[-1] - found[-1]).abs().max() > 1e-3  # so the comparison can fail


# ---- counts after all of this ------------------------------------------------------------------


@pytest.mark.parametrize("symm", ["tri", "avg:full", "block4", "eigen", "ldl"])
def test_counts_of_symmetrised_models(symm: str) -> None:
    model = network()
    plain = count_parameters(model)
    assert plain.training == plain.deployed == sum(p.numel() for p in model.parameters())
    assert plain.recurrent == 2 * 4 * 36 + 2 * 3 * 25
    report = symmetrize(model, symm)
    counts = count_parameters(model)
    after = {change.name: change.after for change in report}
    assert counts.training == sum(p.numel() for p in model.parameters())
    assert counts.training == plain.training - sum(c.before - c.after for c in report)
    if symm == "avg:full":
        assert counts.training == plain.training
        triangles = 21 * 9 + 2 * 6 + 21 * 2 + 21 + 8 * 21 + 6 * 15
        assert plain.deployed - counts.deployed == sum(after.values()) - triangles
        assert counts.recurrent == 8 * 21 + 6 * 15
    else:
        # A product of rank N/2 has more numbers than a triangle on sides as small as 3.
        assert counts.deployed <= counts.training
        if symm != "eigen":
            assert counts.deployed == counts.training
            assert counts.recurrent == sum(after[name] for name in [*LSTM, *GRU])
    unsymmetrize(model)
    assert count_parameters(model) == plain


# ---- models that others made -------------------------------------------------------------------


def types_of(model: nn.Module) -> list[type]:
    return [type(part) for part in model.modules()]


@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.weight_norm], ids=["spectral", "weight"]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_computed_from_others_are_left_alone(norm: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), norm(nn.Linear(8, 8)))
    assert [change.name for change in symmetrize(model, "tri")] == ["0.weight"]
    model(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"1.weight of shape .* computed from other parameters"):
        harden(model, "1")


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_recurrent_weights_computed_from_others_are_left_alone() -> None:
    lstm = nn.utils.weight_norm(nn.LSTM(8, 8), "weight_hh_l0")
    assert len(symmetrize(lstm, "tri")) == 0
    with pytest.raises(
        ValueError, match=r"weight_hh_l0 of shape .* computed from other parameters"
    ):
        symmetrize(lstm, "tri", "weight_hh_l0")
    assert type(lstm) is nn.LSTM


def test_pruned_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    prune.random_unstructured(model[0], "weight", 0.5)
    assert len(symmetrize(model, "tri")) == 0


def test_layers_without_a_shape_yet_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    assert len(symmetrize(model, "tri")) == 1


@pytest.mark.parametrize("symm", ["avg", "eigen", "ldl"])
def test_weights_that_are_not_finite_are_refused_before_anything_changes(symm: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[2].weight[3, 4] = math.nan
    before = types_of(model)
    with pytest.raises(ValueError, match=r"2.weight of shape \[8, 8\] holds numbers .* not finite"):
        symmetrize(model, symm)
    assert types_of(model) == before


def test_where_takes_several_patterns_and_types() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LSTM(8, 8), nn.Conv1d(8, 8, 1))
    changed = symmetrize(model, "tri", ["1", nn.LSTM])
    assert [change.name for change in changed] == ["1.weight", "2.weight_hh_l0"]


def test_a_where_of_another_kind_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"where should be a pattern, .* got: 5"):
        symmetrize(nn.Linear(8, 8), "tri", 5)  # type: ignore[arg-type]


def test_a_rank_that_some_layers_are_too_small_for() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(4, 4))
    assert [change.name for change in symmetrize(model, "eigen:5")] == ["0.weight"]
    with pytest.raises(ValueError, match=r"1.weight of shape .* cannot be eigen:5"):
        symmetrize(model, "eigen:5", "1")


def test_tied_weights_are_penalised_and_hardened_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    w = model[0].weight.detach()
    torch.testing.assert_close(soft_symmetry_penalty(model, 2).detach(), (w - w.mT).norm())
    assert [change.name for change in harden(model)] == ["0.weight"]
    assert torch.equal(model[1].weight, model[1].weight.mT)


def test_attributes_that_users_set_on_a_recurrent_module_stay() -> None:
    lstm = nn.LSTM(4, 4)
    lstm.note = "mine"
    symmetrize(lstm, "tri")
    assert lstm.note == "mine"
    unsymmetrize(lstm)
    assert lstm.note == "mine"
    assert type(lstm) is nn.LSTM


def test_settings_and_a_pruned_bias_of_a_recurrent_module_stay() -> None:
    lstm = SymLSTM(4, 4, symm="none", state_dropout=0.5).eval()
    lstm.inference_dtype = torch.bfloat16
    prune.random_unstructured(lstm, "bias_ih_l0", 0.5)
    bias = lstm.bias_ih_l0.detach()
    symmetrize(lstm, "tri")
    assert (lstm.inference_dtype, lstm.state_dropout) == (torch.bfloat16, 0.5)
    assert torch.equal(lstm.bias_ih_l0, bias)
    lstm(draw(3, 4).float())


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.MultiheadAttention(4, 2), nn.GRU(4, 4)]
)
def test_plain_layers_have_their_parameters_in_the_plain_order_again(layer: nn.Module) -> None:
    before = [name for name, _ in layer.named_parameters()]
    symmetrize(layer, "tri")
    unsymmetrize(layer)
    assert [name for name, _ in layer.named_parameters()] == before


@pytest.mark.parametrize("make", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 3, groups=1)])
@pytest.mark.parametrize(("symm", "spread"), [("block16", 1.0), ("avg8", 8**-0.5), ("tri", 1.0)])
def test_new_starting_values_are_of_the_forms_family(make: Any, symm: str, spread: float) -> None:
    """Raw numbers as large as a plain entry; means over the group (of 8) as much smaller."""
    layer = make(128, 128)
    plain = layer.weight.std().item()
    symmetrize(layer, symm)
    layer.reset_parameters()
    # 128² entries, or a sixteenth as many parameters: the estimate is good to a few per cent.
    assert layer.weight.std().item() / plain == pytest.approx(spread, rel=0.1)
    bound = 1 / math.sqrt(layer.weight[0].numel())
    assert layer.bias.abs().max() <= bound


def test_plain_layers_of_the_folding_kind_draw_as_plain_ones() -> None:
    layer = nn.Linear(8, 8)
    symmetrize(layer, "tri")
    unsymmetrize(layer)
    layer.reset_parameters()
    assert type(layer) is nn.Linear


def test_a_module_in_several_places_is_meant_by_any_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.ReLU(), shared)})
    model["b"].register_module("itself", model["b"])
    for where in ("a.0", "b.1.weight"):
        report = symmetrize(model, "tri", where)
        assert [change.name for change in report] == ["a.0.weight"]
        unsymmetrize(model)
