"""One step of one sequence on a CPU, of the forms with rotation beside `avg` and full matrices.

    python scripts/benchmarks/rotation.py
    python scripts/benchmarks/rotation.py --sizes 650 --dtypes float32 --seconds 3

One LSTM with as many inputs as hidden units (H), called by `layer.stream()` with `out=`, in
`torch.inference_mode`. "Hidden": the hidden weights are of the form and the input weights full;
"both": both are of it. The dtypes are those of the packed weights (`inference_dtype`). Before the
time is taken, each output is compared with that of the reference backend.

In turn, each form makes a block of calls, as in `cpu.py`, each timed by itself; a figure is the
median of all calls, and in brackets its ratio to `avg`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from one_step import TOLERANCE
from report import explanation, make_parser, table, write_report
from timing import Peer, in_blocks
from torch import Tensor
from tqdm import tqdm

from symrnn import SymLSTM
from symrnn.training import set_threads

FORMS = ("none", "avg", "avg:diag16", "avg:diag64", "avg:skew8", "avg:skew16")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
TOLERANCES = dict(zip(DTYPES, TOLERANCE.values(), strict=True))


def main() -> None:
    parser = make_parser(__doc__, "results/rotation_step.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[650, 1500])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), help="`avg` among them")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=20, help="for each dtype and size (20)")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if "avg" not in options.forms:
        parser.error("--forms should have avg among them, which the others are compared with")
    set_threads(options.threads)
    tables = []
    for dtype in options.dtypes:
        rows: dict[str, list[str]] = {}
        for size in tqdm(options.sizes, dtype, leave=False, disable=None):
            # Parameters made in inference mode count no changes: nothing packed of them is cached.
            peers = [
                Peer(f"{form}, {weights}", step(form, weights, size, dtype))
                for form in options.forms
                for weights in ("hidden", "both")
            ]
            with torch.inference_mode():
                measured = in_blocks(peers, options.seconds)
            micros = {one.stmt: 1e6 * statistics.median(one.times) for one in measured}
            for name, time in micros.items():
                weights = name.rpartition(", ")[2]
                cell = f"{time:,.1f} ({time / micros[f'avg, {weights}']:.2f})"
                rows.setdefault(name, []).append(cell)
        head = [f"{dtype}, H =", *map(str, options.sizes)]
        tables += [f"## {dtype}, µs a step", table(head, [[n, *row] for n, row in rows.items()])]
    title = "One step of the forms with rotation"
    write_report(options.out, title, [*explanation(__doc__), *tables], seed=1)


def step(form: str, weights: str, size: int, dtype: str) -> Callable[[], Tensor]:
    """A step of a layer whose parameters are random, after its output was compared."""
    torch.manual_seed(1)
    symm_ih = "ifgo" if weights == "both" and form != "none" else ""
    layer = SymLSTM(size, size, symm=form, symm_ih=symm_ih, backend="fused").eval()
    layer.reset_parameters(lambda t: t.normal_(std=size**-0.5))
    layer.inference_dtype = DTYPES[dtype]
    x, out = torch.randn(1, size), torch.empty(1, size)
    with torch.inference_mode():
        layer.backend = "reference"
        exact = layer(x[None])[0][0]
        layer.backend = "fused"
        error = float((layer.stream()(x) - exact).abs().max())
    if not error <= TOLERANCES[dtype]:
        sys.exit(f"{form}, {weights}, H = {size}, {dtype}: differs by {error:.1e}")
    stream = layer.stream()
    return lambda: stream(x, out=out)


if __name__ == "__main__":
    main()
