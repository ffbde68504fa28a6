"""A picture of the linear symmetries: the entries that are one number have one colour.

    python scripts/draw_symmetries.py
    python scripts/draw_symmetries.py tri tri8 --side 6 --out tri.png

The first is results/symmetries.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from symrnn.symmetry import draw_symmetries

SHOWN = ["tri", "tri4", "tri8", "block4", "block16", "chunk2", "chunk4", "chunk4:rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=SHOWN, metavar="NAME", help="of symmetries")
    parser.add_argument("--side", type=int, default=8, help="of each matrix")
    parser.add_argument("--columns", type=int, default=4, help="matrices side by side")
    parser.add_argument("--out", type=Path, default=Path("results/symmetries.png"))
    options = parser.parse_args()
    figure = draw_symmetries(options.names, options.side, options.columns)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
