"""Under autocast every backend gives the dtypes that PyTorch's own module gives."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell, native

LAYERS: dict[str, Any] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}
CELLS: dict[str, Any] = {"LSTM": SymLSTMCell, "GRU": SymGRUCell, "tanh": SymRNNCell}
BACKENDS = ["reference", "script", "vendor", "folded", "auto"]
BACKENDS += ["fused"] if native.available() else []

H = 8  # input as wide as the state


def tensors(result: Any) -> list[Tensor]:
    """The tensors of numbers of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors(part)]


def check(
    modules: dict[str, Any], low: torch.dtype, x: Any, hx: Any = None, *, backends: Any = BACKENDS
) -> None:
    """Dtypes as the plain module's, and numbers as near as two halves' roundings are."""
    plain = modules["reference"].to_plain()
    for mode in (torch.enable_grad, torch.no_grad):
        with torch.autocast("cpu", low), mode():
            try:
                expected = tensors(plain(x, hx))
            except RuntimeError:  # oneDNN has no LSTM of float16 for every processor
                assert low == torch.float16
                continue
            for backend in backends:
                found = tensors(modules[backend](x, hx))
                assert [t.dtype for t in found] == [t.dtype for t in expected], backend
                for part, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(part, other, rtol=0, atol=4e-2)


def by_backend(make: Any, *sizes: int, backends: Any = BACKENDS, **options: Any) -> dict[str, Any]:
    """A module for each backend, all with the same numbers."""
    modules = {b: make(*sizes, backend=b, **options) for b in backends}
    for module in modules.values():
        module.load_state_dict(modules["reference"].state_dict())
    return modules


GIVEN = [*itertools.product([torch.float32, torch.bfloat16], [None, torch.float32, torch.bfloat16])]


def state(dtype: torch.dtype | None, pair: bool, *shape: int) -> Any:
    if dtype is None:
        return None
    h = torch.rand(*shape).to(dtype)
    return (h, h) if pair else h


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, low: torch.dtype) -> None:
    modules = by_backend(LAYERS[kind], H, H, symm="avg8")
    equal, unequal = (pack_sequence([torch.randn(n, H) for n in both]) for both in ((8, 8), (8, 2)))
    for of_input, of_state in GIVEN:
        hx = state(of_state, kind == "LSTM", 1, 2, H)
        check(modules, low, torch.randn(8, 2, H).to(of_input), hx)
        for packed in (equal, unequal):
            check(modules, low, packed._replace(data=packed.data.to(of_input)), hx)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_over_layers_in_both_directions(kind: str) -> None:
    modules = by_backend(LAYERS[kind], H, H, 2, symm="avg8", bidirectional=True)
    check(modules, torch.bfloat16, torch.randn(8, 2, H))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, low: torch.dtype) -> None:
    modules = by_backend(CELLS[kind], H, H, symm="avg8")
    for of_input, of_state in GIVEN:
        hx = state(of_state, kind == "LSTM", 2, H)
        check(modules, low, torch.randn(2, H).to(of_input), hx)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections() -> None:
    backends = [b for b in BACKENDS if b not in ("folded", "fused")]
    modules = by_backend(SymLSTM, H, H, backends=backends, symm_hh="", proj_size=3)
    check(modules, torch.bfloat16, torch.randn(9, 2, H), backends=backends)


@pytest.mark.parametrize("kind", LAYERS)
def test_float64_stays_as_pytorch_leaves_it(kind: str) -> None:
    modules = by_backend(LAYERS[kind], H, H, symm="avg8", dtype=torch.float64)
    check(modules, torch.bfloat16, torch.randn(9, 2, H, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_have_the_dtypes_of_the_parameters(kind: str) -> None:
    for module in by_backend(LAYERS[kind], H, H, symm="avg8").values():
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(torch.randn(9, 2, H))[0].float().sum()
        loss.backward()
        assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
