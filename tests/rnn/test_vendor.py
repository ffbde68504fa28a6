"""The weights as cuDNN wants them; and, on a GPU, what it makes of them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn import torch_state, vendor
from symrnn.rnn.stack import Attributes
from symrnn.rnn.weights import LayerWeights

T, B, IN, H = 6, 4, 3, 5


def _joined(layers: list[LayerWeights]) -> list[Any]:
    return [weight for layer in layers for weight in layer.dense()]


def _sources(layers: list[LayerWeights]) -> list[Tensor]:
    """The parameters that the weights are made of, in PyTorch's order."""
    return [tensor for w in layers for tensor in w.tensors]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("symm", ["none", "avg", "tri", "block4", "avg:full"])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
def test_one_buffer_holds_every_weight_at_its_place_and_zeros_elsewhere(
    monkeypatch: pytest.MonkeyPatch, make: Any, symm: str, gap: int, bias: bool
) -> None:
    """The layout here is made up: matrices first in reverse order, then biases, gaps between."""
    layer = make(IN, H, 2, bias=bias, bidirectional=True, dtype=torch.float64, symm=symm)
    layers = layer.layer_weights()
    flat = _joined(layers)
    sources = _sources(layers)
    in_place = [weight for w in layers for weight in (w.ih, w.hh) if vendor._writes(weight)]
    assert len(in_place) == (4 if symm in ("avg", "tri", "block4") else 0)
    places, end = [0] * len(flat), 0
    for k in sorted(range(len(flat)), key=lambda k: (flat[k].dim() == 1, -k)):
        places[k] = end
        end += flat[k].numel() + gap
    total = end + 7  # as without biases, whose places stay
    asked = []
    monkeypatch.setattr(vendor, "_cudnn_layout", lambda *of: (asked.append(of), (places, total))[1])
    views = vendor._in_one_buffer(layers, Attributes(layer.mode, 2, True))
    assert [of[0] for of in asked] == [layer.mode]
    assert [of[2] for of in asked] == [H]
    storage = views[0].untyped_storage()
    assert storage.nbytes() == total * 8
    for view, tensor, place in zip(views, flat, places, strict=True):
        assert view.untyped_storage().data_ptr() == storage.data_ptr()
        assert view.storage_offset() == place
        assert view.is_contiguous()
        assert torch.equal(view, tensor)
    whole = torch.empty(0, dtype=torch.float64).set_(storage)
    filled = torch.zeros(total, dtype=torch.bool)
    for tensor, place in zip(flat, places, strict=True):
        filled[place : place + tensor.numel()] = True
    assert not whole[~filled].any()
    weights = [torch.randn_like(view) for view in views]
    loss = sum((view * w).sum() for view, w in zip(views, weights, strict=True))
    found = torch.autograd.grad(loss, sources, retain_graph=True)
    expected = torch.autograd.grad(flat, sources, weights)
    torch.testing.assert_close(found, expected)


def test_on_a_cpu_the_tensors_stay_where_they_are() -> None:
    assert not torch_state.cudnn_takes([torch.zeros(2)])


# ---- on a GPU ----------------------------------------------------------------------------------

# How far cuDNN may be from the loop in float64; TF32 stays off.
GPU_TOLERANCE = {
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


def _forms(options: dict[str, Any]) -> list[str]:
    return ["none"] if "proj_size" in options else ["none", "tri", "avg", "avg:full"]


GRID: list[tuple[Any, dict[str, Any], str]] = [
    *((SymLSTM, options, symm) for options in SHAPES for symm in _forms(options)),
    *((SymGRU, options, symm) for options in SHAPES[:4] for symm in ("none", "avg")),
    *((SymRNN, options, symm) for options in SHAPES[:4] for symm in ("none", "avg")),
    (SymRNN, {"nonlinearity": "relu", "num_layers": 2}, "avg"),
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


@pytest.mark.gpu
@pytest.mark.usefixtures("_no_tf32")
@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("dtype", GPU_TOLERANCE)
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
        torch.testing.assert_close(a, b, rtol=0, atol=GPU_TOLERANCE[dtype])
    for a, b in zip(gradients, expected_gradients, strict=True):
        atol = GPU_TOLERANCE[dtype] * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.gpu
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
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=GPU_TOLERANCE[dtype])
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("make", "options"), [(make, options) for make, options, symm in GRID if symm == "none"]
)
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
