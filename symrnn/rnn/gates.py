"""The weight matrix of a recurrent layer, some of whose gates are symmetric.

PyTorch stacks the gates of a layer into one matrix: ``weight_hh_l0`` of an LSTM is (4·H, H), the
blocks of i, f, g and o above one another. A :class:`GateMatrix` says how such a matrix is kept
when the blocks of some gates are symmetric, and builds it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from symrnn.symmetry import Symmetry


class GateMatrix:
    """How a module keeps one stacked gate matrix among its parameters.

    Without symmetric gates that is the parameter ``name`` itself, as in PyTorch. With them it is
    ``name_FORM`` (S, numel), the free numbers of the S symmetric gates in the layer's order, where
    FORM is the symmetry's name (so that numbers of one form are never read as another's), and, if
    S < G, ``name_rest`` ((G-S)·H, C), the blocks of the other gates.

    name: PyTorch's name of the matrix, such as "weight_hh_l0".
    gates: all gates of the layer in PyTorch's order, such as "ifgo" (G letters).
    symmetric: those of them whose blocks are symmetric.
    rows, columns: the shape H, C of one block; square where ``symmetric`` is not empty.
    """

    def __init__(
        self, name: str, gates: str, symmetric: str, rows: int, columns: int, symmetry: str
    ) -> None:
        self.name = name
        self.gates = gates
        self.rows = rows
        self.columns = columns
        self.symmetric = "".join(gate for gate in gates if gate in symmetric)
        self.rest = "".join(gate for gate in gates if gate not in symmetric)
        form = symmetry.replace(":", "_")
        self.free_name = f"{name}_{form}" if self.symmetric else None
        self.rest_name = (f"{name}_rest" if self.symmetric else name) if self.rest else None

    def register(self, owner: nn.Module, symmetry: Symmetry | None, **factory: Any) -> None:
        """Give ``owner`` the parameters of this matrix, empty."""
        if self.free_name:
            assert symmetry is not None
            free = torch.empty(len(self.symmetric), symmetry.numel, **factory)
            owner.register_parameter(self.free_name, Parameter(free))
        if self.rest_name:
            rest = torch.empty(len(self.rest) * self.rows, self.columns, **factory)
            owner.register_parameter(self.rest_name, Parameter(rest))

    def kept_names(self) -> list[str]:
        """The names of the parameters that it is kept as."""
        return [name for name in (self.free_name, self.rest_name) if name is not None]

    def free(self, owner: nn.Module) -> Parameter | None:
        """The free numbers (S, numel) of the symmetric gates."""
        return getattr(owner, self.free_name) if self.free_name else None

    def plain(self, owner: nn.Module) -> Parameter | None:
        """The blocks ((G-S)·H, C) of the other gates."""
        return getattr(owner, self.rest_name) if self.rest_name else None

    def assemble(self, owner: nn.Module, symmetry: Symmetry | None) -> Tensor:
        """The stacked matrix (G·H, C); contiguous, and differentiable to the parameters."""
        return self.build(self.free(owner), self.plain(owner), symmetry)

    def build(self, free: Tensor | None, rest: Tensor | None, symmetry: Symmetry | None) -> Tensor:
        """As :meth:`assemble`, from numbers that no module holds."""
        if free is None:
            assert rest is not None
            return rest
        assert symmetry is not None
        expanded = symmetry.expand(free)
        if rest is None:
            return expanded.view(-1, self.columns)
        return self._interleave(expanded, rest.view(-1, self.rows, self.columns))

    def _interleave(self, expanded: Tensor, rest: Tensor) -> Tensor:
        blocks = dict(zip(self.symmetric, expanded.unbind(), strict=True))
        blocks.update(zip(self.rest, rest.unbind(), strict=True))
        return torch.cat([blocks[gate] for gate in self.gates])

    def assign(self, owner: nn.Module, symmetry: Symmetry | None, w: Tensor) -> None:
        """Set the parameters from a stacked matrix w (G·H, C), symmetric gates to the nearest."""
        expected = (len(self.gates) * self.rows, self.columns)
        if w.shape != expected:
            raise ValueError(f"{self.name} should have shape {expected}, got: {tuple(w.shape)}")
        blocks = dict(zip(self.gates, w.detach().split(self.rows), strict=True))
        free, rest = self.free(owner), self.plain(owner)
        with torch.no_grad():
            if free is not None:
                assert symmetry is not None
                # Orbit means are taken in the precision of w, then rounded once.
                free.copy_(symmetry.project(torch.stack([blocks[g] for g in self.symmetric])))
            if rest is not None:
                rest.copy_(torch.cat([blocks[g] for g in self.rest]))

    def initialize(
        self, owner: nn.Module, symmetry: Symmetry | None, draw: Callable[[Tensor], Any]
    ) -> None:
        """Starting values: ``draw`` fills a tensor as a plain layer's entries are drawn."""
        free, rest = self.free(owner), self.plain(owner)
        if free is not None:
            assert symmetry is not None
            symmetry.initialize(free, draw)
        if rest is not None:
            draw(rest)

    def explain(self, key: str, shape: tuple[int, ...]) -> str | None:
        """Why a state_dict's ``key`` of ``shape`` doesn't fit this matrix; None if it does."""
        if key in (self.free_name, self.rest_name):
            return None
        kept = " and ".join(self.kept_names())
        return f"{key!r} of shape {shape} does not fit: this layer keeps {self.name} as {kept}"


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
