"""A picture of one slice of a trained model's symmetric weights, as Figure 5 of the paper.

    python scripts/draw_filters.py runs/shapes/best.safetensors
    python scripts/draw_filters.py best.safetensors --weight stages.0.0.conv2.weight --point 0 1

Free numbers on the left, the matrix that they stand for on the right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from symrnn.files import UserError
from symrnn.vision.drawing import draw_filters
from symrnn.vision.saved import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="file that symrnn.vision.train has written")
    parser.add_argument("--weight", metavar="NAME", help="by default the first symmetric one")
    parser.add_argument(
        "--point",
        type=int,
        nargs="*",
        metavar="N",
        help="of the kernel, by default its centre; of a kernel symmetric in space, the channels",
    )
    parser.add_argument("--group", type=int, default=0, help="of a grouped convolution")
    parser.add_argument("--out", type=Path, default=Path("filters.png"))
    options = parser.parse_args()
    try:
        model = load_model(options.model)
        figure = draw_filters(model, options.weight, options.point, options.group)
    except (ImportError, UserError, ValueError) as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
