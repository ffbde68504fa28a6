"""Two layers in one launch on a GPU, the second a step behind the first, run on a CPU.

As in test_cuda.py, whose cases these are: one for each layer, of which the second's input is made
of the first's output.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import native
from symrnn.native.interface import Fit, Gpu, Kernel, Layer, Mode, Status
from tests.native.test_cuda import (
    ALL_ARITHMETIC,
    EXACT,
    GATES,
    MODES_AND_ARITHMETIC,
    ORDERS,
    ROUNDING,
    SMALL,
    Case,
    Results,
    StoppedError,
    StrayWriteError,
    at,
    bits,
    fit,
    guarded,
    is_unharmed,
    same_bits,
    tolerance,
)

H200 = Gpu(132, 232_448)


@dataclass
class Two:
    """Two layers of random numbers, and what they are run with."""

    mode: Mode
    side: int
    batch: int
    steps: int
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    with_state: bool = True  # h0, c0, d_hn, d_cn
    with_bias: bool = True  # bias_n of a GRU, and the second layer's bias
    with_output: bool = True  # d_output
    with_cells: bool = True  # asked for
    with_masks: bool = False  # of the states
    with_between: bool = False  # a mask between the layers
    gpu: Gpu = SMALL
    order: int = 0
    left_behind: int = 255
    layers: list[Case] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [
            Case(
                *(self.mode, self.side, self.batch, self.steps, self.dtype, self.tf32),
                with_state=self.with_state, with_bias=self.with_bias, with_mask=self.with_masks,
                with_output=self.with_output, gpu=self.gpu, kernel=Kernel.ROWS, seed=k,
            )
            for k in range(2)
        ]  # fmt: skip
        wide = GATES[self.mode] * self.side

        def draw(*shape: int) -> Tensor:
            return (torch.randn(shape) / self.side**0.5).to(self.dtype)

        self.w_ih = draw(wide, self.side)
        self.bias = draw(wide) if self.with_bias else None
        kept = torch.rand(self.steps * self.batch, self.side) > 0.4
        self.between = (kept * 1.5).to(self.dtype) if self.with_between else None

        def both(name: str) -> Tensor | None:
            parts = [getattr(one, name) for one in self.layers]
            return None if parts[0] is None else torch.stack(parts)

        self.h0, self.c0 = both("h0"), both("c0")
        self.d_output, self.d_hn, self.d_cn = map(both, ("d_output", "d_hn", "d_cn"))
        self.structures = (Layer * 2)(*(one.layer for one in self.layers))
        self.structures[1].bias = at(self.bias)

    def fit(self, backward: bool = False) -> Fit:
        sizes = (self.dtype, self.side, self.batch)
        found = fit(self.gpu, self.mode, *sizes, backward, Kernel.WAVEFRONT)
        assert found is not None
        return found

    def workspace(self, backward: bool = False) -> Tensor:
        return guarded((self.fit(backward).workspace_bytes,), torch.uint8, self.left_behind)

    def arrays(self) -> Results:
        """For the results of the forward pass, of both layers."""
        parts = {**self.layers[0].forward_arrays()}
        if not self.with_cells:
            parts.pop("cells", None)
        found = {name: guarded((2, *one.shape), one.dtype) for name, one in parts.items()}
        found["gates"][0].copy_(self.layers[0].x)
        return found

    def backward_arrays(self) -> Results:
        parts = self.layers[0].backward_arrays()
        return {name: guarded((2, *one.shape), one.dtype) for name, one in parts.items()}

    def call(self, results: Results, space: Tensor) -> dict[str, Any]:
        """The arguments of emulate_forward_wavefront."""
        return {
            "layers": self.structures, "tf32": self.tf32, "steps": self.steps, "batch": self.batch,
            "w_ih": at(self.w_ih), "between": at(self.between), "gates": at(results["gates"]),
            "cells": at(results.get("cells")), "h0": at(self.h0), "c0": at(self.c0),
            "output": at(results["output"]), "hn": at(results["hn"]), "cn": at(results.get("cn")),
            "workspace": at(space), "bytes": space.numel(), "gpu": self.gpu, "order": self.order,
        }  # fmt: skip

    def backward_call(self, forward: Results, results: Results, space: Tensor) -> dict[str, Any]:
        """The arguments of emulate_backward_wavefront."""
        return {
            "layers": self.structures, "tf32": self.tf32, "steps": self.steps, "batch": self.batch,
            "w_ih": at(self.w_ih), "between": at(self.between), "gates": at(forward["gates"]),
            "cells": at(forward.get("cells")), "h0": at(self.h0), "c0": at(self.c0),
            "output": at(forward["output"]),
            "d_output": at(self.d_output), "d_hn": at(self.d_hn), "d_cn": at(self.d_cn),
            "d_gates": at(results["d_gates"]), "d_hidden": at(results.get("d_hidden")),
            "d_h0": at(results["d_h0"]), "d_c0": at(results.get("d_c0")), "workspace": at(space),
            "bytes": space.numel(), "gpu": self.gpu, "order": self.order,
        }  # fmt: skip

    def forward(self, emulator: ctypes.CDLL) -> Results:
        results, space = self.arrays(), self.workspace()
        call = self.call(results, space)
        self.run(emulator.emulate_forward_wavefront, call, [], [*results.values(), space])
        return results

    def backward(self, emulator: ctypes.CDLL, forward: Results) -> Results:
        results, space = self.backward_arrays(), self.workspace(True)
        call, written = self.backward_call(forward, results, space), [*results.values(), space]
        self.run(emulator.emulate_backward_wavefront, call, [*forward.values()], written)
        return results

    def run(
        self, function: Any, call: dict[str, Any], read: list[Tensor], written: list[Tensor]
    ) -> None:
        maybe = (self.w_ih, self.bias, self.between, self.h0, self.c0)
        maybe += (self.d_output, self.d_hn, self.d_cn)
        given = [*read, *(one for one in maybe if one is not None)]
        given += [one for layer in self.layers for one in layer.given()]
        before = [one.clone() for one in given]
        status = function(*call.values())
        if status:
            raise StoppedError(status)
        unchanged = all(map(torch.equal, map(bits, given), map(bits, before)))
        if not (unchanged and all(map(is_unharmed, written))):
            raise StrayWriteError

    def both(self, emulator: ctypes.CDLL) -> Results:
        forward = self.forward(emulator)
        return {**forward, **self.backward(emulator, forward)}

    def expected(self) -> Results:
        """In float64, layer by layer: the second on the first's output, whose gradient then is
        what comes through the second beside its own."""
        lower, upper = (replace(one) for one in self.layers)
        w, between = self.w_ih.double(), 1 if self.between is None else self.between.double()
        bias = 0 if self.bias is None else self.bias.double()
        upper.x = lower.expected()["output"] * between @ w.mT + bias
        second = upper.expected()
        own = 0 if lower.d_output is None else lower.d_output.double()
        lower.d_output = own + second["d_gates"] @ w * between
        first = lower.expected()
        return {name: torch.stack([first[name], second[name]]) for name in first}


def check(case: Two, emulator: ctypes.CDLL) -> None:
    found, expected = case.both(emulator), case.expected()
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        # As in test_cuda.py: the gradient of a ReLU where a sum was rounded past zero.
        rounded = case.dtype != torch.float32 or case.tf32
        if case.mode == Mode.RNN_RELU and rounded and name.startswith("d_"):
            continue
        # Twice: what comes to the first layer's gradients has been rounded in the second's.
        error = (found[name].double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error < 2 * tolerance(case.layers[0]), (name, float(error))


# ---- what is computed ----------------------------------------------------------------------------

SIZES = [1, 7, 15, 17, 33, 64, 66]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("side", SIZES)
def test_every_mode_and_size(emulator: ctypes.CDLL, mode: Mode, side: int) -> None:
    """Exactly without masks, and in one of the other kinds of arithmetic, which take turns."""
    check(Two(mode, side, 3, 3, *EXACT, order=side % 6), emulator)
    dtype, tf32 = ROUNDING[(SIZES.index(side) + mode) % 3]
    check(Two(mode, side, 3, 3, dtype, tf32, with_masks=side % 2 == 1), emulator)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("masks", "between"), [(True, False), (False, True), (True, True)])
def test_masks(emulator: ctypes.CDLL, mode: Mode, masks: bool, between: bool) -> None:
    """One of each layer's state, the same at every step, and one of what goes between them."""
    for batch, steps in ((3, 4), (33, 2)):
        check(
            Two(mode, 35, batch, steps, with_masks=masks, with_between=between, order=3), emulator
        )


@pytest.mark.parametrize("batch", [1, 8, 20, 24, 25, 32, 64])
def test_every_batch(emulator: ctypes.CDLL, batch: int) -> None:
    """In one pass and in several, in every arithmetic; on few multiprocessors and on more."""
    for k, (dtype, tf32) in enumerate(ALL_ARITHMETIC):
        mode, processors = list(Mode)[(batch + k) % 4], (3, 13)[(batch + k // 2) % 2]
        gpu = Gpu(processors, 232_448)
        check(Two(mode, 40, batch, 2, dtype, tf32, with_between=k % 2 == 1, gpu=gpu), emulator)


@pytest.mark.parametrize("processors", [1, 2, 5])
def test_a_block_of_many_rows_multiplies_them_in_several_groups(
    emulator: ctypes.CDLL, processors: int
) -> None:
    """Of each layer 35, 18 or 8 units; backward, of LSTMs, of two matrices twice as many rows."""
    for mode, (dtype, tf32) in product((Mode.LSTM, Mode.GRU), (EXACT, ROUNDING[1])):
        check(Two(mode, 35, 9, 2, dtype, tf32, gpu=Gpu(processors, 232_448)), emulator)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("absent", ["with_state", "with_bias", "with_output"])
@pytest.mark.parametrize("mode", Mode)
def test_what_is_not_given_counts_as_zeros(
    emulator: ctypes.CDLL, mode: Mode, absent: str, steps: int
) -> None:
    check(replace(Two(mode, 18, 3, steps), **{absent: False}), emulator)


@pytest.mark.parametrize("mode", [Mode.LSTM, Mode.GRU])
def test_cells_need_not_be_asked_for(emulator: ctypes.CDLL, mode: Mode) -> None:
    wanted = Two(mode, 18, 3, 3).forward(emulator)
    del wanted["cells"]
    assert same_bits(Two(mode, 18, 3, 3, with_cells=False).forward(emulator), wanted)


# ---- what the results do not depend on -----------------------------------------------------------


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_the_first_layer_has_the_bits_that_it_has_by_itself(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    for masked in (False, True):
        case = Two(mode, 40, 9, 3, dtype, tf32, with_masks=masked)
        alone = case.layers[0].forward(emulator)
        both = case.forward(emulator)
        assert same_bits({name: one[0] for name, one in both.items()}, alone)


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_the_second_layer_has_the_gradients_that_it_has_by_itself(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    case = Two(mode, 40, 9, 3, dtype, tf32, with_masks=tf32)
    forward = case.forward(emulator)
    both = case.backward(emulator, forward)
    seconds = {name: one[1].clone() for name, one in forward.items()}
    alone = case.layers[1].backward(emulator, seconds)
    assert same_bits({name: one[1] for name, one in both.items()}, alone)


@pytest.mark.parametrize(("mode", "dtype", "tf32"), MODES_AND_ARITHMETIC)
def test_the_same_bits_in_whatever_order_and_memory(
    emulator: ctypes.CDLL, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """In two passes; with one vector of the first layer's h, and in some with two."""
    between = tf32 or mode == Mode.GRU
    case = Two(mode, 40, 25, 2, dtype, tf32, with_between=between)
    wanted = case.both(emulator)
    for order in ORDERS:
        other = replace(case, order=order, left_behind=(255, 0, 0x4F)[order % 3])
        assert same_bits(other.both(emulator), wanted), order


# ---- calls that are refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"layers": None}, Status.NULL),
        ({"w_ih": None}, Status.NULL),
        ({"gates": None}, Status.NULL),
        ({"output": None}, Status.NULL),
        ({"hn": None}, Status.NULL),
        ({"cn": None}, Status.NULL),
        ({"workspace": None}, Status.NULL),
        ({"steps": 0}, Status.SIZE),
        ({"steps": 2**31 - 1}, Status.SIZE),
        ({"batch": 0}, Status.SIZE),
        ({"gpu": Gpu(1, 1000)}, Status.FIT),
        ({"bytes": 100}, Status.SIZE),
    ],
)
def test_a_wrong_call_has_its_status(
    emulator: ctypes.CDLL, change: dict[str, Any], status: Status
) -> None:
    case = Two(Mode.LSTM, 18, 3, 2)
    space = guarded((case.fit().workspace_bytes,), torch.uint8)
    call = {**case.call(case.arrays(), space), **change}
    assert emulator.emulate_forward_wavefront(*call.values()) == status


@pytest.mark.parametrize(
    ("mode", "change", "status"),
    [
        (Mode.LSTM, {"layers": None}, Status.NULL),
        (Mode.LSTM, {"w_ih": None}, Status.NULL),
        (Mode.LSTM, {"gates": None}, Status.NULL),
        (Mode.LSTM, {"cells": None}, Status.NULL),
        (Mode.GRU, {"cells": None}, Status.NULL),
        (Mode.RNN_TANH, {"output": None}, Status.NULL),
        (Mode.LSTM, {"d_gates": None}, Status.NULL),
        (Mode.GRU, {"d_hidden": None}, Status.NULL),
        (Mode.LSTM, {"d_h0": None}, Status.NULL),
        (Mode.LSTM, {"d_c0": None}, Status.NULL),
        (Mode.LSTM, {"workspace": None}, Status.NULL),
        (Mode.LSTM, {"steps": 0}, Status.SIZE),
        (Mode.LSTM, {"steps": 2**31 - 1}, Status.SIZE),
        (Mode.LSTM, {"gpu": Gpu(1, 1000)}, Status.FIT),
        (Mode.LSTM, {"bytes": 100}, Status.SIZE),
    ],
)
def test_a_wrong_call_of_the_backward_pass_has_its_status(
    emulator: ctypes.CDLL, mode: Mode, change: dict[str, Any], status: Status
) -> None:
    case = Two(mode, 18, 3, 2)
    space = case.workspace(True)
    call = {**case.backward_call(case.arrays(), case.backward_arrays(), space), **change}
    assert emulator.emulate_backward_wavefront(*call.values()) == status


@pytest.mark.parametrize(
    ("mode", "side", "dtype"),
    [
        (Mode.GRU, 18, torch.float32),
        (Mode.LSTM, 17, torch.float32),
        (Mode.LSTM, 18, torch.bfloat16),
    ],
)
def test_layers_that_are_not_alike_are_refused(
    emulator: ctypes.CDLL, mode: Mode, side: int, dtype: torch.dtype
) -> None:
    case, other = Two(Mode.LSTM, 18, 3, 2), Case(mode, side, 3, 2, dtype)
    space = guarded((case.fit().workspace_bytes,), torch.uint8)
    call = case.call(case.arrays(), space)
    call["layers"] = (Layer * 2)(case.layers[0].layer, other.layer)
    assert emulator.emulate_forward_wavefront(*call.values()) == Status.SIZE


def test_it_is_no_kernel_of_a_single_layer(emulator: ctypes.CDLL) -> None:
    case = Case(Mode.LSTM, 18, 3, 2)
    call = case.forward_call(case.forward_arrays(), case.workspace(False))
    call["kernel"] = Kernel.WAVEFRONT
    assert emulator.emulate_forward(*call.values()) == Status.SIZE


# ---- what fits -----------------------------------------------------------------------------------

needs_library = pytest.mark.skipif(not native.available(), reason="the kernels are not built")


@needs_library
@pytest.mark.parametrize(
    ("side", "dtype", "blocks", "units", "shared"),
    [
        # Of three matrices rows of 82 or 188 quads, and of each partial sums of two tiles.
        (650, torch.float32, 109, 6, 72 * 41 * 64 + 4 * 3 * 2 * 16 * 24 * 4),
        (650, torch.bfloat16, 82, 8, 96 * 21 * 64 + 4 * 3 * 2 * 16 * 24 * 4),
    ],
)
def test_how_two_lstms_are_laid_out(
    side: int, dtype: torch.dtype, blocks: int, units: int, shared: int
) -> None:
    found = fit(H200, Mode.LSTM, dtype, side, 20, False, Kernel.WAVEFRONT)
    assert found is not None
    assert found.kernel == Kernel.WAVEFRONT
    assert (found.blocks, found.units, found.columns) == (blocks, units, 24)
    assert found.shared_bytes == shared
    back = fit(H200, Mode.LSTM, dtype, side, 20, True, Kernel.WAVEFRONT)
    assert back is not None
    assert (back.blocks, back.units, back.columns) == (blocks, units, 24)
    # Of 6 or 8 rows of a gate and of 12 or 16 one tile each, not six.
    assert shared - back.shared_bytes == 4 * 4 * 16 * 24 * 4


@needs_library
@pytest.mark.parametrize(("mode", "vectors"), [(Mode.LSTM, 8), (Mode.GRU, 7), (Mode.RNN_TANH, 2)])
def test_what_the_backward_pass_exchanges(mode: Mode, vectors: int) -> None:
    """The gradients of both layers' gates; of the second GRU's n those of either part."""
    space = fit(H200, mode, torch.float32, 64, 4, True, Kernel.WAVEFRONT)
    forward = fit(H200, mode, torch.float32, 64, 4, False, Kernel.WAVEFRONT)
    assert space is not None
    assert forward is not None
    assert space.workspace_bytes - forward.workspace_bytes == 2 * (vectors - 3) * 64 * 4 * 4


@needs_library
@pytest.mark.parametrize(
    ("dtype", "backward", "largest"),
    [
        (torch.float32, False, 752),
        (torch.float32, True, 784),  # fewer partial sums
        (torch.bfloat16, False, 1056),
        (torch.bfloat16, True, 1056),
    ],
)
def test_up_to_which_size_two_lstms_fit(dtype: torch.dtype, backward: bool, largest: int) -> None:
    for side in (largest, largest + 1):
        found = fit(H200, Mode.LSTM, dtype, side, 20, backward, Kernel.WAVEFRONT)
        assert (found is not None) == (side == largest)
