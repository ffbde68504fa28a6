"""A picture of a trained symmetric weight, as Figure 5 of the paper; it wants matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from symrnn.symmetry import SymmetricTensor, Symmetry
from symrnn.symmetry.linear import LinearSymmetry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 4.0  # width of a matrix


def draw_filters(
    model: nn.Module,
    weight: str | None = None,
    point: Sequence[int] | None = None,
    group: int = 0,
) -> Figure:
    r"""One slice of a symmetric weight: its parameters on the left, the whole on the right.

    The slice is the matrix of channels (output down, input across) at one point of the kernel, or
    for a weight that is symmetric in space alone the kernel of one pair of channels. On the left
    stands each orbit's entry once, where the matrix has it first: of ``tri`` a triangle. ``eigen``
    and ``ldl`` have no orbits: there the parameters stand row by row. Both matrices
    have the same colours: white for 0, red above, blue below; grey is nothing.

    model: with at least one symmetric weight, as ``symrnn.symmetrize`` makes them.
    weight: its name, such as "stages.0.0.conv2.weight"; the model's first by default.
    point: of the kernel, its centre by default: one index for each of its dimensions. In space:
        the output and input channel, 0 and 0 by default; of an ``nn.Conv3d`` also the depth.
    group: of a grouped convolution, counted from 0.

    Raises ValueError for a model without symmetric weights, an unknown name, and a point or group
    that the weight has not; ImportError without matplotlib.

    >>> draw_filters(create_model("wrn-16-1-bottleneck", "tri")).savefig("filters.png")
    """
    known = dict(_symmetric_weights(model))
    if not known:
        raise ValueError("the model has no symmetric weight to draw")
    name = next(iter(known)) if weight is None else weight
    if name not in known:
        raise ValueError(f"weight should be one of {', '.join(known)}, got: {weight!r}")
    form, numbers, values, title = _slice(known[name], point, group)
    left = _free(form, numbers, values)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing wants matplotlib, which is not installed: pip install 'symrnn[train]'"
        ) from error
    figure = Figure(figsize=(2 * _INCHES + 1.2, _INCHES + 0.9), layout="constrained")
    figure.suptitle(f"{name}, {form.name}, {title}", fontsize=11)
    panels = figure.subplots(1, 2)
    shown = np.concatenate([left[np.isfinite(left)], values.flatten()])
    bound = float(np.abs(shown).max()) or 1.0
    side = form.side
    count = form.deployed if isinstance(form, LinearSymmetry) else form.numel
    for panel, matrix, text in zip(
        panels, (left, values), (f"{count:,} parameters", f"{side}×{side}"), strict=True
    ):
        image = panel.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
        panel.set_title(text, fontsize=11)
        panel.set_facecolor("0.8")
        panel.tick_params(length=0, labelbottom=False, labelleft=False)
    figure.colorbar(image, ax=panels, shrink=0.8)
    return figure


def _symmetric_weights(model: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """The symmetric weights of a model by their names; each once, however often it is used."""
    for name, part in model.named_modules():
        if isinstance(part, ParametrizationList) and isinstance(part[0], SymmetricTensor):
            yield name.replace("parametrizations.", ""), part


def _slice(
    weight: ParametrizationList, point: Sequence[int] | None, group: int
) -> tuple[Symmetry, NDArray[Any], NDArray[Any], str]:
    """The form of a slice, its parameters if they stand alone, its matrix, and where it is."""
    tensor_form: Any = weight[0]
    original: Any = weight.original
    numbers: Tensor = original.detach()
    values: Tensor = tensor_form(numbers)  # not through later parametrizations
    if tensor_form.channel is None:
        form, kernel = tensor_form.space, values
        where = tuple(point) if point is not None else (0,) * (kernel.dim() - 2)
        _check_point(where, kernel.shape[:-2])
        title = f"channels {', '.join(map(str, where))}"
    else:
        form = tensor_form.channel
        if not 0 <= group < tensor_form.groups:
            raise ValueError(f"group should be from 0 to {tensor_form.groups - 1}, got: {group}")
        kernel = values.unflatten(0, (tensor_form.groups, -1))[group].movedim((0, 1), (-2, -1))
        where = tuple(point) if point is not None else tuple(n // 2 for n in kernel.shape[:-2])
        _check_point(where, kernel.shape[:-2])
        title = f"point {', '.join(map(str, where))}" if where else "the matrix"
        if tensor_form.groups > 1:
            title += f" of group {group}"
            numbers = numbers[group]
    matrix = kernel[where].double().cpu().numpy()
    if tensor_form.axes != "both":  # whose numbers belong to several points
        numbers = numbers[where]
    return form, numbers.double().cpu().numpy(), matrix, title


def _check_point(point: tuple[int, ...], shape: Sequence[int]) -> None:
    within = all(0 <= index < size for index, size in zip(point, shape, strict=False))
    if len(point) != len(shape) or not within:
        limits = ", ".join(str(size - 1) for size in shape)
        raise ValueError(f"point should be from 0 to ({limits}), got: {point}")


def _free(form: Symmetry, numbers: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """A matrix of the parameters, NaN where there is none."""
    side = form.side
    if isinstance(form, LinearSymmetry):
        free = np.full(side * side, np.nan)
        first = np.unique(form.orbits.orbit.array, return_index=True)[1]
        free[first] = values.flatten()[first]
    else:
        rows = -(-numbers.size // side)
        free = np.full(rows * side, np.nan)
        free[: numbers.size] = numbers
    return free.reshape(-1, side)
