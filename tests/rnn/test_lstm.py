"""SymLSTM computes what nn.LSTM computes on the expanded weights: outputs, states, gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from symrnn import SymLSTM
from symrnn.rnn import list_backends

FORMS = ["none", "tri", "avg", "avg:full"]
BACKENDS = ["reference", "script", "vendor", "auto"]
T, B, IN, H = 4, 3, 2, 5

INPUTS = ["time first", "batch first", "unbatched", "packed sorted", "packed unsorted"]


def make_input(kind: str, width: int, **options: Any) -> Tensor | PackedSequence:
    x = torch.randn(T, B, width, dtype=torch.float64).to(**options)
    if kind == "batch first":
        return x.transpose(0, 1)  # not contiguous either
    if kind == "unbatched":
        return x[:, 0]
    if kind == "packed sorted":
        return pack_padded_sequence(x, [4, 2, 1])
    if kind == "packed unsorted":
        return pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False)
    return x


def make_state(lstm: SymLSTM, kind: str, **options: Any) -> tuple[Tensor, Tensor]:
    count = lstm.num_layers * (2 if lstm.bidirectional else 1)
    batch = () if kind == "unbatched" else (B,)
    sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
    h, c = (torch.randn(count, *batch, n, dtype=torch.float64).to(**options) for n in sizes)
    return h, c


def make_lstm(*sizes: int, **options: Any) -> SymLSTM:
    return SymLSTM(*sizes, **{"dtype": torch.float64, **options})


def test_the_backends_are_these() -> None:
    assert set(BACKENDS) <= set(list_backends())


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_states_and_gradients_over_the_grid(
    oracle, backend: str, symm: str, num_layers: int, bidirectional: bool
) -> None:
    for bias, kind in itertools.product([True, False], INPUTS):
        lstm = make_lstm(
            IN,
            H,
            num_layers,
            bias,
            batch_first=kind == "batch first",
            bidirectional=bidirectional,
            symm=symm,
            backend=backend,
        )
        x = make_input(kind, IN)
        oracle.check(lstm, x, make_state(lstm, kind))
        if bias:  # zeros for a state that is not given
            oracle.check(lstm, x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symm", FORMS)
def test_evaluation_without_gradients(symm: str, backend: str) -> None:
    """Where "auto" may run another way; also T·B of 1, 4 and 5, around where it changes."""
    lstm = make_lstm(IN, H, 2, dropout=0.5, symm=symm, backend=backend).eval()
    plain = lstm.to_lstm()
    for steps, batch in [(1, 1), (1, 4), (4, 1), (5, 1), (2, 3)]:
        x = torch.randn(steps, batch, IN, dtype=torch.float64)
        with torch.no_grad():
            (output, state), (expected, last) = lstm(x), plain(x)
        for a, b in zip((output, *state), (expected, *last), strict=True):
            assert not a.requires_grad
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["time first", "batch first", "packed unsorted"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_the_same_numbers_as_nn_lstm(oracle, backend: str, kind: str) -> None:
    options = {"dropout": 0.4, "bidirectional": True, "batch_first": kind == "batch first"}
    lstm = make_lstm(IN, H, 3, backend=backend, **options)
    x = make_input(kind, IN)
    oracle.check(lstm, x)  # both seeded alike, in training mode
    torch.manual_seed(1)
    dropped = lstm(x)[1][0]
    torch.manual_seed(2)
    assert not torch.equal(lstm(x)[1][0], dropped)
    lstm.eval()
    oracle.check(lstm, x)
    torch.manual_seed(1)
    kept = lstm(x)[1][0]
    assert torch.equal(lstm(x)[1][0], kept)
    assert not torch.equal(kept, dropped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options", [{"symm": "none"}, {"symm_hh": ""}, {"symm": "tri", "symm_hh": "", "symm_ih": "go"}]
)
def test_projections(oracle, options: dict[str, Any], backend: str) -> None:
    for bias, bidirectional, kind in itertools.product([True, False], [True, False], INPUTS):
        width = H if options.get("symm_ih") else IN
        lstm = make_lstm(
            width,
            H,
            1 if options.get("symm_ih") else 2,
            bias,
            kind == "batch first",
            bidirectional=bidirectional,
            proj_size=3,
            backend=backend,
            **options,
        )
        oracle.check(lstm, make_input(kind, width), make_state(lstm, kind))


@pytest.mark.parametrize("symm", FORMS[1:])
@pytest.mark.parametrize("symm_ih", ["", "i", "fg", "ifgo", "ogfi"])
@pytest.mark.parametrize("symm_hh", ["", "i", "fg", "ifgo", "ogfi"])
def test_gates_are_chosen_one_by_one(oracle, symm_hh: str, symm_ih: str, symm: str) -> None:
    lstm = make_lstm(H, H, 2, symm=symm, symm_hh=symm_hh, symm_ih=symm_ih)
    oracle.check(lstm, make_input("time first", H))
    for kind, symmetric in (("hh", symm_hh), ("ih", symm_ih)):
        for layer in (0, 1):
            blocks = getattr(lstm, f"weight_{kind}_l{layer}").view(4, H, H)
            for gate, block in zip("ifgo", blocks, strict=True):
                assert torch.equal(block, block.T) == (gate in symmetric)
    # The order of the letters says nothing.
    assert lstm.symm_hh == "".join(gate for gate in "ifgo" if gate in symm_hh)
    turned = make_lstm(H, H, 2, symm=symm, symm_hh=symm_hh[::-1], symm_ih=symm_ih[::-1])
    turned.load_state_dict(lstm.state_dict())
    assert torch.equal(turned.weight_hh_l1, lstm.weight_hh_l1)


def test_input_weights_of_a_single_bidirectional_layer_may_be_symmetric(oracle) -> None:
    lstm = make_lstm(H, H, bidirectional=True, symm_ih="ifgo")
    oracle.check(lstm, make_input("time first", H))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symm", FORMS)
def test_smallest_odd_empty_and_strided_sizes(oracle, symm: str, backend: str) -> None:
    for steps, batch, width, side in [(1, 1, 1, 1), (1, 1, 3, 7), (5, 1, 1, 2), (2, 9, 4, 1)]:
        lstm = make_lstm(width, side, 2, symm=symm, backend=backend)
        oracle.check(lstm, torch.randn(steps, batch, width, dtype=torch.float64))
    lstm = make_lstm(IN, H, 2, bidirectional=True, symm=symm, backend=backend)
    strided = torch.randn(2 * T, IN, B, dtype=torch.float64)[::2].transpose(1, 2)
    assert not strided.is_contiguous()
    oracle.check(lstm, strided)
    state = [torch.randn(B, 4, H, dtype=torch.float64).transpose(0, 1) for _ in "hc"]
    oracle.check(lstm, strided, tuple(state))
    output, (h, c) = lstm(torch.zeros(T, 0, IN, dtype=torch.float64))
    assert (output.shape, h.shape, c.shape) == ((T, 0, 2 * H), (4, 0, H), (4, 0, H))


def test_packed_output_keeps_the_order_of_its_sequences() -> None:
    lengths = [2, 5, 1, 5]
    sequences = [torch.randn(n, IN, dtype=torch.float64) for n in lengths]
    lstm = make_lstm(IN, H, 2, bidirectional=True)
    packed, (h, c) = lstm(pack_sequence(sequences, enforce_sorted=False))
    assert isinstance(packed, PackedSequence)
    for k, (sequence, output) in enumerate(
        zip(sequences, nn.utils.rnn.unpack_sequence(packed), strict=True)
    ):
        alone, (h_alone, c_alone) = lstm(sequence)
        for a, b in ((output, alone), (h[:, k], h_alone), (c[:, k], c_alone)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# How far 8 or 11 bits of precision lead from the same numbers in float64, in 2 layers of 4 steps.
LOW = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symm", FORMS)
def test_lower_precision(symm: str, backend: str, dtype: torch.dtype) -> None:
    exact = make_lstm(IN, H, 2, symm=symm, backend="reference")
    lstm = make_lstm(IN, H, 2, symm=symm, backend=backend, dtype=dtype)
    lstm.load_state_dict(exact.state_dict())
    exact.load_state_dict(lstm.state_dict())  # the rounded weights
    x = make_input("time first", IN).to(dtype)
    state = make_state(lstm, "time first", dtype=dtype)
    output, (h, c) = lstm(x, state)
    output.sum().backward()
    exact_output, (exact_h, exact_c) = exact(x.double(), tuple(s.double() for s in state))
    exact_output.sum().backward()
    assert output.dtype == h.dtype == c.dtype == dtype
    for a, b in ((output, exact_output), (h, exact_h), (c, exact_c)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=LOW[dtype])
    for a, b in zip(lstm.parameters(), exact.parameters(), strict=True):
        assert a.grad.dtype == dtype
        scale = b.grad.abs().max().item()
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0, atol=2 * scale * LOW[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symm", FORMS)
def test_autocast(symm: str, backend: str) -> None:
    """In both dtypes by turns, since what TorchScript compiled for one must not meet the other.

    "vendor" and "auto" give dtype and bits of nn.LSTM, which has no float16 autocast on a CPU.
    """
    lstm = make_lstm(IN, H, 2, symm=symm, backend=backend, dtype=torch.float32)
    plain = lstm.to_lstm()
    like_plain = backend in ("vendor", "auto")
    for dtype in (
        [torch.bfloat16] if like_plain else [torch.bfloat16, torch.float16, torch.bfloat16]
    ):
        for x in (torch.randn(T, B, IN), torch.randn(1, 1, IN)):
            exact = lstm(x)[0]
            for mode in (torch.enable_grad, torch.no_grad):
                with torch.autocast("cpu", dtype), mode():
                    output = lstm(x)[0]
                    if like_plain:
                        torch.testing.assert_close(output, plain(x)[0], rtol=0, atol=0)
                torch.testing.assert_close(output.float(), exact, rtol=0, atol=2e-2)
        lstm.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = lstm(torch.randn(T, B, IN))[0].float().square().mean()
        loss.backward()
        for parameter in lstm.parameters():
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().max() > 0
