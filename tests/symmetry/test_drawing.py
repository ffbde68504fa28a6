"""Pictures of orbits: one colour and one number for each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from symrnn import get_symmetry
from symrnn.symmetry import draw_symmetries, draw_symmetry

pytest.importorskip("matplotlib")
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def colours(panel: Axes) -> np.ndarray:
    """(N, N, 3) as they are drawn."""
    (image,) = panel.images
    return np.asarray(image.get_array())


def numbers(panel: Axes, side: int) -> list[list[str]]:
    """What stands in every cell."""
    cells = {text.get_position(): text.get_text() for text in panel.texts}
    return [[cells[column, row] for column in range(side)] for row in range(side)]


def panels(figure: Figure) -> list[Axes]:
    return [panel for panel in figure.axes if panel.axison]


@pytest.mark.parametrize("side", [1, 2, 7, 8])
@pytest.mark.parametrize("name", ["tri", "avg:full", "tri4", "avg8", "block16", "chunk4:rows"])
def test_every_orbit_has_one_colour_and_its_number(name: str, side: int) -> None:
    s = get_symmetry(name, side)
    (panel,) = draw_symmetry(name, side).axes
    drawn = colours(panel)
    assert drawn.shape == (side, side, 3)
    cells = {
        (k, tuple(c))
        for k, c in zip(s.orbits.orbit.array.tolist(), drawn.reshape(-1, 3), strict=True)
    }
    assert len(cells) == s.deployed
    assert len({colour for _, colour in cells}) == s.deployed
    assert numbers(panel, side) == [
        [str(k) for k in row] for row in s.orbits.orbit.array.reshape(side, side).tolist()
    ]
    assert panel.get_title() == f"{name}, {s.deployed} of {side**2} numbers"


def test_numbers_stand_out_and_colours_go_from_dark_to_light() -> None:
    (panel,) = draw_symmetry("tri").axes
    light = colours(panel)[0] @ (0.299, 0.587, 0.114)
    assert colours(panel).shape == (8, 8, 3)
    assert (np.diff(light) > 0).all()
    first, last = panel.texts[0], panel.texts[-1]
    assert (first.get_color(), last.get_color()) == ("white", "black")


def test_a_form_brings_its_own_side() -> None:
    s = get_symmetry("block4", 6)
    (panel,) = draw_symmetry(s).axes
    assert colours(panel).shape == (6, 6, 3)


def test_many_orbits_still_differ_but_are_not_numbered() -> None:
    (panel,) = draw_symmetry("tri", 40).axes
    assert len(np.unique(colours(panel).reshape(-1, 3), axis=0)) == 820
    assert len(panel.texts) == 0


def test_several_stand_row_by_row() -> None:
    names = ["tri", "tri4", "tri8", "block4", "chunk2"]
    figure = draw_symmetries(names, 4, columns=3)
    assert [panel.get_title().partition(",")[0] for panel in panels(figure)] == names
    assert len(figure.axes) == 6
    assert figure.axes[0].get_gridspec().ncols == 3
    assert len(draw_symmetries(["tri", "avg"], 4).axes) == 2


def test_errors() -> None:
    for name in ("eigen", "eigen:2", "ldl"):
        with pytest.raises(ValueError, match=rf"linear form, got: '{name}', without orbits"):
            draw_symmetry(name)
    with pytest.raises(ValueError, match="'ldl'"):
        draw_symmetry(get_symmetry("ldl", 3))
    with pytest.raises(ValueError, match=r"^name should be one of tri, .*, got: 'triangle'$"):
        draw_symmetry("triangle")
    with pytest.raises(ValueError, match=r"^side should be at least 1, got: 0$"):
        draw_symmetry("tri", 0)
    with pytest.raises(ValueError, match=r"^symmetries should name at least one, got none$"):
        draw_symmetries([])
    with pytest.raises(ValueError, match=r"^columns should be at least 1, got: 0$"):
        draw_symmetries(["tri"], columns=0)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib.* pip install 'symrnn\[train\]'$"):
        draw_symmetry("tri")


def test_the_script_writes_a_picture(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "scripts" / "tables/symmetries.py"
    spec = importlib.util.spec_from_file_location("draw_symmetries", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "pictures" / "two.png"
    monkeypatch.setattr(sys, "argv", ["draw", "tri", "tri8", "--side", "4", "--out", str(out)])
    script.main()
    assert out.read_bytes().startswith(b"\x89PNG")
