"""A roofline of what scripts/benchmarks/cpu.py measured, from its .json.

    python scripts/tables/roofline.py results/cpu.json --out results/cpu_roofline.png

A panel for each hidden size. Across: useful flops of a call (16·H²·T·B, those of products with the
whole matrices) per byte of weights that it reads at the least, the hidden weights once a step, the
input weights once a call. Up: those flops a second. The roofs are measured: the slanted ones are
the bandwidth of plain reads, the flat one torch's product of square matrices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, save_picture


class Series(NamedTuple):
    peer: str
    marker: str
    color: str


# Colours that differ for the colour-blind too (after Okabe and Ito).
SERIES = [
    Series("fused both, bf16", "D", "#009e73"),
    Series("fused both", "s", "#d55e00"),
    Series("fused hidden", "o", "#0072b2"),
    Series("ONNX Runtime", "^", "0.35"),
    Series("nn.LSTM", "v", "0.65"),
]
# Bytes that are read, in what they usually lie, how the roof is drawn.
ROOFS = [
    (2**19, "a core's own cache", "-"),
    (2**23, "the shared cache", "--"),
    (2**27, "memory", ":"),
]


def picture(result: dict[str, Any]) -> Figure:
    """The roofline of the runs with the most threads."""
    threads = max(roof["threads"] for roof in result["roofs"])
    roof = next(roof for roof in result["roofs"] if roof["threads"] == threads)
    records = [r for r in result["forward"] if r["threads"] == threads and r["weight_bytes"]]
    for r in records:
        r["x"], r["y"] = r["flops"] / r["weight_bytes"], r["flops"] / r["us"] / 1e3
    sizes = sorted({r["H"] for r in records})

    columns = min(3, len(sizes) + 1)
    rows = -(-(len(sizes) + 1) // columns)  # one more for the legend
    figure = Figure(figsize=(4.3 * columns, 3.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    x = [min(r["x"] for r in records) / 1.5, max(r["x"] for r in records) * 1.5]
    lowest = min(r["y"] for r in records) / 1.5
    for panel, size in zip(panels, sizes, strict=False):
        draw_roofs(panel, roof, x)
        draw_size(panel, [r for r in records if r["H"] == size])
        panel.set_title(f"H = {size}", fontsize=11)
        panel.set_ylim(lowest, roof["gflops"] * 2)
    for panel in panels[len(sizes) :]:
        panel.set_axis_off()
    for index in range(len(sizes)):
        panels[index].tick_params(labelbottom=True, labelleft=True)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[len(sizes)].legend(handles, labels, loc="center", frameon=False, fontsize=10)
    figure.suptitle(
        f"LSTM layer, forward, {threads} threads: "
        "each line is one way to run it, at (T, B) = (1, 1), (35, 1), (35, 4), (35, 20)"
    )
    figure.supxlabel("useful flops per byte of weights read")
    figure.supylabel("GFLOP/s")
    return figure


def draw_roofs(panel: Axes, roof: dict[str, Any], x: list[float]) -> None:
    """Lines of the measured bandwidths up to the measured peak, over the range x."""
    peak = roof["gflops"]
    reads = {one["bytes"]: one["gbs"] for one in roof["reads"]}
    for count, where, style in ROOFS:
        gbs = reads[count]
        panel.plot(
            [x[0], peak / gbs],
            [x[0] * gbs, peak],
            color="0.2",
            linewidth=1,
            linestyle=style,
            label=f"reading {where} ({count / 2**20:g} MiB): {gbs:.0f} GB/s",
            zorder=1,
        )
    panel.axhline(peak, color="black", linewidth=1.4, label=f"torch.mm: {peak:.0f} GFLOP/s")
    panel.set(xscale="log", yscale="log", xlim=x)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.grid(True, color="0.93", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)


def draw_size(panel: Axes, records: list[dict[str, Any]]) -> None:
    """The points of one hidden size, those of the last way, which lie lowest, with their (T, B)."""
    for series in SERIES:
        points = sorted((r for r in records if r["peer"] == series.peer), key=lambda r: r["x"])
        if not points:
            continue
        panel.plot(
            [r["x"] for r in points],
            [r["y"] for r in points],
            color=series.color,
            marker=series.marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=0.8,
            label=series.peer,
            zorder=3,
        )
    for r in points:
        panel.annotate(
            f"({r['T']}, {r['B']})",
            (r["x"], r["y"]),
            (4, -11),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
        )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("result", type=Path, help="a .json of scripts/benchmarks/cpu.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    save_picture(picture(result), options.out, dpi=130)


if __name__ == "__main__":
    main()
