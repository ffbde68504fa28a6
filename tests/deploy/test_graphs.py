"""Packed modules in graphs: each one operator on the module's own buffers, the same numbers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from symrnn import SymGRU, SymLSTM, SymLSTMCell, SymRNN, deploy, symmetrize

H = 8

pytestmark = pytest.mark.usefixtures("operators")


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = SymGRU(H, H, 2, symm="block4", backend="fused", **options)
        self.linear = nn.Linear(H, H)
        self.cell = SymLSTMCell(H, H)
        self.end = nn.Linear(H, 3)
        symmetrize(self.linear, "avg")

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        output, h = self.rnn(x, h)
        _, c = self.cell(self.linear(output)[:, -1])
        return self.end(c), h


def inputs(time: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    shapes = (batch, time, H), (2, batch, H)
    x, h = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, h


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    time, batch = torch.export.Dim("time"), torch.export.Dim("batch")
    shapes = ({0: batch, 1: time}, {1: batch})
    return torch.export.export(model, inputs(5, 3), dynamic_shapes=shapes)


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_exported_programs_take_any_time_and_batch(dtype: torch.dtype | None) -> None:
    packed = deploy(Model(batch_first=True), dtype=dtype)
    program = exported(packed)
    names = [str(node.target) for node in program.graph.nodes if "symrnn" in str(node.target)]
    layers, linear = "symrnn.packed_layers.default", "symrnn.packed_linear.default"
    assert names == [layers, linear, layers]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for run in (program.module(), torch.export.load(file).module()):
        for time, batch in ((1, 1), (7, 2), (2, 9)):
            x, h = inputs(time, batch)
            for found, expected in zip(run(x, h), packed(x, h), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_program_of_packed_layers_runs_where_symrnn_is_not(
    operators: Any, tmp_path: Path
) -> None:
    packed = deploy(Model(batch_first=True))
    torch.export.save(exported(packed), tmp_path / "model.pt2")
    torch.save(packed(*inputs(6, 2)), tmp_path / "expected.pt")
    code = f"""
import sys, torch
torch.ops.load_library({str(operators.path)!r})
model = torch.export.load("model.pt2").module()
x, h = {inputs.__name__}(6, 2)
for found, expected in zip(model(x, h), torch.load("expected.pt")):
    torch.testing.assert_close(found, expected)
assert "symrnn" not in sys.modules
"""
    x, h = inputs(6, 2)
    torch.save((x, h), tmp_path / "inputs.pt")
    code = code.replace("x, h = inputs(6, 2)", 'x, h = torch.load("inputs.pt")')
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)


def test_torch_compile_makes_one_graph() -> None:
    packed = deploy(Model(batch_first=True))
    counted: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        counted.append(sum("packed_layers" in str(node.target) for node in graph.graph.nodes))
        return graph

    run = torch.compile(packed, fullgraph=True, backend=backend, dynamic=True)
    for time, batch in ((5, 3), (4, 2)):
        x, h = inputs(time, batch)
        torch.testing.assert_close(run(x, h), packed(x, h), rtol=0, atol=1e-6)
    assert counted == [2]


def test_inductor_compiles_them() -> None:
    packed: Any = deploy(SymLSTM(H, H, 2, bidirectional=True, symm="avg:skew2"))
    x = torch.randn(5, 3, H)
    run = torch.compile(packed, fullgraph=True)
    output, (h, c) = run(x)
    expected, (h_n, c_n) = packed(x)
    assert torch.equal(output, expected)
    assert torch.equal(h, h_n)
    assert torch.equal(c, c_n)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces_and_symbolic_traces() -> None:
    packed = deploy(Model(batch_first=True))
    x, h = inputs(5, 3)
    traced = torch.jit.trace(packed, (x, h), check_trace=False)
    torch.testing.assert_close(traced(x, h), packed(x, h), rtol=0, atol=1e-6)
    graph = torch.fx.symbolic_trace(packed)
    assert next(n.target for n in graph.graph.nodes if n.op == "call_module") == "rnn"
    torch.testing.assert_close(graph(x, h), packed(x, h), rtol=0, atol=1e-6)


def test_packed_sequences_in_a_graph() -> None:
    packed: Any = deploy(SymRNN(H, H, bidirectional=True))
    x = pack_sequence([torch.randn(length, H) for length in (5, 3, 1)])

    class Data(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = packed

        def forward(self, data: Tensor, lengths: Tensor, h: Tensor) -> Tensor:
            output: Tensor = self.rnn._run(data, lengths, [h])[0]
            return output

    h = torch.zeros(2, 3, H)
    program = torch.export.export(Data(), (x.data, x.batch_sizes, h))
    assert torch.equal(program.module()(x.data, x.batch_sizes, h), packed(x)[0].data)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_onnx_is_pointed_to_the_plain_form() -> None:
    packed = deploy(SymGRU(H, H))
    with pytest.raises(RuntimeError, match=r'ONNX knows no packed weights: .*form="plain"'):
        torch.onnx.export(packed, (torch.randn(5, 3, H),), io.BytesIO(), dynamo=False)
