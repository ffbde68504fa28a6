"""Calls of the GPU kernels and as little else as possible, for a tool that watches each of them.

    compute-sanitizer --tool memcheck python scripts/benchmarks/gpu/watched.py
    ncu --kernel-name regex:run_ python scripts/benchmarks/gpu/watched.py --large

Small ones: each kernel, kind of arithmetic and kind of layer, sides and batches that fill nothing.
Large ones: an LSTM of 1500 units, 20 sequences, 35 steps, forward and backward, one launch each, by
rows in bfloat16 and packed in TF32. Ends with 1 if a result is no number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from floor import KINDS
from times import only_on, rounding, why_not_fused

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import make_parser

from symrnn import SymGRU, SymLSTM, SymRNN
from symrnn.native import Kernel

SMALL = [
    (make, side, batch, 3, kind, kernel)
    for kernel in (Kernel.ROWS, Kernel.PACKED, Kernel.WAVEFRONT)
    for kind in ("exact", "tf32", "bf16")
    for make, side, batch in ((SymLSTM, 33, 3), (SymGRU, 200, 20), (SymRNN, 64, 9))
]
LARGE = [
    (SymLSTM, 1500, 20, 35, "bf16", Kernel.ROWS),
    (SymLSTM, 1500, 20, 35, "tf32", Kernel.ROWS),
    (SymLSTM, 1500, 20, 35, "tf32", Kernel.PACKED),
]


def call(
    make: Any, side: int, batch: int, steps: int, kind: str, kernel: Kernel, device: torch.device
) -> bool:
    """Forward and backward; whether all gradients are numbers."""
    dtype, how = KINDS[kind]
    with rounding(how), only_on(kernel):
        layers = 2 if kernel == Kernel.WAVEFRONT else 1
        layer = make(16, side, layers, backend="fused", device=device, dtype=dtype)
        why = why_not_fused(kind, side, batch, device, kernel, layer.mode)
        if why:
            raise RuntimeError(why)
        x = torch.randn(steps, batch, 16, dtype=dtype).to(device).requires_grad_()
        layer(x)[0].sum().backward()
    return all(bool(p.grad.isfinite().all()) for p in (x, *layer.parameters()))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--large", action="store_true", help="a few large calls")
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal, exact ones (cuda)")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    for case in LARGE if options.large else SMALL:
        if device.type != "cuda" and "exact" not in case:
            continue
        good = call(*case, device)
        make, *sizes, kernel = case
        print(make.__name__, *sizes, kernel.name, "ok" if good else "not finite", flush=True)
        if not good:
            sys.exit(1)


if __name__ == "__main__":
    main()
