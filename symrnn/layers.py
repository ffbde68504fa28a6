"""Linear and convolutional layers that multiply by folded weights, and a linear one by packed ones.

``symrnn.symmetrize`` turns a plain layer into one of these and puts a
:class:`symrnn.symmetry.SymmetricTensor` on its weight. Whatever reads ``layer.weight`` gets the
whole weight; the layer itself folds its input over the channels where that is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from symrnn import native
from symrnn.rnn.call import as_leaf
from symrnn.rnn.fused.cache import Sources
from symrnn.rnn.fused.inference import threads_for
from symrnn.rnn.fused.packed import pack_matrix
from symrnn.rnn.fused.packing import library
from symrnn.rnn.fused.structure import Reader, structure_of_matrix
from symrnn.rnn.gates import GateLayout
from symrnn.rnn.packed import PackedModule, have_operators
from symrnn.rnn.weights import GateMatrix
from symrnn.symmetry import SymmetricTensor, Symmetry
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


# ---- packed --------------------------------------------------------------------------------------


class PackedLinear(PackedModule):
    """A symmetric ``nn.Linear`` with a packed weight, for inference on a CPU.

    linear: which it is made of, its weight of a form over the channels and float32 or float64.

    The buffer ``packed_weight`` is the vector of packed numbers; ``weight``, for those who look at
    the layer, is computed of it at every reading. Without gradients, as
    :class:`symrnn.rnn.packed.PackedLSTM`. Few vectors at a time are faster than by ``nn.Linear``
    where the weight is large; very many are slower.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        form, v = symmetric_weight(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        layout = GateLayout("weight", "w", "w", form.side, form.side, form.name)
        with torch.inference_mode(False):
            matrix = pack_matrix(GateMatrix(layout, form, v.view(1, -1), None), v.dtype)
            bias: Any = linear.bias
            others = {"bias": None if bias is None else bias.detach().clone()}
        self._hold(structure_of_matrix(matrix.plan), {"packed_weight": matrix.numbers}, others)
        self.eval()

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features), expanded."""
        like = self._some_weight()
        with torch.no_grad():
            product = self._multiply(torch.eye(self.in_features, dtype=like.dtype), None)
        return product.mT.contiguous()

    def forward(self, input: Any) -> Any:
        """input (..., in_features) -> (..., out_features)."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input)
        if input.dim() == 0 or input.size(-1) != self.in_features:
            raise RuntimeError(
                f"input should have shape (..., {self.in_features}), got: {tuple(input.shape)}"
            )
        (input,) = self._operands("input", [input])
        return self._multiply(input, self.bias)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not self._can_bypass([x]):
            have_operators()
            product: Tensor = torch.ops.symrnn.packed_linear(
                x, self.packed_weight, bias, self.structure, self.out_features
            )
            return product
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        rows = y.numel() // self.out_features
        matrix, entries = self._ready()
        status = library().symrnn_multiply(
            matrix, False, rows, x.data_ptr(), y.data_ptr(), 1, threads_for(entries, 1, rows)
        )
        native.check(status)
        return y if bias is None else y.add_(bias)

    def _ready(self) -> tuple[native.Product, int]:
        """The weight as the kernels take it, and how many numbers it has."""
        buffers = self._buffers.values()
        found = self._cache.get(buffers)
        if found is None:
            sources, reader = Sources(buffers), Reader(self.structure)
            numbers: Any = self.packed_weight
            product = reader.product(1, reader.next(), numbers)
            found = product, len(numbers), reader
            self._cache.put(found, sources)
        return found[:2]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, packed_dtype={self.packed_dtype}"
        )


def symmetric_weight(linear: nn.Linear) -> tuple[Symmetry, Tensor]:
    """The form of a linear layer's weight and its parameters; ValueError if it has none."""
    if is_parametrized(linear, "weight"):
        parametrized: Any = linear.parametrizations.weight  # type: ignore[union-attr]
        form, *others = parametrized
        if isinstance(form, SymmetricTensor) and form.axes == "channel":
            form = form.channel
        if isinstance(form, Symmetry) and not others:
            return form, parametrized.original.detach()
    raise ValueError(
        "linear should have a weight of a symmetric form, and no other parametrization"
    )


def can_be_packed(module: nn.Module) -> bool:
    """Whether a module is a linear layer that :class:`PackedLinear` takes."""
    if type_before_parametrizations(module) not in (nn.Linear, FoldedLinear):
        return False
    try:
        _, v = symmetric_weight(module)  # type: ignore[arg-type]
    except ValueError:
        return False
    return v.dtype in (torch.float32, torch.float64)
