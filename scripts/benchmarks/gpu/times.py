"""How long the fused layer takes on a GPU, beside nn.LSTM and the vendor's operator.

A time is the median over rounds, in each of which every peer takes its turn. On a GPU a turn is the
replay of a CUDA graph of K calls, between two events: how long the GPU is at it, without PyTorch's
own time on the CPU. Each of the K calls has an input of its own, so that the inputs of a replay are
more than L2 holds, or K is 6; the weights are the same, as they are from step to step of a training
run. Where PyTorch cannot capture a call, its turn is K plain calls.

cases.py has the cases.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from floor import H200, KINDS, floor, layout
from goals import GOALS, Setting
from goals import KINDS as GOAL_KINDS
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import report  # noqa: F401  (the root of the repository, on the path)
from step import make_step
from timing import Call, Peer, interleaved

from symrnn import SymLSTM
from symrnn.native import Kernel, cuda
from symrnn.rnn.fused import cuda as fused_cuda

L2 = 120e6  # bytes of inputs that are more than it holds
MOST_INPUTS = 6
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
ROUNDS_SECONDS = 0.25  # of all peers of a case

Record = dict[str, Any]


# ---- the clock ---------------------------------------------------------------------------------


def graph_of(calls: list[Call], device: torch.device) -> tuple[Call, str]:
    """What makes all these calls, and how: "graph", or "calls" and why."""

    def plainly() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        plainly()
        return plainly, "calls"
    stream = torch.cuda.Stream(device)  # as PyTorch wants it before a capture
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            plainly()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            plainly()
        graph.replay()
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(device)
        plainly()
        return plainly, f"calls, as a graph fails: {' '.join(str(error).split())[:120]}"
    return graph.replay, "graph"


def clock(turn: Call, device: torch.device) -> Callable[[], float]:
    """Take a turn; what is returned says how many seconds it took, once all is done."""
    if device.type != "cuda":
        began = time.perf_counter()
        turn()
        took = time.perf_counter() - began
        return lambda: took
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    turn()
    end.record()
    return lambda: start.elapsed_time(end) / 1e3


def timed(
    peers: dict[str, list[Call]],
    device: torch.device,
    seconds: float = ROUNDS_SECONDS,
    graphs: bool = True,
) -> dict[str, Record]:
    """By peer µs of a call, median, least and most, and how they were made; in turn."""
    turns = {
        name: graph_of(calls, device)
        if graphs
        else (lambda calls=calls: [call() for call in calls], "calls")  # type: ignore[misc]
        for name, calls in peers.items()
    }

    def a_round() -> dict[str, float]:
        clocks = {name: clock(turn, device) for name, (turn, _) in turns.items()}
        synchronize(device)
        return {name: read() for name, read in clocks.items()}

    a_round()
    total = sum(a_round().values())
    count = min(max(int(seconds / max(total, 1e-6)), LEAST_ROUNDS), MOST_ROUNDS)
    rounds = [a_round() for _ in range(count)]
    found = {}
    for name, (_, how) in turns.items():
        each = [1e6 * one[name] / len(peers[name]) for one in rounds]
        found[name] = {"us": statistics.median(each), "least": min(each), "most": max(each)}
        found[name]["how"] = how
    return found


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; an error of its own is raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


# ---- a layer -----------------------------------------------------------------------------------


def settings() -> list[Setting]:
    """What there are no goals for: the exact ones, then the rest, short sequences first."""
    ways = (False, True)
    exact = [Setting(side, 20, 35, "exact", way) for side in (1500, 650) for way in ways]
    rest = [
        Setting(side, batch, steps, kind, way)
        for steps in (35, 200)
        for batch in (20, 1, 64)
        for side in (512, 650, 1024, 1500, 2048)
        for kind in GOAL_KINDS
        for way in ways
    ]
    return [one for one in (*exact, *rest) if one not in GOALS]


def machine(device: torch.device) -> tuple[int, int] | None:
    """Multiprocessors, and bytes of shared memory that a block may have, of the GPU at hand."""
    gpu = cuda.machine(device.index or 0) if device.type == "cuda" else None
    return None if gpu is None else (gpu.multiprocessors, gpu.shared_bytes)


def why_not_fused(
    kind: str,
    side: int,
    batch: int,
    device: torch.device,
    kernel: Kernel = Kernel.ANY,
    mode: str = "LSTM",
) -> str:
    """Why the vendor's operator would run a layer; "" if the kernels do."""
    if device.type != "cuda":
        return ""
    gpu = machine(device)
    if gpu is None:
        return cuda.why_not(device.index or 0)
    try:
        for backward in (False, True):
            layout(gpu, mode, kind, side, batch, backward, kernel)
    except ValueError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def only_on(kernel: Kernel) -> Iterator[None]:
    """Layers run on this kernel for GPUs, and on no other; but for what two layers run on together,
    which stands beside the others."""
    before = fused_cuda.KERNEL, fused_cuda.WAVEFRONT

    def set_to(kernel: Kernel, wavefront: bool) -> None:
        fused_cuda.KERNEL, fused_cuda.WAVEFRONT = kernel, wavefront
        fused_cuda.fit.cache_clear()

    together = kernel == Kernel.WAVEFRONT
    set_to(before[0] if together else kernel, together)
    try:
        yield
    finally:
        set_to(*before)


def call_of(layer: Any, x: Tensor, d_output: Tensor | None) -> Call:
    """One call, forward or, with the gradient of its output, forward and backward."""
    if d_output is None:

        def forward() -> Any:
            with torch.no_grad():
                return layer(x)

        return forward
    x = x.detach().requires_grad_()
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(x)[0], wanted, d_output)


def layer_case(setting: Setting, device: torch.device, plain_calls: bool = False) -> Record:
    """Times of a call. plain_calls: without graphs too, as a program calls it."""
    side, batch, steps, kind, train = setting
    dtype, how = KINDS[kind]
    with rounding(how):
        vendor = SymLSTM(side, side, backend="vendor", device=device, dtype=dtype).train(train)
        fused = copy.deepcopy(vendor)
        fused.backend = "fused"
        plain = vendor.to_lstm()
        plain.flatten_parameters()
        layers: dict[str, Any] = {"nn.LSTM": plain, "vendor": vendor, "fused": fused}
        why = why_not_fused(kind, side, batch, device)
        if why:
            del layers["fused"]
        count = min(max(-(-int(L2) // (steps * batch * side * dtype.itemsize)), 1), MOST_INPUTS)
        inputs = [torch.randn(steps, batch, side, device=device).to(dtype) for _ in range(count)]
        d_output = torch.randn(steps, batch, side, device=device).to(dtype) if train else None

        with torch.no_grad():
            seen = {name: layer(inputs[0])[0].double() for name, layer in layers.items()}
        exact = seen["nn.LSTM"]
        apart = {name: ((y - exact).norm() / exact.norm()).item() for name, y in seen.items()}
        calls = {
            name: [call_of(layer, x, d_output) for x in inputs] for name, layer in layers.items()
        }
        record: Record = {"words": why, "apart": apart, "times": timed(calls, device)}
        if plain_calls:
            record["plain_calls"] = timed(calls, device, graphs=False)
    for way in ("times", "plain_calls") if not why else ():
        if way in record:
            ratio = record[way]["nn.LSTM"]["us"] / record[way]["fused"]["us"]
            record.setdefault("ratios", {})[way] = ratio
    far = [f"{name}: {error:.1e}" for name, error in apart.items() if not error <= 0.1]
    if far:  # only what is plainly wrong: tests/gpu has the limits
        record |= {"ok": False, "words": f"outputs are not nn.LSTM's: {', '.join(far)}"}
    return record


def two_layers_case(
    side: int, batch: int, steps: int, kind: str, train: bool, device: torch.device
) -> Record:
    """Two layers, as the medium language model has them: one by one, and in one launch."""
    why = why_not_fused(kind, side, batch, device, Kernel.WAVEFRONT)
    if why:
        return {"ok": None, "words": f"skipped: {why}"}
    dtype, how = KINDS[kind]
    with rounding(how), only_on(Kernel.WAVEFRONT):
        fused = SymLSTM(side, side, 2, backend="fused", device=device, dtype=dtype).train(train)
        plain = fused.to_lstm()
        plain.flatten_parameters()
        x = torch.randn(steps, batch, side, device=device).to(dtype)
        d_output = torch.randn(steps, batch, side, device=device).to(dtype) if train else None
        peers = {
            "nn.LSTM": [call_of(plain, x, d_output)] * 3,
            "in one launch": [call_of(fused, x, d_output)] * 3,
        }
        times = timed(peers, device)
    with rounding(how):
        times |= timed({"one by one": [call_of(fused, x, d_output)] * 3}, device)
    return {"times": times}


def vendors_kernels_case(setting: Setting, device: torch.device) -> Record:
    """Which kernels cuDNN runs for a call: whether one of them is the persistent one."""
    dtype = KINDS[setting.kind].dtype
    layer = torch.nn.LSTM(setting.side, setting.side, device=device, dtype=dtype)
    x = torch.randn(setting.steps, setting.batch, setting.side, device=device).to(dtype)
    activity = torch.profiler.ProfilerActivity
    with torch.no_grad():
        layer(x)
        of = [activity.CUDA if device.type == "cuda" else activity.CPU]
        with torch.profiler.profile(activities=of) as seen:
            layer(x)
            synchronize(device)
    names = [event.key for event in seen.key_averages()]
    return {"words": ", ".join(names)[:1000]}


# ---- a step of it ------------------------------------------------------------------------------


def step_case(side: int, batch: int, kind: str, kernel: Kernel, device: torch.device) -> Record:
    """µs of a step, from the difference of T = 35 and T = 70, and of all else in a call.

    The input has 16 numbers and the weights want no gradient: there is as good as nothing beside
    the kernels. A backward step is what forward and backward take beside forward.
    """
    why = why_not_fused(kind, side, batch, device, kernel)
    if why:
        return {"ok": None, "words": f"skipped: {why}"}
    dtype, how = KINDS[kind]
    with rounding(how), only_on(kernel):
        layer = SymLSTM(16, side, backend="fused", device=device, dtype=dtype)
        layer.requires_grad_(False)
        calls: dict[str, list[Call]] = {}
        for steps in (35, 70):
            x = torch.randn(steps, batch, 16, device=device).to(dtype)
            d_output = torch.randn(steps, batch, side, device=device).to(dtype)
            calls[f"forward {steps}"] = [call_of(layer, x, None)] * 5
            calls[f"both {steps}"] = [call_of(layer, x, d_output)] * 5
        us = {name: one["us"] for name, one in timed(calls, device, 0.1).items()}
    forward = (us["forward 70"] - us["forward 35"]) / 35
    steps_us = {"forward": forward, "backward": (us["both 70"] - us["both 35"]) / 35 - forward}
    of: dict[str, Any] = {"gpu": machine(device) or H200, "kernel": kernel}
    floors = {
        way: floor(kind, side, batch, backward=way == "backward", **of).terms() for way in steps_us
    }
    rest = us["forward 35"] - 35 * forward
    return {"kind": kind, "times": us, "step": steps_us, "floor": floors, "rest": rest}


def training_case(size: str, device: torch.device, seconds: float, rounds: int) -> Record:
    """A training step of the language model, by the wall clock."""
    variants = {"nn.LSTM": ("nn.LSTM", "vendor"), "vendor": ("avg", "vendor")}
    variants["fused"] = ("avg", "fused")
    peers = [
        Peer(name, make_step(size, variant, backend, device))
        for name, (variant, backend) in variants.items()
    ]
    times = {one.stmt: 1e6 * one.median for one in interleaved(peers, seconds, rounds)}
    return {"us": times, "ratio": times["nn.LSTM"] / times["fused"], "size": size}


def others_case(device: torch.device) -> Record:
    """Other people's kernels, where they are installed: H = 1024, B = 20, T = 35, forward."""
    side, batch, steps = 1024, 20, 35
    calls: dict[str, list[Call]] = {}
    words = []
    for name in ("haste_pytorch", "flashrnn"):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            words.append(f"{name} is not to be had ({type(error).__name__})")
            continue
        if name == "haste_pytorch":
            haste = module.LSTM(input_size=side, hidden_size=side).to(device).eval()
            x = torch.randn(steps, batch, side, device=device)
            calls["haste, float32"] = [partial(haste, x)]
        else:
            of = {"device": device, "dtype": torch.bfloat16}
            given = torch.randn(batch, steps, 4, 1, side, **of)
            r, b = torch.randn(4, 1, side, side, **of) / 32, torch.randn(4, 1, side, **of)
            call = partial(module.flashrnn, given, r, b, function="lstm", backend="cuda")
            calls["FlashRNN, bf16, without the input's product"] = [call]
    if not calls:
        return {"ok": None, "words": f"skipped: {'; '.join(words)}"}
    with torch.no_grad():
        return {"times": timed(calls, device), "words": "; ".join(words)}
