"""The parts `bench`, `profile` and `train` of scripts/gpu_check.py: how long things take.

A time is the median over rounds, in each of which every peer takes its turn. On a GPU a turn is the
replay of a CUDA graph of K calls, between two events: how long the GPU is at it, without PyTorch's
own time on the CPU. Each of the K calls has an input of its own, so that the inputs of a replay are
more than the second cache holds, or K is 6; the weights are the same, as they are from step to step
of a training run. Where PyTorch cannot capture a call, its turn is K plain calls.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_cases import KINDS
from gpu_child import Cases, Record, Skipped, read_records, short
from gpu_correct import rounding, usable, warmed, why_not_fused
from gpu_floor import H200, floor
from torch import Tensor, nn

from symrnn import SymLSTM
from symrnn.native import cuda
from symrnn.rnn.operators_gpu import rounds_to_tf32
from symrnn.rnn.packing import matrices_of

CACHE = 120e6  # bytes of inputs that are more than the second cache holds
MOST_INPUTS = 6
LEAST_ROUNDS, MOST_ROUNDS = 5, 40
ROUNDS_SECONDS = 0.25  # of all peers of a case
SECONDS = 40.0  # that a case may take

Call = Callable[[], Any]


# ---- the clock ---------------------------------------------------------------------------------


def graph_of(calls: list[Call], device: torch.device) -> tuple[Call, str]:
    """What makes all these calls, and how: "graph", or "calls" and why."""

    def plainly() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        plainly()
        return plainly, "calls"
    warmed(plainly, device)
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
        return plainly, f"calls, as a graph fails: {short(error)[:120]}"
    return graph.replay, "graph"


def once(turn: Call, device: torch.device) -> Callable[[], float]:
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


class Time(NamedTuple):
    """Microseconds of a call: median, least and most; and how it was made."""

    median: float
    least: float
    most: float
    how: str


def timed(
    peers: dict[str, list[Call]], device: torch.device, seconds: float = ROUNDS_SECONDS
) -> dict[str, Time]:
    """Each peer's calls, of different inputs, in turn."""
    turns = {name: graph_of(calls, device) for name, calls in peers.items()}

    def a_round() -> dict[str, float]:
        clocks = {name: once(turn, device) for name, (turn, _) in turns.items()}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return {name: clock() for name, clock in clocks.items()}

    a_round()
    total = sum(a_round().values())
    count = min(max(int(seconds / max(total, 1e-6)), LEAST_ROUNDS), MOST_ROUNDS)
    rounds = [a_round() for _ in range(count)]
    found = {}
    for name, (_, how) in turns.items():
        each = [1e6 * one[name] / len(peers[name]) for one in rounds]
        found[name] = Time(statistics.median(each), min(each), max(each), how)
    return found


# ---- bench -------------------------------------------------------------------------------------


class Setting(NamedTuple):
    side: int
    batch: int
    steps: int
    kind: str
    train: bool

    @property
    def name(self) -> str:
        what = "forward and backward" if self.train else "forward"
        return f"H={self.side} B={self.batch} T={self.steps} {self.kind}, {what}"


# The least ratios nn.LSTM / fused of (H, B, T), of forward and of forward and backward.
GOALS = {(1500, 20, 35): (2.0, 1.5), (650, 20, 35): (1.5, 1.2)}
GOAL_KINDS = ("tf32", "bf16")
FLOOR_GOAL = 1.5  # the most times the floor that a step of those may take
TRAIN_GOAL = 1.3  # nn.LSTM / fused, of a training epoch

SIDES, BATCHES, STEPS = (512, 650, 1024, 1500, 2048), (1, 20, 64), (35, 200)


def settings() -> list[Setting]:
    """What there are goals for first, then the exact ones, then the rest, short sequences first."""
    first = [
        Setting(*sizes, kind, train)
        for sizes in GOALS
        for kind in GOAL_KINDS
        for train in (False, True)
    ]
    exact = [Setting(*sizes, "exact", train) for sizes in GOALS for train in (False, True)]
    rest = [
        Setting(side, batch, steps, kind, train)
        for steps in STEPS
        for batch in (20, 1, 64)
        for side in SIDES
        for kind in GOAL_KINDS
        for train in (False, True)
    ]
    return list(dict.fromkeys([*first, *exact, *rest]))


def machine(device: torch.device) -> tuple[int, int] | None:
    """Of the GPU at hand, for the floor."""
    gpu = cuda.machine(device.index or 0) if device.type == "cuda" else None
    return None if gpu is None else (gpu.multiprocessors, gpu.shared_bytes)


def floors(setting: Setting, device: torch.device) -> float | None:
    """µs of a step, of a forward and, in training, of a backward step too; None if none fits."""
    gpu = machine(device) or H200
    ways = (False, True) if setting.train else (False,)
    try:
        each = [
            floor(setting.kind, setting.side, setting.batch, backward=way, gpu=gpu) for way in ways
        ]
    except ValueError:
        return None
    return sum(one.total for one in each)


def how_of(layer: Any) -> tuple[Any, ...]:
    matrix = layer._matrices["weight_hh_l0"]
    return layer.GATES, matrix.rows, matrix.columns, "avg", layer.GATES


def expanded(layer: Any) -> list[Tensor]:
    matrix = layer._matrices["weight_hh_l0"]
    return matrices_of(matrix, layer, layer.symmetry, folded=False)


def operator_of(layer: Any) -> Callable[[Tensor], Tensor]:
    """The bare operator: weights expanded and packed beforehand."""
    matrices = [m.detach().clone().requires_grad_() for m in expanded(layer)]
    packed = torch.ops.symrnn.pack([m.detach() for m in matrices], *how_of(layer), layer._dtype())
    weights = [
        w.detach().clone().requires_grad_()
        for w in (layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0)
    ]

    def run(x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.size(1), layer.hidden_size)
        output, *_ = torch.ops.symrnn.layer(
            x.flatten(0, 1), *weights, matrices, packed, zeros, zeros.clone(), None,
            layer.mode, "avg", layer.GATES, False,
        )  # fmt: skip
        return output.unflatten(0, x.shape[:2])

    run.weights = [*weights, *matrices]  # type: ignore[attr-defined]
    return run


def call_of(
    run: Callable[[Tensor], Tensor], x: Tensor, d_output: Tensor | None, wanted: Any
) -> Call:
    """One call forward or, with the gradient of its output, forward and backward."""
    if d_output is None:

        def forward() -> Tensor:
            with torch.no_grad():
                return run(x)

        return forward
    x = x.detach().requires_grad_()

    def both() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(run(x), [x, *wanted], d_output)

    return both


def bench_case(setting: Setting, device: torch.device) -> Record:
    side, batch, steps, kind, train = setting
    dtype, how = KINDS[kind]
    with rounding(how):
        layer = SymLSTM(side, side, backend="vendor", device=device, dtype=dtype).train(train)
        fused = copy.deepcopy(layer)
        fused.backend = "fused"
        plain = layer.to_lstm()
        plain.flatten_parameters()
        why = why_not_fused(fused, dtype, batch, device)
        runs: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
            "nn.LSTM": (lambda x: plain(x)[0], list(plain.parameters())),
            "vendor": (lambda x: layer(x)[0], list(layer.parameters())),
        }
        if not why:
            operator = operator_of(fused)
            runs["fused"] = (lambda x: fused(x)[0], list(fused.parameters()))
            runs["operator"] = (operator, operator.weights)  # type: ignore[attr-defined]
        bytes_of_one = steps * batch * side * dtype.itemsize
        count = min(max(-(-int(CACHE) // bytes_of_one), 1), MOST_INPUTS)
        inputs = [torch.randn(steps, batch, side, device=device).to(dtype) for _ in range(count)]
        d_output = torch.randn(steps, batch, side, device=device).to(dtype) if train else None

        with torch.no_grad():
            seen = {name: run(inputs[0]).double() for name, (run, _) in runs.items()}
        apart = {
            name: ((y - seen["nn.LSTM"]).norm() / seen["nn.LSTM"].norm()).item()
            for name, y in seen.items()
        }
        calls = {
            name: [call_of(run, x, d_output, wanted) for x in inputs]
            for name, (run, wanted) in runs.items()
        }
        times = timed(calls, device)
        record: Record = {**setting._asdict(), "inputs": count, "why": why}
        goal = setting[:3] in GOALS and kind in GOAL_KINDS
        if not train and (batch, steps) == (BATCHES[1], STEPS[0]) and not why:
            matrices = [m.detach() for m in expanded(fused)]

            def expand() -> Any:
                with torch.no_grad():
                    return expanded(fused)

            pack = lambda: torch.ops.symrnn.pack(matrices, *how_of(fused), dtype)  # noqa: E731
            parts = timed({"expand": [expand] * 4, "pack": [pack] * 4}, device, 0.05)
            record |= {name: part.median for name, part in parts.items()}
        if goal and device.type == "cuda":  # as a program calls it
            record["plain_calls"] = {name: plainly(calls[name], device) for name in calls}
    usable(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the memory of the graphs
    least = floors(setting, device)
    # Nearest to what the recurrence takes is the operator's time; it has the input's product too.
    record |= {
        "times": {name: one._asdict() for name, one in times.items()},
        "apart": apart,
        "floor": least,
        "step": times["operator"].median / steps if not why else None,
        "ratio": times["nn.LSTM"].median / times["fused"].median if not why else None,
    }
    far = [f"{name}: {error:.1e}" for name, error in apart.items() if not error <= 0.1]
    if far:  # only what is plainly wrong: the part `correct` has the limits
        record |= {"ok": False, "words": f"outputs are not nn.LSTM's: {', '.join(far)}"}
    return record


def plainly(calls: list[Call], device: torch.device) -> float:
    """Median µs of plain calls one after another, events around each ten of them."""
    each = []
    for _ in range(5):
        clock = once(lambda: [calls[k % len(calls)]() for k in range(10)], device)
        torch.cuda.synchronize(device)
        each.append(clock() / 10 * 1e6)
    return statistics.median(each)


def peers_case(device: torch.device) -> Record:
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
        raise Skipped("; ".join(words))
    with torch.no_grad():
        times = timed(calls, device)
    return {
        "side": side, "batch": batch, "steps": steps, "words": "; ".join(words),
        "peers": {name: one._asdict() for name, one in times.items()},
    }  # fmt: skip


def run_bench(cases: Cases, device: torch.device) -> None:
    several = settings()
    if device.type != "cuda":
        several = [Setting(24, 3, 4, "exact", train) for train in (False, True)]
    for setting in several:
        cases.run(setting.name, SECONDS, lambda setting=setting: bench_case(setting, device))
    cases.run("other kernels", SECONDS, lambda: peers_case(device))


# ---- profile -----------------------------------------------------------------------------------


def kernel_calls(
    side: int, batch: int, steps: int, kind: str, device: torch.device
) -> tuple[Call, Call]:
    """The kernel forth and back with as good as nothing beside it: of 16 inputs."""
    dtype, _ = KINDS[kind]
    layer = SymLSTM(16, side, backend="fused", device=device, dtype=dtype)
    matrices = [m.detach() for m in expanded(layer)]
    packed = torch.ops.symrnn.pack(matrices, *how_of(layer), dtype)
    weights = [w.detach() for w in (layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0)]
    x = torch.randn(steps * batch, 16, device=device).to(dtype)
    h, c = (torch.randn(batch, side, device=device).to(dtype) for _ in range(2))
    d_output = torch.randn(steps * batch, side, device=device).to(dtype)
    how = (layer.mode, "avg", layer.GATES, False)

    def forth() -> Any:
        return torch.ops.symrnn.layer(x, *weights, matrices, packed, h, c, None, *how)

    output, _, _, gates, cells = forth()

    def back() -> Any:
        return torch.ops.symrnn.layer_backward(
            packed, output, gates, cells, h, c, None, d_output, None, None, *how
        )

    return forth, back


def profile_case(side: int, batch: int, kind: str, device: torch.device) -> Record:
    """µs of a step, from the difference of T = 35 and T = 70, and of all else in a call."""
    with rounding(KINDS[kind].rounding), torch.no_grad():
        calls: dict[str, list[Call]] = {}
        for steps in (35, 70):
            forth, back = kernel_calls(side, batch, steps, kind, device)
            calls |= {f"forth {steps}": [forth] * 5, f"back {steps}": [back] * 5}
        times = {name: one.median for name, one in timed(calls, device, 0.1).items()}
    usable(device)
    record: Record = {"side": side, "batch": batch, "kind": kind, "times": times}
    for way, backward in (("forth", False), ("back", True)):
        step = (times[f"{way} 70"] - times[f"{way} 35"]) / 35
        record[way] = {
            "step": step,
            "rest": times[f"{way} 35"] - 35 * step,
            "floor": floor(
                kind, side, batch, backward=backward, gpu=machine(device) or H200
            ).__dict__,
        }
    return record


def run_profile(cases: Cases, device: torch.device) -> None:
    gpu = device.type == "cuda"
    of = [(side, batch) for batch in (20, 1, 64) for side in (1500, 650, 64)] if gpu else [(24, 3)]
    for side, batch in of:
        for kind in ("tf32", "bf16", "exact") if gpu else ("exact",):
            cases.run(
                f"H={side} B={batch} {kind}",
                SECONDS,
                lambda side=side, batch=batch, kind=kind: profile_case(side, batch, kind, device),
            )


def run_one(device: torch.device) -> None:
    """A few launches, for a profiler."""
    kind = "tf32" if device.type == "cuda" else "exact"
    with rounding(KINDS[kind].rounding), torch.no_grad():
        forth, _ = kernel_calls(650 if device.type == "cuda" else 24, 20, 35, kind, device)
        for _ in range(3):
            forth()
        usable(device)


# ---- train -------------------------------------------------------------------------------------

VARIANTS = ("nn.LSTM", "vendor", "fused")
PROBED = 20  # steps that are timed to see how many there is time for
MEASURING = 4.0  # seconds kept for the perplexity


def open_texts(folder: Path) -> Any:
    """The corpus in a folder; Skipped if it cannot be read."""
    from data import DataError, open_corpus

    try:
        return open_corpus(str(folder))
    except (DataError, OSError, ImportError) as error:
        raise Skipped(f"{folder.name} cannot be read: {short(error)}") from None


def train_case(
    variant: str, corpus: Any, size: str, seconds: float, most: int | None, device: torch.device
) -> Record:
    """An epoch of a language model, or as much of it as there is time for.

    The loop of lm.train without logs and checkpoints, in its precision: PyTorch's.
    """
    from data import TrainBatches
    from lm.model import LanguageModel
    from lm.perplexity import cross_entropy, measure
    from lm.recipes import SIZES as RECIPES
    from symrnn import parameter_groups

    recipe = RECIPES[size]
    batches = TrainBatches(corpus.train.ids, recipe.batch_size, recipe.steps)
    torch.manual_seed(1)
    model = LanguageModel(
        len(corpus.codec), recipe.embedding_size, recipe.hidden_size, recipe.num_layers,
        recipe.dropout, symm="none" if variant == "nn.LSTM" else "avg",
        backend="vendor" if variant == "nn.LSTM" else variant,
    )  # fmt: skip
    model.initialize(recipe.init_range)
    if variant == "nn.LSTM":
        model.rnn = model.rnn.to_plain()
    model.to(device)
    optimizer = torch.optim.SGD(parameter_groups(model, recipe.lr), lr=recipe.lr)
    state: Any = None

    def step(index: int) -> None:
        nonlocal state
        inputs, targets = (part.to(device) for part in batches[index])
        optimizer.zero_grad(set_to_none=True)
        logits, new = model(inputs, state)
        state = tuple(part.detach() for part in new)
        loss = cross_entropy(logits, targets).mean()
        if not loss.item() < 1e4:
            raise AssertionError(f"the loss is {loss.item()} after {index} steps")
        (loss * recipe.steps).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip).item()
        optimizer.step()

    model.train()
    count = len(batches) if most is None else min(most, len(batches))
    probed = min(PROBED, count)
    for index in range(probed):  # the first is slow: libraries are loaded
        if index == probed // 2:
            usable(device)
            began = time.perf_counter()
        step(index)
    usable(device)
    each = (time.perf_counter() - began) / max(probed - probed // 2, 1)
    count = max(min(count, int((seconds - MEASURING) / each)), probed)
    began = time.perf_counter()
    for index in range(probed, count):
        step(index)
    usable(device)
    took = time.perf_counter() - began
    done = max(count - probed, 1)
    words = recipe.batch_size * recipe.steps
    score = measure(model, corpus.valid, corpus.codec.eos_id, precision=contextlib.nullcontext)
    return {
        "variant": variant,
        "size": size,
        "steps": count,
        "of": len(batches),
        "seconds": took / done * count,
        "step": took / done if count > probed else each,
        "tokens_per_second": words / (took / done if count > probed else each),
        "perplexity": score.perplexity,
        "rounding": "tf32" if rounds_to_tf32() else "ieee",
    }


def run_train(cases: Cases, device: torch.device, folder: Path | None) -> None:
    size = "medium" if device.type == "cuda" else "small"
    try:
        if folder is None:
            raise Skipped("no --corpus was given")
        corpus = open_texts(folder)
    except Skipped as why:
        reason = str(why)
        for variant in VARIANTS:
            cases.write(type="case", case=variant, ok=None, words=f"skipped: {reason}")
        return
    done = [one["steps"] for one in read_records(cases.records) if one.get("steps")]
    most = done[0] if done else None  # of another child, which has died
    for k, variant in enumerate(VARIANTS):
        share = cases.left() / (len(VARIANTS) - k)
        found: Record = {}

        def case(variant: str = variant, share: float = share, most: int | None = most) -> Record:
            found.update(train_case(variant, corpus, size, share, most, device))  # noqa: B023
            return found  # noqa: B023

        cases.run(variant, max(2 * share, 30.0), case)
        most = most or found.get("steps")
