"""The cells compute what PyTorch's cells compute on the expanded weights."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell

FORMS = ["none", "tri", "avg", "avg:full"]
BACKENDS = ["reference", "script", "vendor", "auto"]
B, H = 3, 5

KINDS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTMCell,
    "GRU": SymGRUCell,
    "tanh": SymRNNCell,
    "ReLU": functools.partial(SymRNNCell, nonlinearity="relu"),
}
CHOICES = {  # of gates: symm_hh and symm_ih
    "LSTM": (["", "g", "oi", "ifgo"], ["", "fo"]),
    "GRU": (["", "n", "rzn"], ["", "zn"]),
    "tanh": (["", "h"], ["", "h"]),
    "ReLU": (["", "h"], ["", "h"]),
}
CELLS = [(SymLSTMCell, nn.LSTMCell, 4), (SymGRUCell, nn.GRUCell, 3), (SymRNNCell, nn.RNNCell, 1)]


def make_cell(of: str, *sizes: Any, **options: Any) -> Any:
    return KINDS[of](*sizes, **{"dtype": torch.float64, **options})


def make_state(of: str, *shape: int) -> Any:
    h, c = (torch.randn(*shape, dtype=torch.float64) for _ in "hc")
    return (h, c) if of == "LSTM" else h


def h_of(state: Any) -> torch.Tensor:
    return state if isinstance(state, torch.Tensor) else state[0]


@pytest.mark.parametrize(
    ("of", "backend", "symm"),
    [
        *itertools.product(["LSTM"], BACKENDS, ["none", "avg"]),
        ("LSTM", "reference", "tri"),
        ("LSTM", "reference", "avg:full"),
        *itertools.product(["GRU", "tanh"], BACKENDS, ["avg"]),
        *itertools.product(["ReLU"], BACKENDS, ["none"]),
    ],
)
def test_outputs_and_gradients_over_the_grid(oracle, of: str, backend: str, symm: str) -> None:
    # The forms differ in how a matrix is made, which kinds and backends have in common.
    for bias, symm_hh, symm_ih in itertools.product([True, False], *CHOICES[of]):
        width = H if symm_ih else 2
        cell = make_cell(
            of, width, H, bias, symm=symm, symm_hh=symm_hh, symm_ih=symm_ih, backend=backend
        )
        for batch in ((), (B,), (1,)):
            x = torch.randn(*batch, width, dtype=torch.float64)
            oracle.check(cell, x, make_state(of, *batch, H))
            if batch:
                oracle.check(cell, x)
    tiny = make_cell(of, 1, 1, symm=symm, backend=backend)
    oracle.check(tiny, torch.randn(1, 1, dtype=torch.float64))
    nothing = tiny(torch.zeros(0, 1, dtype=torch.float64))
    assert {part.shape for part in (nothing if of == "LSTM" else [nothing])} == {(0, 1)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", KINDS)
def test_lower_precision_and_autocast(of: str, backend: str, dtype: torch.dtype) -> None:
    cell = make_cell(of, H, H, backend=backend, dtype=dtype)
    exact = copy.deepcopy(cell).double()
    x = torch.randn(B, H, dtype=dtype)
    found, expected = cell(x), exact(x.double())
    for a, b in zip(found, expected, strict=True) if of == "LSTM" else [(found, expected)]:
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-2)
    with torch.autocast("cpu", dtype):
        automatic = h_of(copy.deepcopy(cell).float()(x.float()))
    automatic.sum().backward()
    torch.testing.assert_close(automatic.double(), h_of(expected), rtol=0, atol=1e-2)


@pytest.mark.parametrize(("ours", "theirs", "gates"), CELLS)
def test_it_starts_and_is_stored_as_pytorchs(
    ours: Callable[..., Any], theirs: Callable[..., nn.Module], gates: int
) -> None:
    torch.manual_seed(1)
    plain = theirs(4, H)
    torch.manual_seed(1)
    none = ours(4, H, symm="none")
    torch.manual_seed(1)
    avg = ours(4, H, symm="avg")
    assert list(none.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(none.state_dict()[key], value)
        blocks = value.view(gates, H, -1)
        if key == "weight_hh":
            blocks = (blocks + blocks.mT) / 2
        torch.testing.assert_close(getattr(avg, key), blocks.reshape(value.shape))
    plain.load_state_dict(none.state_dict())
    none.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match=r"weight_hh.*weight_hh_avg"):
        avg.load_state_dict(plain.state_dict())
    assert ours(4, H, bias=False).bias_ih is None
    for options in ({}, {"bias": False}):
        assert theirs(4, H, **options).extra_repr() in repr(ours(4, H, **options))


def test_copies() -> None:
    cell = make_cell("LSTM", 4, H, symm_hh="if")
    x = torch.randn(B, 4, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(cell.state_dict(), file)
    file.seek(0)
    loaded = make_cell("LSTM", 4, H, symm_hh="if")
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), loaded):
        assert torch.equal(other(x)[0], cell(x)[0])
    w = torch.randn(4 * H, H, dtype=torch.float64)
    cell.weight_hh = w
    expected = w.view(4, H, H).clone()
    expected[:2] = (expected[:2] + expected[:2].mT) / 2
    torch.testing.assert_close(cell.weight_hh, expected.view(4 * H, H), rtol=0, atol=1e-15)


LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}


@pytest.mark.parametrize("of", KINDS)
def test_unrolled_it_is_a_layer(of: str) -> None:
    layer = LAYERS[of](4, H, dtype=torch.float64)
    cell = make_cell(of, 4, H)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in layer.state_dict().items()})
    x = torch.randn(6, B, 4, dtype=torch.float64)
    hx = None
    for step, expected in zip(x, layer(x)[0], strict=True):
        hx = cell(step, hx)
        torch.testing.assert_close(h_of(hx), expected, rtol=0, atol=1e-14)


WRONG_CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "3 dimensions": lambda m: m(torch.zeros(1, 1, 4)),
    "0 dimensions": lambda m: m(torch.zeros(())),
    "width": lambda m: m(torch.zeros(2, 3)),
    "width unbatched": lambda m: m(torch.zeros(3)),
    "width of h": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, 3), torch.zeros(2, H))),
    "width of c": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, H), torch.zeros(2, 3))),
    "batch of h": lambda m: m(torch.zeros(2, 4), (torch.zeros(3, H), torch.zeros(2, H))),
    "batch of c": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, H), torch.zeros(3, H))),
    "3 dimensions of h": lambda m: m(torch.zeros(2, 4), (torch.zeros(1, 2, H),) * 2),
    "3 dimensions of c": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, H), torch.zeros(1, 2, H))),
    "dtype": lambda m: m(torch.zeros(2, 4, dtype=torch.float64)),
    "1 dimension of h": lambda m: m(torch.zeros(2, 4), (torch.zeros(H), torch.zeros(2, H))),
    "2 dimensions of h unbatched": lambda m: m(torch.zeros(4), (torch.zeros(1, H),) * 2),
    "one state": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, H),)),
}


WRONG_CALLS_OF_ONE_STATE: dict[str, Callable[[nn.Module], Any]] = {
    **{call: run for call, run in WRONG_CALLS.items() if " of " not in call},
    "width of h": lambda m: m(torch.zeros(2, 4), torch.zeros(2, 3)),
    "batch of h": lambda m: m(torch.zeros(2, 4), torch.zeros(3, H)),
    "3 dimensions of h": lambda m: m(torch.zeros(2, 4), torch.zeros(1, 2, H)),
    "1 dimension of h": lambda m: m(torch.zeros(2, 4), torch.zeros(H)),
    "2 dimensions of h unbatched": lambda m: m(torch.zeros(4), torch.zeros(1, H)),
    "a tuple": lambda m: m(torch.zeros(2, 4), (torch.zeros(2, H),)),
}
del WRONG_CALLS_OF_ONE_STATE["one state"]


@pytest.mark.parametrize(
    ("ours", "theirs", "call"),
    [
        (ours, theirs, call)
        for ours, theirs, gates in CELLS
        for call in (WRONG_CALLS if gates == 4 else WRONG_CALLS_OF_ONE_STATE).items()
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.__name__,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_calls_fail_as_those_of_pytorch(
    backend: str,
    ours: Callable[..., nn.Module],
    theirs: Callable[..., nn.Module],
    call: tuple[str, Callable[[nn.Module], Any]],
) -> None:
    name, run = call
    if name == "dtype" and backend in ("reference", "script"):
        pytest.skip("the loop meets the input in a product of its own, whose words differ")
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whichever it is)
        run(theirs(4, H))
    with pytest.raises(type(expected.value)) as raised:
        run(ours(4, H, backend=backend))
    assert type(raised.value) is type(expected.value)
    assert str(raised.value) == str(expected.value)


def test_errors_of_its_own() -> None:
    for options, words in [
        ({"symm": "other"}, ["symm", "'other'", "none", *FORMS]),
        ({"backend": "fast"}, ["backend", "'fast'", *BACKENDS]),
        ({"symm_hh": "ix"}, ["symm_hh", "'ix'", "'ifgo'"]),
        ({"symm_ih": "i"}, ["symm_ih", "'i'", "weight_ih", f"{H}×4"]),
    ]:
        with pytest.raises(ValueError, match=r"symm|backend") as raised:
            SymLSTMCell(4, H, **options)
        assert [word for word in words if word not in str(raised.value)] == []
    with pytest.raises(ValueError, match=r"symm_hh should name gates of 'rzn', .* got: 'i'"):
        SymGRUCell(4, H, symm_hh="i")
    with pytest.raises(
        ValueError, match=r"Unknown nonlinearity 'sine'\. Select from 'tanh' or 'relu'"
    ):
        SymRNNCell(4, H, nonlinearity="sine")
