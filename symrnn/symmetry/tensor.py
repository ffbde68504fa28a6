"""A weight tensor symmetric over its channels, its kernel's space, or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symrnn.symmetry import onnx
from symrnn.symmetry.expanded import read_only
from symrnn.symmetry.folding import Folding
from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.linear import LinearSymmetry
from symrnn.symmetry.registry import get_symmetry, numel_of

AXES = ("channel", "space", "both")


class SymmetricTensor(nn.Module):
    r"""A form of weights (O, I, \*kernel), as ``nn.Linear`` and ``nn.Conv1d`` to ``3d`` have them.

    A parametrization, as :class:`Symmetry` is one for a square matrix: ``forward`` makes the
    weight of the parameters, ``right_inverse`` gives those of the nearest weight.

    symm: a name of :func:`symrnn.list_symmetries`.
    shape: of the weight.
    axes: "channel": the matrix of axes 0 and 1 at each point of the kernel; "space": the last two
        axes, for each pair of channels; "both": one after the other.
    groups: into how many square blocks axis 0 falls, each symmetric by itself. The groups of a
        convolution, or the matrices of a stacked weight, such as query, key and value.

    The parameters are (groups, \*kernel, numel) over channels, without ``groups`` if it is 1;
    (O, I, \*kernel, numel) over space, with the kernel's last two axes gone; and for both
    (groups, \*kernel, numel of space, numel of channels).

    Raises ValueError if the chosen axes are not square, and for both axes of a form that is not
    linear.
    """

    channel: Symmetry | None
    space: Symmetry | None

    def __init__(
        self, symm: str, shape: Sequence[int], axes: str = "channel", groups: int = 1
    ) -> None:
        super().__init__()
        check_axes(axes)
        self.symm = symm
        self.shape = tuple(shape)
        self.axes = axes
        self.groups = groups
        sides = square_sides(self.shape, axes, groups)
        self.channel = None if axes == "space" else get_symmetry(symm, sides[0])
        self.space = None if axes == "channel" else get_symmetry(symm, sides[-1])
        if axes == "both" and not isinstance(self.channel, LinearSymmetry):
            raise ValueError(f'axes="both" wants a linear form, got: {symm!r}')

    def forward(self, v: Tensor) -> Tensor:
        """The weight, as those read it who look at the layer: not to be changed in place.

        In evaluation without gradients it is a plain tensor, for the layers of PyTorch whose fast
        path takes no other, such as ``nn.TransformerEncoderLayer``.
        """
        weight = self.expand(v)
        if not self.training and not torch.is_grad_enabled():
            return weight
        return read_only(weight, self._ways)

    @property
    def _ways(self) -> str:
        return (
            f"a weight of form {self.symm!r} is computed from its parameters at every reading. "
            "Assign it, layer.weight = tensor, and the nearest one of the form is taken, or draw "
            "with layer.reset_parameters()"
        )

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "torch.jit.script takes no parametrized weights: script a copy with plain ones, "
            "symrnn.unsymmetrize(copy) or symrnn.vision.fold_for_inference(model); "
            "torch.jit.trace and torch.export take the model as it is"
        )

    def expand(self, v: Tensor) -> Tensor:
        """The parameters to the weight."""
        onnx.notice()
        channel = self.channel
        if channel is None:
            assert self.space is not None
            return self.space.expand(v)
        return self._weights(v, lambda u: [channel.expand(u)])[0]

    def right_inverse(self, w: Tensor) -> Tensor:
        if w.shape != self.shape:
            raise ValueError(f"w has shape {tuple(w.shape)}; this form has {self.shape}")
        if self.channel is not None:
            w = w.unflatten(0, (self.groups, -1))
        if self.space is not None:
            w = self.space.project(w)
        if self.channel is not None:
            w = self.channel.project(w.movedim((1, 2), (-2, -1)))
            w = w.squeeze(0) if self.groups == 1 else w
        return w.contiguous()

    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Fill the parameters v in place with starting values.

        draw: fills a tensor in place the way a plain layer draws its entries.
        """
        form = self.channel or self.space
        assert form is not None
        if self.axes != "both":
            form.initialize(v, draw)
        elif self.lr_scale != 1:  # raw: each parameter is an entry
            with torch.no_grad():
                draw(v)
        else:
            with torch.no_grad():
                full = v.new_empty(self.shape)
                draw(full)
                v.copy_(self.right_inverse(full))

    def matrices(self, v: Tensor) -> list[Tensor]:
        r"""The small weights (groups·r, c, \*kernel) that v stands for when channels are folded.

        Raises ValueError for a form that does not fold, or not over channels.
        """
        if self.channel is None:
            raise ValueError(f"{self.symm} over space alone does not fold")
        onnx.notice()
        return self._weights(v, self.channel.matrices)

    def _weights(self, v: Tensor, make: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        r"""The weights (groups·r, c, \*kernel) of the matrices (..., r, c) that ``make`` makes."""
        weights = []
        for w in make(v.unsqueeze(0) if self.groups == 1 else v):
            if self.space is not None:
                w = self.space.expand(w.movedim(-3, -1)).movedim((-4, -3), (1, 2))
            else:
                w = w.movedim((-2, -1), (1, 2))
            weights.append(w.flatten(0, 1).contiguous())
        return weights

    @property
    def folding(self) -> Folding | None:
        """The channels' :class:`Folding`, or None; of one channel there is nothing to fold."""
        return self.channel.folding if self.channel is not None and self.channel.side > 1 else None

    @property
    def numel(self) -> int:
        """The number of parameters."""
        return self._count("numel")

    @property
    def deployed(self) -> int:
        """Degrees of freedom of the weight."""
        return self._count("deployed")

    @property
    def lr_scale(self) -> float:
        """The factor that the learning rate of the parameters wants."""
        return math.prod(form.lr_scale for form in (self.channel, self.space) if form is not None)

    @property
    def adaptive_lr_scale(self) -> float:
        """The same, of optimizers that divide a gradient by its usual size."""
        forms = (form for form in (self.channel, self.space) if form is not None)
        return math.prod(form.adaptive_lr_scale for form in forms)

    def _count(self, which: str) -> int:
        count = math.prod(self.shape)
        for form in (self.channel, self.space):
            if form is not None:
                count = count // form.side**2 * int(getattr(form, which))
        return count

    def spec(self) -> dict[str, Any]:
        """What makes this form again, as JSON knows it: its kind and its arguments."""
        return {
            "kind": "tensor",
            "symm": self.symm,
            "shape": list(self.shape),
            "axes": self.axes,
            "groups": self.groups,
        }

    def extra_repr(self) -> str:
        groups = "" if self.groups == 1 else f", groups={self.groups}"
        return f"{self.symm!r}, {list(self.shape)}, axes={self.axes!r}{groups}, numel={self.numel}"


def check_axes(axes: str) -> None:
    """Raise ValueError unless ``axes`` is one of :data:`AXES`."""
    if axes not in AXES:
        raise ValueError(f"axes should be one of {', '.join(AXES)}, got: {axes!r}")


def square_sides(shape: Sequence[int], axes: str, groups: int = 1) -> list[int]:
    """The sides of the square matrices that ``axes`` chooses of a weight, channels first.

    Raises ValueError, which names the shape, if there are none or they are not square.
    """
    sides = []
    if axes != "space":
        out, into = (*shape, 0, 0)[:2]
        if len(shape) < 2 or groups < 1 or out != groups * into or into == 0:
            of = f" in {groups} groups" if groups != 1 else ""
            raise ValueError(f"shape {list(shape)}{of} has no square matrices of channels")
        sides.append(into)
    if axes != "channel":
        if len(shape) < 4 or shape[-1] != shape[-2] or shape[-1] == 0:
            raise ValueError(f"shape {list(shape)} has no square kernel")
        sides.append(shape[-1])
    return sides


def parameter_shape(
    symm: str, shape: Sequence[int], axes: str = "channel", groups: int = 1
) -> tuple[int, ...]:
    """The shape of the parameters of a :class:`SymmetricTensor` with these arguments.

    Without making it. Raises ValueError if the chosen axes are not square.
    """
    numels = [numel_of(symm, side) for side in square_sides(shape, axes, groups)]
    kernel = shape[2:] if axes == "channel" else shape[2:-2]
    channels = shape[:2] if axes == "space" else [groups] if groups > 1 else []
    return (*channels, *kernel, *reversed(numels))
