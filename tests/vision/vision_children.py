"""What child processes of the tests do; these import it by name."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from worlds import begin

from symrnn.training import World
from symrnn.vision.batch_norm import running_statistics, synchronize_batch_norm


def joint_batch_norm(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Three steps of a batch norm in a small model, in float64, on a half of each joint batch.

    Saves to the file of the second argument what the first process has then.
    """
    begin(environment, output)
    _, path, kind = arguments
    with World() as world:
        model, pictures, labels = small_model()
        if kind == "joint":
            synchronize_batch_norm(model)
        called = world.parallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        half = slice(4 * world.rank, 4 * world.rank + 4)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(called(pictures[half]), labels[half])
            loss.backward()
            optimizer.step()
            world.average_(running_statistics(model))
            losses.append(world.sum([loss.item() / 2])[0])
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        means = world.gather(running_statistics(model)[0].tolist())
        assert means[0] == means[1]
        if world.first:
            save_file({"losses": torch.tensor(losses).double(), **state}, path)


def small_model() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model with a batch norm, 8 pictures and their labels."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    pictures = 3 + torch.randn(8, 3, 6, 6, dtype=torch.float64).cumsum(0)
    return model.double(), pictures, torch.arange(8) % 3
