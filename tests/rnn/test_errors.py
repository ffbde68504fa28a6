"""Wrong calls fail as PyTorch's layers do; what is ours says what came and what is allowed."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell, native

T, B, IN, H = 4, 3, 2, 5
FORMS = ["none", "tri", "avg", "avg:full"]
BACKENDS = ["reference", "script", "vendor", "auto"]


LAYERS = [(SymLSTM, nn.LSTM), (SymGRU, nn.GRU), (SymRNN, nn.RNN)]


def both_fail_alike(plain: Callable[[], Any], ours: Callable[[], Any]) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whichever it is)
        plain()
    with pytest.raises(type(expected.value)) as raised:
        ours()
    assert type(raised.value) is type(expected.value)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(("layer", "plain"), LAYERS)
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((0, H), {}),
        ((-1, H), {}),
        ((IN, 0), {}),
        ((2.0, H), {}),
        ((IN, 5.0), {}),
        (("2", H), {}),
        ((IN, H, 0), {}),
        ((IN, H, -1), {}),
        ((IN, H), {"bias": 1}),
        ((IN, H), {"batch_first": "yes"}),
        ((IN, H, 2), {"dropout": 1.5}),
        ((IN, H, 2), {"dropout": -0.1}),
        ((IN, H, 2), {"dropout": True}),
        ((IN, H, 2), {"dropout": "0.5"}),
    ],
)
def test_constructor(
    sizes: tuple[Any, ...], options: dict[str, Any], layer: Any, plain: Any
) -> None:
    both_fail_alike(lambda: plain(*sizes, **options), lambda: layer(*sizes, **options))


@pytest.mark.parametrize("size", [-1, H, H + 1])
def test_projection_size(size: int) -> None:
    both_fail_alike(
        lambda: nn.LSTM(IN, H, proj_size=size), lambda: SymLSTM(IN, H, proj_size=size, symm_hh="")
    )


@pytest.mark.parametrize("nonlinearity", ["sine", "TANH", "", None])
def test_nonlinearity(nonlinearity: Any) -> None:
    both_fail_alike(
        lambda: nn.RNN(IN, H, nonlinearity=nonlinearity),
        lambda: SymRNN(IN, H, nonlinearity=nonlinearity),
    )


def state(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape) for shape in shapes)


X = torch.zeros(T, B, IN)
GOOD = (2, B, H)
WRONG_CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "1 dimension": lambda m: m(torch.zeros(IN)),
    "4 dimensions": lambda m: m(torch.zeros(1, T, B, IN)),
    "0 dimensions": lambda m: m(torch.zeros(())),
    "width": lambda m: m(torch.zeros(T, B, IN + 1)),
    "width unbatched": lambda m: m(torch.zeros(T, IN - 1)),
    "dtype": lambda m: m(X.double()),
    "integers": lambda m: m(X.long()),
    "no steps": lambda m: m(torch.zeros(0, B, IN)),
    "no steps unbatched": lambda m: m(torch.zeros(0, IN)),
    "layers of h": lambda m: m(X, state((1, B, H), GOOD)),
    "layers of c": lambda m: m(X, state(GOOD, (1, B, H))),
    "batch of h": lambda m: m(X, state((2, B + 1, H), GOOD)),
    "batch of c": lambda m: m(X, state(GOOD, (2, 1, H))),
    "width of h": lambda m: m(X, state((2, B, H - 1), GOOD)),
    "width of c": lambda m: m(X, state(GOOD, (2, B, 1))),
    "unbatched h": lambda m: m(X, state((2, H), GOOD)),
    "unbatched c": lambda m: m(X, state(GOOD, (2, H))),
    "unbatched state": lambda m: m(X, state((2, H), (2, H))),
    "batched h": lambda m: m(X[:, 0], state((2, 1, H), (2, H))),
    "batched state": lambda m: m(X[:, 0], state((2, 1, H), (2, 1, H))),
    "width of h unbatched": lambda m: m(X[:, 0], state((2, H + 1), (2, H))),
    "4-D state": lambda m: m(X, state((1, *GOOD), (1, *GOOD))),
    "dtype of state": lambda m: m(X, (torch.zeros(GOOD).double(),) * 2),
    "one state": lambda m: m(X, state(GOOD)),
    "three states": lambda m: m(X, state(GOOD, GOOD, GOOD)),
    "a string": lambda m: m("text"),
}


WRONG_CALLS_OF_ONE_STATE: dict[str, Callable[[nn.Module], Any]] = {
    **{call: run for call, run in WRONG_CALLS.items() if "state" not in call if " of " not in call},
    "layers of h": lambda m: m(X, torch.zeros(1, B, H)),
    "batch of h": lambda m: m(X, torch.zeros(2, B + 1, H)),
    "width of h": lambda m: m(X, torch.zeros(2, B, H - 1)),
    "unbatched h": lambda m: m(X, torch.zeros(2, H)),
    "batched h": lambda m: m(X[:, 0], torch.zeros(2, 1, H)),
    "width of h unbatched": lambda m: m(X[:, 0], torch.zeros(2, H + 1)),
    "4-D state": lambda m: m(X, torch.zeros(1, *GOOD)),
    "dtype of state": lambda m: m(X, torch.zeros(GOOD).double()),
    "a pair of states": lambda m: m(X, state(GOOD, GOOD)),
}
del WRONG_CALLS_OF_ONE_STATE["unbatched c"]


@pytest.mark.parametrize(
    ("layer", "plain", "call", "symm", "backend"),
    [
        *(
            (SymLSTM, nn.LSTM, call, *way)
            for call in WRONG_CALLS
            for way in [*itertools.product(["avg"], BACKENDS), ("none", "vendor")]
        ),
        *(
            (SymGRU, nn.GRU, call, *way)
            for call in WRONG_CALLS_OF_ONE_STATE
            for way in [("avg", "reference"), ("avg", "vendor"), ("none", "auto")]
        ),
        *(
            (SymRNN, nn.RNN, call, *way)
            for call in WRONG_CALLS_OF_ONE_STATE
            for way in [("avg", "script"), ("none", "vendor")]
        ),
    ],
)
def test_calls(layer: Any, plain: Any, call: str, symm: str, backend: str) -> None:
    if call == "dtype of state" and backend in ("reference", "script"):
        pytest.skip("the loop meets the state in a product of its own, whose words differ")
    run = (WRONG_CALLS if layer is SymLSTM else WRONG_CALLS_OF_ONE_STATE)[call]
    theirs = plain(IN, H, 2)
    ours = layer(IN, H, 2, symm=symm, backend=backend)
    both_fail_alike(lambda: run(theirs), lambda: run(ours))
    with torch.no_grad():
        both_fail_alike(lambda: run(theirs), lambda: run(ours))


def test_calls_of_projected_and_batch_first_layers() -> None:
    for call, options in [
        (lambda m: m(X.mT.reshape(B, T, IN), state((1, B, H), (1, B, H))), {"proj_size": 2}),
        (lambda m: m(X, state((1, B, H), (1, B, H))), {"batch_first": True}),
        (lambda m: m(torch.zeros(B, 0, IN)), {"batch_first": True}),
        (lambda m: m(X, state((1, B, H), (1, B, H))), {"bidirectional": True}),
    ]:
        plain = nn.LSTM(IN, H, **options)
        ours = SymLSTM(IN, H, symm_hh="", **options)
        both_fail_alike(lambda m=plain, call=call: call(m), lambda m=ours, call=call: call(m))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_input_is_checked_in_the_same_words(backend: str) -> None:
    """``nn.LSTM`` leaves it to the operator, which reads past a row that is too wide or short."""
    ours = SymLSTM(IN, H, 2, backend=backend)
    two = pack_sequence([X[:, 0], X[:2, 1]])
    for call, error, words in [
        (lambda: ours(pack_sequence([torch.zeros(T, IN + 1)])), RuntimeError, "Expected 2, got 3"),
        (lambda: ours(pack_sequence([X[:, 0].half()])), ValueError, "dtype .torch.float16. does"),
        (lambda: ours(pack_sequence([X])), RuntimeError, "must have 2 dimensions, got 3"),
        (lambda: ours(two, state(GOOD, GOOD)), RuntimeError, r"hidden.0. size .2, 2, 5., got"),
        (lambda: ours(two, state((2, 2, H), GOOD)), RuntimeError, r"hidden.1. size .2, 2, 5., got"),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symm": "symmetric"}, ["symm", "'symmetric'", *FORMS]),
        ({"symm": None}, ["symm", "None", *FORMS]),
        ({"backend": "fast"}, ["backend", "'fast'", *BACKENDS]),
        ({"symm_hh": "ifgx"}, ["symm_hh", "'ifgx'", "'ifgo'"]),
        ({"symm_hh": "ii"}, ["symm_hh", "'ii'", "'ifgo'"]),
        ({"symm_ih": "z"}, ["symm_ih", "'z'", "'ifgo'"]),
        ({"symm_hh": "x", "symm": "none"}, ["symm_hh", "'x'", "'ifgo'"]),
        ({"proj_size": 3}, ["proj_size=3", "weight_hh_l0", "'ifgo'", 'symm_hh=""']),
        ({"symm_ih": "if"}, ["symm_ih='if'", "weight_ih_l0", f"{H}×{IN}", "input_size"]),
        (
            {"input_size": H, "num_layers": 2, "bidirectional": True, "symm_ih": "i"},
            ["symm_ih='i'", "weight_ih_l1", f"{H}×{2 * H}", "direction"],
        ),
        (
            {"input_size": H, "num_layers": 2, "proj_size": 3, "symm_hh": "", "symm_ih": "i"},
            ["symm_ih='i'", "weight_ih_l1", f"{H}×3"],
        ),
        ({"of": SymGRU, "symm_hh": "i"}, ["symm_hh", "'i'", "'rzn'"]),
        ({"of": SymRNN, "symm_ih": "n"}, ["symm_ih", "'n'", "'h'"]),
        ({"of": SymGRU, "symm_ih": "r"}, ["symm_ih='r'", "weight_ih_l0", f"{H}×{IN}"]),
    ],
)
def test_errors_of_our_own_name_the_argument_its_value_and_what_is_allowed(
    options: dict[str, Any], words: list[str]
) -> None:
    given: dict[str, Any] = {"of": SymLSTM, "input_size": IN, "hidden_size": H, **options}
    make = given.pop("of")
    with pytest.raises(ValueError, match=r"symm|proj_size|backend") as raised:
        make(**given)
    assert [word for word in words if word not in str(raised.value)] == []


def test_wrong_types_of_our_own_arguments() -> None:
    with pytest.raises(TypeError, match="weight_hh_l0 should be a tensor, got: NoneType"):
        SymLSTM(IN, H).weight_hh_l0 = None
    with pytest.raises(TypeError, match="symm_hh should be of type str, got: list"):
        SymLSTM(IN, H, symm_hh=["i"])
    with pytest.raises(TypeError, match=r"lstm should be an nn\.LSTM, got: GRU"):
        SymLSTM.from_lstm(nn.GRU(IN, H))
    with pytest.raises(TypeError, match=r"gru should be an nn\.GRU, got: LSTM"):
        SymGRU.from_gru(nn.LSTM(IN, H))
    with pytest.raises(TypeError, match=r"rnn should be an nn\.RNN, got: GRU"):
        SymRNN.from_rnn(nn.GRU(IN, H))
    with pytest.raises(TypeError, match="positional"):
        SymLSTM(IN, H, 1, True, False, 0.0, False, 0, None, None, "avg")
    with pytest.raises(ValueError, match=r"weight_hh_l0 .*\(20, 5\).*\(5, 5\)"):
        SymLSTM(IN, H).weight_hh_l0 = torch.zeros(5, 5)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("prefix", ["", "0."])
def test_a_state_dict_that_does_not_fit_is_an_error(prefix: str, strict: bool) -> None:
    """Another form, a full matrix, other gates, another size: also where strict=False."""
    options = {"num_layers": 2, "bidirectional": True}
    target = SymLSTM(IN, H, symm="avg", **options)
    holder = nn.Sequential(target) if prefix else target
    before = {key: value.clone() for key, value in holder.state_dict().items()}
    for source, words in [
        (
            nn.LSTM(IN, H, **options),
            ["'weight_hh_l1_reverse'", "(20, 5)", "weight_hh_l1_reverse_avg"],
        ),
        (SymLSTM(IN, H, symm="tri", **options), ["'weight_hh_l0_reverse_tri'", "_l0_reverse_avg"]),
        (SymLSTM(IN, H, symm="avg:full", **options), ["'weight_hh_l0_avg_full'", "_l0_avg."]),
        (SymLSTM(IN, H, symm="none", **options), ["'weight_hh_l0'", "weight_hh_l0_avg"]),
        (SymLSTM(IN, H, symm_hh="", **options), ["'weight_hh_l0'", "weight_hh_l0_avg"]),
        (SymLSTM(IN, H, symm_hh="if", **options), ["'weight_hh_l1_rest'", "(10, 5)"]),
        (SymLSTM(IN, H + 1, **options), ["weight_hh_l0_avg", "[4, 21]", "[4, 15]"]),
    ]:
        given = {prefix + key: value for key, value in source.state_dict().items()}
        with pytest.raises(RuntimeError) as raised:
            holder.load_state_dict(given, strict=strict)
        assert [word for word in words if word not in str(raised.value)] == []
    for key, value in holder.state_dict().items():
        if "weight_hh" in key:
            assert torch.equal(value, before[key])


def test_a_full_matrix_does_not_pass_for_a_form_nor_a_form_for_a_full_matrix() -> None:
    plain = SymLSTM(IN, H, symm="none")
    with pytest.raises(RuntimeError, match=r"'weight_hh_l0_avg' .* stores weight_hh_l0 as"):
        plain.load_state_dict(SymLSTM(IN, H).state_dict(), strict=False)


def test_foreign_keys_are_pytorchs_to_judge_and_forms_are_refused() -> None:
    source = SymLSTM(IN, H, symm="avg:full")
    prune.l1_unstructured(source, "weight_hh_l0_avg_full", 2)
    given = source.state_dict()
    assert "weight_hh_l0_avg_full_orig" in given
    for target in (SymLSTM(IN, H, symm="avg"), SymLSTM(IN, H, symm="none")):
        with pytest.raises(RuntimeError, match="'weight_hh_l0_avg_full_orig' of shape"):
            target.load_state_dict(given, strict=False)
    plain = nn.LSTM(IN, H)
    prune.l1_unstructured(plain, "weight_hh_l0", 2)
    for target in (nn.LSTM(IN, H), SymLSTM(IN, H, symm="none")):
        found = target.load_state_dict(plain.state_dict(), strict=False)
        assert found.missing_keys == ["weight_hh_l0"]
        assert found.unexpected_keys == ["weight_hh_l0_orig", "weight_hh_l0_mask"]
        with pytest.raises(RuntimeError, match="Unexpected key"):
            target.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("layer", [SymLSTM, SymGRU, SymRNN])
def test_a_backend_is_refused_where_it_is_assigned(layer: Any) -> None:
    module = layer(IN, H, backend="reference")
    with pytest.raises(ValueError, match=r"backend should be one of auto, .*, got: 'nonsense'"):
        module.backend = "nonsense"
    with pytest.raises(ValueError, match='backend="folded" wants hidden weights of all gates'):
        module.backend = "folded"
    assert module.backend == "reference"
    module.backend = "vendor"
    assert module.backend == "vendor"


@pytest.mark.parametrize(
    "take",
    [
        lambda m, name: nn.utils.weight_norm(m, name),
        lambda m, name: nn.utils.spectral_norm(m, name),
        lambda m, name: prune.random_unstructured(m, name, 2),
        lambda m, name: parametrizations.weight_norm(m, name),
        lambda m, name: parametrizations.orthogonal(m, name),
        lambda m, name: delattr(m, name),
        lambda m, name: m._parameters.__setitem__(name, None),
        lambda m, name: torch.func.functional_call(
            m, {name: torch.zeros(20, 5)}, (torch.zeros(1, 1, IN),)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_takes_parameters_takes_no_symmetric_matrix(take: Any) -> None:
    """Norms, pruning and weight drop: the error names the parameters, which they do take."""
    first = SymLSTM(IN, H, 1, bidirectional=True, symm_hh="if")
    before = first.state_dict()
    for lstm in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        with pytest.raises(ValueError, match=r"^weight_hh_l0_reverse is") as raised:
            take(lstm, "weight_hh_l0_reverse")
        assert str(raised.value) == (
            "weight_hh_l0_reverse is symmetric, and no parameter: name weight_hh_l0_reverse_avg or "
            "weight_hh_l0_reverse_rest, of which it is computed and which can be normalised, "
            "pruned or dropped; the matrix stays symmetric"
        )
        after = lstm.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize(("layer", "plain"), LAYERS)
def test_pytorchs_weights_are_shown_the_way_in(layer: Any, plain: Any) -> None:
    name = plain.__name__
    words = rf"stores weight_hh_l0 as weight_hh_l0_avg\. Sym{name}\.from_{name.lower()} takes the"
    with pytest.raises(RuntimeError, match=words):
        layer(IN, H).load_state_dict(plain(IN, H).state_dict())


# ---- devices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", [*BACKENDS, "folded", *["fused"] * native.available()])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN, SymLSTMCell, SymGRUCell, SymRNNCell])
def test_each_weight_is_where_the_others_are(make: Any, backend: str, grad: bool) -> None:
    """Or else the result would be what happens to lie in its memory."""
    gates = {SymRNN: "", SymRNNCell: ""}.get(make, make.GATES[0])
    options = {"symm": "tri8"} if backend == "folded" else {"symm": "avg", "symm_hh": gates}
    if not make.IS_CELL:
        options |= {"num_layers": 2, "bidirectional": True}
    x = torch.randn(3, 4) if make.IS_CELL else torch.randn(8, 3, 4)
    module = make(4, 4, backend=backend, **options)
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(parameter.detach().to("meta")))
        words = rf"^{name} should be on the device cpu, got: meta$"
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=words):
            module(x)
        setattr(module, name, parameter)
        with torch.no_grad():
            module(x)  # packs where something is packed
