"""Which backend is fastest: the table behind ``backend="auto"`` on a CPU.

    python scripts/benchmarks/backends.py
    python scripts/benchmarks/backends.py --hidden-sizes 650 --seconds 2
    python scripts/benchmarks/backends.py --against ../before    # another checkout, see trees.py

One layer with as many inputs as hidden units, without gradients (as ``lm.generate`` and
``lm.evaluate`` run it: weights do not change between calls) and in training (forward, and backward
to input and weights, which are changed in place before each call, untimed). PyTorch's own layer
stands beside the backends. Median milliseconds of a call, interleaved. "auto" comes last, and in
brackets how its time compares with the fastest backend's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import trees
from report import explanation, make_parser, table, write_report
from timing import Peer, interleaved
from torch import nn
from tqdm import tqdm

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.training import keep_freed_memory, set_threads

KINDS = {
    "LSTM": (SymLSTM, nn.LSTM, ["none", "avg", "tri4", "block4"]),
    "GRU": (SymGRU, nn.GRU, ["none", "avg", "block4"]),
    "RNN": (SymRNN, nn.RNN, ["avg"]),
}
BACKENDS = ["vendor", "script", "folded", "fused"]
FOLDS = ("tri4", "block4")
SHAPES = [(1, 1), (1, 4), (1, 20), (35, 1), (35, 4), (35, 20), (35, 64)]
TRAINING_SHAPES = [(35, 1), (35, 20), (35, 64)]
SEED = 0


def cases() -> list[trees.Case]:
    """For --against: each backend where it is used, small sizes first."""
    ways = [(shape, False) for shape in ((1, 1), (35, 1), (35, 20))] + [((35, 20), True)]
    found = []
    for kind in KINDS:
        for size in (64, 200, 650, 1500):
            for shape, train in ways:
                of = [("fused", "avg"), ("auto", "avg"), ("vendor", "avg")]
                of += [("folded", "block4"), ("auto", "block4")]
                # These are loops in Python, far behind for more.
                of += [("script", "avg")] if size <= 650 and shape[1] == 1 else []
                of += [("reference", "avg")] if size <= 200 else []
                for backend, form in of:
                    found.append(trees.Case(kind, form, backend, size, *shape, train))
                    if form == "avg" and backend in ("fused", "auto", "vendor"):
                        found.append(found[-1]._replace(both=True))
    return found


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


def rows_of(kind: str, form: str, size: int, train: bool, seconds: float) -> list[list[str]]:
    cls, plain_cls, _ = KINDS[kind]
    plain = plain_cls(size, size)
    names = [name for name in BACKENDS if name != "folded" or form in FOLDS]
    layers = {name: cls.from_plain(plain, form, backend=name) for name in [*names, "auto"]}
    rows = []
    for steps, batch in TRAINING_SHAPES if train else SHAPES:
        x = torch.randn(steps, batch, size, requires_grad=train)
        call = training if train else inference
        taking: dict[str, Any] = {"PyTorch's": plain, **layers}
        if steps > 1:
            del taking["script"]  # far behind for more than a step or two
        peers = [
            Peer(name, partial(call, layer, x), partial(touch, layer) if train else None)
            for name, layer in taking.items()
        ]
        medians = {one.stmt: one.median for one in interleaved(peers, seconds, rounds=3)}
        best = min(medians[name] for name in names if name in medians)
        cells = [medians.get(name) for name in ["PyTorch's", *BACKENDS, "auto"]]
        shown = ["" if value is None else f"{1e3 * value:.3f}" for value in cells]
        shown[-1] += f" ({medians['auto'] / best:.2f})"
        rows.append([f"{kind}, {form}, H = {size}, T = {steps}, B = {batch}", *shown])
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=[200, 650, 1500])
    parser.add_argument("--seconds", type=float, default=0.8, help="for each row (0.8)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="(results/backends.md)")
    trees.add_options(parser)
    options = parser.parse_args()
    if options.against:
        options.out = options.out or Path("runs/backends_against.md")
        trees.compare(cases(), options, options.threads)
        return
    set_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(SEED)
    of = [
        (train, kind, form, size)
        for train in (False, True)
        for kind, (_, _, forms) in KINDS.items()
        for form in forms
        for size in options.hidden_sizes
    ]
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for train, kind, form, size in tqdm(of, unit="case"):
        rows[train] += rows_of(kind, form, size, train, options.seconds)
    header = ["ms", "PyTorch's", *BACKENDS, "auto"]
    write_report(
        options.out or Path("results/backends.md"),
        "Time of a layer, by backend",
        [
            *explanation(__doc__),
            "## Without gradients",
            table(header, rows[False]),
            "## Training",
            table(header, rows[True]),
        ],
        seed=SEED,
    )


if __name__ == "__main__":
    main()
