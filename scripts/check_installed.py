"""``python -I scripts/check_installed.py``: an installed symrnn, outside its source tree.

Checks that it is whole, that its kernels load, and that they compute what the reference loop does.
Exit code 1 with a sentence where something is not so. scripts/wheels runs it on what it has built.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import torch

import symrnn
from symrnn import SymGRU, SymLSTM, SymRNN, native

HEADERS = (
    "symrnn.h",
    "layout.h",
    "schedule.h",
    "rows_schedule.h",
    "cuda/symrnn_cuda.h",
    "cuda/layer.h",
)


def main() -> str:
    """What is wrong; "" if nothing is."""
    folder = Path(symrnn.__file__).parent
    if not folder.is_relative_to(sys.prefix):
        return f"symrnn was imported from {folder}, which is not in {sys.prefix}"
    if importlib.metadata.version("symrnn") != symrnn.__version__:
        return f"{importlib.metadata.version('symrnn')} is installed, not {symrnn.__version__}"
    missing = [name for name in HEADERS if not (folder / "native" / name).is_file()]
    if missing:
        return f"{', '.join(missing)} are not in {folder / 'native'}"
    if not native.available():
        return native.why_not()
    if native.calls() is None:
        return "the extension module _calls.so is missing, or does not load"
    for kind in (SymLSTM, SymGRU, SymRNN):
        for symm in ("none", "avg", "tri8"):
            difference = compare(kind(48, 48, num_layers=2, symm=symm))
            if not difference < 1e-5:  # nan is not
                return f"{kind.__name__}, {symm}: the kernels differ by {difference:.2g}"
    print(f"symrnn {symrnn.__version__}, kernels {native.library()._name}: as the reference")
    return ""


def compare(layer: SymLSTM | SymGRU | SymRNN) -> float:
    """The largest difference of an output or a gradient between the kernels and the reference."""
    x = torch.randn(7, 3, 48)
    found = []
    for backend in ("reference", "fused"):
        layer.backend = backend
        output, _ = layer(x)
        gradients = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
        with torch.no_grad():
            step, _ = layer(x[:1])
        found.append([output, step, *gradients])
    return max(
        (a - b).abs().max().item() / a.abs().max().item() for a, b in zip(*found, strict=True)
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    wrong = main()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
    sys.exit(1 if wrong else 0)
