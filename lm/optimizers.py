"""The optimizers of torch.optim that --optimizer names, as a configuration sets them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from symrnn import parameter_groups
from symrnn.files import UserError


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a model's parameters, with the rates that symmetric forms want.

    Raises UserError for a number that the optimizer does not take.
    """
    name, decay = config["optimizer"], config["weight_decay"]
    betas = config["beta1"], config["beta2"]
    adaptive = name in ("adam", "adamw", "rmsprop")
    groups = parameter_groups(model, config["lr"], adaptive=adaptive)
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
        return torch.optim.ASGD(groups, **common)
    except ValueError as error:
        raise UserError(f"--optimizer {name}: {error}") from error
