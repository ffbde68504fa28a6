"""The part `correct` of scripts/gpu_check.py: the fused kernels against the loop in float64.

Every number of every case is drawn anew; small cases are drawn several times. Before a case's first
calls memory that PyTorch hands out is filled with what is no number in any type, so that what a
kernel forgets to write is seen. Every case runs twice, and must give the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gpu_cases
import torch
from gpu_cases import KINDS, Case
from gpu_child import Cases, Record, Skipped
from torch import Tensor

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn import fused_gpu
from symrnn.rnn.packing import matrices_of

Tensors = dict[str, Tensor]
Call = Callable[[Any, Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]

SECONDS = 40.0  # that a case may take; most take less than one
SMALL_BLOCKS = 64  # of 1 MiB: smaller tensors come from such, larger ones never do


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
    blocks that are smaller and smaller.
    """
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    sizes = [2**k for k in range(30, 20, -1) for _ in range(2)] + [2**20] * SMALL_BLOCKS
    _ = [torch.full((size,), 255, dtype=torch.uint8, device=device) for size in sizes]


def usable(device: torch.device) -> None:
    """Raise if the GPU answers with an error."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()


# ---- one comparison ----------------------------------------------------------------------------


def by_module(layer: Any, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    output, last = layer(x, layer._whole(state))
    return output, layer._parts(last)


def by_operators(layer: Any, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One layer backwards in time, by ``torch.ops.symrnn`` alone."""
    matrix = layer._matrices["weight_hh_l0"]
    matrices = matrices_of(matrix, layer, layer.symmetry, folded=False)
    gates = layer.GATES
    packed = torch.ops.symrnn.pack(
        [m.detach() for m in matrices], gates, matrix.rows, matrix.columns, "avg", gates, x.dtype
    )
    h0, c0 = state[0][0], state[1][0] if len(state) == 2 else None
    output, hn, cn, gates_after, _ = torch.ops.symrnn.layer(
        x.flatten(0, 1), layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0, matrices, packed,
        h0, c0, None, layer.mode, "avg", gates, True,
    )  # fmt: skip
    if not gates_after.isfinite().all():
        raise AssertionError("not all gates are finite")
    last = [hn] if c0 is None else [hn, cn]
    return output.unflatten(0, x.shape[:2]), [part.unsqueeze(0) for part in last]


def turned(layer: Any, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """As :func:`by_operators`, by a layer that goes forwards."""
    output, last = by_module(layer, x.flip(0), state)
    return output.flip(0), last


def measured(
    call: Call,
    layer: Any,
    x: Tensor,
    state: list[Tensor],
    gradients: list[Tensor],
    poisoned: bool = False,
) -> Tensors:
    """Results and all gradients of one call, by name."""
    x = x.detach().requires_grad_()
    state = [part.detach().requires_grad_() for part in state]
    parameters = dict(layer.named_parameters())
    if poisoned:
        poison(x.device)
    output, last = call(layer, x, state)
    if poisoned:
        poison(x.device)
    found = torch.autograd.grad([output, *last], [x, *state, *parameters.values()], gradients)
    letters = layer.STATES
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


def same_bits(a: Tensors, b: Tensors) -> list[str]:
    """The names of those that differ."""
    return [name for name in a if not torch.equal(a[name], b[name])]


def verdict(errors: dict[str, float], holes: Iterable[str], kind: str) -> Record:
    """The record of a comparison. holes: the names of what is not finite."""
    wrong = [
        f"{name}: {error:.2e}"
        for name, error in errors.items()
        if not error <= gpu_cases.limit(kind, name)
    ]
    words = []
    if holes:
        words.append(f"not finite: {', '.join(holes)}")
    if wrong:
        words.append(f"too far from float64: {', '.join(wrong)}")
    return {"ok": not words, "words": "; ".join(words), "kind": kind, "errors": errors}


def holes_in(found: Tensors) -> list[str]:
    return [name for name, tensor in found.items() if not tensor.isfinite().all()]


def in_float64(layer: Any) -> Any:
    exact = copy.deepcopy(layer).double()
    exact.backend = "reference"
    return exact


def why_not_fused(layer: Any, dtype: torch.dtype, batch: int, device: torch.device) -> str:
    """Why the vendor's operator runs such a layer; "" if the kernels do."""
    return fused_gpu.why_not(layer, dtype, batch, device) if device.type == "cuda" else ""


_warned: set[str] = set()


def noted(why: str, caught: list[warnings.WarningMessage]) -> str:
    """What is wrong with the warnings of a call that runs elsewhere for this reason; "" if nothing.

    There is one for each reason, and none where the kernels run.
    """
    ours = [str(one.message) for one in caught if "runs on PyTorch's operator" in str(one.message)]
    if not why:
        return f"a warning, though the kernels run it: {ours[0]}" if ours else ""
    if why in _warned:
        return ""
    _warned.add(why)
    return "" if any(why in words for words in ours) else f"no warning said: {why}"


def compare(
    make: Any,
    side: int,
    batch: int,
    steps: int,
    kind: str,
    device: torch.device,
    *,
    reverse: bool = False,
    **options: Any,
) -> Record:
    """Layers on the kernels, twice each, and in float64."""
    dtype, how = KINDS[kind]
    width = 33 if side <= 64 else 256
    shape = (batch, steps) if options.get("batch_first") else (steps, batch)
    outs = side * (2 if options.get("bidirectional") else 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    sums: list[dict[str, tuple[float, float]]] = []
    holes: dict[str, None] = {}
    moved: dict[str, None] = {}
    complaints: dict[str, None] = {}
    why = ""
    with rounding(how):
        for number in range(gpu_cases.draws(side, batch, steps)):
            first = number == 0
            if first:
                poison(device)
            layer = make(width, side, backend="fused", device=device, dtype=dtype, **options)
            why = why_not_fused(layer, dtype, batch, device)
            backwards = reverse and not why
            call, expected = (by_operators, turned) if backwards else (by_module, by_module)
            x = draw(*shape, width)
            state = [draw(*size) for size in layer.state_shapes(batch)]
            gradients = [draw(*shape, outs), *(draw(*part.shape) for part in state)]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = measured(call, layer, x, state, gradients, poisoned=first)
            complaints[noted(why, caught)] = None
            again = measured(call, layer, x, state, gradients, poisoned=first)
            exact = measured(
                expected, in_float64(layer), x.double(), [s.double() for s in state],
                [g.double() for g in gradients],
            )  # fmt: skip
            sums.append(squares(found, exact))
            holes |= dict.fromkeys(holes_in(found))
            moved |= dict.fromkeys(same_bits(found, again))
            usable(device)
    record = verdict(errors_of(sums), holes, kind)
    record |= {"path": "vendor" if why else "fused", "why": why, "moved": list(moved)}
    if moved and not why:  # cuDNN does not promise it
        complaints[f"other bits in a second run: {', '.join(moved)}"] = None
    record["words"] = "; ".join(filter(None, [record["words"], *complaints]))
    record["ok"] = not record["words"]
    return record


def grid_case(case: Case, device: torch.device) -> Record:
    found = compare(
        SymLSTM, case.side, case.batch, case.steps, case.kind, device, reverse=case.reverse
    )
    return {**case._asdict(), **found}


# ---- ways to call ------------------------------------------------------------------------------

SIDE, BATCH, STEPS = 200, 20, 35  # of these


def some_layer(device: torch.device, **options: Any) -> tuple[Any, Tensor]:
    """A layer on the kernels and an input, float32."""
    layer = SymLSTM(64, SIDE, backend="fused", device=device, **options)
    return layer, torch.randn(STEPS, BATCH, 64, device=device)


def outputs(layer: Any, x: Tensor) -> Tensors:
    with torch.no_grad():
        output, (h, c) = layer(x)
    return {"output": output, "hn": h, "cn": c}


def equal(a: Tensors, b: Tensors, what: str) -> Record:
    """The record of a comparison bit for bit."""
    moved = same_bits(a, b)
    errors = errors_of([squares(b, {name: tensor.double() for name, tensor in a.items()})])
    words = ", ".join(f"{name} by {errors[name]:.1e}" for name in moved)
    return {"ok": not moved, "words": f"{what} differs: {words}" if moved else ""}


def unbatched(device: torch.device) -> Record:
    layer, x = some_layer(device)
    alone, (h, c) = layer(x[:, 0].contiguous())
    output, (hs, cs) = layer(x[:, :1].contiguous())
    return equal(
        {"output": alone, "hn": h, "cn": c},
        {"output": output[:, 0], "hn": hs[:, 0], "cn": cs[:, 0]},
        "a sequence without a batch",
    )


def without_state(device: torch.device) -> Record:
    layer, x = some_layer(device)
    zeros = torch.zeros(1, BATCH, SIDE, device=device)
    with torch.no_grad():
        output, (h, c) = layer(x, (zeros, zeros.clone()))
    return equal(outputs(layer, x), {"output": output, "hn": h, "cn": c}, "a state of zeros")


def on_a_stream(device: torch.device) -> Record:
    """On another stream, while the current one multiplies."""
    layer, x = some_layer(device)
    expected = outputs(layer, x)
    busy = torch.randn(4096, 4096, device=device)
    stream = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)
    for _ in range(10):
        busy = busy @ busy
        busy = busy / busy.norm()
    with torch.cuda.stream(stream):
        found = [outputs(layer, x) for _ in range(10)]
    torch.cuda.synchronize(device)
    for one in found:
        record = equal(expected, one, "another stream")
        if not record["ok"]:
            return record
    return record


def on_two_streams(device: torch.device) -> Record:
    """The kernel, which wants the whole chip, twice at once: one has to wait for the other."""
    layer, _ = some_layer(device)
    inputs = [torch.randn(STEPS, BATCH, 64, device=device) for _ in range(2)]
    expected = [outputs(layer, x) for x in inputs]
    streams = [torch.cuda.Stream(device) for _ in inputs]
    torch.cuda.synchronize(device)
    found: list[list[Tensors]] = [[], []]
    for _ in range(20):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(outputs(layer, inputs[k]))
    torch.cuda.synchronize(device)
    for k, several in enumerate(found):
        for one in several:
            record = equal(expected[k], one, f"stream {k}")
            if not record["ok"]:
                return record
    return record


def warmed(call: Callable[[], Any], device: torch.device) -> None:
    """Run it on a stream of its own, as PyTorch wants before a capture."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)


def captured(device: torch.device, train: bool) -> Record:
    """A CUDA graph, replayed with other inputs, against plain calls."""
    layer, x = some_layer(device)
    layer.train(train)
    h = torch.randn(1, BATCH, SIDE, device=device)
    c = torch.randn(1, BATCH, SIDE, device=device)
    d_output = torch.randn(STEPS, BATCH, SIDE, device=device)
    x.requires_grad_(train)
    parameters = dict(layer.named_parameters())

    def call() -> Tensors:
        with torch.set_grad_enabled(train):
            output, (hn, cn) = layer(x, (h, c))
            found = {"output": output, "hn": hn, "cn": cn}
            if train:
                wanted = {"x": x, **parameters}
                gradients = torch.autograd.grad(output, list(wanted.values()), d_output)
                found |= {f"d_{name}": d for name, d in zip(wanted, gradients, strict=True)}
        return {name: tensor.detach() for name, tensor in found.items()}

    warmed(call, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = call()
    for _ in range(3):
        with torch.no_grad():
            for tensor in (x, h, c, d_output):
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        torch.cuda.synchronize(device)
        replayed = {name: tensor.clone() for name, tensor in static.items()}
        record = equal(call(), replayed, "a replayed graph")
        if not record["ok"]:
            return record
    return record


def under_autocast(device: torch.device, kind: str) -> Record:
    dtype = KINDS[kind].dtype
    layer, x = some_layer(device)
    exact, _ = in_float64(layer)(x.double())
    plain = layer.to_lstm()
    with torch.autocast(device.type, dtype):
        output, (h, c) = layer(x)
        theirs, (their_h, their_c) = plain(x)
    dtypes = [t.dtype for t in (output, h, c)], [t.dtype for t in (theirs, their_h, their_c)]
    output.float().square().sum().backward()
    holes = [name for name, p in layer.named_parameters() if not p.grad.isfinite().all()]
    found = {"output": output.detach()}
    errors = errors_of([squares(found, {"output": exact.detach()})])
    record = verdict(errors, holes_in(found), kind)
    if dtypes[0] != dtypes[1]:
        record["words"] += f"; of {dtypes[0]}, nn.LSTM's are {dtypes[1]}"
    if holes:
        record["words"] += f"; gradients not finite: {', '.join(holes)}"
    return {**record, "ok": not record["words"]}


def compiled(device: torch.device) -> Record:
    layer, x = some_layer(device)
    made = torch.compile(layer)
    found, expected = {}, {}
    for results, run in ((expected, layer), (found, made)):
        output, _ = run(x)
        results["output"] = output.detach()
        gradients = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
        results |= {
            f"d_{n}": d for (n, _), d in zip(layer.named_parameters(), gradients, strict=True)
        }
    usable(device)
    errors = errors_of([squares(found, {name: t.double() for name, t in expected.items()})])
    far = [f"{name}: {error:.2e}" for name, error in errors.items() if not error <= 1e-5]
    same = "to the bit" if not same_bits(found, expected) else "but for rounding"
    words = f"compiled differs: {', '.join(far)}" if far else f"equal {same}"
    return {"ok": not far, "words": words}


def on_another_gpu(device: torch.device) -> Record:
    if torch.cuda.device_count() < 2:
        raise Skipped("there is one GPU only")
    torch.manual_seed(0)
    layer, x = some_layer(device)
    other = torch.device("cuda", 1)
    expected = outputs(layer, x)
    found = outputs(copy.deepcopy(layer).to(other), x.to(other))  # while GPU 0 is the current one
    return equal(expected, {n: t.to(device) for n, t in found.items()}, "another GPU")


TOGETHER = 1.5  # seconds that each of two processes runs the kernel


def together(device: torch.device) -> str:
    """Run the kernel for a while; a number made of its results, which all agree."""
    torch.manual_seed(1)
    layer = SymLSTM(64, 650, backend="fused", device=device)
    x = torch.randn(100, BATCH, 64, device=device)
    first = outputs(layer, x)
    end = time.monotonic() + TOGETHER
    while time.monotonic() < end:
        moved = same_bits(first, outputs(layer, x))
        if moved:
            return f"changes from call to call: {', '.join(moved)}"
    return hashlib.sha256(first["output"].cpu().numpy().tobytes()).hexdigest()[:16]


def in_two_processes(device: torch.device) -> Record:
    command = [sys.executable, sys.argv[0], "--child", "together", "--device", str(device)]
    # In this process's group: what kills it kills them.
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0].strip() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    ends = [process.returncode for process in running]
    good = ends == [0, 0] and said[0] == said[1] and len(said[0]) == 16
    return {"ok": good, "words": "" if good else f"ended with {ends}: {said}"}


def ways(device: torch.device) -> dict[str, Callable[[], Record]]:
    """Cases beside the grid, by name."""

    def layer(make: Any, *sizes: Any, **options: Any) -> Callable[[], Record]:
        return lambda: compare(make, *sizes, device, **options)

    gpu = device.type == "cuda"
    kinds = ("exact", "tf32", "bf16") if gpu else ("exact",)
    found: dict[str, Callable[[], Record]] = {}
    for kind in kinds:
        for make, name in ((SymGRU, "GRU"), (SymRNN, "RNN")):
            found[f"{name} H=200 B=20 T=35 {kind}"] = layer(make, 200, 20, 35, kind)
    for make, name in ((SymGRU, "GRU"), (SymRNN, "RNN")):
        found[f"{name} H=33 B=3 T=5 exact backwards"] = layer(make, 33, 3, 5, "exact", reverse=True)
    if gpu:
        found["GRU H=1500 B=20 T=35 fp16"] = layer(SymGRU, 1500, 20, 35, "fp16")
        found["RNN H=2048 B=64 T=35 tf32"] = layer(SymRNN, 2048, 64, 35, "tf32")
    deep = {"num_layers": 2, "bidirectional": True}
    for kind in kinds:
        found[f"2 layers in both directions, {kind}"] = layer(SymLSTM, 200, 20, 10, kind, **deep)
    found["GRU, 2 layers in both directions"] = layer(SymGRU, 65, 5, 10, "exact", **deep)
    found["batch_first"] = layer(SymLSTM, 200, 4, 10, "exact", batch_first=True)
    found["without biases"] = layer(SymLSTM, 200, 4, 10, "exact", bias=False)
    found["unbatched"] = lambda: unbatched(device)
    found["without a state"] = lambda: without_state(device)
    if gpu:
        found["a second stream"] = lambda: on_a_stream(device)
        found["two streams at once"] = lambda: on_two_streams(device)
        found["CUDA graph, forward"] = lambda: captured(device, False)
        found["CUDA graph, forward and backward"] = lambda: captured(device, True)
        found["autocast bf16"] = lambda: under_autocast(device, "bf16")
        found["autocast fp16"] = lambda: under_autocast(device, "fp16")
    return found


LAST_SECONDS = 90.0


def last_ways(device: torch.device) -> dict[str, Callable[[], Record]]:
    """Those that take long."""
    found = {"two processes at once": lambda: in_two_processes(device)}
    if device.type == "cuda":
        found["another GPU than the current one"] = lambda: on_another_gpu(device)
    found["torch.compile"] = lambda: compiled(device)
    return found


FIRST = 12  # cases of the grid before the others


def run(cases: Cases, device: torch.device) -> None:
    chosen = gpu_cases.chosen()
    if device.type != "cuda":  # the same harness on the kernels for CPUs, which know one type
        chosen = gpu_cases.chosen((33, 7, 1), (3, 1), (4, 1), ("exact",))
    torch.manual_seed(time.time_ns() % 2**32)
    grid = [(case.name, lambda case=case: grid_case(case, device)) for case in chosen]
    for name, case in [*grid[:FIRST], *ways(device).items(), *grid[FIRST:]]:
        cases.run(name, SECONDS, case)
    for name, case in last_ways(device).items():
        cases.run(name, LAST_SECONDS, case)


def run_tiny(device: torch.device) -> None:
    """Few small calls, for programs that watch every access to memory."""
    kinds = ("exact", "tf32", "bf16") if device.type == "cuda" else ("exact",)
    for kind in kinds:
        dtype, how = KINDS[kind]
        for side, batch in ((33, 3), (200, 20)):
            with rounding(how):
                layer = SymLSTM(16, side, backend="fused", device=device, dtype=dtype)
                x = torch.randn(2, batch, 16, dtype=dtype).to(device).requires_grad_()
                why = why_not_fused(layer, dtype, batch, device)
                if why:
                    raise SystemExit(why)
                output, _ = layer(x)
                output.sum().backward()
                usable(device)
    print("all calls have ended")
