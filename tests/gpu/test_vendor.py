"""``backend="vendor"`` on a GPU: what cuDNN makes of symmetric weights joined in one buffer."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn import vendor
from symrnn.rnn.stack import Attributes

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

T, B, IN, H = 6, 4, 3, 5

# How far cuDNN may be from the loop in float64; TF32 stays off.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bias": False},
    {"bidirectional": True, "bias": False},
    {"num_layers": 2, "proj_size": 2, "symm_hh": ""},
    {"num_layers": 2, "proj_size": 2, "symm_hh": "", "bias": False, "bidirectional": True},
]


LAYERS: list[tuple[Any, dict[str, Any]]] = [
    *((SymLSTM, options) for options in SHAPES),
    *itertools.product([SymGRU, SymRNN], SHAPES[1:4:2]),
    (SymRNN, {"nonlinearity": "relu", "num_layers": 2}),
]
# Every form by one layer: they differ in how a matrix is made, which layers have in common.
GRID: list[tuple[Any, dict[str, Any], str]] = [
    *((*layer, "none" if "proj_size" in layer[1] else "avg") for layer in LAYERS),
    *((SymLSTM, SHAPES[1], symm) for symm in ("none", "tri", "avg:full")),
    (SymGRU, SHAPES[1], "none"),
]


def _input(kind: str, dtype: torch.dtype) -> Tensor | PackedSequence:
    x = torch.randn(T, B, IN, dtype=torch.float64).to("cuda", dtype)
    if kind == "packed":
        return pack_padded_sequence(x, [3, 6, 1, 6], enforce_sorted=False)
    return x


def _like_double(value: Any) -> Any:
    return value.to("cpu", torch.float64)


def _run(layer: Any, x: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients, in float64 on the CPU."""
    output, state = layer(x)
    data = output.data if isinstance(output, PackedSequence) else output
    parts = [data, *(state if isinstance(state, tuple) else [state])]
    loss = sum(part.double().square().sum() for part in parts)
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    return [_like_double(t.detach()) for t in parts], [_like_double(g) for g in gradients]


@pytest.fixture
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.usefixtures("_no_tf32")
@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("make", "options", "symm"), GRID)
def test_cudnn_equals_the_loop_and_does_not_warn(
    make: Any, options: dict[str, Any], symm: str, dtype: torch.dtype, kind: str
) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    layer = make(IN, H, symm=symm, backend="vendor", device="cuda", dtype=dtype, **options)
    exact = copy.deepcopy(layer).to("cpu", torch.float64)
    exact.backend = "reference"
    x = _input(kind, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs, gradients = _run(layer, x)
        with torch.no_grad():
            layer.eval()(x)
            layer.train()
    expected_outputs, expected_gradients = _run(exact, _like_double(x))
    for a, b in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype])
    for a, b in zip(gradients, expected_gradients, strict=True):
        atol = TOLERANCE[dtype] * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("make", "options", "symm"), GRID)
def test_cudnn_under_autocast(
    make: Any, options: dict[str, Any], symm: str, dtype: torch.dtype
) -> None:
    layer = make(IN, H, symm=symm, backend="vendor", device="cuda", **options)
    plain = layer.to_plain()
    x = _input("padded", torch.float32)
    exact = layer(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cuda", dtype):
            output = layer(x)[0]
            assert output.dtype == plain(x)[0].dtype
            loss = output.float().square().sum()
        loss.backward()
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=TOLERANCE[dtype])
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(("make", "options"), LAYERS)
def test_the_layout_is_that_of_a_flattened_plain_layer(make: Any, options: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.float16):
        layer = make(IN, H, symm="none", device="cuda", dtype=dtype, **options)
        plain = layer.to_plain()
        plain.flatten_parameters()
        layers = layer.layer_weights()
        attributes = Attributes(layer.mode, layer.num_layers, layer.bidirectional)
        views = vendor._in_one_buffer(layers, attributes)
        theirs = list(plain.parameters())
        assert [v.storage_offset() for v in views] == [p.storage_offset() for p in theirs]
        assert views[0].untyped_storage().nbytes() == theirs[0].untyped_storage().nbytes()
