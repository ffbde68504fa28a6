"""SymLSTMCell computes what nn.LSTMCell computes on the expanded weights."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from symrnn import SymLSTMCell

FORMS = ["none", "tri", "avg", "avg:full"]
BACKENDS = ["reference", "script", "vendor", "auto"]
B, H = 3, 5


def make_cell(*sizes: Any, **options: Any) -> SymLSTMCell:
    return SymLSTMCell(*sizes, **{"dtype": torch.float64, **options})


@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_over_the_grid(oracle, backend: str, symm: str) -> None:
    for bias, symm_hh, symm_ih in itertools.product(
        [True, False], ["", "g", "oi", "ifgo"], ["", "fo"]
    ):
        width = H if symm_ih else 2
        cell = make_cell(
            width, H, bias, symm=symm, symm_hh=symm_hh, symm_ih=symm_ih, backend=backend
        )
        for batch in ((), (B,), (1,)):
            x = torch.randn(*batch, width, dtype=torch.float64)
            hx = tuple(torch.randn(*batch, H, dtype=torch.float64) for _ in "hc")
            oracle.check(cell, x, hx)
            if batch:
                oracle.check(cell, x)
    tiny = make_cell(1, 1, symm=symm, backend=backend)
    oracle.check(tiny, torch.randn(1, 1, dtype=torch.float64))
    h, c = tiny(torch.zeros(0, 1, dtype=torch.float64))
    assert h.shape == c.shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lower_precision_and_autocast(backend: str, dtype: torch.dtype) -> None:
    cell = make_cell(H, H, backend=backend, dtype=dtype)
    exact = copy.deepcopy(cell).double()
    x = torch.randn(B, H, dtype=dtype)
    h, c = cell(x)
    exact_h, exact_c = exact(x.double())
    assert h.dtype == c.dtype == dtype
    torch.testing.assert_close(h.double(), exact_h, rtol=0, atol=1e-2)
    torch.testing.assert_close(c.double(), exact_c, rtol=0, atol=1e-2)
    with torch.autocast("cpu", dtype):
        automatic, _ = copy.deepcopy(cell).float()(x.float())
    automatic.sum().backward()
    torch.testing.assert_close(automatic.double(), exact_h, rtol=0, atol=1e-2)


def test_it_starts_and_is_stored_as_nn_lstm_cell() -> None:
    torch.manual_seed(1)
    plain = nn.LSTMCell(4, H)
    torch.manual_seed(1)
    none = SymLSTMCell(4, H, symm="none")
    torch.manual_seed(1)
    avg = SymLSTMCell(4, H, symm="avg")
    assert list(none.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(none.state_dict()[key], value)
        blocks = value.view(4, H, -1)
        if key == "weight_hh":
            blocks = (blocks + blocks.mT) / 2
        torch.testing.assert_close(getattr(avg, key), blocks.reshape(value.shape))
    plain.load_state_dict(none.state_dict())
    none.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match=r"weight_hh.*weight_hh_avg"):
        avg.load_state_dict(plain.state_dict())
    assert SymLSTMCell(4, H, bias=False).bias_ih is None


def test_copies() -> None:
    cell = make_cell(4, H, symm_hh="if")
    x = torch.randn(B, 4, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(cell.state_dict(), file)
    file.seek(0)
    loaded = make_cell(4, H, symm_hh="if")
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell)), loaded):
        assert torch.equal(other(x)[0], cell(x)[0])
    w = torch.randn(4 * H, H, dtype=torch.float64)
    cell.weight_hh = w
    expected = w.view(4, H, H).clone()
    expected[:2] = (expected[:2] + expected[:2].mT) / 2
    torch.testing.assert_close(cell.weight_hh, expected.view(4 * H, H), rtol=0, atol=1e-15)


def test_unrolled_it_is_a_lstm(oracle) -> None:
    from symrnn import SymLSTM

    lstm = SymLSTM(4, H, dtype=torch.float64)
    cell = make_cell(4, H)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in lstm.state_dict().items()})
    x = torch.randn(6, B, 4, dtype=torch.float64)
    hx = None
    for step, expected in zip(x, lstm(x)[0], strict=True):
        hx = cell(step, hx)
        torch.testing.assert_close(hx[0], expected, rtol=0, atol=1e-14)


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


@pytest.mark.parametrize("call", WRONG_CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_calls_fail_as_those_of_nn_lstm_cell(backend: str, call: str) -> None:
    if call == "dtype" and backend in ("reference", "script"):
        pytest.skip("the loop meets the input in a product of its own, whose words differ")
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whichever it is)
        WRONG_CALLS[call](nn.LSTMCell(4, H))
    with pytest.raises(type(expected.value)) as raised:
        WRONG_CALLS[call](SymLSTMCell(4, H, backend=backend))
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
