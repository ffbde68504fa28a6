"""What all networks are, whatever their layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from symrnn.card import Card
from symrnn.hub import HubError, HubMixin
from symrnn.storage import Packed


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

    # What stores a network imports this module: it is imported when it is asked.

    def _write_packed(self, path: Path) -> None:
        from symrnn.vision.saved import save_best

        trained = {"classes": self.classes, "mean": self.mean, "std": self.std}
        known = {name: value for name, value in trained.items() if value is not None}
        save_best(path, self, self.configuration(), **known)

    @classmethod
    def _of_packed(cls, packed: Packed) -> Network:
        from symrnn.vision.saved import model_of

        return model_of(packed)

    def _card(self, title: str) -> Card:
        from symrnn.vision.card import card_of

        return card_of(self, self.configuration(), title)


class Chain(Network, nn.Sequential):
    """A network whose layers stand one after the other."""
