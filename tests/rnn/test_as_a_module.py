"""The layers in the hands of those who use PyTorch's: stored, copied, converted, reparametrised."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from symrnn import SymGRU, SymLSTM, SymRNN

T, B, IN, H = 4, 3, 2, 5
FORMS = ["none", "tri", "avg", "avg:full"]
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 2, "proj_size": 3, "symm_hh": ""},
    {"proj_size": 2, "bidirectional": True, "bias": False, "symm_hh": ""},
]

KINDS: dict[str, tuple[Any, Any]] = {  # ours and PyTorch's
    "lstm": (SymLSTM, nn.LSTM),
    "gru": (SymGRU, nn.GRU),
    "rnn": (SymRNN, nn.RNN),
}
RELU = {"nonlinearity": "relu", "num_layers": 2}
CASES = [
    *(("lstm", options) for options in SHAPES),
    *((kind, options) for kind in ("gru", "rnn") for options in SHAPES[:3]),
    ("rnn", RELU),
]


def options_of_plain(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.startswith("symm")}


def nearest(name: str, w: Tensor) -> Tensor:
    """The stacked hidden weights with each block symmetric; anything else as it is."""
    if not name.startswith("weight_hh"):
        return w
    blocks = w.view(-1, w.size(1), w.size(1))
    return ((blocks + blocks.mT) / 2).reshape(w.shape)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_none_is_pytorchs_by_name_shape_number_and_state_dict(
    kind: str, options: dict[str, Any]
) -> None:
    ours, theirs = KINDS[kind]
    torch.manual_seed(8)
    plain = theirs(IN, H, **options_of_plain(options))
    after = torch.rand(1)
    torch.manual_seed(8)
    none = ours(IN, H, symm="none", **options)
    assert torch.equal(torch.rand(1), after)
    assert [n for n, _ in none.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(none.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(none.state_dict()[key], value)
    x = torch.randn(T, B, IN)
    assert torch.equal(none(x)[0], plain(x)[0])
    for source, target in ((none, theirs), (plain, ours)):
        extra = {"symm": "none"} if target is ours else {}
        loaded = target(IN, H, **options_of_plain(options), **extra)
        assert str(loaded.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        assert torch.equal(loaded(x)[0], plain(x)[0])


@pytest.mark.parametrize("symm", ["avg", "avg:full", "tri"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_starting_values(oracle, kind: str, gates: int, symm: str, bidirectional: bool) -> None:
    """avg: the projection of what PyTorch's starts from; tri: plain draws, one for each orbit."""
    ours, theirs = KINDS[kind]
    torch.manual_seed(8)
    plain = theirs(IN, H, 2, bidirectional=bidirectional)
    torch.manual_seed(8)
    lstm = ours(IN, H, 2, bidirectional=bidirectional, symm=symm)
    if symm == "tri":
        torch.manual_seed(8)
        for parameter in lstm.parameters():
            drawn = torch.empty(parameter.shape).uniform_(-(H**-0.5), H**-0.5)
            assert torch.equal(parameter, drawn)
        assert lstm.weight_hh_l0_tri.shape == (gates, 15)
    else:
        for name, w in plain.named_parameters():
            torch.testing.assert_close(getattr(lstm, name), nearest(name, w), rtol=0, atol=1e-7)
    bound = max(p.abs().max().item() for p in oracle.weights(lstm).values())
    assert 0.9 * H**-0.5 < bound <= H**-0.5
    before = lstm.weight_hh_l0.clone()
    lstm.reset_parameters(lambda w: nn.init.constant_(w, 0.25))
    torch.testing.assert_close(lstm.weight_hh_l0, torch.full_like(before, 0.25))
    lstm.reset_parameters()
    assert not torch.equal(lstm.weight_hh_l0, before)


@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_from_pytorchs_takes_the_nearest_and_the_way_back_gives_it(
    oracle, kind: str, options: dict[str, Any], symm: str
) -> None:
    ours, theirs = KINDS[kind]
    plain_options = {**options_of_plain(options), "batch_first": True, "dtype": torch.float64}
    if options.get("num_layers", 1) > 1:
        plain_options["dropout"] = 0.25
    chosen = {"symm_hh": options["symm_hh"]} if "symm_hh" in options else {}
    for training in (True, False):
        plain = theirs(IN, H, **plain_options).train(training)
        random = torch.get_rng_state()
        layer = getattr(ours, f"from_{kind}")(plain, symm=symm, **chosen)
        back = getattr(layer, f"to_{kind}")()
        assert torch.equal(torch.get_rng_state(), random)
        assert type(layer) is ours
        assert type(back) is theirs
        assert repr(back) == repr(plain)  # every argument of the constructor, but for:
        assert back.mode == plain.mode
        assert layer.training is back.training is training
        symmetric = symm != "none" and "symm_hh" not in options
        for name, w in plain.named_parameters():
            expected = nearest(name, w) if symmetric else w
            kept = getattr(back, name)
            assert kept.dtype == torch.float64
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-15)
            torch.testing.assert_close(kept, oracle.weights(layer)[name], rtol=0, atol=1e-15)
        x = torch.randn(B, T, IN, dtype=torch.float64)
        layer.eval(), back.eval()
        assert torch.equal(layer(x)[0], back(x)[0])
        again = getattr(ours, f"from_{kind}")(back, symm=symm, **chosen)
        torch.testing.assert_close(again(x)[0], layer(x)[0], rtol=0, atol=1e-14)
        # Copies: neither shares memory with the other.
        with torch.no_grad():
            plain.bias_ih_l0.zero_() if plain.bias else plain.weight_ih_l0.zero_()
            back.weight_ih_l0.zero_()
        assert torch.equal(layer(x)[0], getattr(layer, f"to_{kind}")()(x)[0])


def test_from_lstm_keeps_gates_backend_dtype_device_and_reads_parametrized_weights() -> None:
    plain = nn.LSTM(H, H, dtype=torch.bfloat16)
    lstm = SymLSTM.from_lstm(plain, "tri", symm_hh="og", symm_ih="f", backend="reference")
    assert (lstm.symm, lstm.symm_hh, lstm.symm_ih, lstm.backend) == ("tri", "go", "f", "reference")
    assert {p.dtype for p in lstm.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in SymLSTM.from_lstm(plain.to("meta")).parameters()} == {"meta"}
    plain = nn.LSTM(IN, H)
    parametrizations.weight_norm(plain, "weight_ih_l0")
    torch.testing.assert_close(SymLSTM.from_lstm(plain).weight_ih_l0, plain.weight_ih_l0)


def test_the_matrix_is_read_and_assigned_by_its_name() -> None:
    lstm = SymLSTM(IN, H, symm="avg", symm_hh="ig", dtype=torch.float64)
    w = torch.randn(4 * H, H, dtype=torch.float64)
    lstm.weight_hh_l0 = w
    expected = w.view(4, H, H).clone()
    for k in (0, 2):
        expected[k] = (expected[k] + expected[k].T) / 2
    read = lstm.weight_hh_l0
    torch.testing.assert_close(read, expected.view(4 * H, H), rtol=0, atol=1e-15)
    assert read.is_contiguous()
    read.sum().backward()
    assert lstm.weight_hh_l0_avg.grad.shape == (2, 15)
    assert lstm.weight_hh_l0_rest.grad.shape == (2 * H, H)
    assert hasattr(lstm, "weight_hh_l0")
    assert not hasattr(lstm, "weight_hh_l1")
    assert "weight_hh_l0" not in dict(lstm.named_parameters())
    tied = nn.Parameter(torch.ones(4 * H, IN, dtype=torch.float64))
    lstm.weight_ih_l0 = tied  # not symmetric: as on nn.LSTM
    assert lstm.weight_ih_l0 is tied


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_all_weights_flatten_parameters_and_repr(kind: str, options: dict[str, Any]) -> None:
    layer = KINDS[kind][0](IN, H, **options)
    plain = layer.to_plain()
    assert layer.flatten_parameters() is None
    assert len(layer.all_weights) == len(plain.all_weights)
    for ours, theirs in zip(layer.all_weights, plain.all_weights, strict=True):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    assert plain.extra_repr() in repr(layer)
    assert "symm='avg'" in repr(layer)


@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (SymLSTM, "fo"),
        (SymGRU, "rn"),
        (SymRNN, "h"),
        (functools.partial(SymRNN, nonlinearity="relu"), "h"),
    ],
    ids=["lstm", "gru", "tanh", "relu"],
)
def test_copies_have_the_same_numbers_and_their_own_memory(
    make: Callable[..., Any], gates: str, symm: str
) -> None:
    options = {"num_layers": 2, "bidirectional": True, "symm": symm}
    layer = make(IN, H, dropout=0.5, symm_hh=gates, **options).eval()
    x = torch.randn(T, B, IN)
    output = layer(x)[0].detach()
    state, whole = io.BytesIO(), io.BytesIO()
    torch.save(layer.state_dict(), state)
    torch.save(layer, whole)
    state.seek(0), whole.seek(0)
    fresh = make(IN, H, dropout=0.5, symm_hh=gates[::-1], **options).eval()
    fresh.load_state_dict(torch.load(state, weights_only=True))
    loaded_into_a_copy = copy.deepcopy(make(IN, H, symm_hh=gates, **options))
    loaded_into_a_copy.load_state_dict(layer.state_dict())
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(whole, weights_only=False),
        fresh,
        loaded_into_a_copy.eval(),
        copy.deepcopy(copy.deepcopy(layer)),
    ]
    for other in copies:
        assert torch.equal(other(x)[0], output)
        assert repr(other).replace("dropout=0.5, ", "") == repr(layer).replace("dropout=0.5, ", "")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(x)[0].any()
    assert torch.equal(layer(x)[0], output)
    assert all(not key.startswith("symmetry") for key in layer.state_dict())


def test_a_pickle_holds_the_weights_and_little_more() -> None:
    assert len(pickle.dumps(SymLSTM(1, 200, symm="avg"))) < 4 * 4 * 20_100 + 4 * 5 * 800 + 10_000


def test_conversions_of_dtype_and_device() -> None:
    lstm = SymLSTM(IN, H, 2)
    x = torch.randn(T, B, IN)
    expected = lstm(x)[0]
    twice = copy.deepcopy(lstm).to(torch.float64)
    torch.testing.assert_close(twice(x.double())[0].float(), expected, rtol=0, atol=1e-6)
    assert torch.equal(twice.float()(x)[0], expected)
    assert copy.deepcopy(lstm).half()(x.half())[0].dtype == torch.float16
    away = SymLSTM(IN, H, 2, device="meta")
    assert away(torch.zeros(T, B, IN, device="meta"))[0].shape == (T, B, H)
    with pytest.raises(ValueError, match="does not match weight dtype"):
        away(torch.zeros(T, B, IN, device="meta", dtype=torch.float64))
    away.to_empty(device="cpu").load_state_dict(lstm.state_dict())
    assert torch.equal(away(x)[0], expected)
    with torch.device("meta"):
        inside = SymLSTM(IN, H, 2)
    inside.to_empty(device="cpu").load_state_dict(lstm.state_dict())
    assert torch.equal(inside(x)[0], expected)


@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_and_per_sample_gradients(kind: str, symm: str) -> None:
    make = KINDS[kind][0]
    layer = make(IN, H, 2, symm=symm, backend="reference", dtype=torch.float64)
    other = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    x = torch.randn(T, B, IN, dtype=torch.float64)
    loaded = make(IN, H, 2, symm=symm, dtype=torch.float64)
    loaded.load_state_dict(other)
    expected = loaded(x)[0]
    torch.testing.assert_close(functional_call(layer, other, (x,))[0], expected, rtol=0, atol=1e-13)

    def loss(numbers: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, numbers, (sample,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(other, x)
    loaded.zero_grad()
    expected.square().sum().backward()
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-10)


class Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


@pytest.mark.parametrize("symm", ["none", "avg"])
def test_plain_weights_take_parametrizations(symm: str) -> None:
    """Those of PyTorch, on the input weights, the biases and the gates that stay plain."""
    lstm = SymLSTM(IN, H, symm=symm, symm_hh="if", dtype=torch.float64)
    x = torch.randn(T, B, IN, dtype=torch.float64)
    expected = lstm.to_lstm()
    parametrizations.weight_norm(lstm, "weight_ih_l0")
    torch.testing.assert_close(lstm(x)[0], expected(x)[0], rtol=0, atol=1e-14)
    rest = "weight_hh_l0" if symm == "none" else "weight_hh_l0_rest"
    parametrize.register_parametrization(lstm, rest, Double())
    parametrize.register_parametrization(lstm, "bias_hh_l0", Double())
    with torch.no_grad():
        expected.bias_hh_l0 *= 2
        expected.weight_hh_l0[0 if symm == "none" else 2 * H :] *= 2
    torch.testing.assert_close(lstm(x)[0], expected(x)[0], rtol=0, atol=1e-14)
    lstm(x)[0].sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    lstm.load_state_dict(lstm.state_dict())
    torch.testing.assert_close(copy.deepcopy(lstm)(x)[0], expected(x)[0], rtol=0, atol=1e-14)
    parametrize.remove_parametrizations(lstm, "weight_ih_l0")
    torch.testing.assert_close(lstm(x)[0], expected(x)[0], rtol=0, atol=1e-14)


def weight_drop(module: nn.Module, name: str) -> None:
    """Merity's: the weight is computed at every call from one that is stored as "raw"."""
    raw = module._parameters.pop(name)
    module.register_parameter(f"{name}_raw", raw)
    drop = lambda m, _: setattr(m, name, nn.functional.dropout(getattr(m, f"{name}_raw"), 0.5))  # noqa: E731
    module.register_forward_pre_hook(drop)


def masked(module: nn.Module, name: str) -> None:
    weight = getattr(module, name)
    module.register_buffer(f"{name}_mask", torch.rand_like(weight) > 0.5)


TOOLS: list[Callable[[nn.Module, str], Any]] = [
    weight_drop,
    masked,
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    functools.partial(prune.l1_unstructured, amount=0.3),
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("make", "symm", "name"),
    [
        (SymLSTM, "none", "weight_hh_l0"),
        (SymGRU, "none", "weight_ih_l0_reverse"),
        (SymRNN, "none", "weight_hh_l0_reverse"),
        (SymLSTM, "avg", "weight_hh_l0_avg"),
        (SymLSTM, "avg:full", "weight_hh_l0_reverse_avg_full"),
        (SymGRU, "tri", "weight_ih_l0"),
    ],
)
def test_what_was_made_of_a_weight_is_saved_and_loaded_back(
    make: Any, symm: str, name: str, tool: Callable[[nn.Module, str], Any]
) -> None:
    """Weight drop, masks, norms of both kinds, pruning; of a form's parameters too."""
    warnings.simplefilter("ignore", FutureWarning)
    x = torch.randn(T, B, IN)
    made = []
    for _ in range(2):
        layer = make(IN, H, bidirectional=True, symm=symm)
        tool(layer, name)
        made.append(layer)
    saved, loaded = made
    assert name not in saved.state_dict() or tool is masked
    loaded.load_state_dict(saved.state_dict())
    outputs = []
    for layer in made:
        layer.eval()
        torch.manual_seed(0)
        outputs.append(layer(x)[0])
    assert torch.equal(*outputs)
    outputs[1].sum().backward()
    assert [key for key, p in loaded.named_parameters() if p.grad is None] == []


def test_symmetric_parameters_are_listed_with_their_forms() -> None:
    lstm = SymLSTM(H, H, 2, symm="tri", symm_hh="ifgo", symm_ih="go")
    found = {
        name: (numbers.shape, form.name) for name, numbers, form in lstm.symmetric_parameters()
    }
    assert found == {
        f"weight_{kind}_l{layer}_tri": ((2 if kind == "ih" else 4, 15), "tri")
        for layer, kind in itertools.product((0, 1), ("ih", "hh"))
    }
    assert list(SymLSTM(IN, H, symm="none").symmetric_parameters()) == []


def test_a_step_of_training_changes_what_the_next_call_sees() -> None:
    """Nothing expanded is kept from one call to the next."""
    lstm = SymLSTM(IN, H, symm="avg")
    x = torch.randn(T, B, IN)
    for mode in (lstm.train, lstm.eval):
        mode()
        with torch.no_grad():
            before = lstm(x)[0]
            lstm.weight_hh_l0_avg.add_(1.0)
            assert (lstm(x)[0] - before).abs().max() > 1e-2
