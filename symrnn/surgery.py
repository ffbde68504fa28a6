"""Working on whole models: how many parameters they have, while training and when deployed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from symrnn.rnn.keeping import GatedModule
from symrnn.symmetry import Symmetry


class ParameterCount(NamedTuple):
    """Numbers of a model, each counted once however often it is used.

    training: how many the optimizer changes.
    deployed: how many remain when each symmetric matrix is kept as one number per orbit; differs
        from ``training`` only for over-complete forms, such as ``avg:full``.
    recurrent: of the deployed ones, those in hidden-to-hidden weights.
    """

    training: int
    deployed: int
    recurrent: int


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of any module; symmetric forms are recognised wherever they stand.

    Parameters that do not require gradients count as the others do.

    >>> count_parameters(SymLSTM(200, 200, symm="avg"))
    ParameterCount(training=242000, deployed=242000, recurrent=80400)
    """
    spare = {id(numbers): _spare(numbers, form) for numbers, form in _symmetric(module)}
    training = deployed = recurrent = 0
    for name, parameter in module.named_parameters():
        count = parameter.numel() - spare.get(id(parameter), 0)
        training += parameter.numel()
        deployed += count
        # Any part: a parametrized one is called "parametrizations.weight_hh_l0.original".
        if any(part.startswith("weight_hh") for part in name.split(".")):
            recurrent += count
    return ParameterCount(training, deployed, recurrent)


def parameter_groups(module: nn.Module, lr: float) -> list[dict[str, Any]]:
    """The parameters in groups for an optimizer, with a smaller rate for raw orbit forms.

    The gradient of a raw number (``tri``, ``block``, ``chunk``) is the sum over its orbit, and a
    step moves every entry of it: gradient descent moves the matrix as many times as far as it does
    in orthonormal coordinates. Those groups get ``lr`` divided by the mean orbit size N²/numel;
    all others ``lr``. Each group names its factor as "lr_scale", for schedules that set "lr".

    >>> groups = parameter_groups(SymLSTM(8, 8, symm="block4"), lr=1.0)
    >>> [group["lr"] for group in groups]
    [1.0, 0.25]
    """
    scales = {id(numbers): form.lr_scale for numbers, form in _symmetric(module)}
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in module.parameters():
        groups.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "lr_scale": scale}
        for scale, parameters in groups.items()
        if parameters
    ]


def _spare(numbers: nn.Parameter, form: Symmetry) -> int:
    """How many of these free numbers the expanded matrices do not need."""
    return numbers.numel() // form.numel * (form.numel - form.deployed)


def _symmetric(module: nn.Module) -> Iterator[tuple[nn.Parameter, Symmetry]]:
    """Every parameter that holds free numbers, with its form."""
    for part in module.modules():
        if isinstance(part, GatedModule):
            for _, parameter, form in part.symmetric_parameters():
                yield parameter, form
        elif isinstance(part, ParametrizationList) and isinstance(part[0], Symmetry):
            assert isinstance(part.original, nn.Parameter)
            yield part.original, part[0]
