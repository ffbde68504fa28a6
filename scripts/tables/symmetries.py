"""A picture of the linear symmetries: the entries that are one number have one colour.

    python scripts/tables/symmetries.py
    python scripts/tables/symmetries.py tri tri8 --side 6 --out tri.png

The first is results/symmetries.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, save_picture

from symrnn.symmetry import draw_symmetries

SHOWN = ["tri", "tri4", "tri8", "block4", "block16", "chunk2", "chunk4", "chunk4:rows"]


def main() -> None:
    parser = make_parser(__doc__, "results/symmetries.png")
    parser.add_argument("names", nargs="*", default=SHOWN, metavar="NAME", help="of symmetries")
    parser.add_argument("--side", type=int, default=8, help="of each matrix")
    parser.add_argument("--columns", type=int, default=4, help="matrices side by side")
    options = parser.parse_args()
    figure = draw_symmetries(options.names, options.side, options.columns)
    save_picture(figure, options.out)


if __name__ == "__main__":
    main()
