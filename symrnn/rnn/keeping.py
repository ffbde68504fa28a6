"""A module that keeps the gate matrices of a recurrent layer, symmetric or not.

What the layers and the cells share: PyTorch's weights by PyTorch's names, starting values, reading
and assigning a symmetric matrix by its name, and the errors of a state_dict that doesn't fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from symrnn.rnn.backends import check_backend, fused_pays
from symrnn.rnn.folded import FoldedWeights
from symrnn.rnn.fused import FusedWeights, check_fused
from symrnn.rnn.gates import GateMatrix, check_gates
from symrnn.rnn.prepared import Cache
from symrnn.rnn.stack import LayerWeights, State
from symrnn.rnn.vendor import FreeMatrix
from symrnn.symmetry import Symmetry, check_symmetry_name, get_symmetry
from symrnn.symmetry.linear import OrbitCoordinates

Made = TypeVar("Made", bound="GatedModule")


class GatedModule(nn.Module):
    """Base of the recurrent modules; a subclass calls :meth:`_keep` once its sizes are set."""

    PLAIN: ClassVar[Any]
    """PyTorch's class, for which this one stands in."""

    GATES: ClassVar[str]
    """PyTorch's order of the gates, by letter."""

    STATES: ClassVar[str] = "h"
    """What a step hands to the next, by letter; "hc" for an LSTM."""

    ARGUMENTS: ClassVar[tuple[str, ...]]
    """What is handed on from and to PyTorch's class; each is an attribute too."""

    mode: str
    backend: str
    input_size: int
    hidden_size: int
    proj_size: int = 0
    symmetry: Symmetry | None
    _inference_dtype: torch.dtype | None = None

    def _keep(
        self, plain: nn.Module, symm: str, symm_hh: str, symm_ih: str, **factory: Any
    ) -> None:
        """Register the weights of ``plain`` (on any device), with symmetric gates as asked for.

        Checks ``self.backend`` against them.
        """
        check_symmetry_name("symm", symm, "none")
        symm_hh = check_gates("symm_hh", symm_hh, self.GATES)
        symm_ih = check_gates("symm_ih", symm_ih, self.GATES)
        if symm == "none":
            symm_hh = symm_ih = ""
        self._cache = Cache()
        self.symm = symm
        self.symm_hh = symm_hh
        self.symm_ih = symm_ih
        self.symmetry = None
        if symm_hh or symm_ih:
            self.symmetry = get_symmetry(symm, self.hidden_size).to(device=factory["device"])
        # PyTorch's names in PyTorch's order, and how those that are gate matrices are kept.
        self._weight_names = [name for name, _ in plain.named_parameters()]
        self._matrices: dict[str, GateMatrix] = {}
        for name, like in plain.named_parameters():
            if name.startswith(("weight_hh", "weight_ih")):
                symmetric = symm_hh if name.startswith("weight_hh") else symm_ih
                self._check_square(name, like.size(1), symmetric)
                matrix = GateMatrix(
                    name, self.GATES, symmetric, self.hidden_size, like.size(1), symm
                )
                self._matrices[name] = matrix
                matrix.register(self, self.symmetry, **factory)
            else:
                self.register_parameter(name, Parameter(torch.empty(like.shape, **factory)))
        self._check_backend()

    def _check_square(self, name: str, columns: int, symmetric: str) -> None:
        if not symmetric or columns == self.hidden_size:
            return
        size = f"blocks of {self.hidden_size}×{columns}, which are not square"
        if name.startswith("weight_hh"):
            raise ValueError(
                f"proj_size={columns} gives {name} {size}, so they cannot be symmetric: "
                f'use symm_hh="" (got {symmetric!r}) or proj_size=0'
            )
        raise ValueError(
            f"symm_ih={symmetric!r} wants square input weights, but {name} has {size}: "
            'use symm_ih="", or input_size = hidden_size without a second direction below'
        )

    def reset_parameters(self, draw: Callable[[Tensor], Any] | None = None) -> None:
        """Draw new starting values.

        draw: fills a tensor in place with the values of a plain layer's entries; by default
            uniform in ±1/√hidden_size, as PyTorch does. Forms of the ``avg`` family draw a full
            matrix so and take its mean, as the paper does.
        """
        bound = 1.0 / math.sqrt(self.hidden_size)
        fill = draw or (lambda tensor: tensor.uniform_(-bound, bound))
        with torch.no_grad():
            for name in self._weight_names:
                if name in self._matrices:
                    self._matrices[name].initialize(self, self.symmetry, fill)
                else:
                    fill(getattr(self, name))

    def _weight(self, name: str) -> Any:
        """The expanded weight of PyTorch's ``name``, or None if the layer has none."""
        matrix = self._matrices.get(name)
        if matrix is not None:
            return matrix.assemble(self, self.symmetry)
        return getattr(self, name) if name in self._weight_names else None

    def _layer_weights(self, suffix: str) -> LayerWeights:
        """The expanded weights of one layer and direction, such as "_l1_reverse"."""
        stems = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return LayerWeights(*(self._weight(stem + suffix) for stem in stems))

    def _vendor_weights(self, suffix: str) -> LayerWeights:
        """As :meth:`_layer_weights`, but for what is to be expanded to a place of cuDNN's."""
        stems = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return LayerWeights(*(self._unexpanded(stem + suffix) for stem in stems))

    def _unexpanded(self, name: str) -> Any:
        """As :meth:`_weight`; free numbers on a GPU as they are, if all gates' are in orbits."""
        matrix = self._matrices.get(name)
        if matrix is None or matrix.rest or not isinstance(self.symmetry, OrbitCoordinates):
            return self._weight(name)
        free = matrix.free(self)
        assert free is not None
        return FreeMatrix(self.symmetry, free) if free.is_cuda else self._weight(name)

    @property
    def folds(self) -> bool:
        """Whether the hidden weights are of a form that folds, and those of all gates."""
        return (
            self.symmetry is not None
            and self.symmetry.folding is not None
            and self.symm_hh == self.GATES
        )

    def _folded_weights(self, suffix: str) -> FoldedWeights:
        """The weights of one layer and direction, the hidden ones folded."""
        assert self.symmetry is not None
        assert self.symmetry.folding is not None
        free = self._matrices[f"weight_hh{suffix}"].free(self)
        assert free is not None
        return FoldedWeights(
            self._weight(f"weight_ih{suffix}"),
            [matrix.flatten(0, 1) for matrix in self.symmetry.matrices(free)],
            self._weight(f"bias_ih{suffix}"),
            self._weight(f"bias_hh{suffix}"),
            self.symmetry.folding,
        )

    def _fused_weights(self, suffix: str) -> FusedWeights:
        """The weights of one layer and direction, for the native kernels."""
        return FusedWeights(self, suffix)

    def _runs_fused(self, steps: int, batch: int) -> bool:
        """Whether the native kernels, if they can run such a call at all, are to do it."""
        if self.backend == "auto":
            return fused_pays(self, steps, batch)
        return self.backend == "fused"

    def _weights_for(self, backend: str) -> Callable[[str], Any]:
        """What makes the weights of one layer and direction, by suffix, as a backend takes them."""
        own: dict[str, Callable[[str], Any]] = {
            "folded": self._folded_weights,
            "fused": self._fused_weights,
            "vendor": self._vendor_weights,
        }
        return own.get(backend, self._layer_weights)

    def _suffixes(self) -> list[str]:
        """What the names of each layer's and direction's weights end in, in PyTorch's order."""
        return [""]

    @property
    def inference_dtype(self) -> torch.dtype | None:
        """What the weights are packed as where no gradient is wanted: None for as they are.

        ``torch.bfloat16`` halves what a step reads, and rounds each weight to 8 bits of precision;
        input, state and all arithmetic stay float32. It wants float32 weights and the native
        kernels for CPUs: ``backend="fused"``, or "auto", which takes them wherever they run; of
        other backends it is a ValueError, and on a GPU it does nothing. Where a gradient is wanted,
        and in training therefore, the weights are what they are.
        """
        return self._inference_dtype

    @inference_dtype.setter
    def inference_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"inference_dtype should be None or torch.bfloat16, got: {dtype!r}")
        if dtype is not None and self.backend not in ("auto", "fused"):
            raise ValueError(
                f'inference_dtype={dtype} wants backend="auto" or "fused", got: {self.backend!r}'
            )
        self._inference_dtype = dtype
        self._cache = Cache()

    def _check_backend(self) -> None:
        """Raise ValueError unless the backend is known and these weights can be run by it."""
        check_backend(self.backend)
        if self.backend == "fused":
            check_fused(self)
        if self.backend == "folded" and not self.folds:
            raise ValueError(
                'backend="folded" wants hidden weights of all gates in a form that folds, such as '
                f'"tri8" or "block4", got: {self._symmetry_repr()}'
            )

    def _some_weight(self) -> Tensor:
        """Its dtype and device are all weights'; also in replicas, which have no parameters."""
        for matrix in self.gate_matrices():
            for kept in (matrix.free(self), matrix.plain(self)):
                if kept is not None:
                    return kept
        raise AssertionError("no weights")

    def _dtype(self) -> torch.dtype:
        return self._some_weight().dtype

    def _parts(self, hx: Any) -> State:
        """The state as PyTorch takes it, h or the pair of h and c, as a list."""
        if self.STATES == "h":
            return [hx]
        if len(hx) > 2:
            raise RuntimeError("lstm expects two hidden states")
        return [hx[0], hx[1]]

    def _whole(self, state: State) -> Any:
        """The state as PyTorch gives it."""
        return state[0] if self.STATES == "h" else tuple(state)

    @classmethod
    def from_plain(
        cls: type[Made],
        plain: Any,
        symm: str = "avg",
        symm_hh: str | None = None,
        symm_ih: str = "",
        backend: str = "auto",
    ) -> Made:
        """A module with the symmetric weights nearest to those of PyTorch's (trained) one.

        symm_hh: all gates by default.

        Device, dtype and training mode are those of ``plain``; its weights are copied, and those
        that want no gradient stay so.
        """
        if not isinstance(plain, cls.PLAIN):
            name = cls.PLAIN.__name__
            raise TypeError(f"{name.lower()} should be an nn.{name}, got: {type(plain).__name__}")
        like = next(plain.parameters())
        # Made without starting values, so that no random stream moves.
        made = cls(
            **{name: getattr(plain, name) for name in cls.ARGUMENTS},
            device="meta",
            dtype=like.dtype,
            symm=symm,
            symm_hh=cls.GATES if symm_hh is None else symm_hh,
            symm_ih=symm_ih,
            backend=backend,
        )
        made.to_empty(device=like.device)
        made._take(plain)
        return made.train(plain.training)

    def to_plain(self) -> Any:
        """PyTorch's module with the expanded weights, copied; its outputs are equal."""
        like = next(self.parameters())
        # As above, without starting values.
        arguments = {name: getattr(self, name) for name in self.ARGUMENTS}
        plain = self.PLAIN(**arguments, device="meta", dtype=like.dtype)
        plain.to_empty(device=like.device)
        self._give(plain)
        return plain.train(self.training)

    def _take(self, plain: nn.Module) -> None:
        """Copy the weights of ``plain``, symmetric gates to the nearest symmetric matrix."""
        with torch.no_grad():
            for name in self._weight_names:  # by name: a weight may be parametrized in `plain`
                weight = getattr(plain, name)
                matrix = self._matrices.get(name)
                if matrix is not None:
                    matrix.assign(self, self.symmetry, weight)
                    kept = [matrix.free(self), matrix.plain(self)]
                else:
                    getattr(self, name).copy_(weight)
                    kept = [getattr(self, name)]
                for parameter in kept:
                    if parameter is not None:
                        parameter.requires_grad_(weight.requires_grad)

    def _give(self, plain: nn.Module) -> None:
        """Copy the expanded weights into ``plain``."""
        for name, weight in plain.named_parameters():
            with torch.enable_grad():  # so that it says whether it wants a gradient
                value = self._weight(name)
            with torch.no_grad():
                weight.copy_(value)
            weight.requires_grad_(value.requires_grad)

    def symmetric_parameters(self) -> Iterator[tuple[str, Parameter, Symmetry]]:
        """The parameters that hold free numbers of a symmetric form: name, numbers, form."""
        for matrix in self._matrices.values():
            free = matrix.free(self)
            if free is not None:
                assert matrix.free_name is not None
                assert self.symmetry is not None
                yield matrix.free_name, free, self.symmetry

    def gate_matrices(self) -> Iterator[GateMatrix]:
        """How each gate matrix is kept, symmetric or not."""
        yield from self._matrices.values()

    def _apply(self: Made, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Made:
        self._cache = Cache()
        return super()._apply(fn, recurse)

    def _other_ways(self) -> str:
        """Where weights that do not fit may go instead: a sentence to add to an error, or ""."""
        return ""

    def _symmetry_repr(self) -> str:
        return f"symm={self.symm!r}, symm_hh={self.symm_hh!r}, symm_ih={self.symm_ih!r}"

    def extra_repr(self) -> str:
        plain = self.PLAIN.extra_repr(self)
        low = self.inference_dtype
        end = "" if low is None else f", inference_dtype={low}"
        return f"{plain}, {self._symmetry_repr()}{end}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_cache", Cache())  # a pickle of before there was one

    def __getattr__(self, name: str) -> Any:
        matrix = self.__dict__.get("_matrices", {}).get(name)
        if matrix is not None and matrix.symmetric:
            return matrix.assemble(self, self.symmetry)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        matrix = self.__dict__.get("_matrices", {}).get(name)
        if matrix is not None and matrix.symmetric:
            matrix.assign(self, self.symmetry, value)
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Numbers of another form, or a full matrix, are an error even where strict=False would
        # pass over the key: the layer would go on with weights that nobody chose.
        for key, value in state_dict.items():
            if not key.startswith(prefix):
                continue
            name = key[len(prefix) :]
            named = [m for m in self._matrices.values() if f"{name}_".startswith(f"{m.name}_")]
            # "weight_hh_l0_reverse" begins with "weight_hh_l0" too: the longest name is meant.
            for matrix in sorted(named, key=lambda m: len(m.name))[-1:]:
                reason = matrix.explain(name, tuple(value.shape))
                if reason:
                    error_msgs.append(reason + self._other_ways())
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
