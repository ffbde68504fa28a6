"""Calls made in C: the numbers that Python's code gives, or none where anything is in the way."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell, deploy, native

pytestmark = pytest.mark.skipif(
    not native.available() or native.calls() is None,
    reason="needs the native kernels and the extension module _calls",
)

MODULES = {
    "LSTM": lambda: SymLSTM(6, 20),
    "LSTM of two layers": lambda: SymLSTM(6, 20, 2),
    "LSTM, batch first": lambda: SymLSTM(6, 20, batch_first=True),
    "LSTM, float64": lambda: SymLSTM(6, 20, dtype=torch.float64, backend="fused"),
    "GRU": lambda: SymGRU(6, 20, bias=False),
    "RNN": lambda: SymRNN(6, 20, symm="tri8"),
    "LSTM cell": lambda: SymLSTMCell(6, 20),
    "GRU cell": lambda: SymGRUCell(6, 20),
    "RNN cell": lambda: SymRNNCell(6, 20, bias=False),
}


def plan_of(module: Any, x: Tensor) -> Any:
    return module._cache.entry[0].plans.get(x.shape)


def planned(module: Any, x: Tensor, *hx: Any) -> Any:
    """The plan after two calls: one packs, one notes."""
    with torch.no_grad():
        module(x, *hx)
        module(x, *hx)
    return plan_of(module, x)


def parts(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for r in result for t in parts(r)]


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_plan_gives_the_numbers_of_the_call_without(name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]()
    other = copy.deepcopy(module)
    dtype = next(module.parameters()).dtype
    shapes = [(1, 6), (3, 6)] if "cell" in name else [(1, 1, 6), (1, 3, 6), (4, 1, 6), (5, 6)]
    for shape in shapes:
        x = torch.randn(shape, dtype=dtype)
        hx = module(x) if "cell" in name else module(x)[1]
        module(x)
        plan = plan_of(module, x)
        if plan is None:
            assert "first" in name  # whose rows would have to be put in another order
            assert min(shape[:2]) > 1
            continue
        for given in (None, hx):
            result = plan.call(module._parameters, x, given)
            other.flatten_parameters() if "cell" not in name else other._apply(lambda t: t)
            expected = other(x, given)
            assert len(parts(result)) == len(parts(expected))
            for ours, theirs in zip(parts(result), parts(expected), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            assert type(result) is type(expected)


def test_anything_in_the_way_is_left_to_python() -> None:
    torch.manual_seed(1)
    layer, x = SymLSTM(6, 20), torch.randn(1, 1, 6)
    plan = planned(layer, x)
    given = layer._parameters, x, None
    with torch.no_grad():
        assert plan.call(*given) is not None
        state = torch.zeros(1, 1, 20)
        good = (state, state)
        assert plan.call(layer._parameters, x, good) is not None
        for wrong in (
            *(x.double(), x[0], torch.randn(1, 2, 6), torch.randn(1, 1, 7), nn.Parameter(x)),
            *(torch._neg_view(x), torch.randn(1, 1, 12)[..., ::2], x.to("meta"), None, 3),
        ):
            assert plan.call(layer._parameters, wrong, None) is None
        for hx in (
            *(state, [state, state], (state,), (state, state, state), (state, state[0])),
            *((state, state.double()), (state, torch._neg_view(state)), (None, None), 5),
        ):
            assert plan.call(layer._parameters, x, hx) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert plan.call(*given) is None
        with torch.utils._python_dispatch.TorchDispatchMode():
            assert plan.call(*given) is None
        with torch.device("meta"):
            assert plan.call(*given) is None
        with torch.autograd.forward_ad.dual_level():
            assert plan.call(*given) is None
        torch.func.vmap(lambda _: _nothing(plan.call(*given)))(torch.zeros(2))
        with torch.inference_mode():
            assert plan.call(*given) is not None
        assert plan.call(dict(list(layer._parameters.items())[:-1]), x, None) is None
        assert plan.call(dict(layer._parameters, more=None), x, None) is None
    assert plan.call(*given) is None  # gradients are on


def _nothing(result: Any) -> Tensor:
    assert result is None
    return torch.zeros(())


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.add_(1),
        lambda p: p.data.add_(1),
        lambda p: p.detach().numpy().__iadd__(1),
        lambda p: setattr(p, "data", p.data + 1),
        lambda p: setattr(p, "data", p.data.clone()),
    ],
    ids=["counted", "by data", "by NumPy", "replaced", "moved"],
)
@torch.no_grad()
def test_changed_parameters_are_packed_anew(change: Any) -> None:
    torch.manual_seed(1)
    layer, x = SymLSTM(20, 20), torch.randn(1, 1, 20)
    for parameter in layer.parameters():
        plan = planned(layer, x)
        assert plan.call(layer._parameters, x, None) is not None
        change(parameter)
        assert plan.call(layer._parameters, x, None) is None
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x), rtol=0, atol=0)


@torch.no_grad()
def test_settings_are_followed() -> None:
    torch.manual_seed(1)
    layer, x = SymLSTM(20, 20), torch.randn(1, 1, 20)
    exact = layer(x)[0]
    planned(layer, x)
    layer.inference_dtype = torch.bfloat16
    assert planned(layer, x) is not None
    rounded = layer(x)[0]
    assert not torch.equal(rounded, exact)
    layer.inference_dtype = None
    layer.backend = "reference"
    torch.testing.assert_close(layer(x)[0], exact)
    assert layer._cache.entry is None


@pytest.mark.parametrize("as_given", [lambda layer: layer, deploy], ids=["module", "deployed"])
@torch.no_grad()
def test_batch_first_may_be_set_at_any_time(as_given: Any) -> None:
    torch.manual_seed(1)
    layer, other = SymLSTM(20, 20), SymLSTM(20, 20, batch_first=True)
    other.load_state_dict(layer.state_dict())
    expected = {False: as_given(layer), True: as_given(other)}
    found, x = copy.deepcopy(expected[False]), torch.randn(1, 3, 20)
    for batch_first in (False, True, False):
        found.batch_first = batch_first
        for _ in range(3):
            torch.testing.assert_close(found(x), expected[batch_first](x), rtol=0, atol=0)


@torch.no_grad()
def test_results_are_the_callers_own() -> None:
    layer, x = SymLSTM(6, 20), torch.randn(1, 1, 6)
    planned(layer, x)
    output, (h, c) = layer(x)
    before = [t.clone() for t in (output, h, c)]
    h.fill_(7)
    again, (h_again, _) = layer(x, (output, c))
    assert torch.equal(output, before[0])
    assert torch.equal(c, before[2])
    assert len({t.data_ptr() for t in (output, h, c, again, h_again)}) == 5


def test_what_a_plan_holds_is_freed_with_the_module() -> None:
    layer, x = SymLSTM(6, 20), torch.randn(1, 1, 6)
    planned(layer, x)
    layer.bias_ih_l0.module = layer  # a cycle through the plan
    gone = weakref.ref(layer)
    assert pickle.loads(pickle.dumps(SymLSTM(6, 20)))._cache.entry is None
    del layer
    gc.collect()
    assert gone() is None


@torch.no_grad()
def test_calls_leak_nothing() -> None:
    layer, x = SymGRU(6, 20), torch.randn(1, 1, 6)
    plan, h = planned(layer, x), torch.zeros(1, 1, 20)
    stream, step, out = layer.stream(), torch.randn(1, 6), torch.empty(1, 20)

    def calls() -> None:
        for _ in range(200):
            layer(x, h)
            plan.call(layer._parameters, x[0], h)
            stream(step)
            stream(step, out=out)

    calls()
    before = [sys.getrefcount(one) for one in (x, h, out, plan, torch.Tensor, None, True)]
    blocks = sys.getallocatedblocks()
    calls()
    after = [sys.getrefcount(one) for one in (x, h, out, plan, torch.Tensor, None, True)]
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True))
    assert abs(sys.getallocatedblocks() - blocks) < 100


@torch.no_grad()
def test_wrong_use_of_the_module_is_an_error() -> None:
    layer, x = SymLSTM(6, 20), torch.randn(1, 1, 6)
    plan = planned(layer, x)
    with pytest.raises(TypeError, match="call takes 3 arguments, got 1"):
        plan.call(x)
    with pytest.raises(TypeError, match="step takes 2 arguments, got 0"):
        plan.step()
    for wrong in ((), (1,), ((),) * 12, ((), 1, 2, 3, 4, 5, 6, 7, (), (), 8)):
        with pytest.raises(TypeError):
            native.calls().Plan(*wrong)
