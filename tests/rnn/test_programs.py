"""Layers and cells under torch.compile, export, fx and script, distributed, and in trainers."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from symrnn import (
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    load_packed,
    native,
    save_packed,
)

BACKENDS = ["vendor", "auto", "reference", "script", "folded"]
BACKENDS += ["fused"] if native.available() else []
T, B, IN, H = 4, 3, 2, 5
FORMS = ["none", "tri", "avg", "avg:full"]
# All forms of one kind, and one form of every kind.
LAYERS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((SymLSTM, {"symm": symm, "symm_hh": "fgo"}) for symm in FORMS),
    (SymGRU, {"symm_hh": "rn"}),
    (SymRNN, {}),
    (SymRNN, {"nonlinearity": "relu"}),
]
CELLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((SymLSTMCell, {"symm": symm, "symm_hh": "fo", "symm_ih": "i"}) for symm in FORMS),
    (SymGRUCell, {"symm_hh": "rn", "symm_ih": "z"}),
    (SymRNNCell, {"symm_ih": "h"}),
    (SymRNNCell, {"nonlinearity": "relu"}),
]


def states_of(make: Callable[..., Any], *shape: int) -> Any:
    """As the layer or the cell takes them: a pair for an LSTM."""
    h, c = torch.randn(*shape), torch.randn(*shape)
    return (h, c) if make in (SymLSTM, SymLSTMCell) else h


def through_a_file(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


# ---- torch.compile -----------------------------------------------------------------------------


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)
@pytest.mark.parametrize(
    ("module", "backend"), [("layer", "inductor"), ("gru", "aot_eager"), ("cell", "aot_eager")]
)
def test_compiled_forward_and_backward_are_equal(
    module: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    if module == "layer":
        eager: nn.Module = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo")
        x = torch.randn(2, B, IN)  # each step adds seconds of compiling
    elif module == "gru":
        eager = SymGRU(IN, H, 2, symm="avg", symm_hh="rn")
        x = torch.randn(T, B, IN)
    else:
        eager = SymLSTMCell(IN, H, symm="avg", symm_hh="fo")
        x = torch.randn(B, IN)
    compiled = torch.compile(eager, backend=backend)
    results = []
    for run in (eager, compiled):
        eager.zero_grad()
        output = run(x)[0]
        output.square().sum().backward()
        results.append([output.detach(), *[p.grad.clone() for p in eager.parameters()]])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    torch.compiler.reset()


# ---- torch.export ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "strict"),
    [
        (SymLSTM, {"symm": "tri", "symm_hh": "fgo"}, True),
        (SymLSTM, {"symm": "avg", "symm_hh": "fgo"}, False),
        (SymGRU, {"symm_hh": "rn"}, False),
        (SymRNN, {}, True),
    ],
)
def test_exported_with_a_free_batch(
    make: Callable[..., Any], options: dict[str, Any], strict: bool
) -> None:
    """The number of steps is fixed in the export of PyTorch's layers, so it is here."""
    layer = make(IN, H, 2, bidirectional=True, **options).eval()
    x = torch.randn(T, B, IN)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (x,), strict=strict, dynamic_shapes=({1: batch},))
    for size in (B, 8):
        x = torch.randn(T, size, IN)
        torch.testing.assert_close(exported.module()(x), layer(x))
    assert set(exported.state_dict) == set(layer.state_dict())


@pytest.mark.parametrize(
    ("make", "gates", "strict"),
    [(SymLSTMCell, "fo", False), (SymGRUCell, "rn", True), (SymRNNCell, "h", False)],
)
def test_exported_cell_with_a_free_batch(
    make: Callable[..., Any], gates: str, strict: bool
) -> None:
    cell = make(IN, H, symm_hh=gates)
    batch = torch.export.Dim("batch", min=2, max=64)
    free = {0: batch}
    exported = torch.export.export(
        cell,
        (torch.randn(B, IN), states_of(make, B, H)),
        strict=strict,
        dynamic_shapes=(free, (free, free) if make is SymLSTMCell else free),
    )
    x, hx = torch.randn(7, IN), states_of(make, 7, H)
    torch.testing.assert_close(exported.module()(x, hx), cell(x, hx))


# ---- TorchScript -------------------------------------------------------------------------------


DEEP = {"bidirectional": True, "num_layers": 2}


@pytest.mark.parametrize(
    ("make", "options", "batch_first", "shape"),
    [
        *((make, options, False, DEEP) for make, options in LAYERS),
        *((*LAYERS[2], True, shape) for shape in ({}, DEEP, {"bias": False})),
        (SymGRU, {"symm_hh": "rn"}, True, {"bias": False}),
        (SymRNN, {}, True, {}),
    ],
)
def test_scripted_saved_and_loaded(
    make: Callable[..., Any], options: dict[str, Any], batch_first: bool, shape: dict[str, Any]
) -> None:
    layer = make(IN, H, batch_first=batch_first, **options, **shape)
    scripted = torch.jit.script(layer)
    count = 2 * shape.get("num_layers", 1) if shape.get("bidirectional") else 1
    for run in (scripted, through_a_file(scripted)):
        for steps in (1, T, 7):
            x = torch.randn(B, steps, IN) if batch_first else torch.randn(steps, B, IN)
            for hx in (None, states_of(make, count, B, H)):
                torch.testing.assert_close(run(x, hx), layer(x, hx), rtol=0, atol=1e-6)
        x = torch.randn(T, IN)
        alone = states_of(make, count, H)
        torch.testing.assert_close(run(x), layer(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(run(x, alone), layer(x, alone), rtol=0, atol=1e-6)
        with pytest.raises(torch.jit.Error, match="Expected input to be 2D or 3D, got 1D"):
            run(torch.zeros(IN))
    # The scripted module shares the parameters: a gradient of one is that of the other.
    scripted(torch.randn(T, B, IN).transpose(0, 1) if batch_first else torch.randn(T, B, IN))[
        0
    ].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_scripted_projection_and_dropout() -> None:
    lstm = SymLSTM(IN, H, 2, dropout=0.5, proj_size=3, symm_hh="")
    scripted = torch.jit.script(lstm)
    x = torch.randn(T, B, IN)
    torch.manual_seed(1)
    expected = lstm(x)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(scripted(x)[0], expected)
    scripted.eval()
    lstm.eval()
    torch.testing.assert_close(scripted(x)[0], lstm(x)[0])


@pytest.mark.parametrize(
    ("make", "options", "bias"),
    [*((*cell, True) for cell in CELLS), *((*cell, False) for cell in CELLS[3:6])],
)
def test_scripted_cell(make: Callable[..., Any], options: dict[str, Any], bias: bool) -> None:
    cell = make(H, H, bias, **options)
    for run in (torch.jit.script(cell), through_a_file(torch.jit.script(cell))):
        for batch in ((B,), ()):
            x, hx = torch.randn(*batch, H), states_of(make, *batch, H)
            torch.testing.assert_close(run(x), cell(x), rtol=0, atol=1e-6)
            torch.testing.assert_close(run(x, hx), cell(x, hx), rtol=0, atol=1e-6)
        with pytest.raises(torch.jit.Error, match="Expected input to be 1D or 2D, got 3D"):
            run(torch.zeros(1, 1, H))


class Tagger(nn.Module):
    """A SymLSTM among other layers, as TorchScript meets it in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, H)
        self.lstm = SymLSTM(H, H, symm_ih="ifgo")
        self.rest = nn.Sequential(nn.Linear(H, H), nn.Tanh())

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.lstm(self.embed(tokens))
        return self.rest(output)


def test_scripted_and_traced_inside_other_modules() -> None:
    tagger, tokens = Tagger(), torch.arange(10).view(5, 2)
    loaded = through_a_file(torch.jit.script(tagger))
    torch.testing.assert_close(loaded(tokens), tagger(tokens))
    sequence = nn.Sequential(nn.Linear(IN, H), SymLSTM(H, H))
    x = torch.randn(T, B, IN)
    torch.testing.assert_close(torch.jit.script(sequence)(x), sequence(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # as tracing an nn.LSTM gives
@pytest.mark.parametrize(("make", "options"), LAYERS)
def test_traced(make: Callable[..., Any], options: dict[str, Any]) -> None:
    layer = make(IN, H, 2, **options)
    traced = through_a_file(torch.jit.trace(layer, (torch.randn(T, B, IN),)))
    for steps, batch in ((T, B), (6, 2)):
        x = torch.randn(steps, batch, IN)
        torch.testing.assert_close(traced(x), layer(x))


# ---- torch.fx ----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Calls a layer with and without a state, and a cell."""

    def __init__(self, layer: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.layer(x)
        output, state = self.layer(output, state)
        self.cell(output[0])
        return output


@pytest.mark.parametrize(
    ("layer", "cell", "plain", "plain_cell"),
    [
        (SymLSTM, SymLSTMCell, nn.LSTM, nn.LSTMCell),
        (SymGRU, SymGRUCell, nn.GRU, nn.GRUCell),
        (SymRNN, SymRNNCell, nn.RNN, nn.RNNCell),
    ],
)
def test_a_symbolic_trace_takes_them_for_leaves_as_pytorchs(
    layer: Any, cell: Any, plain: Any, plain_cell: Any
) -> None:
    model = Recurrent(layer(H, H), cell(H, H))
    traced = torch.fx.symbolic_trace(model)
    expected = torch.fx.symbolic_trace(Recurrent(plain(H, H), plain_cell(H, H)))
    assert traced.code == expected.code
    x = torch.randn(T, B, H)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    with pytest.raises(torch.fx.proxy.TraceError, match=r"such as nn\.Sequential\(Sym"):
        torch.fx.symbolic_trace(layer(H, H))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
def test_a_trace_of_any_backend_runs_other_lengths(make: Callable[..., Any], backend: str) -> None:
    layer = make(IN, H, 2, symm="avg8", bidirectional=True, backend=backend)
    traced = torch.jit.trace(layer, (torch.randn(T, B, IN),))
    for steps in (1, T, T + 3):
        x = torch.randn(steps, B, IN)
        torch.testing.assert_close(traced(x), layer(x))


# ---- ONNX --------------------------------------------------------------------------------------


def onnx_file(module: nn.Module, *arguments: Any, **free: Any) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(module, arguments, file, input_names=["x"], dynamo=False, **free)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("make", "name"), [(SymLSTM, b"LSTM"), (SymGRU, b"GRU"), (SymRNN, b"RNN")])
def test_onnx_files_of_every_backend_hold_the_operator_of_pytorch(
    make: Callable[..., Any], name: bytes
) -> None:
    """So that the length of time, left open, is open: a loop would be unrolled."""
    pytest.importorskip("onnx")
    layer, x = make(IN, H, 2, symm="avg8").eval(), torch.randn(T, B, IN)
    files = []
    for layer.backend in BACKENDS:
        files.append(onnx_file(layer, x, dynamic_axes={"x": {0: "time", 1: "batch"}}))
    assert name in files[0]
    assert all(file == files[0] for file in files)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_onnx_file_gives_right_answers_at_other_lengths(backend: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = SymGRU(IN, H, 2, symm="avg8", bidirectional=True, backend=backend).eval()
    file = onnx_file(layer, torch.randn(T, B, IN), dynamic_axes={"x": {0: "time"}})
    session = onnxruntime.InferenceSession(file)
    for steps in (1, T, T + 3):
        x = torch.randn(steps, B, IN)
        found = map(torch.from_numpy, session.run(None, {"x": x.numpy()}))
        torch.testing.assert_close(tuple(found), layer(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:this ONNX file computes:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_on_their_way_to_onnx_hold_operators_of_pytorch(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the exporter by torch.export has it, which wants packages of its own."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    layer = SymLSTM(IN, H, symm="avg8", backend=backend)
    cell = SymGRUCell(IN, H, symm="avg8", backend=backend)
    for module, x, name in (
        (layer, torch.randn(T, B, IN), "aten.lstm.input"),
        (cell, torch.randn(B, IN), "aten.gru_cell.default"),
    ):
        program = torch.export.export(module, (x,), strict=False)
        assert name in {str(node.target) for node in program.graph.nodes}
        torch.testing.assert_close(program.module()(x), module(x))


# ---- distributed -------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    if not dist.is_gloo_available():
        pytest.skip("this PyTorch is built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("make", "options"), LAYERS)
def test_distributed_data_parallel(make: Callable[..., Any], options: dict[str, Any]) -> None:
    layer = make(IN, H, 2, **options)
    wrapped = DistributedDataParallel(layer)
    x = torch.randn(T, B, IN)
    results = []
    for run in (layer, wrapped):
        layer.zero_grad()
        output = run(x)[0]
        output.sum().backward()
        results.append([output.detach(), *[p.grad.clone() for p in layer.parameters()]])
    torch.testing.assert_close(results[1], results[0])


def sharded(layer: nn.Module) -> nn.Module:
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    return layer


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("backend", ["auto", "fused"])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
def test_fully_sharded_it_evaluates_and_then_trains(make: Any, backend: str) -> None:
    if backend == "fused" and not native.available():
        pytest.skip("there are no native kernels here")
    expected = make(IN, H, backend=backend)
    layer = sharded(copy.deepcopy(expected))
    x = torch.randn(8, 2, IN)  # so many steps run on the kernels of "auto" in training too
    outputs = []
    for module in (expected, layer):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        outputs.append([])
        for _ in range(2):
            with torch.no_grad():
                outputs[-1].append(module(x)[0])
            module(x)[0].square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(outputs[1], outputs[0])
    assert not torch.equal(outputs[0][0], outputs[0][1])


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("shard", [False, True])
def test_a_distributed_checkpoint_is_saved_and_loaded(tmp_path: Path, shard: bool) -> None:
    source, target = SymLSTM(IN, H), SymLSTM(IN, H)
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    source, target = (sharded(m) if shard else m for m in (source, target))
    checkpoint.save({"model": get_model_state_dict(source)}, checkpoint_id=tmp_path / "saved")
    state = {"model": get_model_state_dict(target)}
    checkpoint.load(state, checkpoint_id=tmp_path / "saved")
    set_model_state_dict(target, state["model"])
    whole = StateDictOptions(full_state_dict=True)
    torch.testing.assert_close(
        get_model_state_dict(target, options=whole), expected, rtol=0, atol=0
    )


@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_is_packed_by_way_of_a_whole_one(tmp_path: Path) -> None:
    whole = SymLSTM(IN, H)
    layer = sharded(copy.deepcopy(whole))
    with pytest.raises(ValueError, match=r"weight_ih_l0 is sharded .*full_state_dict=True"):
        save_packed(layer, tmp_path / "model")
    options = StateDictOptions(full_state_dict=True)
    gathered = SymLSTM(IN, H)
    gathered.load_state_dict(get_model_state_dict(layer, options=options))
    save_packed(gathered, tmp_path / "model")
    other = sharded(SymLSTM(IN, H))
    with pytest.raises(ValueError, match=r"weight_ih_l0 of the model is sharded .*set_model_state"):
        load_packed(other, tmp_path / "model")
    filled = SymLSTM(IN, H)
    load_packed(filled, tmp_path / "model")
    set_model_state_dict(other, filled.state_dict(), options=options)
    x = torch.randn(T, B, IN)
    torch.testing.assert_close(other(x)[0], whole(x)[0])


# ---- what trainers do --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
def test_an_average_written_through_data_is_the_average_of_the_matrices(make: Any) -> None:
    layer, average = make(IN, H), make(IN, H)
    x = torch.randn(T, B, IN)
    plain = average.to_plain()
    with torch.no_grad():
        for _ in range(3):
            average(x)  # packs the weights, which the next writes make stale
            layer.reset_parameters()
            for mine, new in zip(average.parameters(), layer.parameters(), strict=True):
                mine.data.mul_(0.9).add_(new.data, alpha=0.1)
            expanded = layer.to_plain().parameters()
            for mine, new in zip(plain.parameters(), expanded, strict=True):
                mine.data.mul_(0.9).add_(new.data, alpha=0.1)
            torch.testing.assert_close(average(x)[0], plain(x)[0])


@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
@pytest.mark.parametrize("steps", [3, 8])
def test_recomputed_activations_give_the_same_gradients(make: Any, steps: int) -> None:
    layer = make(IN, H, 2)
    x = torch.randn(steps, B, IN, requires_grad=True)
    leaves = [x, *layer.parameters()]
    found = []
    for reentrant in (None, False, True):
        run = layer if reentrant is None else partial(recompute, layer, use_reentrant=reentrant)
        output = run(x)[0]
        for leaf in leaves:
            leaf.grad = None
        output.square().sum().backward()
        found.append([output, *(leaf.grad for leaf in leaves)])
    # The reentrant kind runs forward without gradients first, where "auto" takes another backend.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, validate: bool) -> None:
    """As a trainer does: validation in inference mode between steps, gradients clipped."""
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        x = torch.randn(8, B, IN, generator=generator)
        if validate:
            model.eval()
            with torch.inference_mode():
                model(x)
            model.train()
        optimizer.zero_grad(set_to_none=True)
        model(x)[0].square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
def test_a_trainer_validates_saves_and_goes_on_from_what_it_saved(make: Any) -> None:
    """What Lightning and skorch do with a module, without either: nothing changes the path."""
    options = {"input_size": IN, "hidden_size": H, "symm": "avg"}
    first = make(**options)
    others = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    paths = []
    for model, validate in zip([first, *others], (False, True, True), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        train(model, optimizer, 2, validate)
        file = io.BytesIO()
        states = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**states, "hyper_parameters": options}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = make(**saved["hyper_parameters"])
        resumed.load_state_dict(saved["state_dict"])
        optimizer = torch.optim.Adam(resumed.parameters(), lr=0.1)
        optimizer.load_state_dict(saved["optimizer"])
        train(resumed, optimizer, 3, validate)
        paths.append(resumed.state_dict())
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=0, atol=0)
