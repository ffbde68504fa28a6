"""Pictures of a trained symmetric weight: parameters on the left, the matrix on the right."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from symrnn import symmetrize
from symrnn.vision.dirac import DiracConv2d
from symrnn.vision.drawing import draw_filters

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


def symmetric(layer: nn.Module, symm: str, axes: str = "channel") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), layer)
    symmetrize(model, symm, "1", axes)
    return model


def drawn(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """What the two panels show, NaN where there is nothing."""
    left, right, *_ = figure.axes
    (a,), (b,) = left.images, right.images
    assert a.get_clim() == b.get_clim()
    assert a.get_clim()[0] == -a.get_clim()[1]
    return tuple(np.ma.filled(np.ma.asarray(x.get_array(), float), np.nan) for x in (a, b))


def titles(figure: Figure) -> tuple[str, str, str]:
    left, right, *_ = figure.axes
    return figure.get_suptitle(), left.get_title(), right.get_title()


@pytest.mark.parametrize("kind", [nn.Conv2d, DiracConv2d])
@pytest.mark.parametrize("symm", ["tri", "avg"])
def test_a_triangle_beside_the_symmetric_matrix(symm: str, kind: type[nn.Conv2d]) -> None:
    model = symmetric(kind(6, 6, 3), symm)
    figure = draw_filters(model)
    assert titles(figure) == (f"1.weight, {symm}, point 1, 1", "21 parameters", "6×6")
    left, right = drawn(figure)
    np.testing.assert_array_equal(right, model[1].weight[:, :, 1, 1].detach().numpy())
    np.testing.assert_array_equal(right, right.T)
    upper = np.triu(np.ones((6, 6), bool))
    np.testing.assert_array_equal(left[upper], right[upper])
    assert np.isnan(left[~upper]).all()
    assert figure.axes[0].images[0].get_clim()[1] == np.abs(right).max()


@pytest.mark.parametrize("symm", ["tri4", "avg8", "avg:full", "block16", "chunk2"])
def test_each_orbit_once(symm: str) -> None:
    model = symmetric(nn.Conv2d(8, 8, 3), symm)
    left, right = drawn(draw_filters(model, "1.weight", (0, 2)))
    np.testing.assert_array_equal(right, model[1].weight[:, :, 0, 2].detach().numpy())
    kept = np.isfinite(left)
    np.testing.assert_array_equal(left[kept], right[kept])
    assert len(np.unique(left[kept])) == kept.sum() == len(np.unique(right))


@pytest.mark.parametrize(("symm", "count"), [("eigen", 3 * 6 + 3), ("ldl", 21)])
def test_factored_forms_show_what_is_trained(symm: str, count: int) -> None:
    model = symmetric(nn.Conv2d(6, 6, 3, groups=1), symm)
    figure = draw_filters(model)
    left, right = drawn(figure)
    np.testing.assert_array_equal(right, model[1].weight[:, :, 1, 1].detach().numpy())
    numbers = model[1].parametrizations.weight.original[1, 1].detach().numpy()
    np.testing.assert_array_equal(left[np.isfinite(left)], numbers)
    assert left.shape == (4, 6)
    assert titles(figure)[1] == f"{count} parameters"


def test_groups_and_both_axes() -> None:
    model = symmetric(nn.Conv2d(8, 8, 3, groups=2), "tri", "both")
    figure = draw_filters(model, point=(0, 1), group=1)
    assert titles(figure) == ("1.weight, tri, point 0, 1 of group 1", "10 parameters", "4×4")
    expected = model[1].weight[4:, :, 0, 1].detach().numpy()
    np.testing.assert_array_equal(drawn(figure)[1], expected)
    np.testing.assert_array_equal(drawn(draw_filters(model, point=(1, 0), group=1))[1], expected)


def test_space_and_linear_layers() -> None:
    model = symmetric(nn.Conv2d(4, 5, 3), "tri", "space")
    figure = draw_filters(model, point=(4, 2))
    assert titles(figure) == ("1.weight, tri, channels 4, 2", "6 parameters", "3×3")
    np.testing.assert_array_equal(drawn(figure)[1], model[1].weight[4, 2].detach().numpy())
    model = symmetric(nn.Linear(4, 4), "tri")
    figure = draw_filters(model)
    assert titles(figure)[0] == "1.weight, tri, the matrix"
    np.testing.assert_array_equal(drawn(figure)[1], model[1].weight.detach().numpy())


def test_low_precision_and_nothing_but_zeros() -> None:
    model = symmetric(nn.Conv2d(4, 4, 3), "tri").bfloat16()
    nn.init.zeros_(model[1].parametrizations.weight.original)
    figure = draw_filters(model)
    assert figure.axes[0].images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"weight": "0.weight"}, r"^weight should be one of 1\.weight, got: '0\.weight'$"),
        ({"point": (0, 3)}, r"^point should be from 0 to \(2, 2\), got: \(0, 3\)$"),
        ({"point": (0,)}, r"^point should be from 0 to \(2, 2\), got: \(0,\)$"),
        ({"group": 1}, r"^group should be from 0 to 0, got: 1$"),
    ],
)
def test_errors(call: dict[str, Any], message: str) -> None:
    model = symmetric(nn.Conv2d(4, 4, 3), "tri")
    with pytest.raises(ValueError, match=message):
        draw_filters(model, **call)
    with pytest.raises(ValueError, match="no symmetric weight"):
        draw_filters(model[0])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib.* pip install 'symrnn\[train\]'$"):
        draw_filters(symmetric(nn.Conv2d(4, 4, 3), "tri"))


def test_tensorboard_takes_the_figure(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    figure = draw_filters(symmetric(nn.Conv2d(4, 4, 3), "tri"))
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_figure("filters", figure, 1)
    (written,) = tmp_path.iterdir()
    assert b"PNG" in written.read_bytes()


def test_the_script_writes_a_picture(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = repository / "scripts" / "tables" / "filters.py"
    spec = importlib.util.spec_from_file_location("draw_filters", path)
    script: types.ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "load_model", lambda path: symmetric(nn.Conv2d(4, 4, 3), "tri"))
    out = tmp_path / "pictures" / "filters.png"
    command = ["draw", "best.safetensors", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--weight", "1.weight", "--point", "0", "0"])
    script.main()
    assert out.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*command, "--group", "2"])
    with pytest.raises(SystemExit):
        script.main()
    assert "group should be from 0 to 0, got: 2" in capsys.readouterr().err
