"""A symmetric weight that was read refuses changes in place, and is a tensor like others else."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell, symmetrize
from symrnn.symmetry.expanded import ExpandedWeight

H = 4


def set_data(w: Tensor) -> None:
    w.data = torch.ones_like(w)


def set_item(w: Tensor) -> None:
    w[0] = 1


def add_in_place(w: Tensor) -> None:
    w += 1


def step(w: Tensor) -> None:
    leaf = w.detach().requires_grad_()
    leaf.grad = torch.ones_like(leaf)
    torch.optim.SGD([leaf], lr=1.0).step()


CHANGES: list[Callable[[Tensor], Any]] = [
    nn.init.orthogonal_,
    nn.init.uniform_,
    nn.init.xavier_normal_,
    nn.init.trunc_normal_,
    nn.init.eye_,
    lambda w: nn.init.constant_(tensor=w, val=0.0),
    lambda w: w.copy_(torch.ones_like(w)),
    lambda w: w.zero_(),
    lambda w: w.data.mul_(2),
    lambda w: w.detach().clamp_(0, 1),
    lambda w: w.chunk(2)[1].T[0].fill_(1),
    lambda w: w.view(-1)[:3].normal_(),
    set_data,
    set_item,
    add_in_place,
    lambda w: torch.relu_(w),
    lambda w: F.relu(w, inplace=True),
    lambda w: torch.mul(torch.ones(()), 2, out=w),
    lambda w: torch._foreach_mul_([w], 2.0),
    lambda w: nn.utils.vector_to_parameters(torch.ones(w.numel()), [w]),
    step,
]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_in_place_is_refused(change: Callable[[Tensor], Any], gradients: bool) -> None:
    lstm = SymLSTM(3, H)
    before = lstm.weight_hh_l0.clone()
    with torch.set_grad_enabled(gradients):
        read = lstm.weight_hh_l0
        with pytest.raises(RuntimeError, match=r"would change nothing but a copy|out=.* arguments"):
            change(read)
        assert torch.equal(read, before)
        assert torch.equal(lstm.weight_hh_l0, before)


def test_the_error_names_the_parameter_and_the_ways() -> None:
    lstm = SymLSTM(3, H, symm_hh="io")
    with pytest.raises(RuntimeError) as raised:
        lstm.weight_hh_l0.zero_()
    assert str(raised.value) == (
        "zero_ would change nothing but a copy: weight_hh_l0 is computed from weight_hh_l0_avg and "
        "weight_hh_l0_rest at every reading. Assign it, module.weight_hh_l0 = tensor, and the "
        "nearest symmetric one is taken, or draw with module.reset_parameters(draw) "
        "(clone() gives a copy to change)"
    )


def test_the_ways_that_are_named_work() -> None:
    lstm = SymLSTM(3, H, symm_hh="io")
    lstm.weight_hh_l0 = nn.init.eye_(torch.empty(4 * H, H))
    expected = nn.init.eye_(torch.empty(4 * H, H))
    torch.testing.assert_close(lstm.weight_hh_l0.clone(), expected)
    lstm.reset_parameters(lambda tensor: nn.init.constant_(tensor, 0.25))
    for w in lstm.all_weights[0]:
        torch.testing.assert_close(w.clone(), torch.full_like(w, 0.25))


@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
def test_every_layer_and_every_matrix(make: Any) -> None:
    layer = make(H, H, 2, symm_ih=make.GATES, symm_hh=make.GATES[:1])
    matrices = [f"weight_{which}_l{depth}" for which in ("ih", "hh") for depth in (0, 1)]
    for weight in (
        *(getattr(layer, name) for name in matrices),
        *(w for weights in layer.all_weights for w in weights if w.dim() == 2),
    ):
        with pytest.raises(RuntimeError, match="would change nothing but a copy"):
            nn.init.orthogonal_(weight)
    layer.bias_hh_l0.data.zero_()  # a parameter is one
    assert not layer.bias_hh_l0.any()


@pytest.mark.parametrize("make", [SymLSTMCell, SymGRUCell, SymRNNCell])
def test_every_cell(make: Any) -> None:
    cell = make(3, H)
    with pytest.raises(RuntimeError, match="weight_hh is computed from weight_hh_avg"):
        nn.init.orthogonal_(cell.weight_hh)
    nn.init.orthogonal_(cell.weight_ih)  # not symmetric
    plain = make(3, H, symm="none")
    nn.init.orthogonal_(plain.weight_hh)
    torch.testing.assert_close(plain.weight_hh.T @ plain.weight_hh, torch.eye(H))


def test_layers_that_were_made_symmetric() -> None:
    model = nn.Sequential(nn.Linear(H, H), nn.Conv2d(H, H, 3), nn.Conv1d(H, H, 1))
    symmetrize(model, "tri")
    for layer in model:
        before = layer.weight.clone()
        for change in (nn.init.kaiming_normal_, nn.init.zeros_, lambda w: w.data.mul_(2)):
            with pytest.raises(RuntimeError, match="a weight of form 'tri' is computed"):
                change(layer.weight)
            with torch.no_grad(), pytest.raises(RuntimeError, match="would change nothing"):
                change(layer.weight)
        assert torch.equal(layer.weight, before)
        layer.weight = torch.ones_like(before)
        assert torch.equal(layer.weight, torch.ones_like(before))


def test_a_fast_path_of_pytorch_is_still_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = nn.TransformerEncoderLayer(H, 2, H, batch_first=True).eval()
    symmetrize(encoder, "tri")
    taken = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: taken.append(1) or fused(*args)
    )
    with torch.no_grad():
        encoder(torch.randn(2, 3, H))
    assert taken == [1]


def test_what_is_made_of_it_is_plain() -> None:
    lstm = SymLSTM(3, H)
    w = lstm.weight_hh_l0
    assert isinstance(w, ExpandedWeight)
    assert not isinstance(w, nn.Parameter)
    pickled = pickle.loads(pickle.dumps(w.detach()))
    file = io.BytesIO()
    torch.save({"w": w.detach()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["w"]
    copied = copy.deepcopy(w.detach())
    results = (w + 1, w @ w.T, w.clone(), w.double(), torch.cat([w, w]), torch.empty_like(w))
    for tensor in (pickled, loaded, copied, *results):
        assert type(tensor) is Tensor
        tensor.detach().zero_()
    parameter = nn.Parameter(w.detach())
    assert type(parameter) is nn.Parameter
    assert vars(parameter) == {}
    nn.init.zeros_(parameter)
    other = torch.empty(4 * H, H).copy_(lstm.weight_hh_l0)
    assert type(other) is Tensor
    torch.testing.assert_close(other, lstm.weight_hh_l0.clone())


def test_arrays_of_it_are_read_only() -> None:
    w = SymLSTM(3, H).weight_hh_l0.detach()
    for array in (w.numpy(), np.asarray(w)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    w.numpy().copy()[0] = 1
    np.asarray(w, dtype=np.float64)[0] = 1


def test_gradients_pass_through_it() -> None:
    lstm = SymLSTM(3, H, dtype=torch.float64)
    w = lstm.weight_hh_l0
    w.retain_grad()
    (w.view(4, H, H).chunk(2)[0] ** 2).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad[: 2 * H], 2 * w.detach()[: 2 * H].clone())
    # In orthonormal coordinates the gradient of Σ w² of a matrix is 2v.
    expected = 2 * lstm.weight_hh_l0_avg.detach()
    expected[2:] = 0
    torch.testing.assert_close(lstm.weight_hh_l0_avg.grad, expected)
    leaf = lstm.weight_hh_l0.detach().requires_grad_()
    (leaf * 3).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3.0))


class Squares(nn.Module):
    """Multiplies twice by a matrix of a layer that it reads by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = SymLSTM(3, H)

    def forward(self, x: Tensor) -> Tensor:
        w = self.lstm.weight_hh_l0
        return x @ w.T @ w


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_programs_read_plain_tensors() -> None:
    model, x = Squares(), torch.randn(2, H)
    expected = model(x)
    assert type(expected) is Tensor
    for program in (
        torch.jit.trace(model, x),
        torch.export.export(model, (x,)).module(),
        torch.compile(model, backend="eager", fullgraph=True),
        torch.vmap(model),
    ):
        torch.testing.assert_close(program(x), expected)
    w = model.lstm.weight_hh_l0.detach()
    norm = torch.func.grad(lambda w: w.square().sum())(w)
    torch.testing.assert_close(norm, 2 * w)


def test_a_parameter_that_is_assigned_is_copied_and_a_warning_says_so() -> None:
    lstm = SymLSTM(3, H)
    parameter = nn.Parameter(torch.ones(4 * H, H))
    with pytest.warns(
        UserWarning, match="assigned to weight_hh_l0 are copied, to weight_hh_l0_avg"
    ):
        lstm.weight_hh_l0 = parameter
    torch.testing.assert_close(lstm.weight_hh_l0.clone(), parameter.detach())
    lstm.weight_hh_l0 = 2 * parameter.detach()
    torch.testing.assert_close(lstm.weight_hh_l0, torch.full((4 * H, H), 2.0))
