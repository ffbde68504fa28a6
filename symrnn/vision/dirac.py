"""Convolutions of Dirac weights: an identity and a normalised weight, mixed channel by channel.

*DiracNets* (Zagoruyko & Komodakis, arXiv 1706.00388, second version) train deep plain networks with
them, without skip connections.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from symrnn.deployment import MAKE_PLAIN
from symrnn.symmetry import SymmetricTensor

_STARTS = {"a": 1.0, "b": 0.1}  # as the authors' code has them


class DiracConv2d(nn.Conv2d):
    r"""A convolution by Ŵ = diag(a)·I + diag(b)·W/‖W‖, with W, a and b trained.

    ‖W‖ is the Frobenius norm of each output channel's filter (I/groups, h, w) by itself, so that
    the length of W does not matter, as in weight normalization. I (O, I/groups, h, w) is the
    kernel that copies, in each group, input channel o to output channel o, with a one in the
    kernel's centre; output channels beyond the input's have none (``nn.init.dirac_``). It leaves
    the picture as it is where stride is 1 and the padding keeps the size.

    Arguments, shapes and errors as of ``nn.Conv2d``.

    weight: W (O, I/groups, h, w), before any normalization.
    a, b: (O,), 1 and 0.1 at the start. They and what else :func:`no_decay` names get no decay.

    **With symmetry.** ``weight`` is a parameter as any other: ``symrnn.symmetrize``, ``harden`` and
    the soft penalty find it and make W symmetric. (Were the Dirac form a parametrization of the
    weight, they would refuse it as parametrized already, and a penalty would see Ŵ.) The symmetry
    goes first, the Dirac form on top: Ŵ is a diagonal matrix at the kernel's centre plus W with
    each row multiplied by a number of its own, b/‖W‖. So Ŵ itself is symmetric only up to one
    factor per output channel, just as a batch norm leaves the weight of any convolution before it;
    what is trained and stored are the parameters of W, and a and b. I is a member of ``tri``,
    ``avg``, ``tri4`` and ``avg4``, whose transpositions leave the diagonal where it is, but not of
    forms with mirrors or translations: there the sum has W's form off the diagonals alone.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, value in _STARTS.items():
            start = self.weight.new_full((self.out_channels,), value)
            self.register_parameter(name, nn.Parameter(start))

    def reset_parameters(self) -> None:
        """Draw W from a normal distribution of variance 2 over its inputs; a and b as they start.

        Of a symmetric W the parameters are drawn, as its form draws them.
        """
        deviation = math.sqrt(2 / max(math.prod(self.weight.shape[1:]), 1))

        def draw(tensor: Tensor) -> Tensor:
            return tensor.normal_(0, deviation)

        with torch.no_grad():
            if is_parametrized(self, "weight"):
                forms: Any = self.parametrizations.weight  # type: ignore[union-attr]
                if len(forms) > 1 or not isinstance(forms[0], SymmetricTensor):
                    raise ValueError("weight has a parametrization that cannot be drawn anew")
                forms[0].initialize(forms.original, draw)
            else:
                draw(self.weight)
            if self.bias is not None:
                self.bias.zero_()
            for name, value in _STARTS.items():
                if name in self._parameters:  # not yet when nn.Conv2d draws the first weights
                    self._parameters[name].fill_(value)  # type: ignore[union-attr]

    def dirac_weight(self) -> Tensor:
        """Ŵ (O, I/groups, h, w), by which the layer convolves; differentiable."""
        weight: Tensor = self.weight
        a, b = self._parameters["a"], self._parameters["b"]
        assert a is not None
        assert b is not None
        # As F.normalize has it; half precision knows no such small number, and would divide by 0.
        least = max(1e-12, torch.finfo(weight.dtype).tiny)
        norm = torch.linalg.vector_norm(weight.flatten(1), dim=1).clamp_min(least)
        mixed = weight * (b / norm).view(-1, 1, 1, 1)
        # Added on the diagonal alone: I as a tensor would be as large as the weight.
        height, width = self.kernel_size
        centre = mixed.unflatten(0, (self.groups, -1))[..., height // 2, width // 2]
        diagonal = centre.diagonal(dim1=1, dim2=2)
        diagonal += a.view(self.groups, -1)[:, : diagonal.size(1)]
        return mixed

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.dirac_weight(), self.bias)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "torch.jit.script takes no Dirac convolutions: script "
            "symrnn.vision.fold_for_inference(model), which has plain ones"
        )


def _make_plain(part: DiracConv2d) -> None:
    """Turn a Dirac convolution into a plain one with the weight that it convolves by, in place."""
    part.weight = nn.Parameter(part.dirac_weight().detach(), part.weight.requires_grad)
    del part.a, part.b
    part.__class__ = nn.Conv2d  # type: ignore[assignment]


MAKE_PLAIN[DiracConv2d] = _make_plain


def no_decay(model: nn.Module) -> set[int]:
    """The ids of the parameters that get no weight decay, for an optimizer's groups.

    As in the authors' code: of a model with Dirac convolutions a and b, which decay would pull
    towards 0, and every other vector: the biases and all of batch norm. Of a model without any,
    none. Parameters of a symmetric weight decay, whatever their shape.

    >>> from symrnn.vision.models.diracnet import diracnet
    >>> model = diracnet(10, 1, 10)
    >>> sum(p.numel() for p in model.parameters() if id(p) in no_decay(model))
    938
    """
    if not any(isinstance(part, DiracConv2d) for part in model.modules()):
        return set()
    return {
        id(parameter)
        for part in model.modules()
        if not isinstance(part, ParametrizationList)
        for parameter in part._parameters.values()
        if parameter is not None and parameter.dim() == 1
    }
