"""Folding against whole matrices: products alone, recurrent training steps, layers.

    python scripts/benchmarks/fold.py
    python scripts/benchmarks/fold.py --seconds 0.1 --out runs/fold.md

Functions that are compared are called in turn, after two calls to warm up. As in ``lm.train``, the
C library is asked to keep freed memory. "Whole" is the plain layer of PyTorch; "expanded" the
symmetric one that builds its whole matrix of the parameters on every call; "folded" the
symmetric one that folds. A ratio is the median over calls of the whole one's time divided by the
other's of the same round: above 1 it is faster than the plain layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from report import explanation, make_parser, table, write_report
from timing import Call, Peer, interleaved, ratio
from torch import Tensor, nn

from symrnn import SymGRU, SymLSTM, get_symmetry, symmetrize
from symrnn.training import keep_freed_memory, set_threads

FORMS = ("tri4", "tri8", "block4", "block16", "chunk4", "chunk16")
SEED = 1


def compare(label: str, calls: list[Call], seconds: float) -> list[str]:
    """A row: median milliseconds of each call, and the ratios of the first to the others."""
    first, *others = interleaved([Peer(label, call) for call in calls], seconds)
    medians = [f"{1e3 * one.median:.3f}" for one in (first, *others)]
    row = [label, *medians, *(f"{ratio(first, one):.2f}" for one in others)]
    print("  ".join(row), flush=True)
    return row


def product(side: int, name: str) -> list[Call]:
    """h (20, N) by the matrices of four gates, once whole and once folded."""
    s = get_symmetry(name, side)
    numbers = torch.randn(4, s.numel)
    whole = s.expand(numbers).flatten(0, 1)
    small = [m.flatten(0, 1).contiguous() for m in s.matrices(numbers)]
    h = torch.randn(20, side)
    folding = s.folding
    assert folding is not None

    def fold() -> Tensor:
        parts = folding.inputs(h, -1)
        products = [(x @ m.mT).unflatten(1, (4, -1)) for x, m in zip(parts, small, strict=True)]
        return folding.outputs(products, side, -1)

    return [lambda: h @ whole.mT, fold]


def training_step(layer: nn.Module, x: Tensor) -> Call:
    """Forward, and backward from ones."""

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        output = layer(x)
        output = output if isinstance(output, Tensor) else output[0]
        output.backward(torch.ones_like(output))

    return step


def inference(layer: nn.Module, x: Tensor) -> Call:
    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call


def recurrent(
    kind: type,
    width: int,
    side: int,
    name: str,
    steps: int,
    batch: int,
    train: bool = True,
) -> list[Call]:
    """A layer of the input width and hidden size: PyTorch's, expanded, folded."""
    plain = {SymLSTM: nn.LSTM, SymGRU: nn.GRU}[kind](width, side)
    layers = [plain, *(kind(width, side, symm=name, backend=b) for b in ("vendor", "folded"))]
    x = torch.randn(steps, batch, width)
    return [(training_step if train else inference)(layer, x) for layer in layers]


def layers(plain: nn.Module, name: str, x: Tensor, train: bool) -> list[Call]:
    """A linear layer or a convolution: PyTorch's, expanded, folded."""
    made = [plain]
    for fold in (False, True):
        layer: Any = copy.deepcopy(plain)
        symmetrize(layer, name)
        layer.fold = fold
        made.append(layer)
    return [(training_step if train else inference)(layer, x) for layer in made]


HEADER = ["whole, ms", "expanded, ms", "folded, ms", "whole / expanded", "whole / folded"]


def main() -> None:
    parser = make_parser(__doc__, "results/folding.md")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(SEED)

    def rows(labelled: Iterable[tuple[str, Callable[[], list[Call]]]]) -> list[list[str]]:
        return [compare(label, make(), options.seconds) for label, make in labelled]

    products = rows(
        (f"H = {side}, {name}", partial(product, side, name))
        for side in (650, 1500)
        for name in FORMS
    )
    loops, whole_layers = (
        rows(
            (f"H = {side}, {name}", partial(recurrent, SymLSTM, width or side, side, name, 35, 20))
            for side in (200, 650, 1500)
            for name in FORMS
        )
        for width in (1, None)
    )
    gru = rows(
        (f"H = {side}, {name}", partial(recurrent, SymGRU, side, side, name, 35, 20))
        for side in (650, 1500)
        for name in ("tri8", "block16")
    )
    conv, linear = nn.Conv2d(256, 256, 3, padding=1), nn.Linear(2048, 2048)
    pictures, vectors = torch.randn(32, 256, 16, 16), torch.randn(256, 2048)
    forward = rows(
        (f"{what}, {name}", partial(layers, layer, name, x, train))
        for what, layer, x in (("convolution", conv, pictures), ("linear", linear, vectors))
        for train in (False, True)
        for name in FORMS
    )
    few = rows(
        (
            f"H = {side}, T = {steps}, B = {batch}, {name}",
            partial(recurrent, SymLSTM, side, side, name, steps, batch, False),
        )
        for side in (200, 650, 1500)
        for steps, batch in ((1, 1), (1, 20), (35, 1), (35, 20))
        for name in ("tri4", "block4", "block16")
    )
    small = rows(
        (
            f"linear, N = {side}, {count} vectors, {name}",
            partial(layers, nn.Linear(side, side), name, torch.randn(count, side), True),
        )
        for side in (64, 256, 1024)
        for count in (1, 64, 1024)
        for name in ("tri4", "block4", "block16")
    )

    write_report(
        options.out,
        "Folded against whole matrices",
        [
            *explanation(__doc__),
            "## The recurrent product alone\n\n"
            "One step of an LSTM, h (20, H) by the matrices of all four gates, already made.",
            table(["", "whole, ms", "folded, ms", "whole / folded"], products),
            "## A training step of the recurrent loop\n\n"
            "A one-layer LSTM of input width 1, T = 35, B = 20, forward and backward: the loop "
            "with next to no input product.",
            table(["", *HEADER], loops),
            "## A training step of a layer\n\n"
            "The same with input width H: the input product, which no symmetry shortens here, is "
            "about half the work of a whole layer.",
            table(["", *HEADER], whole_layers),
            "Likewise a GRU:",
            table(["", *HEADER], gru),
            "## Feed-forward layers\n\n"
            "A convolution of 256 to 256 channels, 3×3, on 32 pictures of 16×16; a linear layer of "
            "2048 to 2048 on 256 vectors. First inference, then training steps.",
            table(["", *HEADER], forward),
            "## Where `auto` draws the line\n\nAn LSTM layer of input width H without gradients:",
            table(["", *HEADER], few),
            "A training step of a linear layer:",
            table(["", *HEADER], small),
        ],
        seed=SEED,
    )


if __name__ == "__main__":
    main()
