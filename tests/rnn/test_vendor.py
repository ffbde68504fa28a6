"""The weights as cuDNN wants them; what it makes of them: tests/gpu/test_vendor.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn import torch_state, vendor
from symrnn.rnn.stack import Attributes
from symrnn.rnn.weights import LayerWeights

IN, H = 3, 5


def _joined(layers: list[LayerWeights]) -> list[Any]:
    return [weight for layer in layers for weight in layer.dense()]


def _sources(layers: list[LayerWeights]) -> list[Tensor]:
    """The parameters that the weights are made of, in PyTorch's order."""
    return [tensor for w in layers for tensor in w.tensors]


@pytest.mark.parametrize(
    ("make", "symm", "gap", "bias"),
    [
        *itertools.product(
            [SymLSTM], ["none", "avg", "tri", "block4", "avg:full"], [0, 3], [True, False]
        ),
        *itertools.product([SymGRU, SymRNN], ["none", "avg"], [3], [True, False]),
    ],
)
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
