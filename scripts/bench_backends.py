"""Which backend is fastest: the table behind ``backend="auto"`` on a CPU.

    python scripts/bench_backends.py

One layer with as many inputs as hidden numbers, without gradients (as ``lm.generate`` and
``lm.evaluate`` run it: weights do not change between calls) and in training (forward, and backward
to input and weights, which are changed in place before each call, untimed). PyTorch's own layer
stands beside the backends. Median milliseconds of a call, interleaved. "auto" is the backend that
`auto` takes, and in brackets how its time compares with the fastest one's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_step import interleaved
from report import table, write_report
from torch import nn
from tqdm import tqdm

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.rnn.backends import choose
from symrnn.training import keep_freed_memory, set_threads

KINDS = {
    "LSTM": (SymLSTM, nn.LSTM, ["none", "avg", "tri4", "block4"]),
    "GRU": (SymGRU, nn.GRU, ["none", "avg", "block4"]),
    "RNN": (SymRNN, nn.RNN, ["avg"]),
}
BACKENDS = ["vendor", "script", "folded", "fused"]
SHAPES = [(1, 1), (1, 4), (1, 20), (35, 1), (35, 4), (35, 20), (35, 64)]
TRAINING_SHAPES = [(35, 1), (35, 20), (35, 64)]


def inference(layer: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        layer(x)


def training(layer: Any, x: torch.Tensor) -> None:
    output, _ = layer(x)
    output.backward(torch.ones_like(output))


def touch(layer: nn.Module) -> None:
    """As an optimizer would between two steps."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.grad = None
            parameter.add_(0)


def timed(calls: list[Callable[[], None]], layers: list[Any], train: bool, seconds: float) -> Any:
    """The median seconds of each, in turn."""
    if train:
        return timed_training(calls, layers, seconds)
    once = sum(lap(call) for call in calls)
    count = min(max(int(seconds / once), 3), 101)
    return [statistics.median(times) for times in interleaved(calls, count)]


def timed_training(calls: list[Callable[[], None]], layers: list[Any], seconds: float) -> Any:
    laps: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(laps[0]) < 4 or time.perf_counter() < end:
        for call, layer, own in zip(calls, layers, laps, strict=True):
            touch(layer)
            own.append(lap(call))
    return [statistics.median(own[1:]) for own in laps]


def lap(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rows_of(kind: str, form: str, size: int, train: bool, seconds: float) -> list[list[str]]:
    cls, plain_cls, _ = KINDS[kind]
    plain = plain_cls(size, size)
    names = [n for n in BACKENDS if n != "folded" or form in ("tri4", "block4")]
    layers = {name: cls.from_plain(plain, form, backend=name) for name in names}
    auto = cls.from_plain(plain, form)
    rows = []
    for steps, batch in TRAINING_SHAPES if train else SHAPES:
        x = torch.randn(steps, batch, size, requires_grad=train)
        call = training if train else inference
        taking = {"PyTorch's": plain, **layers}
        if steps > 1:
            del taking["script"]  # far behind for more than a step or two
        found = timed(
            [partial(call, layer, x) for layer in taking.values()],
            list(taking.values()),
            train,
            seconds,
        )
        medians = dict(zip(taking, found, strict=True))
        with torch.set_grad_enabled(train):
            chosen = choose(auto, x, None)
        best = min(value for name, value in medians.items() if name in names)
        cells = [medians.get(name) for name in ["PyTorch's", *BACKENDS]]
        rows.append(
            [
                f"{kind}, {form}, H = {size}, T = {steps}, B = {batch}",
                *("" if value is None else f"{1e3 * value:.3f}" for value in cells),
                f"{chosen} ({medians[chosen] / best:.2f})" if chosen in medians else chosen,
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[200, 650, 1500])
    parser.add_argument("--seconds", type=float, default=0.8, help="for each row (0.8)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("results/backends.md"))
    options = parser.parse_args()
    set_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    cases = [
        (train, kind, form, size)
        for train in (False, True)
        for kind, (_, _, forms) in KINDS.items()
        for form in forms
        for size in options.hidden_sizes
    ]
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for train, kind, form, size in tqdm(cases, unit="case"):
        rows[train] += rows_of(kind, form, size, train, options.seconds)
    header = ["ms", "PyTorch's", *BACKENDS, "auto"]
    write_report(
        options.out,
        "Time of a layer, by backend",
        [
            " ".join((__doc__ or "").split("\n\n")[2].split()),
            "## Without gradients",
            table(header, rows[False]),
            "## Training",
            table(header, rows[True]),
        ],
    )


if __name__ == "__main__":
    main()
