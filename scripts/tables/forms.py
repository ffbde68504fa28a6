"""A picture of perplexity against recurrent parameters, a point for each run of a table.

    python scripts/tables/forms.py results/ptb_forms.json --out results/ptb_forms_size.png

Reads what scripts/tables/runs.py writes beside its tables.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, save_picture


class Family(NamedTuple):
    """Forms that look alike in the picture: those whose names match ``pattern``."""

    title: str
    pattern: str
    marker: str
    color: str


# Colours that differ for the colour-blind too (after Okabe and Ito).
FAMILIES = [
    Family("full", r"none", "*", "black"),
    Family("tri: raw", r"tri\d*(:diag\d+)?", "^", "#d55e00"),
    Family("avg:diag, avg:skew: with rotation", r"avg:(diag|skew)\d+", "p", "#56b4e9"),
    Family("avg: orthonormal", r"avg.*", "o", "#0072b2"),
    Family("block", r"block\d+", "s", "#009e73"),
    Family("chunk: columns", r"chunk\d+", "D", "#8e3f74"),
    Family("chunk: rows", r"chunk\d+:rows", "d", "#c774a6"),
    Family("eigen, ldl: factored", r"eigen.*|ldl", "P", "#a87900"),
]
SOFT = Family("soft symmetry", "", "v", "#3f9bd1")

# Where a label may stand: points (1/72 inch) away, in these directions in degrees, best first.
DISTANCES = (7, 14, 24, 36, 50, 66, 84)
ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 65, 295, 115, 245)


def family_of(run: dict[str, Any]) -> Family:
    if run["config"]["soft_symmetry"]:
        return SOFT
    return next(f for f in FAMILIES if re.fullmatch(f.pattern, run["config"]["symm"]))


def labels_of(runs: list[dict[str, Any]]) -> list[str]:
    """The labels of the table, without the seed where all runs have the same."""
    if len({run["config"]["seed"] for run in runs}) > 1:
        return [run["label"] for run in runs]
    return [run["label"].rpartition(", seed ")[0] for run in runs]


def picture(runs: list[dict[str, Any]], title: str, split: str) -> Figure:
    """Perplexity of ``split`` against recurrent parameters, on a logarithmic axis.

    A dashed line stands at the perplexity of the full weights, if a run has them.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for family in [*FAMILIES, SOFT]:
        members = [run for run in runs if family_of(run) == family]
        if members:
            panel.scatter(
                [run["recurrent"] for run in members],
                [run[split] for run in members],
                s=90 if family.marker == "*" else 45,
                marker=family.marker,
                color=family.color,
                edgecolors="white",
                linewidths=0.6,
                label=family.title,
                zorder=3,
            )
    for run in runs:
        if run["config"]["symm"] == "none":
            panel.axhline(run[split], color="0.6", linewidth=0.8, linestyle="--", zorder=1)
    panel.set_xscale("log")
    panel.set(
        title=title,
        xlabel="recurrent parameters (deployed)",
        ylabel=f"{'validation' if split == 'valid' else split} perplexity",
    )
    panel.xaxis.set_major_locator(LogLocator(10, (1, 2, 3, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.08, 0.1)
    panel.grid(True, color="0.93", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="upper right", frameon=False, fontsize=9)
    write_labels(panel, runs, split)
    return figure


def write_labels(panel: Axes, runs: list[dict[str, Any]], split: str) -> None:
    """A label for each point, where it covers the least of points, labels and legend.

    Each is put in the best of a few places around its point, near ones first; one that stands
    apart from it is joined to it by a line.
    """
    figure = panel.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # sets the axes, which must hold still from here on
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    unit = figure.dpi / 72  # pixels of a point
    frame = panel.get_window_extent(renderer)
    spots = [panel.transData.transform((run["recurrent"], run[split])) for run in runs]
    marks = [Bbox.from_extents(x, y, x, y).padded(5 * unit) for x, y in spots]
    taken = [text.get_window_extent(renderer) for text in panel.get_legend().get_texts()]
    taken += [line.get_window_extent(renderer).padded(unit) for line in panel.get_lines()]
    for run, label, (x, y), own in zip(runs, labels_of(runs), spots, marks, strict=True):
        color = family_of(run).color
        text = panel.annotate(
            label,
            (run["recurrent"], run[split]),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=9,
            color=color,
        )
        size = text.get_window_extent(renderer)
        others = [*(mark for mark in marks if mark is not own), *taken]
        best, least = (0.0, Bbox.null()), math.inf
        for distance, angle in itertools.product(DISTANCES, ANGLES):
            box = _beside(x, y, size, distance * unit, math.radians(angle))
            cost = sum(_common(box, other) for other in others)
            cost += box.width * box.height - _common(box, frame)
            if cost < least:
                best, least = (distance, box), cost
        distance, box = best
        taken.append(box.padded(unit))
        text.set_position((np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2 - [x, y]) / unit)
        if distance > DISTANCES[0]:
            end = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
            line = panel.transData.inverted().transform([(x, y), end])
            panel.plot(*line.T, color=color, linewidth=0.6, zorder=2, scalex=False, scaley=False)


def _beside(x: float, y: float, size: Bbox, distance: float, angle: float) -> Bbox:
    """A box as large as ``size``, whose nearest edge or corner is so far from a point."""
    dx, dy = math.cos(angle), math.sin(angle)
    x += dx * distance + _sign(dx) * size.width / 2
    y += dy * distance + _sign(dy) * size.height / 2
    return Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height)


def _sign(value: float) -> float:
    """-1, 0 or 1, with what is close to 0 as 0."""
    return 0.0 if abs(value) < 0.1 else math.copysign(1.0, value)


def _common(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share."""
    both = Bbox.intersection(a, b)
    return both.width * both.height if both else 0.0


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("table", type=Path, help="a .json of scripts/tables/runs.py")
    parser.add_argument("--split", choices=["valid", "test"], default="test", help="(test)")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    options = parser.parse_args()
    table = json.loads(options.table.read_text())
    save_picture(picture(table["runs"], table["title"], options.split), options.out, dpi=130)


if __name__ == "__main__":
    main()
