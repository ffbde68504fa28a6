"""The optimizers of torch.optim that --optimizer names, as a configuration sets them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from symrnn import parameter_groups
from symrnn.files import UserError


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a model's parameters, with the rates that symmetric forms want.

    Every symmetric matrix decays as it would in a plain layer (:func:`_with_decay`).

    Raises UserError for a number that the optimizer does not take.
    """
    name, decay = config["optimizer"], config["weight_decay"]
    betas = config["beta1"], config["beta2"]
    adaptive = name in ("adam", "adamw", "rmsprop")
    groups = parameter_groups(model, config["lr"], adaptive=adaptive)
    if decay:
        groups = _with_decay(groups, model, decay, decoupled=name == "adamw")
    common = {"lr": config["lr"], "weight_decay": decay}
    try:
        if name == "sgd":
            return torch.optim.SGD(groups, **common, momentum=config["momentum"])
        if name == "adam":
            return torch.optim.Adam(groups, **common, betas=betas, eps=config["epsilon"])
        if name == "adamw":
            return torch.optim.AdamW(groups, **common, betas=betas, eps=config["epsilon"])
        if name == "rmsprop":
            return torch.optim.RMSprop(
                groups, **common, alpha=config["beta2"], eps=config["epsilon"]
            )
        assert name == "asgd"
        # Its decay and its falling rate are left out: the configuration has its own of both.
        return torch.optim.ASGD(groups, **common, lambd=0.0)
    except ValueError as error:
        raise UserError(f"--optimizer {name}: {error}") from error


def _with_decay(
    groups: list[dict[str, Any]], model: nn.Module, decay: float, *, decoupled: bool
) -> list[dict[str, Any]]:
    """The groups, each with a "weight_decay" that makes of ``decay`` that of the matrix's entries.

    The gradient of λ/2·‖W‖² by a raw number is λ times the size of its orbit, one over the factor
    of its rate in gradient descent. A decoupled decay is undone by the factor of the rate itself.
    """
    descent = {
        parameter: group["lr_scale"]
        for group in parameter_groups(model, 1.0)
        for parameter in group["params"]
    }
    made = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            scale = group["lr_scale"] if decoupled else descent[parameter]
            parts.setdefault(decay / scale, []).append(parameter)
        made += [{**group, "params": params, "weight_decay": own} for own, params in parts.items()]
    return made
