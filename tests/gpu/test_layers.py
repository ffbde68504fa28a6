"""The fused layers on a GPU against the loop in float64, over a grid of sizes and kinds of numbers.

The whole grid has more than a thousand cases. Chosen are those with which each value, and each pair
of values named in :data:`PAIRS`, occurs, in the order that tells the most first. Small cases are
drawn several times. Before a case's first calls, memory that PyTorch hands out is filled with what
is no number in any type, so that what a kernel forgets to write is seen. Every case runs twice, and
must give the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn import SymGRU, SymLSTM, SymRNN, native
from symrnn.native import cuda
from symrnn.rnn.fused import cuda as fused_cuda

pytestmark = pytest.mark.gpu

Tensors = dict[str, Tensor]

# ---- the cases ---------------------------------------------------------------------------------

SIDES = (650, 1500, 200, 64, 1024, 2048, 7, 1)  # H; of equals, what comes first is taken first
BATCHES = (20, 1, 64, 4, 128)
STEPS = (35, 2, 200, 1)
PAIRS = (("side", "kind"), ("batch", "kind"), ("steps", "bidirectional"), ("side", "batch"))
MANY_STEPS, FEW_UNITS = 200, 4096  # so many steps only of so few H · B: the reference is a loop
FEW_NUMBERS = 256  # H · B


class Kind(NamedTuple):
    """A kind of arithmetic: the dtype of all numbers, and how products of float32 are rounded."""

    dtype: torch.dtype
    rounding: str = "ieee"


KINDS = {
    "tf32": Kind(torch.float32, "tf32"),
    "bf16": Kind(torch.bfloat16),
    "exact": Kind(torch.float32),
    "fp16": Kind(torch.float16),
}

# The largest ‖found − exact‖ / ‖exact‖, of results and of gradients. Why these:
# exact  float32 has 24 bits, 6e-8; sums of 2048 products in any order lose a decimal place or two,
#        gradients are sums over all steps and sequences of what has come back through them
# tf32   11 bits: each factor is off by up to 5e-4, which averages out in a sum; what a step gets
#        wrong is damped by the gates, not added up
# bf16   8 bits: each number that is stored is off by up to 4e-3, the gates before and after they
#        are activated among them, and the gradients once more
# fp16   as tf32 of all numbers, not of products only
LIMITS = {
    "exact": (1e-5, 5e-5),
    "tf32": (3e-3, 3e-3),
    "bf16": (3e-2, 3e-2),
    "fp16": (5e-3, 5e-3),
}


class Case(NamedTuple):
    side: int
    batch: int
    steps: int
    kind: str
    bidirectional: bool

    def __str__(self) -> str:
        ways = "both ways" if self.bidirectional else "forwards"
        return f"H={self.side} B={self.batch} T={self.steps} {self.kind} {ways}"


# Whatever else is chosen: the sizes that there are goals for.
START = (
    Case(650, 20, 35, "tf32", False),
    Case(1500, 20, 35, "bf16", True),
    Case(1500, 20, 35, "tf32", False),
    Case(650, 20, 35, "bf16", True),
    Case(1500, 20, 35, "exact", False),
)


def grid(
    sides: tuple[int, ...] = SIDES,
    batches: tuple[int, ...] = BATCHES,
    steps: tuple[int, ...] = STEPS,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> list[Case]:
    """All cases whose reference does not take too long."""
    cases = itertools.starmap(Case, itertools.product(sides, batches, steps, kinds, (False, True)))
    return [one for one in cases if one.steps < MANY_STEPS or one.side * one.batch <= FEW_UNITS]


def chosen(left: list[Case]) -> list[Case]:
    """Of these cases those of :data:`START`, and others until all pairs occur.

    The next is always one that has the most pairs not yet seen; of equals that whose values were
    chosen least, and of equals again the first.
    """

    pairs = {case: {(a, getattr(case, a), b, getattr(case, b)) for a, b in PAIRS} for case in left}
    missing = set().union(*pairs.values())
    seen: Counter[tuple[str, Any]] = Counter()
    cases: list[Case] = []

    def worth(case: Case) -> tuple[int, int]:
        return len(pairs[case] & missing), -sum(
            seen[one] for one in zip(case._fields, case, strict=True)
        )

    start = [case for case in START if case in left]
    while start or missing:
        case = start.pop(0) if start else max(left, key=worth)
        cases.append(case)
        missing -= pairs[case]
        seen.update(zip(case._fields, case, strict=True))
    return cases


def draws(side: int, batch: int, steps: int) -> int:
    """How many layers and inputs are drawn for a case, of which the errors are taken together.

    Of a few numbers the terms may cancel, and what is left is nothing to be measured by.
    """
    return min(-(-FEW_NUMBERS // (side * batch)), 8 if steps >= MANY_STEPS else 32)


ON_GPU = os.environ.get("SYMRNN_GPU_TESTS", "cuda") != "cpu"
CASES = chosen(grid() if ON_GPU else grid((33, 7, 1), (3, 1), (4, 1), ("exact",)))
FIRST = len(START) if ON_GPU else 2


# ---- one comparison ----------------------------------------------------------------------------


@contextlib.contextmanager
def rounding(how: str) -> Iterator[None]:
    """Products of float32 "ieee" or "tf32", in recurrent layers and elsewhere."""
    # By the older switches: the newer one of the recurrent layers cannot be reached in some
    # versions, and where it was turned, reading the older ones is an error.
    switches = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = how == "tf32"
    try:
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            switch.allow_tf32 = old


def poison(device: torch.device) -> None:
    """Fill what the allocator hands out next with bytes that are NaN in every type.

    What it has in store it gives back, and takes much anew. Gaps among what is in use are filled by
    blocks that are smaller and smaller, to 1 MiB: small tensors come from blocks of that size.
    """
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    sizes = [2**k for k in range(30, 20, -1) for _ in range(2)] + [2**20] * 64
    _ = [torch.full((size,), 255, dtype=torch.uint8, device=device) for size in sizes]


def called(layer: Any, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    output, last = layer(x, tuple(state) if len(state) == 2 else state[0])
    return output, list(last) if isinstance(last, tuple) else [last]


def measured(
    layer: Any, x: Tensor, state: list[Tensor], gradients: list[Tensor], poisoned: bool = False
) -> Tensors:
    """Results and all gradients of one call, by name."""
    x = x.detach().requires_grad_()
    state = [part.detach().requires_grad_() for part in state]
    parameters = dict(layer.named_parameters())
    if poisoned:
        poison(x.device)
    output, last = called(layer, x, state)
    if poisoned:
        poison(x.device)
    found = torch.autograd.grad([output, *last], [x, *state, *parameters.values()], gradients)
    letters = "hc"[: len(state)]
    names = ["output", *(f"{letter}n" for letter in letters), "d_input"]
    names += [*(f"d_{letter}0" for letter in letters), *(f"d_{name}" for name in parameters)]
    return dict(zip(names, [output.detach(), *(p.detach() for p in last), *found], strict=True))


def squares(found: Tensors, exact: Tensors) -> dict[str, tuple[float, float]]:
    """‖found − exact‖² and ‖exact‖² of each."""
    pairs = [(found[name].double(), exact[name].to(found[name].device)) for name in found]
    sums = [torch.stack([(a - b).square().sum(), b.square().sum()]) for a, b in pairs]
    return dict(zip(found, map(tuple, torch.stack(sums).tolist()), strict=True))


def errors_of(several: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """‖found − exact‖ / ‖exact‖ of each, of several draws together; NaN if anything is."""
    errors = {}
    for name in several[0]:
        off, whole = (sum(one[name][k] for one in several) for k in range(2))
        errors[name] = math.sqrt(off / whole) if whole > 0 else math.sqrt(off)
    return errors


def too_far(errors: dict[str, float], kind: str) -> dict[str, float]:
    """What is off by more than :data:`LIMITS`, NaN included."""
    results, gradients = LIMITS[kind]
    return {
        name: error
        for name, error in errors.items()
        if not error <= (gradients if name.startswith("d_") else results)
    }


def fits(layer: Any, dtype: torch.dtype, batch: int, device: torch.device) -> bool:
    """Whether the kernels run it, by the layout that the native library finds."""
    if device.type != "cuda":
        return True
    library, machine = native.library(), cuda.machine(device.index or 0)
    assert library is not None, native.why_not()
    assert machine is not None, cuda.why_not(device.index or 0)
    numbers = {"float32": "FLOAT", "bfloat16": "BFLOAT16", "float16": "HALF"}
    of = native.Dtype[numbers[str(dtype).removeprefix("torch.")]]
    for backward in (False, True):
        status = library.symrnn_fit_gpu(
            machine, native.Kernel.ANY, native.Mode[layer.mode], of, layer.hidden_size, batch,
            backward, ctypes.byref(native.Fit()),
        )  # fmt: skip
        if status == native.Status.FIT:
            return False
        native.check(status)
    return True


_warned: set[str] = set()


def check_warnings(layer: Any, dtype: torch.dtype, fused: bool, caught: list[Any]) -> None:
    """There is one for each reason not to run on the kernels, and none where they run."""
    words = [str(one.message) for one in caught if "PyTorch's operator" in str(one.message)]
    if fused:
        assert words == []
        return
    why = f"hidden_size={layer.hidden_size} in {dtype} does not fit"
    if why not in _warned:
        _warned.add(why)
        assert any(why in one for one in words)


def compare(
    make: Any,
    side: int,
    batch: int,
    steps: int,
    kind: str,
    device: torch.device,
    **options: Any,
) -> dict[str, float]:
    """Layers on the kernels, twice each, and in float64: how far off results and gradients are."""
    dtype, how = KINDS[kind]
    width = 33 if side <= 64 else 256
    shape = (batch, steps) if options.get("batch_first") else (steps, batch)
    directions = 2 if options.get("bidirectional") else 1
    state_shape = (options.get("num_layers", 1) * directions, batch, side)
    parts = 2 if make is SymLSTM else 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    sums: list[dict[str, tuple[float, float]]] = []
    with rounding(how):
        for number in range(draws(side, batch, steps)):
            first = number == 0
            if first:
                poison(device)
            layer = make(width, side, backend="fused", device=device, dtype=dtype, **options)
            exact_layer = copy.deepcopy(layer).double()
            exact_layer.backend = "reference"
            fused = fits(layer, dtype, batch, device)
            x, state = draw(*shape, width), [draw(*state_shape) for _ in range(parts)]
            gradients = [draw(*shape, side * directions)]
            gradients += [draw(*state_shape) for _ in range(parts)]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = measured(layer, x, state, gradients, poisoned=first)
            check_warnings(layer, dtype, fused, caught)
            again = measured(layer, x, state, gradients, poisoned=first)
            exact = measured(
                exact_layer, x.double(), [s.double() for s in state],
                [g.double() for g in gradients],
            )  # fmt: skip
            holes = [name for name, tensor in found.items() if not tensor.isfinite().all()]
            assert not holes, f"not finite: {', '.join(holes)}"
            if fused:  # cuDNN does not promise it
                moved = [name for name, one in found.items() if not torch.equal(one, again[name])]
                assert not moved, f"other bits in a second run: {', '.join(moved)}"
            sums.append(squares(found, exact))
    return errors_of(sums)


@pytest.fixture
def check(device: torch.device, record_property: Any) -> Any:
    """:func:`compare`, whose errors are recorded and then held against the limits."""

    def run(make: Any, side: int, batch: int, steps: int, kind: str, **options: Any) -> None:
        errors = compare(make, side, batch, steps, kind, device, **options)
        record_property("kind", kind)
        record_property("errors", errors)
        assert too_far(errors, kind) == {}

    return run


# ---- the grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[:FIRST], ids=str)
def test_the_sizes_of_the_goals(check: Any, case: Case) -> None:
    check(SymLSTM, *case[:4], bidirectional=case.bidirectional)


@pytest.mark.parametrize("case", CASES[FIRST:], ids=str)
def test_every_pair_of_values(check: Any, case: Case) -> None:
    check(SymLSTM, *case[:4], bidirectional=case.bidirectional)


@pytest.mark.parametrize("kind", ["exact", "tf32", "bf16"] if ON_GPU else ["exact"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SymGRU, {}),
        (SymRNN, {}),
        (SymRNN, {"nonlinearity": "relu"}),
        (SymLSTM, {"num_layers": 2, "bidirectional": True}),
    ],
)
def test_other_layers(check: Any, make: Any, options: dict[str, Any], kind: str) -> None:
    check(make, 200, 20, 35, kind, **options)


@pytest.mark.parametrize(
    ("make", "side", "batch", "steps", "options"),
    [
        (SymGRU, 33, 3, 5, {"bidirectional": True}),
        (SymRNN, 33, 3, 5, {"bidirectional": True}),
        (SymGRU, 65, 5, 10, {"num_layers": 2, "bidirectional": True}),
        (SymLSTM, 200, 4, 10, {"batch_first": True}),
        (SymLSTM, 200, 4, 10, {"bias": False}),
        (SymGRU, 50, 4, 10, {"bias": False}),
        (SymLSTM, 50, 4, 10, {"symm": "tri"}),
        (SymLSTM, 50, 4, 10, {"symm": "avg4"}),
        (SymLSTM, 50, 4, 10, {"symm": "eigen"}),
    ],
)
def test_options(
    check: Any, make: Any, side: int, batch: int, steps: int, options: dict[str, Any]
) -> None:
    check(make, side, batch, steps, "exact", **options)


@pytest.mark.parametrize("kind", ["exact", "tf32", "bf16"] if ON_GPU else ["exact"])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
def test_state_dropout(
    check: Any, make: Any, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all calls the same mask, whatever the dtype they draw it in."""
    side, batch = 200, 20
    mask = (torch.rand(batch, side, device=device) > 0.3) / 0.7
    monkeypatch.setattr(F, "dropout", lambda ones, p: mask.to(ones.dtype))
    check(make, side, batch, 35, kind, state_dropout=0.3)


@pytest.mark.parametrize("kind", ["exact", "tf32", "bf16"] if ON_GPU else ["exact"])
@pytest.mark.parametrize(
    ("make", "side"), [(SymLSTM, 650 if ON_GPU else 33), (SymLSTM, 200), (SymGRU, 200)]
)
def test_two_layers_in_one_launch(
    check: Any, make: Any, side: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_cuda, "WAVEFRONT", True)
    check(make, side, 20, 35, kind, num_layers=2)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("make", "side", "batch", "kind"), [(SymGRU, 1500, 20, "fp16"), (SymRNN, 2048, 64, "tf32")]
)
def test_large_ones(check: Any, make: Any, side: int, batch: int, kind: str) -> None:
    check(make, side, batch, 35, kind)


@pytest.mark.parametrize("kind", KINDS if ON_GPU else ["exact"])
def test_equals_the_vendors_operator(device: torch.device, kind: str) -> None:
    """cuDNN on a GPU, in the same kind of arithmetic."""
    dtype, how = KINDS[kind]
    layer = SymLSTM(256, 650 if ON_GPU else 24, backend="fused", device=device, dtype=dtype)
    vendor = copy.deepcopy(layer)
    vendor.backend = "vendor"
    x = torch.randn(35, 20, 256, device=device).to(dtype)
    state = [torch.randn(1, 20, layer.hidden_size, device=device).to(dtype) for _ in range(2)]
    gradients = [torch.randn(35, 20, layer.hidden_size, device=device).to(dtype), *state]
    with rounding(how):
        found, theirs = (measured(one, x, state, gradients) for one in (layer, vendor))
    exact = {name: tensor.double() for name, tensor in theirs.items()}
    assert too_far(errors_of([squares(found, exact)]), kind) == {}


def test_small_calls(device: torch.device) -> None:
    """Few of them, for programs that watch every access to memory."""
    for kind in ("exact", "tf32", "bf16") if ON_GPU else ("exact",):
        dtype, how = KINDS[kind]
        for side, batch in ((33, 3), (200, 20)):
            with rounding(how):
                layer = SymLSTM(16, side, backend="fused", device=device, dtype=dtype)
                assert fits(layer, dtype, batch, device)
                x = torch.randn(2, batch, 16, dtype=dtype).to(device).requires_grad_()
                layer(x)[0].sum().backward()
                assert x.grad is not None
                assert x.grad.isfinite().all()
