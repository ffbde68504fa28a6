"""Dropout of the state and of the hidden weights: the same mask at every step, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from symrnn import SymGRU, SymLSTM, SymRNN, native, symmetrize
from symrnn.rnn import dispatch
from symrnn.rnn.dropout import dropout, part_of_batch, sees_part

LAYERS: dict[str, type[SymLSTM] | type[SymGRU] | type[SymRNN]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "RNN": SymRNN,
}
BACKENDS = [name for name in dispatch.list_backends() if name not in ("auto", "folded")]
P = 0.4


def skip_without_kernels(backend: str) -> None:
    if backend == "fused" and not native.available():
        pytest.skip(native.why_not())


def layer_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return LAYERS[kind](6, 20, 2, dtype=torch.float64, state_dropout=P, **options)


def oracle(layer: Any, x: Tensor, lengths: list[int], seed: int) -> Tensor:
    """The outputs (T, B, D·H), zeros behind each end, one sequence, one step at a time.

    By PyTorch's own cells: an LSTM's and an RNN's take the masked h as their h; of a GRU, which
    mixes h in unmasked too, the equations are written out.
    """
    torch.manual_seed(seed)
    directions = 2 if layer.bidirectional else 1
    batch, side = x.size(1), layer.hidden_size
    count = layer.num_layers * directions
    masks = [F.dropout(x.new_ones(batch, side), P) for _ in range(count)]
    cell = {"RNN_TANH": torch.rnn_tanh_cell, "RNN_RELU": torch.rnn_relu_cell}.get(layer.mode)
    for depth in range(layer.num_layers):
        above = x.new_zeros(len(x), batch, directions * side)
        for direction in range(directions):
            mask = masks[depth * directions + direction]
            suffix = f"_l{depth}" + ("_reverse" if direction else "")
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{name}{suffix}").detach()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            for b, length in enumerate(lengths):
                h, c = x.new_zeros(1, side), x.new_zeros(1, side)
                for t in reversed(range(length)) if direction else range(length):
                    x_t, masked = x[t, b : b + 1], h * mask[b]
                    if layer.mode == "LSTM":
                        h, c = torch.lstm_cell(x_t, (masked, c), w_ih, w_hh, b_ih, b_hh)
                    elif layer.mode == "GRU":
                        from_x, from_h = F.linear(x_t, w_ih, b_ih), F.linear(masked, w_hh, b_hh)
                        r, z = (from_x + from_h)[:, : 2 * side].sigmoid().chunk(2, -1)
                        n = (from_x[:, 2 * side :] + r * from_h[:, 2 * side :]).tanh()
                        h = (1 - z) * n + z * h
                    else:
                        assert cell is not None
                        h = cell(x_t, masked, w_ih, w_hh, b_ih, b_hh)
                    above[t, b, direction * side : (direction + 1) * side] = h[0]
        x = above
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 3, 1]])
def test_every_backend_masks_the_state_as_the_equations_say(
    kind: str, backend: str, lengths: list[int]
) -> None:
    skip_without_kernels(backend)
    layer = layer_of(kind, symm="avg", backend=backend, bidirectional=True)
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    expected = oracle(layer, x, lengths, seed=7)
    torch.manual_seed(7)
    output = layer(x if len({*lengths}) == 1 else pack_padded_sequence(x, lengths))[0]
    if isinstance(output, PackedSequence):
        output = nn.utils.rnn.pad_packed_sequence(output)[0]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("symm", ["tri8", "block4"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("backend", ["folded", "fused"])
def test_forms_that_fold_mask_the_state_too(kind: str, symm: str, backend: str) -> None:
    skip_without_kernels(backend)
    layer = layer_of(kind, symm=symm, backend=backend)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    expected = oracle(layer, x, [4, 4], seed=3)
    torch.manual_seed(3)
    torch.testing.assert_close(layer(x)[0], expected)


def gradients(layer: Any, x: Tensor, lengths: list[int]) -> list[Tensor]:
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    given = pack_padded_sequence(x, lengths) if lengths else x
    output, state = layer(given)
    data = output.data if isinstance(output, PackedSequence) else output
    parts = state if isinstance(state, tuple) else (state,)
    loss = sum((part * part.detach().cos()).sum() for part in (data, *parts))
    return [*torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("lengths", [[], [6, 6, 4, 2, 1]])
@pytest.mark.parametrize("symm", ["avg", "avg:skew2", "tri8", "none"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_the_kernels_are_those_of_autograd(
    kind: str, symm: str, lengths: list[int], threads: int
) -> None:
    skip_without_kernels("fused")
    x = torch.randn(6, 5 if lengths else 12, 6, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # of 12 sequences each of two has its own
    try:
        found, expected = (
            gradients(layer_of(kind, symm=symm, backend=backend), x, lengths)
            for backend in ("fused", "reference")
        )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_folded_loops_are_those_of_autograd(kind: str) -> None:
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    found, expected = (
        gradients(layer_of(kind, symm="block4", backend=backend), x, [4, 2, 2])
        for backend in ("folded", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_gradients(kind: str) -> None:
    skip_without_kernels("fused")
    layer = LAYERS[kind](2, 3, state_dropout=P, dtype=torch.float64, backend="fused")

    def output(x: Tensor) -> Tensor:
        torch.manual_seed(2)
        return layer(x)[0]

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, x)
    assert torch.autograd.gradgradcheck(output, x, fast_mode=True)


def test_projections_are_masked_as_they_go_into_the_hidden_weights() -> None:
    outputs = []
    for backend in ("reference", "script", "vendor", "auto"):
        layer = layer_of("LSTM", symm_hh="", proj_size=4, backend=backend)
        torch.manual_seed(3)
        outputs.append(layer(torch.ones(3, 2, 6, dtype=torch.float64))[0])
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


# ---- what a mask is ----------------------------------------------------------------------------


def identity(side: int, **options: Any) -> SymRNN:
    """A layer that passes on h, masked: h_t = relu(I · m · h)."""
    layer = SymRNN(side, side, nonlinearity="relu", **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    layer.weight_hh_l0 = torch.eye(side)
    return layer


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_one_mask_a_sequence_is_the_same_at_every_step(backend: str) -> None:
    skip_without_kernels(backend)
    torch.manual_seed(1)
    layer = identity(32, state_dropout=0.5, backend=backend)
    output, _ = layer(torch.zeros(4, 3, 32), torch.ones(1, 3, 32))
    masks = output[0]
    assert {*masks.unique().tolist()} == {0.0, 2.0}
    for t in range(4):
        assert torch.equal(output[t], masks ** (t + 1))
    assert not torch.equal(masks[0], masks[1])


def test_the_expectation_is_kept_and_every_call_draws_anew() -> None:
    torch.manual_seed(1)
    layer = identity(64, state_dropout=0.3)
    x, h = torch.zeros(1, 1000, 64), torch.ones(1, 1000, 64)
    first, second = (layer(x, h)[0].detach() for _ in range(2))
    assert not torch.equal(first, second)
    # 64,000 numbers of standard deviation (0.3 / 0.7)^½ = 0.65; five of their mean are 0.013.
    assert abs(float(first.mean()) - 1) < 0.013


def test_a_chance_of_one_cuts_the_recurrence() -> None:
    layer = LAYERS["RNN"](4, 4, state_dropout=1.0)
    x = torch.randn(3, 2, 4)
    expected = torch.tanh(F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0))
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_off_in_evaluation(kind: str) -> None:
    layer = LAYERS[kind](6, 20, state_dropout=0.5, weight_dropout=0.5)
    plain = LAYERS[kind](6, 20)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 2, 6)
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])
    with torch.no_grad():
        assert torch.equal(layer(x)[0], plain(x)[0])


@pytest.mark.parametrize("option", ["state_dropout", "weight_dropout", "dropout"])
def test_a_call_in_training_without_gradients_drops_even_after_evaluation(option: str) -> None:
    layer = SymLSTM(16, 16, 2, **{option: 0.5}).eval()
    x = torch.randn(3, 1, 16)
    with torch.no_grad():
        evaluated = [layer(x)[0] for _ in range(3)]  # packed, and noted, by now
        layer.train()
        trained = [layer(x)[0] for _ in range(2)]
        layer.eval()
        assert torch.equal(layer(x)[0], evaluated[0])
    assert not torch.equal(trained[0], evaluated[0])
    assert not torch.equal(trained[0], trained[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast(backend: str, given: torch.dtype) -> None:
    skip_without_kernels(backend)
    torch.manual_seed(1)
    layer = SymLSTM(6, 20, state_dropout=0.5, backend=backend)
    x = torch.randn(3, 2, 6, dtype=given)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(2)
        output = layer(x)[0]
    layer.backend = "reference"
    torch.manual_seed(2)
    # bfloat16 has 8 bits of precision, and outputs are below one.
    torch.testing.assert_close(output.float(), layer(x.float())[0], atol=2e-2, rtol=0)


# ---- the hidden weights ------------------------------------------------------------------------


@pytest.mark.parametrize("symm", ["avg", "tri", "block4", "avg:diag16", "none"])
def test_dropped_weights_are_of_their_form(symm: str) -> None:
    """One step from h = I shows the matrix: it is whole orbits of the matrix that are gone."""
    torch.manual_seed(1)
    layer = SymRNN(20, 20, nonlinearity="relu", bias=False, symm=symm, weight_dropout=0.5)
    whole = layer.weight_hh_l0.detach()
    x, h = torch.zeros(1, 20, 20), torch.eye(20)[None]
    # relu of the matrix and of its negative, whose masks are the same by the same seed.
    torch.manual_seed(2)
    positive = layer(x, h)[0][0].mT
    torch.manual_seed(2)
    dropped = positive - layer(x, -h)[0][0].mT
    gone = dropped == 0
    torch.testing.assert_close(dropped[~gone], 2 * whole[~gone])
    assert 0.3 < gone.float().mean() < 0.7
    if layer.symmetry is not None:
        torch.testing.assert_close(layer.symmetry.expand(layer.symmetry.project(dropped)), dropped)
    assert not torch.equal(layer(x, h)[0][0].mT, positive)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_drops_the_same_weights(backend: str) -> None:
    skip_without_kernels(backend)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    found, expected = (
        gradients(layer_of("LSTM", symm="avg", weight_dropout=0.3, backend=name), x, [])
        for name in (backend, "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# ---- as an argument ----------------------------------------------------------------------------


def test_auto_takes_the_kernels_and_says_what_it_drops() -> None:
    layer = SymLSTM(6, 20, state_dropout=0.25, weight_dropout=0.5)
    assert "state_dropout=0.25, weight_dropout=0.5" in repr(layer)
    tensors = [torch.zeros(3, 2, 6), layer._some_weight()]
    expected = "fused" if native.available() else "reference"
    assert dispatch.choose(layer._traits, tensors, 3, 2, True) == expected
    assert dispatch.choose(layer.eval()._traits, tensors, 3, 2, True) != "reference"


@pytest.mark.parametrize("name", ["state_dropout", "weight_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.5, True, "0.5"])
def test_a_chance_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} should be a number in range \[0, 1\], got:"):
        SymLSTM(4, 4, **{name: value})


def test_a_chance_may_be_of_any_type_of_number() -> None:
    layer = SymLSTM(4, 4, state_dropout=np.float32(0.5), weight_dropout=1)
    assert (layer.state_dropout, layer.weight_dropout) == (0.5, 1.0)
    assert type(layer.state_dropout) is float


def test_another_form_drops_as_before() -> None:
    layer = nn.Sequential(SymLSTM(8, 8, symm="none", state_dropout=0.2, weight_dropout=0.1))
    symmetrize(layer, "tri")
    assert (layer[0].state_dropout, layer[0].weight_dropout) == (0.2, 0.1)


def test_a_graph_has_the_masks_of_the_call() -> None:
    layer = SymLSTM(6, 20, state_dropout=0.5)
    x = torch.randn(3, 2, 6)
    torch.manual_seed(4)
    expected = layer(x)[0]
    torch.manual_seed(4)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x)[0], expected)


# ---- a part of a batch -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"symm": "none"}, {"bidirectional": True}], ids=str)
def test_parts_of_a_batch_drop_what_the_whole_does(backend: str, options: dict[str, Any]) -> None:
    """Between the layers, in the state, of the weights; the parts need not be equal."""
    skip_without_kernels(backend)
    torch.manual_seed(1)
    layer = SymLSTM(6, 20, 3, dropout=P, backend=backend, dtype=torch.float64, **options)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for layer.state_dropout, layer.weight_dropout in [(0.0, 0.0), (P, 0.2)]:
        torch.manual_seed(2)
        whole, state = layer(x)
        for part in (slice(0, 2), slice(2, 5), slice(4, 5)):
            torch.manual_seed(2)
            with part_of_batch(5, part):
                output, ended = layer(x[:, part])
            torch.testing.assert_close(output, whole[:, part])
            torch.testing.assert_close(ended, tuple(s[:, part] for s in state))


def test_a_part_that_is_the_whole_batch_is_nothing_special() -> None:
    with part_of_batch(5, slice(0, 5)):
        assert not sees_part()
    with part_of_batch(5, slice(0, 4)):
        assert sees_part()
        with part_of_batch(4, slice(None)):
            assert not sees_part()
        assert sees_part()
    assert not sees_part()


def test_a_graph_serves_all_parts_of_a_size() -> None:
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: dropout(x, P), backend=count, fullgraph=True)
    for first in range(0, 24, 2):
        found = []
        for call in (compiled, lambda x: dropout(x, P)):
            torch.manual_seed(first)
            with part_of_batch(24, slice(first, first + 2)):
                found.append(call(torch.ones(3, 2, 4)))
        assert torch.equal(*found)
    assert len(graphs) == 1


def test_what_cannot_be_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slice\(5, 9, None\) has none of a batch of 5"):
        part_of_batch(5, slice(5, 9)).__enter__()
    with part_of_batch(5, slice(1, 4)):
        with pytest.raises(ValueError, match=r"rows of 3 sequences, got: \(4, 6\)"):
            dropout(torch.ones(4, 6), P)
        lstm = SymLSTM(6, 20, 2, dropout=P)
        with pytest.raises(ValueError, match="part_of_batch: a PackedSequence cannot be one"):
            lstm(pack_padded_sequence(torch.ones(4, 3, 6), [4, 2, 1]))
