"""A recurrent module's parameters: by PyTorch's names, symmetric or not, read, assigned, loaded.

What the layers and the cells share: PyTorch's weights by PyTorch's names, starting values, reading
and assigning a symmetric matrix by its name, and the errors of a state_dict that doesn't fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.parametrize import is_parametrized

from symrnn import native
from symrnn.rnn import torch_state
from symrnn.rnn.call import RecurrentCall
from symrnn.rnn.dispatch import Traits, check_backend
from symrnn.rnn.fused import backend as fused
from symrnn.rnn.fused import plans
from symrnn.rnn.fused.cache import Cache, Sources
from symrnn.rnn.fused.inference import PackedLayers, PackedStack
from symrnn.rnn.fused.plans import Shapes
from symrnn.rnn.gates import GateLayout, check_gates
from symrnn.rnn.parameters import Parameters
from symrnn.rnn.stack import Attributes, State
from symrnn.rnn.weights import GateMatrix, LayerWeights
from symrnn.symmetry import Symmetry, check_symmetry_name, get_symmetry
from symrnn.symmetry.expanded import ExpandedWeight, read_only
from symrnn.threads import one_thread

Made = TypeVar("Made", bound="GatedModule")


def source_parameter(module: nn.Module, name: str) -> Parameter | None:
    """The parameter of this name, or the one that pruning or a parametrization computes it from.

    None if there is no such one: weight norm has two.
    """
    if is_parametrized(module, name):
        parametrized: Any = module.parametrizations
        return source_parameter(parametrized[name], "original")
    found = (module._parameters.get(key) for key in (name, f"{name}_orig"))
    return next((parameter for parameter in found if parameter is not None), None)


class GatedModule(RecurrentCall, nn.Module):
    """Base of the recurrent modules; a subclass calls :meth:`_register` once its sizes are set."""

    GATES: ClassVar[str]
    """PyTorch's order of the gates, by letter."""

    ARGUMENTS: ClassVar[tuple[str, ...]]
    """The arguments of PyTorch's class; each is an attribute too."""

    mode: str
    proj_size: int = 0
    state_dropout: float = 0.0
    weight_dropout: float = 0.0
    symmetry: Symmetry | None
    _inference_dtype: torch.dtype | None = None

    def _register(
        self, plain: nn.Module, symm: str, symm_hh: str, symm_ih: str, backend: str, **factory: Any
    ) -> None:
        """Register the weights of ``plain`` (on any device), with symmetric gates as asked for."""
        check_symmetry_name("symm", symm, "none")
        symm_hh = check_gates("symm_hh", symm_hh, self.GATES)
        symm_ih = check_gates("symm_ih", symm_ih, self.GATES)
        if symm == "none":
            symm_hh = symm_ih = ""
        self._cache = Cache()
        self._inference_dtype = None
        self.symm = symm
        self.symm_hh = symm_hh
        self.symm_ih = symm_ih
        self.symmetry = None
        if symm_hh or symm_ih:
            self.symmetry = get_symmetry(symm, self.hidden_size)
        # PyTorch's names in PyTorch's order, and how those that are gate matrices are stored.
        self._weight_names = [name for name, _ in plain.named_parameters()]
        self._layouts: dict[str, GateLayout] = {}
        for name, like in plain.named_parameters():
            parameters = {name: torch.empty(like.shape, **factory)}
            if name.startswith(("weight_hh", "weight_ih")):
                symmetric = symm_hh if name.startswith("weight_hh") else symm_ih
                self._check_square(name, like.size(1), symmetric)
                layout = GateLayout(
                    name, self.GATES, symmetric, self.hidden_size, like.size(1), symm
                )
                self._layouts[name] = layout
                parameters = layout.empty(**factory)
            for stored, empty in parameters.items():
                self.register_parameter(stored, Parameter(empty))
        if self.symmetry is not None:
            guarded = Parameters(self._parameters)
            guarded.symmetric = {name: m for name, m in self._layouts.items() if m.symmetric}
            self._parameters = guarded
        self.backend = backend

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

        Entries are drawn one by one. Whoever wants a matrix with properties of its own assigns it,
        and gets the nearest symmetric one: ``lstm.weight_hh_l0 =
        nn.init.orthogonal_(torch.empty(4 * H, H))``.
        """
        bound = 1.0 / math.sqrt(self.hidden_size)
        fill = draw or (lambda tensor: tensor.uniform_(-bound, bound))
        with torch.no_grad():
            for name in self._weight_names:
                layout = self._layouts.get(name)
                if layout is None:
                    fill(getattr(self, name))
                else:
                    stored = {name: getattr(self, name) for name in layout.parameter_names}
                    layout.initialize(stored, self.symmetry, fill)

    # ---- the weights as values ---------------------------------------------------------------

    def _matrix(self, layout: GateLayout) -> GateMatrix:
        symmetric, rest = layout.symmetric_name, layout.rest_name
        return GateMatrix(
            layout,
            self.symmetry if symmetric else None,
            getattr(self, symmetric) if symmetric else None,
            getattr(self, rest) if rest else None,
        )

    def _layer_weights(self, suffix: str) -> LayerWeights:
        """The weights of one layer and direction, such as "_l1_reverse"."""
        return LayerWeights(
            self._matrix(self._layouts[f"weight_ih{suffix}"]),
            self._matrix(self._layouts[f"weight_hh{suffix}"]),
            *(
                getattr(self, name) if name in self._weight_names else None
                for name in (f"bias_ih{suffix}", f"bias_hh{suffix}", f"weight_hr{suffix}")
            ),
        )

    def layer_weights(self) -> list[LayerWeights]:
        """The weights of every layer and direction as values, in PyTorch's order."""
        raise NotImplementedError

    def _attributes(self) -> Attributes:
        raise NotImplementedError

    def _weight(self, name: str) -> Tensor:
        """The expanded weight of PyTorch's ``name``."""
        layout = self._layouts.get(name)
        weight: Tensor = getattr(self, name) if layout is None else self._matrix(layout).dense()
        return weight

    @property
    def _traits(self) -> Traits:
        symmetry = self.symmetry if self.symm_hh == self.GATES else None
        return Traits(
            self.mode,
            self.hidden_size,
            self.proj_size > 0,
            1.0 if symmetry is None or symmetry.folding is None else symmetry.cost,
            self.IS_CELL,
            self.symmetry is not None,
            self.training and self.state_dropout > 0,
        )

    @property
    def folds(self) -> bool:
        """Whether the hidden weights are of a form that folds, and those of all gates."""
        return (
            self.symmetry is not None
            and self.symmetry.folding is not None
            and self.symm_hh == self.GATES
        )

    # ---- packed weights ----------------------------------------------------------------------

    def _can_run_packed(self, input: Tensor, state: State, weights: list[LayerWeights]) -> bool:
        """Whether a call without gradients is nothing but numbers of tensors on a CPU."""
        return (
            input.is_cpu
            and state[0].numel() > 0
            and torch_state.can_bypass_dispatcher()
            and torch_state.are_plain([input, *state, *(t for w in weights for t in w.tensors)])
        )

    def _packed(self, weights: list[LayerWeights], attributes: Attributes) -> PackedLayers:
        """The packed weights: those cached, or made anew and cached if that may be."""
        parameters = self._parameters.values()
        packed: PackedLayers | None = self._cache.get(parameters)
        if packed is not None:
            return packed
        own = [p for p in parameters if p is not None]
        read = {id(t) for w in weights for t in w.tensors}
        # What stands in the place of a parameter was computed, by a parametrization for one.
        lasting = read <= {id(p) for p in own} and Sources.can_be_followed(own)
        # Noted before numbers are read, so that what changes meanwhile is seen to have changed.
        sources = Sources(parameters) if lasting else None
        packed = PackedLayers(weights, attributes, lasting=lasting)
        if sources is not None:
            self._cache.put(packed, sources)
        return packed

    def _plan_call(self, shapes: Shapes, steps: int, batch: int) -> None:
        """Have the next call of these shapes made in C, if it is one of a few steps."""
        entry = self._cache.entry
        if entry is None or steps * batch > plans.MOST_ROWS:
            return
        packed, sources = entry
        stack = packed.stack()
        if stack is None or len(packed.plans) >= plans.MOST_PLANS:
            return
        packed.plans[shapes.x] = plans.call_plan(stack, sources, shapes, steps, batch, self.IS_CELL)

    def packed_stack(self) -> PackedStack | None:
        """What a stream runs on; a notice where the kernels would run, and there are none."""
        weight = self._some_weight()
        if self.backend not in ("auto", "fused") or self.proj_size or not weight.is_cpu:
            return None
        if (
            weight.dtype not in (torch.float32, torch.float64)
            or not torch_state.can_bypass_dispatcher()
        ):
            return None
        native.notice()
        if not native.available():
            return None
        weights, attributes = self.layer_weights(), self._attributes()
        state = [weight.new_zeros(shape) for shape in self.state_shapes(1)]
        fused.check(weight.new_empty(1, 1, self.input_size), state, weights, attributes)
        return PackedStack.of(weights, attributes)

    @property
    def inference_dtype(self) -> torch.dtype | None:
        """What the weights are packed as where no gradient is wanted: None for as they are.

        ``torch.bfloat16`` halves what a step reads, and rounds each weight to 8 bits of precision;
        input, state and all arithmetic stay float32. ``torch.int8`` halves that again: weights are
        rounded to 255 steps, with a scale for each unit, and so are input and state in the
        products, which are exact sums of integers. Both want float32 weights and the native
        kernels for CPUs: ``backend="fused"``, or "auto", which takes them wherever they run; of
        other backends it is a ValueError, and on a GPU it does nothing. Where a gradient is wanted,
        and in training therefore, the weights are what they are.
        """
        return self._inference_dtype

    @inference_dtype.setter
    def inference_dtype(self, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.bfloat16, torch.int8):
            raise ValueError(
                "inference_dtype should be None or one of torch.bfloat16, torch.int8, "
                f"got: {dtype!r}"
            )
        if dtype is not None and self.backend not in ("auto", "fused"):
            raise ValueError(
                f'inference_dtype={dtype} wants backend="auto" or "fused", got: {self.backend!r}'
            )
        self._inference_dtype = dtype
        self._cache = Cache()

    @property
    def backend(self) -> str:
        """How a call is run; a ValueError where it cannot run these weights."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_backend(name)
        if name == "fused":
            fused.check_fused(self.proj_size)
        if name == "folded" and not self.folds:
            raise ValueError(
                'backend="folded" wants hidden weights of all gates in a form that folds, such as '
                f'"tri8" or "block4", got: {self._symmetry_repr()}'
            )
        self._cache = Cache()
        self._backend = name

    def _some_weight(self) -> Tensor:
        """Its dtype and device are all weights'; also in replicas, which have no parameters."""
        layout = next(iter(self._layouts.values()))
        weight: Tensor = getattr(self, layout.parameter_names[0])
        return weight

    @classmethod
    @one_thread()
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
        with torch.inference_mode(False):  # whose parameters could never be loaded into
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
        made._copy_from(plain)
        return made.train(plain.training)

    @one_thread()
    def to_plain(self) -> Any:
        """PyTorch's module with the expanded weights, copied; its outputs are equal."""
        like = next(self.parameters())
        arguments = {name: getattr(self, name) for name in self.ARGUMENTS}
        with torch.inference_mode(False):  # as above, and without starting values
            plain = self.PLAIN(**arguments, device="meta", dtype=like.dtype)
            plain.to_empty(device=like.device)
        self._copy_to(plain)
        return plain.train(self.training)

    def _copy_from(self, plain: nn.Module) -> None:
        """Copy the weights of ``plain``, symmetric gates to the nearest symmetric matrix."""
        with torch.no_grad():
            for name in self._weight_names:  # by name: a weight may be parametrized in `plain`
                weight = getattr(plain, name)
                layout = self._layouts.get(name)
                stored = {name: weight} if layout is None else layout.nearest(weight, self.symmetry)
                for key, value in stored.items():
                    getattr(self, key).copy_(value).requires_grad_(weight.requires_grad)

    def _copy_to(self, plain: nn.Module) -> None:
        """Copy the expanded weights into ``plain``."""
        for name, weight in plain.named_parameters():
            layout = self._layouts.get(name)
            stored = [name] if layout is None else layout.parameter_names
            with torch.enable_grad():  # so that what is computed says whether it wants a gradient
                wanted = any(getattr(self, key).requires_grad for key in stored)
            with torch.no_grad():
                weight.copy_(self._weight(name))
            weight.requires_grad_(wanted)

    def symmetric_parameters(self) -> Iterator[tuple[str, Parameter | None, Symmetry]]:
        """The parameters of symmetric matrices: name, parameter (S, numel), form.

        Of what is pruned or parametrized that which it is computed from; None if that is several.
        """
        for layout in self._layouts.values():
            if layout.symmetric_name is not None:
                assert self.symmetry is not None
                name = layout.symmetric_name
                yield name, source_parameter(self, name), self.symmetry

    @property
    def parameter_names(self) -> set[str]:
        """The names of the parameters that the module is made with."""
        stored = {name for layout in self._layouts.values() for name in layout.parameter_names}
        return stored | ({*self._weight_names} - self._layouts.keys())

    def gate_layouts(self) -> Iterator[GateLayout]:
        """How each gate matrix is stored, symmetric or not."""
        yield from self._layouts.values()

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
        drops = [name for name in ("state_dropout", "weight_dropout") if getattr(self, name)]
        more = [f"{name}={getattr(self, name)}" for name in drops]
        more += [] if low is None else [f"inference_dtype={low}"]
        return ", ".join([plain, self._symmetry_repr(), *more])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A pickle of before there were these.
        self.__dict__.setdefault("_cache", Cache())
        if "backend" in self.__dict__:
            self.__dict__["_backend"] = self.__dict__.pop("backend")

    def __getattr__(self, name: str) -> Any:
        layout = self.__dict__.get("_layouts", {}).get(name)
        if layout is not None and layout.symmetric:
            return read_only(self._matrix(layout).dense(), layout.ways)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        layout = self.__dict__.get("_layouts", {}).get(name)
        if layout is None or not layout.symmetric:
            super().__setattr__(name, value)
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} should be a tensor, got: {type(value).__name__}")
        if isinstance(value, Parameter) or value.requires_grad:
            stored = " and ".join(layout.parameter_names)
            warnings.warn(
                f"the numbers of what is assigned to {name} are copied, to {stored}: it takes no "
                f"part in training; assign its detach() where that is meant",
                stacklevel=2,
            )
        with torch.no_grad():
            for key, nearest in layout.nearest(value, self.symmetry).items():
                getattr(self, key).copy_(nearest)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        layout = self._layout_of(name)
        if layout is not None and layout.symmetric and isinstance(param, ExpandedWeight):
            # Pruning, which takes what it reads for a parameter.
            raise ValueError(layout.no_parameter)
        super().register_parameter(name, param)

    def _layout_of(self, name: str) -> GateLayout | None:
        """The layout of the gate matrix that ``name`` is, or begins with as "weight_hh_l0_avg"."""
        found = [m for m in self._layouts.values() if f"{name}_".startswith(f"{m.name}_")]
        # "weight_hh_l0_reverse" begins with "weight_hh_l0" too: the longest name is meant.
        return max(found, key=lambda m: len(m.name), default=None)

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
        # Parameters of another form, or a full matrix, are an error even where strict=False would
        # pass over the key: the layer would go on with weights that nobody chose. What the module
        # has is its own, whatever it is called.
        own = {*self._parameters, *self._buffers}
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            layout = self._layout_of(name) if key.startswith(prefix) and name not in own else None
            reason = layout.explain(name, tuple(value.shape)) if layout is not None else None
            if reason:
                error_msgs.append(reason + self._other_ways())
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
