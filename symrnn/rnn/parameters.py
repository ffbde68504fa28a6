"""The parameters of a recurrent module by name, where a symmetric matrix is none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch.nn import Parameter

from symrnn.rnn.gates import GateLayout


class Parameters(dict[str, Parameter | None]):
    """A module's ``_parameters``, which says of a symmetric matrix what it is stored as.

    Weight norm, spectral norm, pruning and weight drop take a parameter out of this dict by its
    name, and put another tensor in its place. A symmetric matrix is no parameter: what they can
    take is what it is computed from.
    """

    symmetric: Mapping[str, GateLayout] = {}
    """The symmetric matrices by name. (Empty while a pickle is read.)"""

    def __contains__(self, name: object) -> bool:
        self._check(name)
        return super().__contains__(name)

    def __missing__(self, name: str) -> NoReturn:
        self._check(name)
        raise KeyError(name)

    def __setitem__(self, name: str, value: Parameter | None) -> None:
        self._check(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self._check(name)
        super().__delitem__(name)

    def _check(self, name: Any) -> None:
        if name in self.symmetric:
            raise ValueError(self.symmetric[name].no_parameter)
