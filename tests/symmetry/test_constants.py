"""Index maps are constants: no module holds them, all share them, and nothing alters them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from symrnn import SymLSTM, get_symmetry
from symrnn.symmetry import Symmetry
from symrnn.symmetry.orbits import Constant, find_orbits
from symrnn.vision import create_model

LINEAR = ["tri", "avg", "avg:full", "tri4", "avg8", "block16", "chunk4", "chunk4:rows"]
FORMS = [*LINEAR, "eigen", "ldl"]
CPU = torch.device("cpu")


def tensors_of(constant: Constant) -> list[Tensor]:
    return [value for value in vars(constant).values() if isinstance(value, Tensor)]


def models() -> list[tuple[nn.Module, Tensor]]:
    wide = create_model("wrn-16-1-bottleneck", symm="tri")
    return [(SymLSTM(8, 64), torch.randn(5, 3, 8)), (wide.eval(), torch.randn(2, 3, 32, 32))]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("which", [0, 1])
def test_averaging_the_buffers_of_a_model_that_is_not_trained_changes_nothing(which: int) -> None:
    """As is usual with batch normalisation. Averaged as numbers, indices would fall by one."""
    model, x = models()[which]
    before = first(model(x)).detach()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999), use_buffers=True)
    for _ in range(5):
        average.update_parameters(model)
    for network in (model, average, copy.deepcopy(model)):
        assert torch.equal(first(network(x)), before)


def test_no_buffer_and_no_attribute_of_a_module_holds_a_map() -> None:
    for model, x in models():
        first(model(x)).sum().backward()
        assert [
            b for b in model.buffers() if b.dtype in (torch.int32, torch.int64) and b.dim()
        ] == []
        for part in model.modules():
            assert [k for k, value in vars(part).items() if isinstance(value, Tensor)] == []


@pytest.mark.parametrize("name", FORMS)
def test_a_form_holds_no_tensor_whatever_it_did(name: str) -> None:
    s = get_symmetry(name, 6)
    v = torch.randn(s.numel, requires_grad=True)
    s.fold(torch.randn(6), v).sum().backward()
    s.project(s.expand(v.detach()))
    assert list(s.buffers()) == []
    assert [key for key, value in vars(s).items() if isinstance(value, Tensor)] == []


@pytest.mark.parametrize("name", LINEAR)
def test_modules_of_one_form_and_side_share_the_maps(name: str) -> None:
    a, b = get_symmetry(name, 40), get_symmetry(name, 40)
    others = [copy.deepcopy(a), b, copy.deepcopy(nn.Sequential(a))[0]]
    assert all(other.orbits is a.orbits for other in others)
    assert a.orbits.orbit.on(CPU) is b.orbits.orbit.on(CPU)


@pytest.mark.parametrize("name", ["tri", "avg", "tri8"])
def test_a_cpu_holds_one_map_for_both_passes(name: str) -> None:
    """Eight bytes an entry for expand and its adjoint; four more where a matrix is written."""
    find_orbits.cache_clear()
    side = 57  # of no other test
    s = get_symmetry(name, side)
    v = torch.randn(2, s.numel, requires_grad=True)
    with torch.no_grad():
        s.expand(v)
    assert sum(t.nbytes for t in tensors_of(s.orbits.orbit)) == 8 * side**2
    s.expand(v).sum().backward()
    assert sum(t.nbytes for t in tensors_of(s.orbits.orbit)) == 8 * side**2
    with torch.no_grad():
        s.write(v, torch.empty(2, side, side))
    assert sum(t.nbytes for t in tensors_of(s.orbits.orbit)) == 12 * side**2


def test_maps_live_as_long_as_a_form_does_however_many_there_are_beside_it() -> None:
    s = get_symmetry("tri", 58)
    orbits, made = s.orbits, s.orbits.orbit.on(CPU)
    for side in range(2, 40):  # more than are remembered
        get_symmetry("tri", side)
    assert get_symmetry("tri", 58).orbits is orbits
    assert get_symmetry("tri", 58).orbits.orbit.on(CPU) is made


def test_maps_that_nobody_uses_are_forgotten() -> None:
    for side in range(60, 80):
        get_symmetry("tri", side)
    gc.collect()
    known = find_orbits.cache_info().maxsize
    alive = [o for o in gc.get_objects() if type(o).__name__ == "Orbits" and 60 <= o.side < 80]
    assert len(alive) <= known


def test_many_threads_make_one_map() -> None:
    find_orbits.cache_clear()
    together, found = threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        found.append(get_symmetry("tri4", 59).orbits.orbit.on(CPU))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def forget(s: Symmetry) -> None:
    """As if the form had never been called."""
    for constant in (s.orbits.orbit, s.orbits.sizes):
        for key in [key for key in vars(constant) if key != "array"]:
            del vars(constant)[key]


@pytest.mark.parametrize("name", ["tri", "avg", "avg:full", "tri8"])
def test_maps_first_made_under_a_transform_or_a_mode_serve_everybody(name: str) -> None:
    s = get_symmetry(name, 7)
    v = torch.randn(s.numel)
    plain = s.expand(v)

    def loss(u: Tensor) -> Tensor:
        return s.expand(u).square().sum()

    forget(s)
    gradient = torch.func.grad(loss)(v)
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(loss, v))
    forget(s)
    torch.func.vmap(s.expand)(torch.stack([v, v]))
    assert torch.equal(s.expand(v), plain)
    forget(s)
    torch.func.jvp(s.expand, (v,), (v,))
    assert torch.equal(s.expand(v), plain)
    forget(s)
    with torch.inference_mode():
        s.expand(v)
    v.requires_grad_()
    s.expand(v).sum().backward()
    forget(s)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert s.expand(mode.from_tensor(v)).shape == (7, 7)
        assert get_symmetry(name, 7).expand(torch.empty(s.numel)).shape == (7, 7)
    assert torch.equal(s.expand(v), plain)


class Twice(nn.Module):
    """Two forms of one kind, and one of another side."""

    def __init__(self, name: str, fresh: bool) -> None:
        super().__init__()
        self.forms = nn.ModuleList(get_symmetry(name, side) for side in (6, 6, 9))
        if fresh:
            for form in self.forms:
                forget(form)

    def forward(self, v: Tensor, u: Tensor) -> Tensor:
        return self.forms[0](v).sum(0) @ self.forms[1](v) + self.forms[2](u).sum()


@pytest.mark.parametrize(
    ("name", "strict", "fresh"),
    [("tri", True, True), ("avg", False, True), ("avg", True, False), ("avg:full", False, False)],
)
def test_exported_files_hold_the_maps(name: str, strict: bool, fresh: bool) -> None:
    model = Twice(name, fresh)
    v, u = (torch.randn(form.numel) for form in (model.forms[0], model.forms[2]))
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (v, u), strict=strict), file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert loaded.state_dict == {}
    torch.testing.assert_close(loaded.module()(v, u), model(v, u))


@pytest.mark.parametrize("name", ["avg", "avg:full"])
def test_compiled_in_one_graph_before_any_call(name: str) -> None:
    torch.compiler.reset()
    model = Twice(name, fresh=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    v, u = (torch.randn(form.numel, requires_grad=True) for form in model.forms[::2])
    found, expected = compiled(v, u), model(v, u)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.sum(), (v, u)) for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", ["block4", "tri4"])
def test_a_fold_is_compiled_in_one_graph_before_any_call(name: str, stored: bool) -> None:
    torch.compiler.reset()
    find_orbits.cache_clear()
    form = get_symmetry(name, 22)
    if stored:
        data = pickle.dumps(form)
        del form
        find_orbits.cache_clear()
        form = pickle.loads(data)
    compiled = torch.compile(form.matrices, backend="aot_eager", fullgraph=True)
    v = torch.randn(form.numel)
    torch.testing.assert_close(compiled(v), form.matrices(v))
    torch.compiler.reset()
