"""The layers compute what PyTorch's compute on the expanded weights: outputs, states, gradients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn import list_backends

KINDS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}
FORMS = ["none", "tri", "avg", "avg:full"]
BACKENDS = ["reference", "script", "vendor", "auto"]
T, B, IN, H = 4, 3, 2, 5

# The forms differ in how a matrix is made, which kinds and backends have in common: all by one of
# them, two of an LSTM by each, one or the other of the other kinds.
WAYS = [
    *itertools.product(["LSTM"], BACKENDS, ["none", "avg"]),
    ("LSTM", "reference", "tri"),
    ("LSTM", "reference", "avg:full"),
    *itertools.product(["GRU", "tanh"], BACKENDS, ["avg"]),
    *itertools.product(["ReLU"], BACKENDS, ["none"]),
]

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


def make_state(layer: Any, kind: str, **options: Any) -> Tensor | tuple[Tensor, Tensor]:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = () if kind == "unbatched" else (B,)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    h, c = (torch.randn(count, *batch, n, dtype=torch.float64).to(**options) for n in sizes)
    return (h, c) if isinstance(layer, SymLSTM) else h


def make_layer(of: str, *sizes: int, **options: Any) -> Any:
    return KINDS[of](*sizes, **{"dtype": torch.float64, **options})


def make_lstm(*sizes: int, **options: Any) -> SymLSTM:
    return SymLSTM(*sizes, **{"dtype": torch.float64, **options})


def parts(state: Tensor | tuple[Tensor, Tensor]) -> list[Tensor]:
    """h, and of an LSTM c."""
    return [state] if isinstance(state, Tensor) else list(state)


def test_the_backends_are_these() -> None:
    assert set(BACKENDS) <= set(list_backends())


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize(
    ("of", "backend", "symm", "num_layers"),
    [
        *itertools.product(["LSTM"], BACKENDS, ["none", "avg"], [1, 3]),
        *(("LSTM", "reference", symm, 3) for symm in ("tri", "avg:full")),
        *((of, backend, "avg", 2) for of in ("GRU", "tanh") for backend in BACKENDS),
        *(("ReLU", backend, "none", 2) for backend in ("reference", "script")),
    ],
)
def test_outputs_states_and_gradients_over_the_grid(
    oracle, of: str, backend: str, symm: str, num_layers: int, bidirectional: bool
) -> None:
    inputs = [*((True, kind) for kind in INPUTS), (False, INPUTS[0]), (False, INPUTS[-1])]
    for bias, kind in inputs:
        layer = make_layer(
            of,
            IN,
            H,
            num_layers,
            bias=bias,
            batch_first=kind == "batch first",
            bidirectional=bidirectional,
            symm=symm,
            backend=backend,
        )
        x = make_input(kind, IN)
        oracle.check(layer, x, make_state(layer, kind))
        if bias:  # zeros for a state that is not given
            oracle.check(layer, x)


@pytest.mark.parametrize(
    ("of", "backend"),
    [
        *(("LSTM", backend) for backend in ("reference", "script", "vendor")),
        ("GRU", "reference"),
        ("GRU", "vendor"),
        ("tanh", "script"),
        ("ReLU", "vendor"),
    ],
)
def test_gradients_are_the_slopes(of: str, backend: str) -> None:
    """Against finite differences, which know of no other implementation."""
    layer = make_layer(of, 2, 3, 2, symm="tri", backend=backend)
    numbers = dict(layer.named_parameters())
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(numbers, values, strict=True))
        output, state = torch.func.functional_call(layer, given, (x,))
        return output, *parts(state)

    assert torch.autograd.gradcheck(run, (x, *numbers.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", KINDS)
def test_a_loss_of_one_part_of_the_result(of: str, backend: str) -> None:
    """Again and again: what is compiled at the second call must do without the other gradients."""
    layer = make_layer(of, IN, H, 2, backend=backend)
    plain = layer.to_plain()
    for part in [0, 1, -1] * 2:
        x = torch.randn(T, B, IN, dtype=torch.float64)
        losses = []
        for module in (layer, plain):
            module.zero_grad()
            output, state = module(x)
            loss = [output, *parts(state)][part].square().sum()
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(*losses, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            layer.weight_ih_l0.grad, plain.weight_ih_l0.grad, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("of", "backend", "symm"), WAYS)
def test_evaluation_without_gradients(of: str, symm: str, backend: str) -> None:
    """Where "auto" may run another way; also T·B of 1, 4 and 5, around where it changes."""
    layer = make_layer(of, IN, H, 2, dropout=0.5, symm=symm, backend=backend).eval()
    plain = layer.to_plain()
    for steps, batch in [(1, 1), (1, 4), (4, 1), (5, 1), (2, 3)]:
        x = torch.randn(steps, batch, IN, dtype=torch.float64)
        with torch.no_grad():
            (output, state), (expected, last) = layer(x), plain(x)
        for a, b in zip((output, *parts(state)), (expected, *parts(last)), strict=True):
            assert not a.requires_grad
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("of", "backend", "kind"),
    [
        *itertools.product(["LSTM"], BACKENDS, ["time first", "batch first", "packed unsorted"]),
        *itertools.product(["GRU", "tanh"], BACKENDS, ["packed unsorted"]),
        ("ReLU", "script", "time first"),
        ("ReLU", "vendor", "batch first"),
    ],
)
def test_dropout_draws_the_same_numbers_as_pytorch(
    oracle, of: str, backend: str, kind: str
) -> None:
    options = {"dropout": 0.4, "bidirectional": True, "batch_first": kind == "batch first"}
    layer = make_layer(of, IN, H, 3, backend=backend, **options)
    x = make_input(kind, IN)
    oracle.check(layer, x)  # both seeded alike, in training mode
    torch.manual_seed(1)
    dropped = parts(layer(x)[1])[0]
    torch.manual_seed(2)
    assert not torch.equal(parts(layer(x)[1])[0], dropped)
    layer.eval()
    oracle.check(layer, x)
    torch.manual_seed(1)
    kept = parts(layer(x)[1])[0]
    assert torch.equal(parts(layer(x)[1])[0], kept)
    assert not torch.equal(kept, dropped)


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        *(({"symm_hh": ""}, backend) for backend in BACKENDS),
        ({"symm": "none"}, "vendor"),
        ({"symm": "tri", "symm_hh": "", "symm_ih": "go"}, "reference"),
        ({"symm": "tri", "symm_hh": "", "symm_ih": "go"}, "vendor"),
    ],
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


CHOICES = {
    "LSTM": ["", "i", "fg", "ifgo", "ogfi"],
    "GRU": ["", "n", "zr", "rzn"],
    "tanh": ["", "h"],
}


@pytest.mark.parametrize(
    ("of", "symm_hh", "symm_ih", "symm"),
    [
        *(
            (of, *two, "avg")
            for of, some in CHOICES.items()
            for two in itertools.product(some, some)
        ),
        *(("GRU", *two, "tri") for two in itertools.product(CHOICES["GRU"], CHOICES["GRU"])),
        *(("tanh", *two, "avg:full") for two in itertools.product(CHOICES["tanh"], repeat=2)),
    ],
)
def test_gates_are_chosen_one_by_one(
    oracle, of: str, symm_hh: str, symm_ih: str, symm: str
) -> None:
    gates = {"LSTM": "ifgo", "GRU": "rzn", "tanh": "h"}[of]
    layer = make_layer(of, H, H, 2, symm=symm, symm_hh=symm_hh, symm_ih=symm_ih)
    oracle.check(layer, make_input("time first", H))
    for kind, symmetric in (("hh", symm_hh), ("ih", symm_ih)):
        for depth in (0, 1):
            blocks = getattr(layer, f"weight_{kind}_l{depth}").view(len(gates), H, H)
            for gate, block in zip(gates, blocks, strict=True):
                assert torch.equal(block, block.T) == (gate in symmetric)
    # The order of the letters says nothing.
    assert layer.symm_hh == "".join(gate for gate in gates if gate in symm_hh)
    turned = make_layer(of, H, H, 2, symm=symm, symm_hh=symm_hh[::-1], symm_ih=symm_ih[::-1])
    turned.load_state_dict(layer.state_dict())
    assert torch.equal(turned.weight_hh_l1, layer.weight_hh_l1)


@pytest.mark.parametrize(("of", "gates"), [("LSTM", "ifgo"), ("GRU", "rzn"), ("ReLU", "h")])
def test_input_weights_of_a_single_bidirectional_layer_may_be_symmetric(
    oracle, of: str, gates: str
) -> None:
    layer = make_layer(of, H, H, bidirectional=True, symm_ih=gates)
    oracle.check(layer, make_input("time first", H))


@pytest.mark.parametrize(("of", "backend", "symm"), WAYS)
def test_smallest_odd_empty_and_strided_sizes(oracle, of: str, symm: str, backend: str) -> None:
    for steps, batch, width, side in [(1, 1, 1, 1), (1, 1, 3, 7), (5, 1, 1, 2), (2, 9, 4, 1)]:
        layer = make_layer(of, width, side, 2, symm=symm, backend=backend)
        oracle.check(layer, torch.randn(steps, batch, width, dtype=torch.float64))
    layer = make_layer(of, IN, H, 2, bidirectional=True, symm=symm, backend=backend)
    strided = torch.randn(2 * T, IN, B, dtype=torch.float64)[::2].transpose(1, 2)
    assert not strided.is_contiguous()
    oracle.check(layer, strided)
    h, c = (torch.randn(B, 4, H, dtype=torch.float64).transpose(0, 1) for _ in "hc")
    oracle.check(layer, strided, (h, c) if of == "LSTM" else h)
    output, state = layer(torch.zeros(T, 0, IN, dtype=torch.float64))
    assert output.shape == (T, 0, 2 * H)
    assert {part.shape for part in parts(state)} == {(4, 0, H)}


@pytest.mark.parametrize("of", KINDS)
def test_packed_output_keeps_the_order_of_its_sequences(of: str) -> None:
    lengths = [2, 5, 1, 5]
    sequences = [torch.randn(n, IN, dtype=torch.float64) for n in lengths]
    layer = make_layer(of, IN, H, 2, bidirectional=True)
    packed, state = layer(pack_sequence(sequences, enforce_sorted=False))
    assert isinstance(packed, PackedSequence)
    for k, (sequence, output) in enumerate(
        zip(sequences, nn.utils.rnn.unpack_sequence(packed), strict=True)
    ):
        alone, last = layer(sequence)
        torch.testing.assert_close(output, alone, rtol=0, atol=1e-12)
        for a, b in zip(parts(state), parts(last), strict=True):
            torch.testing.assert_close(a[:, k], b, rtol=0, atol=1e-12)


# How far 8 or 11 bits of precision lead from the same numbers in float64, in 2 layers of 4 steps.
LOW = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("of", "backend", "symm"), WAYS)
def test_lower_precision(of: str, symm: str, backend: str, dtype: torch.dtype) -> None:
    exact = make_layer(of, IN, H, 2, symm=symm, backend="reference")
    layer = make_layer(of, IN, H, 2, symm=symm, backend=backend, dtype=dtype)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())  # the rounded weights
    x = make_input("time first", IN).to(dtype)
    given = make_state(layer, "time first", dtype=dtype)
    output, state = layer(x, given)
    output.sum().backward()
    doubled = [part.double() for part in parts(given)]
    exact_output, exact_state = exact(x.double(), tuple(doubled) if of == "LSTM" else doubled[0])
    exact_output.sum().backward()
    pairs = zip((output, *parts(state)), (exact_output, *parts(exact_state)), strict=True)
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=LOW[dtype])
    for a, b in zip(layer.parameters(), exact.parameters(), strict=True):
        assert a.grad.dtype == dtype
        scale = b.grad.abs().max().item()
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0, atol=2 * scale * LOW[dtype])


@pytest.mark.parametrize(("of", "backend", "symm"), WAYS)
def test_autocast(of: str, symm: str, backend: str) -> None:
    """In both dtypes by turns, since what TorchScript compiled for one must not meet the other.

    "vendor" and "auto" give dtype and bits of PyTorch's, which has no float16 autocast on a CPU.
    """
    layer = make_layer(of, IN, H, 2, symm=symm, backend=backend, dtype=torch.float32)
    plain = layer.to_plain()
    like_plain = backend in ("vendor", "auto")
    for dtype in (
        [torch.bfloat16] if like_plain else [torch.bfloat16, torch.float16, torch.bfloat16]
    ):
        for x in (torch.randn(T, B, IN), torch.randn(1, 1, IN)):
            exact = layer(x)[0]
            for mode in (torch.enable_grad, torch.no_grad):
                with torch.autocast("cpu", dtype), mode():
                    output = layer(x)[0]
                    if like_plain:
                        torch.testing.assert_close(output, plain(x)[0], rtol=0, atol=0)
                torch.testing.assert_close(output.float(), exact, rtol=0, atol=2e-2)
        layer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = layer(torch.randn(T, B, IN))[0].float().square().mean()
        loss.backward()
        for parameter in layer.parameters():
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().max() > 0
