"""The kernels for GPUs, run on a CPU: the very source that nvcc compiles, thread by thread.

tests/native/emulated_gpu.h is the GPU, of as many multiprocessors and as much shared memory as a
test likes; its threads take turns in an order that a test chooses. The oracle is PyTorch in float64.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Callable
from ctypes import POINTER, c_int, c_int64, c_uint, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import native
from symrnn.native import building, interface
from symrnn.native.interface import Dtype, Fit, Gpu, Layer, Mode, Product, Term

HERE = Path(__file__).parent
GATES = {Mode.LSTM: 4, Mode.GRU: 3, Mode.RNN_TANH: 1, Mode.RNN_RELU: 1}
DTYPES = {
    torch.float32: Dtype.FLOAT,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.HALF,
}
SMALL = Gpu(9, 40_000)  # the GPU of most tests: two squares along a side, for an LSTM
FIT, DEADLOCK = 9, 100


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not native.available():
        pytest.skip(native.why_not())
    try:
        compiler = building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    path = tmp_path_factory.mktemp("emulator") / "emulate.so"
    includes = [f"-I{building.FOLDER / 'cuda'}", f"-I{HERE}"]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    command = [*compiler, *flags, *includes, str(HERE / "emulate.cpp"), "-o", str(path)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path))
    run = [POINTER(Layer), c_int, c_int64, c_int64, c_int]
    end = [c_void_p, c_int64, POINTER(Gpu), c_uint]
    library.emulate_forward.argtypes = [*run, *[c_void_p] * 7, *end]
    library.emulate_backward.argtypes = [*run, *[c_void_p] * 12, *end]
    return library


def fit(
    gpu: Gpu, mode: Mode, dtype: torch.dtype, side: int, batch: int, backward: bool
) -> Fit | None:
    """How such a layer is laid out; None if it does not fit."""
    found = Fit()
    status = native.library().symrnn_fit_gpu(
        gpu, mode, DTYPES[dtype], side, batch, backward, ctypes.byref(found)
    )
    assert status in (0, FIT)
    return found if status == 0 else None


@dataclass
class Case:
    """A layer of random numbers, and what it is run with."""

    mode: Mode
    side: int
    batch: int
    steps: int
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    reverse: bool = False
    with_state: bool = True
    gpu: Gpu = SMALL
    order: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.side * 1000 + self.batch)
        gates, side, batch = GATES[self.mode], self.side, self.batch
        rounded = self.dtype

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape) * scale).to(rounded)

        w = draw(gates, side, side, scale=1 / math.sqrt(side))
        self.w = torch.triu(w) + torch.triu(w, 1).mT
        self.x = draw(self.steps * batch, gates * side)
        self.bias_n = draw(side) if self.mode == Mode.GRU else None
        self.h0 = draw(batch, side) if self.with_state else None
        has_c = self.with_state and self.mode == Mode.LSTM
        self.c0 = draw(batch, side) if has_c else None
        self.d_output = draw(self.steps * batch, side)
        self.d_hn = draw(batch, side) if self.with_state else None
        self.d_cn = draw(batch, side) if has_c else None

        self.packed = pack(self.w)
        self.term = Term(1, side, side, (1 << gates) - 1, self.packed.data_ptr())
        self.product = Product(DTYPES[rounded], gates, side, side, 1, ctypes.pointer(self.term))
        self.layer = Layer(self.mode, ctypes.pointer(self.product), None, None, at(self.bias_n))

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Filled with what is no number: all of it has to be written."""
        return torch.full(shape, math.nan, dtype=dtype or self.dtype)

    def workspace(self, backward: bool) -> Tensor:
        found = fit(self.gpu, self.mode, self.dtype, self.side, self.batch, backward)
        assert found is not None
        space = torch.full((found.workspace_bytes + 256,), 255, dtype=torch.uint8)
        return space[-space.data_ptr() % 256 :][: found.workspace_bytes]

    def forward(self, emulator: ctypes.CDLL) -> dict[str, Tensor]:
        rows, side, batch = self.steps * self.batch, self.side, self.batch
        results = {"gates": self.x.clone(), "output": self.empty(rows, side)}
        results["hn"] = self.empty(batch, side)
        if self.mode == Mode.LSTM:
            results["cn"] = self.empty(batch, side)
        if self.mode in (Mode.LSTM, Mode.GRU):
            results["cells"] = self.empty(rows, side, dtype=torch.float32)
        space = self.workspace(False)
        status = emulator.emulate_forward(
            self.layer, self.tf32, self.steps, batch, self.reverse,
            at(results["gates"]), at(results.get("cells")), at(self.h0), at(self.c0),
            at(results["output"]), at(results["hn"]), at(results.get("cn")),
            at(space), space.numel(), self.gpu, self.order,
        )  # fmt: skip
        assert status == 0
        return results

    def backward(self, emulator: ctypes.CDLL, forth: dict[str, Tensor]) -> dict[str, Tensor]:
        rows, side, batch = self.steps * self.batch, self.side, self.batch
        gates = GATES[self.mode] * side
        results = {"d_gates": self.empty(rows, gates), "d_h0": self.empty(batch, side)}
        if self.mode == Mode.GRU:
            results["d_hidden"] = self.empty(rows, gates)
        if self.mode == Mode.LSTM:
            results["d_c0"] = self.empty(batch, side)
        space = self.workspace(True)
        status = emulator.emulate_backward(
            self.layer, self.tf32, self.steps, batch, self.reverse,
            at(forth["gates"]), at(forth.get("cells")), at(self.h0), at(self.c0),
            at(forth["output"]), at(self.d_output), at(self.d_hn), at(self.d_cn),
            at(results["d_gates"]), at(results.get("d_hidden")), at(results["d_h0"]),
            at(results.get("d_c0")), at(space), space.numel(), self.gpu, self.order,
        )  # fmt: skip
        assert status == 0
        return results

    def expected(self) -> dict[str, Tensor]:
        """All results in float64, the gradients by autograd."""
        x, w = self.x.double().requires_grad_(), self.w.double()
        side, batch, gates = self.side, self.batch, GATES[self.mode]

        def part(given: Tensor | None) -> Tensor:
            found = torch.zeros(batch, side) if given is None else given
            return found.double().requires_grad_()

        h0, c0 = part(self.h0), part(self.c0)
        hidden = torch.zeros(self.steps * batch, gates * side, dtype=torch.float64)
        hidden.requires_grad_()
        h, c = h0, c0
        outputs, cells, activated = {}, {}, {}
        for t in range(self.steps)[:: -1 if self.reverse else 1]:
            rows = slice(t * batch, (t + 1) * batch)
            from_h = torch.einsum("bj,gij->bgi", h, w) + hidden[rows].unflatten(1, (gates, side))
            sums = x[rows].unflatten(1, (gates, side))
            if self.mode == Mode.LSTM:
                i, f, g, o = (sums + from_h).unbind(1)
                i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                c = f * c + i * g
                h = o * c.tanh()
                activated[t], cells[t] = torch.stack([i, f, g, o], 1), c
            elif self.mode == Mode.GRU:
                assert self.bias_n is not None
                n_h = from_h[:, 2] + self.bias_n.double()
                r, z = (sums[:, k].add(from_h[:, k]).sigmoid() for k in range(2))
                n = (sums[:, 2] + r * n_h).tanh()
                h = (1 - z) * n + z * h
                activated[t], cells[t] = torch.stack([r, z, n], 1), n_h
            else:
                h = (sums + from_h)[:, 0]
                h = h.tanh() if self.mode == Mode.RNN_TANH else h.relu()
                activated[t] = h.unsqueeze(1)
            outputs[t] = h
        order = range(self.steps)
        output = torch.cat([outputs[t] for t in order])
        loss = (output * self.d_output.double()).sum()
        if self.d_hn is not None:
            loss = loss + (h * self.d_hn.double()).sum()
        if self.d_cn is not None:
            loss = loss + (c * self.d_cn.double()).sum()
        d_x, d_hidden, d_h0 = torch.autograd.grad(loss, [x, hidden, h0], retain_graph=True)
        results = {
            "gates": torch.cat([activated[t] for t in order]).flatten(1),
            "output": output,
            "hn": h,
            "d_gates": d_x,
            "d_h0": d_h0,
        }
        if self.mode == Mode.LSTM:
            results["cn"] = c
            (results["d_c0"],) = torch.autograd.grad(loss, c0)
        if cells:
            results["cells"] = torch.cat([cells[t] for t in order])
        if self.mode == Mode.GRU:
            results["d_hidden"] = d_hidden
        return {name: value.detach() for name, value in results.items()}


def pack(w: Tensor) -> Tensor:
    """Symmetric matrices (gates, H, H), packed by the CPU's library: the layout is the same."""
    gates, side, _ = w.shape
    library, dense = native.library(), w.float().contiguous()
    packed = torch.empty(library.symrnn_packed_length(1, side, side, gates))
    status = library.symrnn_pack(
        1, side, side, gates, Dtype.FLOAT, at(dense), side * side, side, Dtype.FLOAT, at(packed), 1
    )
    assert status == 0
    return packed.to(w.dtype)


def at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# Twice what was measured. A gradient, and what is rounded to 16 bits at every step, loses more.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def check(case: Case, emulator: ctypes.CDLL) -> None:
    forth = case.forward(emulator)
    back = case.backward(emulator, forth)
    expected = case.expected()
    assert forth.keys() | back.keys() == expected.keys()
    tolerance = 2e-3 if case.tf32 else TOLERANCE[case.dtype]
    for name, found in {**forth, **back}.items():
        wanted = expected[name]
        error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("side", [1, 7, 16, 33, 50])
def test_every_mode_and_size(
    emulator: ctypes.CDLL, mode: Mode, reverse: bool, side: int
) -> None:
    check(Case(mode, side, batch=3, steps=3, reverse=reverse), emulator)
