"""Linear and convolutional layers that multiply by folded weights.

``symrnn.symmetrize`` turns a plain layer into one of these and puts a
:class:`symrnn.symmetry.SymmetricTensor` on its weight. Whatever reads ``layer.weight`` gets the
whole weight; the layer itself folds its input over the channels where that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from symrnn.symmetry import SymmetricTensor
from symrnn.symmetry.expanded import plain

PAYS = 2**15
"""From how many entries of the whole weight on folding is faster than expanding, on a CPU.

Between sizes measured in results/folding.md: smaller layers spend more on the few operations that
fold than they save, at nearly any number of vectors. On other devices nothing was measured, and
the whole weight is used.
"""


class FoldedLinear(nn.Linear):
    """``nn.Linear``, which folds its input if its weight is of a form that folds.

    fold: whether it does; None for where that is faster than expanding, from :data:`PAYS` on.
    """

    fold: bool | None = None

    def forward(self, input: Tensor) -> Tensor:
        form = _folding_form(self)
        if form is None:
            return F.linear(input, plain(self.weight), self.bias)
        return _folded(form, self, input, -1, F.linear)

    def reset_parameters(self) -> None:
        if not _draw(self):
            super().reset_parameters()


class _FoldedConv(nn.modules.conv._ConvNd):
    """What the three convolutions share; ``fold`` as in :class:`FoldedLinear`."""

    fold: bool | None = None

    def forward(self, input: Tensor) -> Tensor:
        spatial = len(self.kernel_size)
        if input.dim() not in (spatial + 1, spatial + 2):
            return super().forward(input)  # whose error it is
        form = _folding_form(self)
        if form is None:
            return self._conv_forward(input, plain(self.weight), self.bias)
        product = lambda x, w: self._conv_forward(x, w, None)  # noqa: E731
        return _folded(form, self, input, -1 - spatial, product)

    def reset_parameters(self) -> None:
        if not _draw(self):
            super().reset_parameters()


class FoldedConv1d(_FoldedConv, nn.Conv1d):
    """``nn.Conv1d``, which folds its input if its weight is of a form that folds."""


class FoldedConv2d(_FoldedConv, nn.Conv2d):
    """``nn.Conv2d``, which folds its input if its weight is of a form that folds."""


class FoldedConv3d(_FoldedConv, nn.Conv3d):
    """``nn.Conv3d``, which folds its input if its weight is of a form that folds."""


FOLDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FoldedLinear,
    nn.Conv1d: FoldedConv1d,
    nn.Conv2d: FoldedConv2d,
    nn.Conv3d: FoldedConv3d,
}
"""Each plain layer's counterpart that folds."""


def _folding_form(layer: FoldedLinear | _FoldedConv) -> SymmetricTensor | None:
    """The form to fold the layer's input by, or None if its whole weight is to be used."""
    if not is_parametrized(layer, "weight"):
        return None
    form, *others = layer.parametrizations.weight  # type: ignore[union-attr, misc]
    if others or not isinstance(form, SymmetricTensor) or form.folding is None:
        return None
    if layer.fold is not None:
        return form if layer.fold else None
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    return form if original.is_cpu and math.prod(form.shape) >= PAYS else None


def _draw(layer: FoldedLinear | _FoldedConv) -> bool:
    """Draw new starting values; False for a layer whose weight is plain.

    As PyTorch's layers do, uniform in ±1/√(numbers that go into an output), of the form's family:
    drawing the whole weight, as they do, would change a copy of it.
    """
    if not is_parametrized(layer, "weight"):
        return False
    form, *others = layer.parametrizations.weight  # type: ignore[union-attr, misc]
    if others or not isinstance(form, SymmetricTensor):
        return False
    bound = 1 / math.sqrt(max(math.prod(form.shape[1:]), 1))
    original: Any = layer.parametrizations.weight.original  # type: ignore[union-attr]
    form.initialize(original, lambda tensor: tensor.uniform_(-bound, bound))
    bias: Any = layer.bias
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)
    return True


def _folded(
    form: SymmetricTensor,
    layer: nn.Module,
    x: Tensor,
    dim: int,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The layer's output by folded products.

    dim: the channels' dimension, counted from the last.
    product: multiplies an input by a weight, without bias.
    """
    side, groups, folding = form.shape[1], form.groups, form.folding
    assert folding is not None
    if x.size(dim) != groups * side:
        raise RuntimeError(
            f"input has {x.size(dim)} channels in shape {list(x.shape)}; expected {groups * side}"
        )
    # Groups are folded each by itself: x (..., groups, side, ...).
    inputs = folding.inputs(x.unflatten(dim, (groups, side)), dim)
    weights = form.matrices(layer.parametrizations.weight.original)  # type: ignore[union-attr, arg-type]
    products = [
        product(part.flatten(dim - 1, dim), weight).unflatten(dim, (groups, -1))
        for part, weight in zip(inputs, weights, strict=True)
    ]
    output = folding.outputs(products, side, dim).flatten(dim - 1, dim)
    bias: Any = layer.bias
    if bias is None:
        return output
    # Of the product's type, which under autocast is not the bias's.
    return output + bias.view(-1, *[1] * (-1 - dim)).to(output.dtype)
