"""How one stacked gate matrix is stored, some of whose gates are symmetric.

PyTorch stacks the gates of a layer into one matrix: ``weight_hh_l0`` of an LSTM is (4·H, H), the
blocks of i, f, g and o above one another. A :class:`GateLayout` says which parameters such a matrix
is stored as when the blocks of some gates are symmetric; :class:`symrnn.rnn.weights.GateMatrix`
holds their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from symrnn.symmetry import Symmetry, is_symmetry_name, numel_of


@dataclass(frozen=True)
class GateLayout:
    """Which parameters one stacked gate matrix is stored as.

    Without symmetric gates that is the parameter ``name`` itself, as in PyTorch. With them it is
    ``name_FORM`` (S, numel), the parameters of the S symmetric gates in the layer's order, where
    FORM is the symmetry's name (so that parameters of one form are never read as another's), and,
    if S < G, ``name_rest`` ((G-S)·H, C), the blocks of the other gates.

    name: PyTorch's name of the matrix, such as "weight_hh_l0".
    gates: all gates of the layer in PyTorch's order, such as "ifgo" (G letters).
    symmetric: those of them whose blocks are symmetric, in the same order.
    rows, columns: the shape H, C of one block; square where ``symmetric`` is not empty.
    form: the name of the symmetry.
    """

    name: str
    gates: str
    symmetric: str
    rows: int
    columns: int
    form: str

    @property
    def rest(self) -> str:
        """The gates that are not symmetric, in the layer's order."""
        return "".join(gate for gate in self.gates if gate not in self.symmetric)

    @property
    def symmetric_name(self) -> str | None:
        """The name of the parameter (S, numel) of the symmetric gates."""
        return f"{self.name}_{self.form.replace(':', '_')}" if self.symmetric else None

    @property
    def rest_name(self) -> str | None:
        """The name of the parameter ((G-S)·H, C) of the other gates."""
        if not self.rest:
            return None
        return f"{self.name}_rest" if self.symmetric else self.name

    @property
    def parameter_names(self) -> list[str]:
        """The names of the parameters that the matrix is stored as."""
        return [name for name in (self.symmetric_name, self.rest_name) if name is not None]

    @property
    def ways(self) -> str:
        """How a matrix with symmetric gates is stored, and how to change it."""
        return (
            f"{self.name} is computed from {' and '.join(self.parameter_names)} at every reading. "
            f"Assign it, module.{self.name} = tensor, and the nearest symmetric one is taken, or "
            "draw with module.reset_parameters(draw)"
        )

    @property
    def no_parameter(self) -> str:
        """What is said to those who take a matrix with symmetric gates for a parameter."""
        names = " or ".join(self.parameter_names)
        return (
            f"{self.name} is symmetric, and no parameter: name {names}, of which it is computed "
            "and which can be normalised, pruned or dropped; the matrix stays symmetric"
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of these parameters by name."""
        made: dict[str, tuple[int, ...]] = {}
        if self.symmetric_name is not None:
            made[self.symmetric_name] = (len(self.symmetric), numel_of(self.form, self.rows))
        if self.rest_name is not None:
            made[self.rest_name] = (len(self.rest) * self.rows, self.columns)
        return made

    def empty(self, **factory: Any) -> dict[str, Tensor]:
        """These parameters by name, uninitialized."""
        return {name: torch.empty(shape, **factory) for name, shape in self.shapes.items()}

    def nearest(self, w: Tensor, symmetry: Symmetry | None) -> dict[str, Tensor]:
        """The parameters by name of a stacked matrix w (G·H, C), symmetric gates the nearest.

        Orbit means are taken in the precision of w.
        """
        expected = (len(self.gates) * self.rows, self.columns)
        if w.shape != expected:
            raise ValueError(f"{self.name} should have shape {expected}, got: {tuple(w.shape)}")
        blocks = dict(zip(self.gates, w.detach().split(self.rows), strict=True))
        found = {}
        if self.symmetric_name is not None:
            assert symmetry is not None
            stacked = torch.stack([blocks[gate] for gate in self.symmetric])
            found[self.symmetric_name] = symmetry.project(stacked)
        if self.rest_name is not None:
            found[self.rest_name] = torch.cat([blocks[gate] for gate in self.rest])
        return found

    def initialize(
        self,
        parameters: dict[str, Tensor],
        symmetry: Symmetry | None,
        draw: Callable[[Tensor], Any],
    ) -> None:
        """Starting values: ``draw`` fills a tensor as a plain layer's entries are drawn."""
        if self.symmetric_name is not None:
            assert symmetry is not None
            symmetry.initialize(parameters[self.symmetric_name], draw)
        if self.rest_name is not None:
            draw(parameters[self.rest_name])

    def spec(self) -> dict[str, Any]:
        """What makes this form of a square matrix again, as JSON knows it."""
        return {
            "kind": "gates",
            "symm": self.form,
            "side": self.rows,
            "gates": self.gates,
            "symmetric": self.symmetric,
        }

    def explain(self, key: str, shape: tuple[int, ...]) -> str | None:
        """Why a state_dict's ``key`` of ``shape`` does not fit this matrix.

        None if it does, and if it is nothing of ours: what pruning, weight norm and the like make
        of a weight is called ``name_orig``, ``name_g``, ``name_mask``.
        """
        if key == self.name:
            fits = not self.symmetric
        else:
            stored = self._stored_in(key)
            fits = stored is None or stored in self.parameter_names
        if fits:
            return None
        names = " and ".join(self.parameter_names)
        return f"{key!r} of shape {shape} does not fit: this layer stores {self.name} as {names}"

    def _stored_in(self, key: str) -> str | None:
        """The parameter that ``key`` names or is made of, in whichever form; None if none."""
        words = key.removeprefix(f"{self.name}_").split("_")
        for count in range(len(words), 0, -1):  # "avg_full" is not "avg"
            ending = "_".join(words[:count])
            if ending == "rest" or is_symmetry_name(ending.replace("_", ":")):
                return f"{self.name}_{ending}"
        return None


def check_gates(argument: str, value: str, gates: str) -> str:
    """``value`` in the order of ``gates``; ValueError if it names others, or one twice."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} should be of type str, got: {type(value).__name__}")
    if len(set(value)) != len(value) or not set(value) <= set(gates):
        raise ValueError(
            f"{argument} should name gates of {gates!r}, each at most once "
            f'("" for none), got: {value!r}'
        )
    return "".join(gate for gate in gates if gate in value)
