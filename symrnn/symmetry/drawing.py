"""Pictures of the orbits of a symmetry; they want matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.linear import LinearSymmetry
from symrnn.symmetry.registry import get_symmetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = 2.6  # width of a matrix
_NUMBERED = 16  # the largest side whose cells hold a number that can be read


def draw_symmetry(symmetry: Symmetry | str, side: int = 8) -> Figure:
    """One matrix of ``side`` × ``side`` cells, in which the cells of an orbit are of one colour.

    Up to side 16 a cell also holds the number of its orbit, counted from 0 in the order in which
    the parameters are stored.

    symmetry: a linear form or its name, one of :func:`symrnn.list_symmetries`.
    side: N ≥ 1, for a name; a form has its own.

    Raises ValueError for an unknown name, a side below 1 and for forms without orbits (``eigen``,
    ``ldl`` and "avg:skewR"); ImportError without matplotlib.

    >>> draw_symmetry("tri8").savefig("tri8.png")
    """
    return draw_symmetries([symmetry], side)


def draw_symmetries(
    symmetries: Sequence[Symmetry | str], side: int = 8, columns: int = 4
) -> Figure:
    """Several matrices as :func:`draw_symmetry` draws one, row by row.

    columns: how many matrices stand side by side, at least 1.

    Raises ValueError also where ``symmetries`` is empty or ``columns`` below 1.
    """
    if not symmetries:
        raise ValueError("symmetries should name at least one, got none")
    if columns < 1:
        raise ValueError(f"columns should be at least 1, got: {columns}")
    forms = [_with_orbits(symmetry, side) for symmetry in symmetries]
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "drawing wants matplotlib, which is not installed: pip install 'symrnn[train]'"
        ) from error
    columns = min(columns, len(forms))
    rows = -(-len(forms) // columns)
    # A title above each matrix, and a little air around it.
    size = (columns * (_INCHES + 0.2), rows * (_INCHES + 0.45))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, form in zip(panels, forms, strict=False):
        _draw(panel, form)
    for panel in panels[len(forms) :]:
        panel.set_axis_off()
    return figure


def _with_orbits(symmetry: Symmetry | str, side: int) -> LinearSymmetry:
    form = get_symmetry(symmetry, side) if isinstance(symmetry, str) else symmetry
    if not isinstance(form, LinearSymmetry):
        raise ValueError(f"symmetry should be a linear form, got: {form.name!r}, without orbits")
    return form


def _draw(panel: Axes, form: LinearSymmetry) -> None:
    side, count = form.side, form.deployed
    orbit = form.orbits.orbit.array.reshape(side, side)
    colours = _colours(count)
    panel.imshow(colours[orbit])
    panel.set_title(f"{form.name}, {count} of {side**2} numbers", fontsize=11)
    panel.set_xticks(np.arange(1, side) - 0.5, minor=True)
    panel.set_yticks(np.arange(1, side) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=min(1.0, 8 / side))
    panel.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    panel.spines[:].set_visible(False)
    if side > _NUMBERED:
        return
    # Three digits at the most, each about 0.6 of the size wide.
    fontsize = 0.45 * 72 * _INCHES / max(side, 4)
    light = colours @ (0.299, 0.587, 0.114) > 0.5
    for (row, column), k in np.ndenumerate(orbit):
        colour = "black" if light[k] else "white"
        panel.text(column, row, str(k), color=colour, fontsize=fontsize, ha="center", va="center")


def _colours(count: int) -> NDArray[np.floating[Any]]:
    """As many colours (count, 3), all different, from dark to light."""
    from matplotlib import colormaps

    known = colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]
    at = np.linspace(0, 255, count)
    return np.stack([np.interp(at, np.arange(256), channel) for channel in known.T], -1)
