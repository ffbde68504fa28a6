"""What all networks are, whatever their layers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from symrnn.hub import HubError, HubMixin


class Network(HubMixin, nn.Module):
    """Pictures (B, 3, h, w) -> logits (B, num_classes).

    name, num_classes, image_size, options: as :func:`symrnn.vision.create_model` made it.
    classes: of a trained one the names of its classes, in the order of the logits.
    mean, std: by which its pictures are normalised, of red, green and blue.
    """

    hub_kind = "image network"

    name: str
    num_classes: int
    image_size: int
    options: dict[str, Any]
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    # torch.jit.script would read the annotations, and knows no postponed ones.
    __jit_ignored_attributes__: ClassVar[list[str]] = [
        *("name", "num_classes", "image_size", "options"),
        *("classes", "mean", "std"),
    ]

    def configuration(self) -> dict[str, Any]:
        """How it is made, by the names that the configuration of a run has for it."""
        try:
            return {"model": self.name, "dropout": None, "image_size": None, **self.options}
        except AttributeError:
            raise HubError(
                f"a {type(self).__name__} that create_model did not make has no name, under which "
                "it could be made again"
            ) from None


class Chain(Network, nn.Sequential):
    """A network whose layers stand one after the other."""
