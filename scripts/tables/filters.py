"""A picture of one slice of a trained model's symmetric weights, as Figure 5 of the paper.

    python scripts/tables/filters.py runs/shapes/best.safetensors
    python scripts/tables/filters.py best.safetensors --weight stages.0.0.conv2.weight --point 0 1

Parameters on the left, the matrix that they stand for on the right.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, save_picture

from symrnn.files import UserError
from symrnn.vision.drawing import draw_filters
from symrnn.vision.saved import load_model


def main() -> None:
    parser = make_parser(__doc__, "filters.png")
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
    options = parser.parse_args()
    try:
        model = load_model(options.model)
        figure = draw_filters(model, options.weight, options.point, options.group)
    except (ImportError, UserError, ValueError) as error:
        parser.error(str(error))
    save_picture(figure, options.out)


if __name__ == "__main__":
    main()
