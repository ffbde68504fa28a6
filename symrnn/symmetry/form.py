"""What every symmetric form is: a vector of parameters on one side, N×N matrices on the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from symrnn.symmetry.folding import Folding


class Symmetry(nn.Module):
    """A symmetric form of N×N matrices with ``numel`` parameters, always one flat vector.

    A module without parameters: ``forward`` is :meth:`expand` and ``right_inverse`` is
    :meth:`project`, so that ``torch.nn.utils.parametrize.register_parametrization`` takes it as it
    is. Made by :func:`symrnn.get_symmetry`.

    name: as given to ``get_symmetry``.
    side: N.
    numel: the number of parameters.
    deployed: degrees of freedom of the expanded matrix; fewer where a form is over-complete.
    lr_scale: the factor that the learning rate of the parameters wants.
    adaptive_lr_scale: the same, of optimizers that divide a gradient by its usual size.
    own_transpose: whether every matrix of this form and side is its own transpose, entry by entry.
    folding: how to multiply by less than the whole matrix; None where nothing is saved.
    cost: multiplications of the folded product as a fraction of the N² of the whole one.
    """

    lr_scale: float = 1.0
    adaptive_lr_scale: float = 1.0
    own_transpose: bool = True

    def __init__(
        self, name: str, side: int, numel: int, deployed: int, folding: Folding | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.side = side
        self.numel = numel
        self.deployed = deployed
        self.folding = folding
        self.cost = 1.0 if folding is None else folding.cost(side)

    @abstractmethod
    def expand(self, v: Tensor) -> Tensor:
        """Parameters (..., numel) to matrices (..., N, N)."""

    @abstractmethod
    def project(self, w: Tensor) -> Tensor:
        """Matrices (..., N, N) to the parameters (..., numel) of the nearest of this form.

        Nearest in Frobenius norm.
        """

    @abstractmethod
    def initialize(self, v: Tensor, draw: Callable[[Tensor], Any]) -> None:
        """Fill v (..., numel) in place with starting values.

        draw: fills a tensor in place the way a plain layer draws its entries.
        """

    def matrices(self, v: Tensor) -> list[Tensor]:
        """The small matrices that v (..., numel) stands for when folded; see :class:`Folding`.

        Raises ValueError for a form that does not fold.
        """
        raise ValueError(f"{self.name} does not fold")

    def fold(self, x: Tensor, v: Tensor) -> Tensor:
        """x (..., N) times the transposed matrix of v (numel,): (..., N), ``x @ expand(v).T``.

        Without building the matrix, where ``folding`` says how; else by the expanded matrix.
        """
        if x.shape[-1:] != (self.side,):
            raise ValueError(f"x has shape {list(x.shape)}; {self.name} folds (..., {self.side})")
        if v.shape != (self.numel,):
            raise ValueError(f"v has shape {list(v.shape)}; {self.name} folds with ({self.numel},)")
        if self.folding is None:
            return x @ self.expand(v).mT
        inputs = self.folding.inputs(x, -1)
        outputs = [x @ m.mT for x, m in zip(inputs, self.matrices(v), strict=True)]
        return self.folding.outputs(outputs, self.side, -1)

    def spec(self) -> dict[str, Any]:
        """What makes this form again, as JSON knows it: its kind and its arguments."""
        return {"kind": "matrix", "symm": self.name, "side": self.side}

    def forward(self, v: Tensor) -> Tensor:
        return self.expand(v)

    def right_inverse(self, w: Tensor) -> Tensor:
        return self.project(w)

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.side}, numel={self.numel}"

    def _check_parameters(self, v: Tensor) -> None:
        if v.dim() < 1 or v.shape[-1] != self.numel:
            raise ValueError(
                f"v has shape {list(v.shape)}; {self.name} expands (..., {self.numel})"
            )

    def _check_matrix(self, w: Tensor) -> None:
        if w.dim() < 2 or w.shape[-2:] != (self.side, self.side):
            raise ValueError(
                f"w has shape {list(w.shape)}; {self.name} projects (..., {self.side}, {self.side})"
            )
