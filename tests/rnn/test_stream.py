"""Streams: the module itself, called with its last state each time, is what they must equal."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell, deploy, native

LAYERS = [SymLSTM, SymGRU, SymRNN]
CELLS = [SymLSTMCell, SymGRUCell, SymRNNCell]

needs_kernels = pytest.mark.skipif(not native.available(), reason="needs the native kernels")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def close(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    ours, theirs = ([v] if isinstance(v, Tensor) else list(v) for v in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@torch.no_grad()
def check(module: nn.Module, batch: int, chunks: list[int], tolerance: float = 1e-6) -> None:
    """A stream over some steps at a time (0: one step, without its axis) against the module."""
    stream, hx = module.stream(batch), None
    module = copy.deepcopy(module).eval()
    for steps in chunks:
        x = torch.randn(max(steps, 1), batch, module.input_size, dtype=stream._dtype)
        given = x.transpose(0, 1) if module.batch_first else x
        expected, hx = module(given, hx)
        if steps == 0:
            close(stream(x[0]), expected.squeeze(1 if module.batch_first else 0), tolerance)
        else:
            y = stream(given)
            assert y.shape == expected.shape
            close(y, expected, tolerance)
        close(stream.state, hx, tolerance)


@pytest.mark.parametrize("backend", ["auto", "reference", "vendor"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_steps_and_states_are_those_of_the_module(kind: Any, layers: int, backend: str) -> None:
    for batch in (1, 3):
        check(kind(7, 20, layers, backend=backend), batch, [0, 0, 4, 1, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"symm": "none"},
        {"symm": "tri8"},
        {"symm": "block4", "symm_hh": "io"},
        {"symm": "avg:diag2"},
        {"symm": "avg:skew2", "symm_hh": "ifo"},
        {"bias": False},
        {"batch_first": True, "num_layers": 2},
        {"dropout": 0.5, "num_layers": 2},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_of_every_form_and_option(options: dict[str, Any]) -> None:
    layer = SymLSTM(5, 17, **options)
    for parameter in layer.parameters():  # a skew part begins at zero
        nn.init.uniform_(parameter, -0.3, 0.3)
    check(layer, 2, [0, 3, 0])


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_cells_too(kind: Any) -> None:
    for backend in ("auto", "reference"):
        cell = kind(7, 20, backend=backend)
        stream, hx = cell.stream(batch=2), None
        for _ in range(3):
            x = torch.randn(2, 7)
            hx = cell(x, hx)
            close(stream(x), hx if isinstance(hx, Tensor) else hx[0])
        close(stream.state, hx)
        stream.reset([0])
        assert not torch.stack([part[0] for part in _parts(stream.state)]).any()
        with pytest.raises(ValueError, match=r"x should have shape \(2, 7\), got: \(1, 2, 7\)"):
            stream(torch.randn(1, 2, 7))


def _parts(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [SymLSTM, SymGRU])
@torch.no_grad()
def test_sessions_come_and_go_in_a_batch(kind: Any, backend: str) -> None:
    """Each sequence alone, from its own first step on, is what a row of the batch must equal."""
    layer = kind(6, 18, 2, backend=backend).eval()
    stream = layer.stream(batch=3)
    alone: list[Any] = [None] * 3

    def step(rows: list[int], steps: int) -> None:
        x = torch.randn(steps, len(rows), 6)
        y = stream(x[0] if steps == 1 else x, rows=rows).view(steps, len(rows), 18)
        for k, row in enumerate(rows):
            expected, alone[row] = layer(x[:, k : k + 1], alone[row])
            close(y[:, k : k + 1], expected)

    step([0, 1, 2], 1)
    step([2, 0], 3)
    stream.reset([0])
    alone[0] = None
    step([0, 1], 1)
    stream.reset()
    alone = [None] * 3
    step([1, 2], 2)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_of_no_sequence_gives_nothing(backend: str) -> None:
    for module in (SymLSTM(4, 8, 2, backend=backend), SymGRUCell(4, 8, backend=backend)):
        stream = module.stream(2)
        stream(torch.randn(2, 4))
        before = copy.deepcopy(stream.state)
        assert stream(torch.empty(0, 4), rows=[]).shape == (0, 8)
        stream.reset(rows=[])
        close(stream.state, before, 0)
    assert SymLSTM(4, 8, backend=backend).stream(2)(torch.empty(3, 0, 4), rows=[]).shape == (
        3,
        0,
        8,
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_made_in_inference_mode_runs_outside(backend: str) -> None:
    layer = SymLSTM(4, 8, backend=backend)
    with torch.inference_mode():
        stream, x = layer.stream(2), torch.randn(2, 4)
        stream(x)
    x = x.clone()
    stream.reset()
    close(stream(x[1:], rows=[1]), layer.stream()(x[1:]))
    stream.state = stream.state


@torch.no_grad()
def test_a_state_is_copied_out_and_in() -> None:
    layer = SymLSTM(6, 18, 2).eval()
    stream = layer.stream(2)
    x = torch.randn(4, 2, 6)
    stream(x[:2])
    before = stream.state
    kept = [part.clone() for part in before]
    after = stream(x[2:])
    close(before, kept, 0)
    other = layer.stream(2)
    other.state = before
    close(other(x[2:]), after, 0)
    with pytest.raises(
        ValueError, match=r"state should have the shapes \[\(2, 2, 18\), \(2, 2, 18\)"
    ):
        other.state = (before[0][:, :1], before[1][:, :1])
    gru = SymGRU(6, 18).stream()
    gru.state = torch.ones(1, 1, 18)
    assert torch.equal(gru.state, torch.ones(1, 1, 18))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_output_goes_where_it_is_wanted(backend: str) -> None:
    layer = SymLSTM(6, 18, backend=backend)
    one, other = layer.stream(), layer.stream()
    x = torch.randn(3, 1, 6)
    out = torch.empty(1, 18)
    assert one(x[0], out=out) is out
    close(out, other(x[0]), 0)
    two = torch.empty(2, 1, 18)
    assert one(x[1:], out=two) is two
    close(two, other(x[1:]), 0)
    for wrong in (torch.empty(2, 18), torch.empty(1, 18).double(), torch.empty(1, 36)[:, ::2]):
        with pytest.raises(ValueError, match="out should be a contiguous"):
            one(x[0], out=wrong)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weights_are_those_of_the_moment_and_outputs_want_no_gradient(kind: Any) -> None:
    for backend in ("auto", "reference"):
        layer = kind(6, 18, backend=backend)
        x = torch.randn(1, 6, requires_grad=True)
        stream, again = layer.stream(), layer.stream()
        first = again(x)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        y = stream(x)
        close(y, first, 0)
        assert not y.requires_grad


@needs_kernels
def test_the_weights_of_a_deployed_module_are_shared_with_it() -> None:
    packed, other = deploy(SymGRU(6, 18)), deploy(SymGRU(6, 18))
    stream, x = packed.stream(), torch.randn(1, 6)
    packed.load_state_dict(other.state_dict())
    close(stream(x), other.stream()(x), 0)


@needs_kernels
def test_in_bfloat16_and_in_float64() -> None:
    layer = SymLSTM(32, 32, symm_ih="ifgo")
    x = torch.randn(20, 2, 32)
    exact = layer.stream(2)(x)
    layer.inference_dtype = torch.bfloat16
    rounded = layer.stream(2)(x)
    with torch.no_grad():
        close(rounded, layer.eval()(x)[0])
    assert 1e-5 < float((rounded - exact).abs().max()) < 2e-2


@torch.no_grad()
def test_under_autocast_as_the_module() -> None:
    layer = SymLSTM(8, 16).eval()
    x = torch.randn(3, 1, 8)
    outside = layer.stream()
    with torch.autocast("cpu", torch.bfloat16):
        stream, expected = layer.stream(), layer(x)[0]
        y = stream(x)
        assert y.dtype == expected.dtype
        close(y, expected, 0)
        if native.available():
            with pytest.raises(RuntimeError, match="made outside autocast"):
                outside(x)


def test_more_rows_than_the_kernels_take_at_once() -> None:
    layer = SymGRU(3, 8)
    x = torch.randn(4500, 1, 3)
    with torch.no_grad():
        close(layer.stream()(x), layer(x)[0], 1e-5)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="bidirectional should be False"):
        SymLSTM(4, 4, bidirectional=True).stream()
    for batch in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="batch should be an int from 1 on, got"):
            SymLSTM(4, 4).stream(batch)  # type: ignore[arg-type]
    stream = SymLSTM(4, 8).stream(2)
    with pytest.raises(ValueError, match=r"\(2, 4\) or \(T, 2, 4\), T ≥ 1, got: \(3, 4\)"):
        stream(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"got: \(0, 2, 4\)"):
        stream(torch.randn(0, 2, 4))
    with pytest.raises(ValueError, match=r"x should be torch\.float32, got: torch\.float64"):
        stream(torch.randn(2, 4).double())
    with pytest.raises(
        ValueError, match=r"rows should be different ints from 0 to 1, got: \[0, 2\]"
    ):
        stream(torch.randn(2, 4), rows=[0, 2])
    with pytest.raises(
        ValueError, match=r"rows should be different ints from 0 to 1, got: \[1, 1\]"
    ):
        stream.reset([1, 1])
    for mask in (torch.tensor([True, False]), [True, False], np.array([True, False])):
        with pytest.raises(
            ValueError, match=r"different ints from 0 to 1, got: \[.*True.*False.*\]"
        ):
            stream.reset(mask)
    with pytest.raises(ValueError, match=r"different ints from 0 to 1, got: \[0\.5\]"):
        stream.reset([0.5])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="a stream changes its state in place"):
        torch.func.vmap(stream)(torch.randn(3, 2, 4))
