"""The kernels for GPUs, run on a CPU: the very source that nvcc compiles, thread by thread.

tests/native/emulated_gpu.h is the GPU, with as many multiprocessors and as much shared memory as a
test chooses, and schedules its threads in an order that a test chooses. The oracles are PyTorch in
float64 and the library for CPUs.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, pointer
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from symrnn import native
from symrnn.native import building
from symrnn.native.interface import (
    Dtype,
    Fit,
    Gpu,
    Kernel,
    Layer,
    Map,
    Mode,
    Product,
    Status,
    Term,
)

GATES = {Mode.LSTM: 4, Mode.GRU: 3, Mode.RNN_TANH: 1, Mode.RNN_RELU: 1}
DTYPES = {
    torch.float32: Dtype.FLOAT,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float16: Dtype.HALF,
}
# The type of the arrays, and whether products of float may be rounded to TF32: exact, and others.
EXACT = (torch.float32, False)
ROUNDING = [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]
ALL_ARITHMETIC = [EXACT, *ROUNDING]
SMALL = Gpu(9, 101_376)  # the GPU of most tests
BIGGEST = Gpu(132, 232_448)
DEADLOCK = 100  # the emulator's status

# The emulator's orders: 0 is first come first served, 1 last first; even ones are random, odd ones
# random with some blocks and warps starved.
ORDERS = range(8)

Results = dict[str, Tensor]


def fit(
    gpu: Gpu,
    mode: Mode,
    dtype: torch.dtype,
    side: int,
    batch: int,
    backward: bool,
    kernel: Kernel = Kernel.PACKED,
) -> Fit | None:
    """How such a layer is laid out; None if it does not fit."""
    found = Fit()
    status = native.library().symrnn_fit_gpu(
        gpu, kernel, mode, DTYPES[dtype], side, batch, backward, byref(found)
    )
    assert status in (Status.OK, Status.FIT)
    return found if status == Status.OK else None


def tight(processors: int, mode: Mode, dtype: torch.dtype, side: int, batch: int) -> Gpu:
    """A GPU with so little shared memory that only 8 sequences are multiplied at once."""
    for room in range(0, 232_448, 2048):
        gpu = Gpu(processors, room)
        if all(fit(gpu, mode, dtype, side, batch, backward) for backward in (False, True)):
            return gpu
    raise AssertionError("it fits no GPU")


class StoppedError(Exception):
    """A call came back with a status."""


class StrayWriteError(Exception):
    """A call wrote where it should not: around an array, or into what is only read."""


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor, so that a NaN equals itself."""
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


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
    with_state: bool = True  # h0, c0, d_hn, d_cn
    with_bias: bool = True  # bias_n, of a GRU
    with_output: bool = True  # d_output
    with_cells: bool = True  # asked of the forward pass
    with_mask: bool = False
    gpu: Gpu = SMALL
    order: int = 0
    left_behind: int = 255  # in each byte of the workspace; 255 makes NaNs
    kernel: Kernel = Kernel.PACKED
    seed: int = 0  # of the numbers

    def __post_init__(self) -> None:
        torch.manual_seed(self.side * 1000 + self.batch + self.seed)
        gates, side, batch = GATES[self.mode], self.side, self.batch
        rounded = self.dtype

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape) * scale).to(rounded)

        w = draw(gates, side, side, scale=1 / math.sqrt(side))
        self.w = torch.triu(w) + torch.triu(w, 1).mT
        self.x = draw(self.steps * batch, gates * side)
        self.bias_n = draw(side) if self.mode == Mode.GRU and self.with_bias else None
        self.h0 = draw(batch, side) if self.with_state else None
        has_c = self.with_state and self.mode == Mode.LSTM
        self.c0 = draw(batch, side) if has_c else None
        self.d_output = draw(self.steps * batch, side) if self.with_output else None
        self.d_hn = draw(batch, side) if self.with_state else None
        self.d_cn = draw(batch, side) if has_c else None
        # As dropout makes it, and other numbers as well.
        drawn = draw(batch, side) if self.with_mask else torch.zeros(0)
        self.mask = torch.where(drawn > 0.5, 0, drawn) if self.with_mask else None

        self.packed = pack(self.w)
        self.term = Term(1, side, side, (1 << gates) - 1, self.packed.data_ptr())
        self.product = Product(DTYPES[rounded], gates, side, side, 1, pointer(self.term))
        self.layer = Layer(
            self.mode, pointer(self.product), None, None, at(self.bias_n), at(self.mask)
        )

    def fit(self, backward: bool) -> Fit:
        found = fit(self.gpu, self.mode, self.dtype, self.side, self.batch, backward, self.kernel)
        assert found is not None
        return found

    def forward_arrays(self) -> Results:
        """For the results of the forward pass, in the order of the arguments."""
        rows, side, batch, dtype = self.steps * self.batch, self.side, self.batch, self.dtype
        results = {"gates": guarded((rows, GATES[self.mode] * side), dtype)}
        results["gates"].copy_(self.x)
        if self.mode in (Mode.LSTM, Mode.GRU) and self.with_cells:
            results["cells"] = guarded((rows, side), torch.float32)
        results["output"] = guarded((rows, side), dtype)
        results["hn"] = guarded((batch, side), dtype)
        if self.mode == Mode.LSTM:
            results["cn"] = guarded((batch, side), dtype)
        return results

    def backward_arrays(self) -> Results:
        rows, side, batch, dtype = self.steps * self.batch, self.side, self.batch, self.dtype
        results = {"d_gates": guarded((rows, GATES[self.mode] * side), dtype)}
        if self.mode == Mode.GRU:
            results["d_hidden"] = guarded((rows, GATES[self.mode] * side), dtype)
        results["d_h0"] = guarded((batch, side), dtype)
        if self.mode == Mode.LSTM:
            results["d_c0"] = guarded((batch, side), dtype)
        return results

    def workspace(self, backward: bool) -> Tensor:
        size = (self.fit(backward).workspace_bytes,)
        return guarded(size, torch.uint8, self.left_behind)

    def given(self) -> list[Tensor]:
        """What is only read."""
        maybe = (
            *(self.bias_n, self.mask, self.h0, self.c0),
            *(self.d_output, self.d_hn, self.d_cn),
        )
        return [self.packed, *(one for one in maybe if one is not None)]

    def forward_call(self, results: Results, space: Tensor) -> dict[str, object]:
        """The arguments of emulate_forward."""
        return {
            "layer": self.layer, "kernel": self.kernel, "tf32": self.tf32, "steps": self.steps,
            "batch": self.batch, "reverse": self.reverse, "gates": at(results["gates"]),
            "cells": at(results.get("cells")),
            "h0": at(self.h0), "c0": at(self.c0), "output": at(results["output"]),
            "hn": at(results["hn"]), "cn": at(results.get("cn")), "workspace": at(space),
            "bytes": space.numel(), "gpu": self.gpu, "order": self.order,
        }  # fmt: skip

    def backward_call(self, forward: Results, results: Results, space: Tensor) -> dict[str, object]:
        """The arguments of emulate_backward."""
        return {
            "layer": self.layer, "kernel": self.kernel, "tf32": self.tf32, "steps": self.steps,
            "batch": self.batch, "reverse": self.reverse, "gates": at(forward["gates"]),
            "cells": at(forward.get("cells")), "h0": at(self.h0), "c0": at(self.c0),
            "output": at(forward["output"]),
            "d_output": at(self.d_output), "d_hn": at(self.d_hn), "d_cn": at(self.d_cn),
            "d_gates": at(results["d_gates"]), "d_hidden": at(results.get("d_hidden")),
            "d_h0": at(results["d_h0"]), "d_c0": at(results.get("d_c0")), "workspace": at(space),
            "bytes": space.numel(), "gpu": self.gpu, "order": self.order,
        }  # fmt: skip

    def forward(self, emulator: ctypes.CDLL) -> Results:
        results, space = self.forward_arrays(), self.workspace(False)
        before = [one.clone() for one in self.given()]
        status = emulator.emulate_forward(*self.forward_call(results, space).values())
        if status:
            raise StoppedError(status)
        unchanged = all(map(torch.equal, map(bits, self.given()), map(bits, before)))
        if not (unchanged and all(map(is_unharmed, [*results.values(), space]))):
            raise StrayWriteError
        return results

    def backward(self, emulator: ctypes.CDLL, forward: Results) -> Results:
        results, space = self.backward_arrays(), self.workspace(True)
        given = [*self.given(), *forward.values()]
        before = [one.clone() for one in given]
        status = emulator.emulate_backward(*self.backward_call(forward, results, space).values())
        if status:
            raise StoppedError(status)
        unchanged = all(map(torch.equal, map(bits, given), map(bits, before)))
        if not (unchanged and all(map(is_unharmed, [*results.values(), space]))):
            raise StrayWriteError
        return results

    def both(self, emulator: ctypes.CDLL) -> Results:
        forward = self.forward(emulator)
        return {**forward, **self.backward(emulator, forward)}

    def on_the_cpu(self) -> Results:
        """The same by the library for CPUs, of the same packed weights; in float."""
        library, forward, backward = native.library(), self.forward_arrays(), self.backward_arrays()
        start = (self.layer, self.steps, self.batch, None, self.reverse)
        native.check(
            library.symrnn_forward(
                *start, None, at(forward["gates"]), at(forward.get("cells")), at(self.h0),
                at(self.c0), at(forward["output"]), at(forward["hn"]), at(forward.get("cn")), 1,
            )
        )  # fmt: skip
        native.check(
            library.symrnn_backward(
                *start, at(forward["gates"]), at(forward.get("cells")), at(self.h0), at(self.c0),
                at(forward["output"]), at(self.d_output), at(self.d_hn), at(self.d_cn),
                at(backward["d_gates"]), at(backward.get("d_hidden")), at(backward["d_h0"]),
                at(backward.get("d_c0")), 1,
            )
        )  # fmt: skip
        return {**forward, **backward}

    def expected(self) -> Results:
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
        mask = 1 if self.mask is None else self.mask.double()
        outputs, cells, activated = {}, {}, {}
        for t in range(self.steps)[:: -1 if self.reverse else 1]:
            rows = slice(t * batch, (t + 1) * batch)
            from_h = torch.einsum("bj,gij->bgi", h * mask, w)
            from_h = from_h + hidden[rows].unflatten(1, (gates, side))
            sums = x[rows].unflatten(1, (gates, side))
            if self.mode == Mode.LSTM:
                i, f, g, o = (sums + from_h).unbind(1)
                i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                c = f * c + i * g
                h = o * c.tanh()
                activated[t], cells[t] = torch.stack([i, f, g, o], 1), c
            elif self.mode == Mode.GRU:
                n_h = from_h[:, 2] + (0 if self.bias_n is None else self.bias_n.double())
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
        loss = output.sum() * 0
        if self.d_output is not None:
            loss = loss + (output * self.d_output.double()).sum()
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
    packed = torch.empty(library.symrnn_packed_length(1, side, side, gates, native.Dtype.FLOAT))
    status = library.symrnn_pack(
        1, side, side, gates, Dtype.FLOAT, at(dense), side * side, side, Dtype.FLOAT, at(packed), 1
    )
    assert status == Status.OK
    return packed.to(w.dtype)


def at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


GUARD, GUARDED = 1024, 0xA5  # bytes before and behind an array, and what is in each


def guarded(shape: tuple[int, ...], dtype: torch.dtype, filled: int = 255) -> Tensor:
    """An array, aligned to 64 bytes, with more memory on both sides that nobody is to write.

    It is filled with NaNs: all of it has to be written.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = torch.full((128 + GUARD + size + GUARD,), GUARDED, dtype=torch.uint8)
    start = GUARD + (64 - memory.data_ptr() - GUARD) % 128
    memory[start : start + size] = filled
    return memory[start : start + size].view(dtype).view(shape)


def is_unharmed(array: Tensor) -> bool:
    """Whether the memory around is as it was."""
    memory = torch.empty(0, dtype=torch.uint8).set_(array.untyped_storage())
    start = array.storage_offset() * array.itemsize
    before, behind = memory[:start], memory[start + array.numel() * array.itemsize :]
    return bool((before == GUARDED).all() and (behind == GUARDED).all())


def same_bits(one: Results, other: Results) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(bits(one[name]), bits(other[name])) for name in one
    )


# The largest error of a number, as part of the array's largest, or of 1 where all are smaller:
# twice what was measured over the cases below. Of 16 bits the states and gradients are rounded at
# each step, to parts of 2⁻⁹ or 2⁻¹²; of TF32 the factors, to 2⁻¹².
TOLERANCE = {"exact": 1e-6, "tf32": 2.5e-3, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def tolerance(case: Case) -> float:
    if case.dtype == torch.float32:
        return TOLERANCE["tf32" if case.tf32 else "exact"]
    return TOLERANCE[case.dtype]


def check(case: Case, emulator: ctypes.CDLL) -> None:
    found, expected = case.both(emulator), case.expected()
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        # Where numbers are rounded, a sum near zero may lie on the other side of it, and then the
        # gradient of a ReLU is another one altogether: no fault, and not small.
        rounded = case.dtype != torch.float32 or case.tf32
        if case.mode == Mode.RNN_RELU and rounded and name.startswith("d_"):
            continue
        error = (found[name].double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error < tolerance(case), (name, float(error))


# ---- what is computed ----------------------------------------------------------------------------


SIZES = [1, 7, 15, 16, 17, 64, 65, 130, 200]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("side", SIZES)
def test_every_mode_and_size(emulator: ctypes.CDLL, mode: Mode, side: int) -> None:
    """Exactly, and in one of the other kinds of arithmetic, which take turns.

    Even sizes from the first step on, odd ones from the last.
    """
    gpu = Gpu(13, 232_448) if side > 100 else SMALL
    for dtype, tf32 in (EXACT, ROUNDING[(SIZES.index(side) + mode) % 3]):
        case = Case(mode, side, 3, 2, dtype, tf32, side % 2 == 1, gpu=gpu, order=side % 6)
        check(case, emulator)


BATCHES = [1, 2, 7, 8, 9, 16, 20, 24, 25, 32, 49]
PROCESSORS = [1, 2, 5, 9, 13, 28]


def some_case(batch: int, processors: int, dtype: torch.dtype, tf32: bool) -> Case:
    """Of so many sequences on such a GPU; an odd number is multiplied in several passes."""
    mode = list(Mode)[(batch + processors) % 4]
    gpu = Gpu(processors, 232_448)
    if batch % 2:
        gpu = tight(processors, mode, dtype, 40, batch)
    return Case(mode, 40, batch, 2, dtype, tf32, gpu=gpu, order=batch % 6)


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_and_gpu(emulator: ctypes.CDLL, batch: int, processors: int) -> None:
    check(some_case(batch, processors, *EXACT), emulator)


# As few of those as have every layout; and two of many blocks.
ROUNDED = [
    *((1, 1), (2, 2), (7, 1), (9, 1), (16, 1), (20, 1), (25, 1), (32, 2), (49, 1), (24, 9)),
    (49, 28),
]


@pytest.mark.parametrize(("dtype", "tf32"), ROUNDING)
@pytest.mark.parametrize(("batch", "processors"), ROUNDED)
def test_every_layout_in_every_arithmetic(
    emulator: ctypes.CDLL, batch: int, processors: int, dtype: torch.dtype, tf32: bool
) -> None:
    check(some_case(batch, processors, dtype, tf32), emulator)


@pytest.mark.parametrize("kind", range(4))
def test_these_cases_have_every_layout(kind: int) -> None:
    """Any number of gates together, and of sequences at once, in one pass and in many."""
    if not native.available():
        pytest.skip(native.why_not())
    arithmetic = ALL_ARITHMETIC[kind]
    cases = itertools.product(BATCHES, PROCESSORS) if kind == 0 else ROUNDED
    together, columns, passes = set(), set(), set()
    for (batch, processors), backward in itertools.product(cases, (False, True)):
        found = some_case(batch, processors, *arithmetic).fit(backward)
        together.add((found.together, backward))
        columns.add(found.columns)
        passes.add(-(-batch // found.columns))
    assert together == set(itertools.product((1, 2, 3, 4), (False, True)))
    assert columns == {8, 16, 24, 32}
    # 16 bits need no GPU that is so tight.
    assert passes == ({1, 2, 4, 7} if arithmetic[0] == torch.float32 else {1, 2, 4})


@pytest.mark.parametrize(
    ("mode", "side", "batch", "kind"),
    [
        (Mode.LSTM, 130, 9, 0),
        (Mode.LSTM, 130, 9, 2),
        (Mode.GRU, 66, 20, 1),
        (Mode.GRU, 66, 20, 3),
        (Mode.RNN_TANH, 200, 3, 0),  # more partial sums than are in flight at once
    ],
)
def test_the_biggest_gpu(
    emulator: ctypes.CDLL, mode: Mode, side: int, batch: int, kind: int
) -> None:
    """Each arithmetic once."""
    dtype, tf32 = ALL_ARITHMETIC[kind]
    check(Case(mode, side, batch, 2, dtype, tf32, gpu=BIGGEST, order=3), emulator)


@pytest.mark.parametrize("absent", ["with_state", "with_bias", "with_output"])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("steps", [1, 4])
def test_what_is_not_given_counts_as_zeros(
    emulator: ctypes.CDLL, mode: Mode, steps: int, absent: str
) -> None:
    check(replace(Case(mode, 18, 3, steps), **{absent: False}), emulator)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_the_state_is_masked_before_the_matrices_and_there_alone(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """With an initial state and without."""
    for batch, with_state in ((3, True), (9, False)):
        case = Case(mode, 33, batch, 3, dtype, tf32, with_mask=True, with_state=with_state)
        check(case, emulator)


@pytest.mark.parametrize("mode", Mode)
def test_a_mask_of_ones_is_none(emulator: ctypes.CDLL, mode: Mode) -> None:
    case = Case(mode, 18, 3, 2, with_mask=True)
    assert case.mask is not None
    case.mask.fill_(1)
    assert same_bits(case.both(emulator), Case(mode, 18, 3, 2).both(emulator))


@pytest.mark.parametrize("mode", Mode)
def test_no_gradient_at_all_gives_zeros(emulator: ctypes.CDLL, mode: Mode) -> None:
    case = Case(mode, 18, 3, 2, with_state=False, with_output=False)
    for found in case.backward(emulator, case.forward(emulator)).values():
        assert not found.any()


@pytest.mark.parametrize("mode", [Mode.LSTM, Mode.GRU])
def test_cells_need_not_be_asked_for(emulator: ctypes.CDLL, mode: Mode) -> None:
    case = Case(mode, 18, 3, 3)
    wanted = case.forward(emulator)
    del wanted["cells"]
    assert same_bits(replace(case, with_cells=False).forward(emulator), wanted)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    ("side", "batch", "reverse"), [(7, 1, False), (64, 9, True), (100, 20, False)]
)
def test_as_on_a_cpu(
    emulator: ctypes.CDLL, mode: Mode, side: int, batch: int, reverse: bool
) -> None:
    """The same packed weights, the same arguments, and the same results but for rounding."""
    case = Case(mode, side, batch, 3, reverse=reverse)
    found, wanted = case.both(emulator), case.on_the_cpu()
    assert found.keys() == wanted.keys()
    for name in wanted:
        # Both are in float: sums have another order, and activations differ in the last bits.
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=2e-6)


# ---- what the results do not depend on -----------------------------------------------------------


# Every mode exactly, and every arithmetic with one of them: how blocks wait does not depend on it.
MODES_AND_ARITHMETIC = [
    *(pytest.param(mode, *EXACT, id=f"{mode.name}-exact") for mode in Mode),
    *(pytest.param(Mode.LSTM, *ROUNDING[k], id=f"LSTM-rounded-{k}") for k in range(3)),
]


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_the_same_bits_in_whatever_order_and_memory(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    case = Case(mode, 40, 9, 3, dtype, tf32, gpu=tight(13, mode, dtype, 40, 9))
    wanted = case.both(emulator)
    for order in ORDERS:
        # NaNs, zeros, and large numbers.
        other = replace(case, order=order, left_behind=(255, 0, 0x4F)[order % 3])
        assert same_bits(other.both(emulator), wanted), order


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_a_nan_stays_in_its_sequence(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    batch, sick = 20, {3: math.nan, 12: math.inf, 19: math.nan}
    case = Case(mode, 20, batch, 2, dtype, tf32, gpu=tight(9, mode, dtype, 20, batch))
    well = [b for b in range(batch) if b not in sick]
    wanted = case.both(emulator)
    for b, value in sick.items():
        assert case.h0 is not None
        assert case.d_output is not None
        case.x.unflatten(0, (-1, batch))[:, b] = value
        case.h0[b] = value
        case.d_output.unflatten(0, (-1, batch))[:, b] = value
    found = case.both(emulator)
    for name, one in found.items():
        rows, whole = one.unflatten(0, (-1, batch)), wanted[name].unflatten(0, (-1, batch))
        assert torch.equal(bits(rows[:, well]), bits(whole[:, well])), name
        # A ReLU's gradient is that of its output where this is above zero, else none.
        if mode != Mode.RNN_RELU or not name.startswith("d_"):
            assert rows[:, [3, 19]].isnan().any(-1).all(), name


# ---- calls that are refused ----------------------------------------------------------------------

Change = Callable[[Case, dict[str, object]], object]
OTHER_MAP = Map()


def argument(name: str, value: object) -> Change:
    return lambda case, call: call.update({name: value})


def shifted(name: str, by: int) -> Change:
    return lambda case, call: call.update({name: call[name] + by})  # type: ignore[operator]


def field(of: str, name: str, value: object) -> Change:
    """A field of the case's layer, product or term."""
    return lambda case, call: setattr(getattr(case, of), name, value)


REFUSED: list[tuple[str, Change, Status]] = [
    ("no layer", argument("layer", None), Status.NULL),
    ("no product", field("layer", "hh", None), Status.NULL),
    ("no term", field("product", "term", None), Status.NULL),
    ("no weights", field("term", "packed", None), Status.NULL),
    ("no workspace", argument("workspace", None), Status.NULL),
    ("no such mode", field("layer", "mode", 4), Status.MODE),
    ("negative mode", field("layer", "mode", -1), Status.MODE),
    ("double", field("product", "dtype", Dtype.DOUBLE), Status.DTYPE),
    ("no such type", field("product", "dtype", 4), Status.DTYPE),
    ("not symmetric", field("term", "symmetric", 0), Status.FIT),
    ("two terms", field("product", "terms", 2), Status.FIT),
    ("a map of inputs", field("term", "inputs", pointer(OTHER_MAP)), Status.FIT),
    ("a map of outputs", field("term", "outputs", pointer(OTHER_MAP)), Status.FIT),
    ("input weights", field("layer", "ih", pointer(Product())), Status.FIT),
    ("gates of another mode", field("product", "gates", 2), Status.SIZE),
    ("a gate without weights", field("term", "gates", 0b10), Status.SIZE),
    ("fewer rows", field("product", "rows", 17), Status.SIZE),
    ("fewer columns", field("product", "columns", 17), Status.SIZE),
    ("fewer rows of the term", field("term", "rows", 17), Status.SIZE),
    ("fewer columns of the term", field("term", "columns", 17), Status.SIZE),
    (
        "weights not aligned",
        lambda case, call: setattr(case.term, "packed", case.term.packed + 8),
        Status.SIZE,
    ),
    ("no such kernel", argument("kernel", 3), Status.SIZE),
    ("no steps", argument("steps", 0), Status.SIZE),
    ("negative steps", argument("steps", -1), Status.SIZE),
    ("steps beyond counting", argument("steps", 2**31 - 1), Status.SIZE),
    ("no sequences", argument("batch", 0), Status.SIZE),
    ("sequences beyond counting", argument("batch", 2**31), Status.FIT),
    ("a GPU too small", argument("gpu", Gpu(1, 1000)), Status.FIT),
    ("workspace too small", shifted("bytes", -1), Status.SIZE),
    ("workspace not aligned", shifted("workspace", 32), Status.SIZE),
]
ALL, GATED = tuple(Mode), (Mode.LSTM, Mode.GRU)
# The arrays that must not be null (symrnn.h and symrnn_cuda.h do not say they may), of which modes.
NEEDED_FORWARD: dict[str, tuple[Mode, ...]] = {
    "gates": ALL,
    "output": ALL,
    "hn": ALL,
    "cn": (Mode.LSTM,),
}
NEEDED_BACKWARD: dict[str, tuple[Mode, ...]] = {
    "gates": ALL,
    "cells": GATED,
    "output": ALL,
    "d_gates": ALL,
    "d_hidden": (Mode.GRU,),
    "d_h0": ALL,
    "d_c0": (Mode.LSTM,),
}


def assert_refused(
    emulator: ctypes.CDLL, mode: Mode, backward: bool, change: Change, status: Status
) -> None:
    """The call gives this status and writes nothing."""
    case = Case(mode, 18, 3, 2)
    forward, space = case.forward_arrays(), case.workspace(backward)
    written = {**forward, "workspace": space}
    if backward:
        forward = case.forward(emulator)
        results = case.backward_arrays()
        written = {**forward, **results, "workspace": space}
        call = case.backward_call(forward, results, space)
    else:
        call = case.forward_call(forward, space)
    before = {name: one.clone() for name, one in written.items()}
    change(case, call)
    function = emulator.emulate_backward if backward else emulator.emulate_forward
    assert function(*call.values()) == status
    for name, one in written.items():
        assert torch.equal(one.view(torch.uint8), before[name].view(torch.uint8)), name
        assert is_unharmed(one), name


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("number", "change", "status"),
    [pytest.param(k, *one[1:], id=one[0]) for k, one in enumerate(REFUSED)],
)
def test_a_wrong_call_has_its_status(
    emulator: ctypes.CDLL, backward: bool, number: int, change: Change, status: Status
) -> None:
    """In one mode each, which take turns: these checks are the same for all."""
    assert_refused(emulator, Mode(number % 4), backward, change, status)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("mode", Mode)
def test_an_array_that_is_missing_is_told(
    emulator: ctypes.CDLL, mode: Mode, backward: bool
) -> None:
    for name, modes in (NEEDED_BACKWARD if backward else NEEDED_FORWARD).items():
        if mode in modes:
            assert_refused(emulator, mode, backward, argument(name, None), Status.NULL)


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_too_large_for_the_gpu_is_refused(emulator: ctypes.CDLL, backward: bool) -> None:
    def larger(case: Case, call: dict[str, object]) -> None:
        for one in (case.product, case.term):
            one.rows = one.columns = 5000

    assert_refused(emulator, Mode.LSTM, backward, larger, Status.FIT)


# ---- what these tests would notice ---------------------------------------------------------------

# Faults that layer.h could have: the code, and the code with the fault, which is on while FAULT is
# true. Most leave out one wait or barrier: so none of those is there for nothing.
FAULTS: dict[str, tuple[str, str]] = {
    "no wait for partial sums": (
        "wait_for(job_.partial_sums_flags",
        "if (!FAULT) wait_for(job_.partial_sums_flags",
    ),
    "no wait for the last partial sum of each sum": (
        "if (square > s_.square_of(",
        "if (FAULT && k % s_.squares == s_.squares - 1) return -1;\n"
        "        if (square > s_.square_of(",
    ),
    "a wait for the partial sums of a block's first row only": (
        "s_.square_of((last_row_ - 1)",
        "s_.square_of((FAULT ? first_row_ : last_row_ - 1)",
    ),
    "a wait for states one step too short": (
        "wait_for_states(done + 1);",
        "wait_for_states(done + 1 - FAULT);",
    ),
    "a wait for partial sums one step too short": (
        "wait_for_partial_sums(count);",
        "wait_for_partial_sums(count - FAULT);",
    ),
    "no barrier after the wait for partial sums": (
        "partial_sums_producer_, count);\n        sync_block();",
        "partial_sums_producer_, count);\n        if (!FAULT) sync_block();",
    ),
    "no wait for states": (
        "wait_for(job_.state_flags",
        "if (!FAULT) wait_for(job_.state_flags",
    ),
    "a wait for the states of one side only": (
        "return k < second.count() ?",
        "return k < second.count() && !FAULT ?",
    ),
    "a wait for the states of one block too few": (
        "s_.block_of_row(last - 1) + 1",
        "s_.block_of_row(last - 1) + 1 - FAULT",
    ),
    "no barrier after the wait for states": (
        "states_producer_, count);\n        sync_block();",
        "states_producer_, count);\n        if (!FAULT) sync_block();",
    ),
    "no barrier before a signal": (
        "sync_block();\n        if (thread_index() == 0) signal_flag",
        "if (!FAULT) sync_block();\n        if (thread_index() == 0) signal_flag",
    ),
    "partial sums signalled one step too late": (
        "signal(job_.partial_sums_flags, done + 1);",
        "signal(job_.partial_sums_flags, done + 1 - FAULT);",
    ),
    "initial states signalled one step too late": (
        "signal(job_.state_flags, 1);",
        "signal(job_.state_flags, 1 - FAULT);",
    ),
    "states signalled one step too late": (
        "signal(job_.state_flags, count + 1);",
        "signal(job_.state_flags, count + 1 - FAULT);",
    ),
    "partial sums signalled before they are written": (
        "            multiply();",
        "            if (FAULT) signal(job_.partial_sums_flags, done + 1);\n"
        "            multiply();",
    ),
    "initial states signalled before they are written": (
        "        publish_initial_state();",
        "        if (FAULT) signal(job_.state_flags, 1);\n        publish_initial_state();",
    ),
    "states signalled before they are written": (
        "        if (c.valid) result = compute(c, in);",
        "        if (FAULT) signal(job_.state_flags, count + 1);\n"
        "        if (c.valid) result = compute(c, in);",
    ),
    "states signalled while a thread's second cell is yet to come": (
        "        for (int row = own_row() + ROWS_AT_ONCE;",
        "        if (FAULT) signal(job_.state_flags, count + 1);\n"
        "        for (int row = own_row() + ROWS_AT_ONCE;",
    ),
    "zeros for units that do not exist left out": (
        "                publish(c, vector, h);",
        "                if (c.valid || !FAULT) publish(c, vector, h);",
    ),
    "no wait for the copies of the operand": (
        "wait_for_copies<0>();",
        "if (!FAULT) wait_for_copies<0>();",
    ),
    "no barrier after loading the operand": (
        "sync_block();\n            multiply_strips(b);",
        "if (!FAULT) sync_block();\n            multiply_strips(b);",
    ),
    "no barrier before the operand is overwritten": (
        "if (b + COLUMNS_AT_ONCE < s_.batch) sync_block();",
        "if (b + COLUMNS_AT_ONCE < s_.batch && !FAULT) sync_block();",
    ),
    "partial sums added in an order that varies": (
        "k < left ? load_past_l1(from + (k * VECTORS",
        "k < left ? load_past_l1(from + ((k + FAULT * (come += k == 0)) % left * VECTORS",
    ),
    "partial sums of sequences that do not exist": (
        "if (b < s_.batch)\n                        Policy::store",
        "if (b < s_.batch || FAULT)\n                        Policy::store",
    ),
    "units that do not exist": (
        "row < last_row_ && c.unit < s_.units;",
        "row < last_row_ && (c.unit < s_.units || FAULT);",
    ),
    "rows left out where a block has many": (
        "(int row = own_row() + ROWS_AT_ONCE;",
        "(int row = own_row() + (ROWS_AT_ONCE << FAULT);",
    ),
    "a tile above the diagonal not transposed": (
        "load_a(weights_ + at[r], TRANSPOSED, step)",
        "load_a(weights_ + at[r], TRANSPOSED && !FAULT, step)",
    ),
    "a tile near the diagonal not transposed": (
        "tile.transposed, step)",
        "tile.transposed && !FAULT, step)",
    ),
}


class Faulty:
    """The emulator with all these faults, of which one at a time, or none, is on."""

    def __init__(self, compiled: Callable[..., ctypes.CDLL], folder: Path) -> None:
        source = (building.FOLDER / "cuda" / "layer.h").read_text()
        for number, (old, new) in enumerate(FAULTS.values(), 1):
            assert source.count(old) == 1, old
            source = source.replace(old, new.replace("FAULT", f"(fault == {number})"))
        inside = "namespace symrnn {\n"
        counters = 'extern "C" { int fault = 0; }\nstatic int come = 0;\n\n'
        source = source.replace(inside, counters + inside, 1)
        # As in the source tree, so that what layer.h includes is found beside it.
        copied = folder / "native"
        shutil.copytree(building.FOLDER, copied, ignore=shutil.ignore_patterns("*.so", "*.py"))
        (copied / "cuda" / "layer.h").write_text(source)
        self.library = compiled(copied / "cuda", "faulty", "ONLY_EXACT")
        self.fault = c_int.in_dll(self.library, "fault")
        self.cases = telling_cases()
        self.wanted = [self.outcome(case, 0) for case in self.cases]

    def outcome(self, case: Case, fault: int) -> Results | None:
        """What comes out; None for a deadlock or a stray write."""
        self.fault.value = fault
        try:
            return case.both(self.library)
        except (StoppedError, StrayWriteError):
            return None


@pytest.fixture(scope="module")
def faulty(
    compile_emulator: Callable[..., ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory
) -> Faulty:
    return Faulty(compile_emulator, tmp_path_factory.mktemp("faulty"))


def telling_cases() -> list[Case]:
    """Several passes over the sequences; many squares; many rows; many strips of a block."""
    lstm = tight(13, Mode.LSTM, torch.float32, 40, 20)
    return [
        Case(Mode.LSTM, 40, 20, 4, gpu=lstm),
        Case(Mode.RNN_TANH, 70, 9, 4, gpu=Gpu(9, 101_376)),
        Case(Mode.GRU, 20, 49, 2, gpu=Gpu(3, 101_376)),
        Case(Mode.LSTM, 64, 3, 2, gpu=Gpu(1, 101_376)),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_kernels_is_noticed(faulty: Faulty, fault: str) -> None:
    number = [*FAULTS].index(fault) + 1

    def is_noticed(order: int, case: Case, wanted: Results | None) -> bool:
        found = faulty.outcome(replace(case, order=order), number)
        assert wanted is not None
        return found is None or not same_bits(found, wanted)

    cases = zip(faulty.cases, faulty.wanted, strict=True)
    assert any(is_noticed(order, *one) for order, one in itertools.product(ORDERS, cases))


def test_without_a_fault_there_is_nothing_to_notice(faulty: Faulty) -> None:
    for case, wanted in zip(faulty.cases, faulty.wanted, strict=True):
        for order in ORDERS:
            found = faulty.outcome(replace(case, order=order), 0)
            assert found is not None
            assert wanted is not None
            assert same_bits(found, wanted)


class Stopped(ctypes.Structure):
    """struct Stopped of layer.h"""

    _fields_ = tuple(
        (name, c_int) for name in ("written", "block", "other", "states", "count", "seen")
    )


@pytest.mark.parametrize(
    ("fault", "states", "count"),
    [
        ("partial sums signalled one step too late", 0, 1),
        ("initial states signalled one step too late", 1, 1),
        ("states signalled one step too late", 1, 2),
    ],
)
def test_a_wait_in_vain_stops_the_launch_and_leaves_word(
    faulty: Faulty, fault: str, states: int, count: int
) -> None:
    """Whoever waits sees a flag that is one behind."""
    faulty.fault.value = [*FAULTS].index(fault) + 1
    faulty.library.emulate_stopped.restype = POINTER(Stopped)
    for order in ORDERS:
        case = Case(Mode.GRU, 20, 3, 2, order=order)
        with pytest.raises(StoppedError) as stopped:
            case.forward(faulty.library)
        assert stopped.value.args == (DEADLOCK,)
        found = faulty.library.emulate_stopped().contents
        assert (found.written, found.states) == (1, states)
        assert (found.count, found.seen) == (count, count - 1)
        assert max(found.block, found.other) < case.fit(False).blocks


def test_a_launch_that_ends_leaves_no_word(faulty: Faulty) -> None:
    faulty.fault.value = 0
    faulty.library.emulate_stopped.restype = POINTER(Stopped)
    Case(Mode.GRU, 20, 3, 2).forward(faulty.library)
    assert not faulty.library.emulate_stopped().contents.written
