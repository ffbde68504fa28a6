"""A picture of the eigenvalues of trained recurrent matrices, one row of panels for each run.

    python scripts/tables/spectra.py runs/rotation/none-seed1 runs/rotation/avg-seed1
    python scripts/tables/spectra.py runs/a runs/b --layer 1 --weights ih --out results/spectra.png

Those of a symmetric matrix lie on the real line, for it only stretches; rotation leaves it. Reads
the best models of run folders that lm.train wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, save_picture

from lm.saved import load_saved
from lm.spectrum import compare_spectra
from symrnn.files import UserError


def main() -> None:
    parser = make_parser(__doc__, "spectra.png")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of lm.train")
    parser.add_argument("--layer", type=int, default=0, help="from 0, the lowest (0)")
    parser.add_argument(
        "--weights", choices=["hh", "ih"], default="hh", help="hidden or input weights (hh)"
    )
    options = parser.parse_args()
    try:
        saved = [load_saved(run / "best.safetensors", torch.device("cpu")) for run in options.runs]
        models = {one.config["symm"]: one.model.rnn for one in saved}
        if len(models) < len(saved):  # forms do not tell them apart
            models = {run.name: one.model.rnn for run, one in zip(options.runs, saved, strict=True)}
        figure = compare_spectra(models, options.layer, options.weights)
    except (ImportError, UserError, ValueError) as error:
        parser.error(str(error))
    save_picture(figure, options.out)


if __name__ == "__main__":
    main()
