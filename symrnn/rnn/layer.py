"""A recurrent layer with symmetric weights: the fast path of its call, and what runs the others."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from symrnn.rnn import dispatch, torchscript
from symrnn.rnn.call import LayerCall
from symrnn.rnn.dropout import sees_part
from symrnn.rnn.fused import backend as fused
from symrnn.rnn.fused import inference
from symrnn.rnn.fused.cache import Cache
from symrnn.rnn.fused.operators import check_lengths
from symrnn.rnn.fused.plans import Shapes
from symrnn.rnn.module import GatedModule
from symrnn.rnn.stack import Attributes, State
from symrnn.rnn.stream import Stream
from symrnn.rnn.weights import LayerWeights, check_devices


class RecurrentLayer(LayerCall, GatedModule):
    """Base of the recurrent layers; a subclass says which of PyTorch's it stands in for.

    plain: that one with the arguments of the call, without storage (device "meta"). It has checked
        the arguments, and raised what it always raised.
    symm, symm_hh, symm_ih, backend, device, dtype, state_dropout, weight_dropout: of
        :class:`symrnn.SymLSTM`.
    """

    PLAIN: ClassVar[type[nn.RNNBase]]

    ARGUMENTS: ClassVar[tuple[str, ...]] = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    )

    def __init__(
        self,
        plain: nn.RNNBase,
        symm: str,
        symm_hh: str,
        symm_ih: str,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        state_dropout: float,
        weight_dropout: float,
    ) -> None:
        super().__init__()
        self.mode = plain.mode
        self.input_size = plain.input_size
        self.hidden_size = plain.hidden_size
        self.num_layers = plain.num_layers
        self.bias = plain.bias
        self.batch_first = plain.batch_first
        self.dropout = plain.dropout
        self.bidirectional = plain.bidirectional
        self.proj_size = plain.proj_size
        self.state_dropout = _probability("state_dropout", state_dropout)
        self.weight_dropout = _probability("weight_dropout", weight_dropout)
        self._register(plain, symm, symm_hh, symm_ih, backend, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Run the layers; arguments and results are those of PyTorch's layer.

        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) unbatched, or a PackedSequence.
        hx: h (L·D, B, P), of an LSTM the pair of it and c (L·D, B, H), without B for unbatched
            input; zeros by default.

        Returns the output, (T, B, D·P) or in the form of the input, and the last state in the form
        of hx. T time, B batch, I input, L layers, D directions, H hidden, P the projection's size
        or H.
        """
        entry = self._cache.entry
        if entry is not None and not self._drops() and not torch.compiler.is_compiling():
            plan = entry[0].plans.get(input.shape) if type(input) is Tensor else None
            result = None if plan is None else plan.call(self._parameters, input, hx)
            if result is None:
                result = self._fast_path(input, hx)
            if result is not None:
                return result

        return self._call(input, hx)

    def _fast_path(self, input: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """What :meth:`forward` gives, by cached packed weights, where nothing is in the way.

        A step of a small layer takes less time than the checks of :meth:`forward`. Here a call is
        recognised as sound, or None is returned, and :meth:`forward` says what is wrong with it.
        """
        if torch.is_grad_enabled() or type(input) is not Tensor:
            return None
        packed = self._cache.get(self._parameters.values())
        if packed is None or self._backend not in ("auto", "fused"):
            return None
        rows: tuple[int, ...]
        state_shape: tuple[int, ...]
        shape = input.shape
        if len(shape) == 3:
            steps, batch, width = shape
            rows = (steps, batch)
            if self.batch_first:
                if steps > 1 and batch > 1:
                    return None
                steps, batch = batch, steps
            state_shape = (packed.count, batch, self.hidden_size)
        elif len(shape) == 2:
            steps, width = shape
            batch, rows, state_shape = 1, (steps,), (packed.count, self.hidden_size)
        else:
            return None
        if hx is not None and self.STATES == "h":
            hx = (hx,)
        if (
            width != self.input_size
            or steps * batch == 0
            or not inference.is_ready(packed, input, hx, state_shape)
        ):
            return None
        output, state = packed.run(input, rows, steps, batch, 0, hx, state_shape, 0.0)
        shapes = Shapes(tuple(shape), tuple(output.shape), tuple(state_shape))
        self._plan_call(shapes, steps, batch)
        return output, self._whole(state)

    def _run(self, input: Tensor, batch_sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        steps = input.size(0) if batch_sizes is None else batch_sizes.size(0)
        tensors = [input, self._some_weight(), *state]
        weights, attributes = self.layer_weights(), self._attributes()
        wants_gradient = fused.wants_gradient(input, state, weights)
        backend = dispatch.resolve(
            self.backend, self._traits, tensors, steps, state[0].size(1), wants_gradient
        )
        check_devices(weights)
        if batch_sizes is not None and attributes.dropout > 0 and sees_part():
            raise ValueError("part_of_batch: a PackedSequence cannot be one, with dropout")
        drops = self.training and (self.state_dropout > 0 or self.weight_dropout > 0)
        if drops:
            weights = [
                w.dropped(state[0][k], self.state_dropout, self.weight_dropout)
                for k, w in enumerate(weights)
            ]
        elif (
            backend == "fused"
            and not wants_gradient
            and self._can_run_packed(input, state, weights)
        ):
            fused.check(input, state, weights, attributes)
            return self._run_packed(input, batch_sizes, state, weights, attributes)
        run = dispatch.BACKENDS[backend].run
        return run(input, batch_sizes, state, weights, attributes)

    def _run_packed(
        self,
        input: Tensor,
        batch_sizes: Tensor | None,
        state: State,
        weights: list[LayerWeights],
        attributes: Attributes,
    ) -> tuple[Tensor, State]:
        shape, batch = input.shape[:-1], state[0].size(1)
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        steps = check_lengths(batch_sizes, math.prod(shape), batch)
        lengths = None if batch_sizes is None else batch_sizes.contiguous()
        return self._packed(weights, attributes).run(
            input.contiguous(),
            shape,
            steps,
            batch,
            0 if lengths is None else lengths.data_ptr(),
            [part.contiguous() for part in state],
            state[0].shape,
            attributes.dropout,
        )

    def _drops(self) -> bool:
        """Whether a call is in training, and some dropout acts in it."""
        return self.training and bool(self.dropout or self.state_dropout or self.weight_dropout)

    def _attributes(self) -> Attributes:
        return Attributes(
            self.mode,
            self.num_layers,
            self.bidirectional,
            self.dropout if self.training else 0.0,
            self.training,
            self._inference_dtype,
        )

    def layer_weights(self) -> list[LayerWeights]:
        """The weights of every layer and direction as values, in PyTorch's order."""
        return [self._layer_weights(suffix) for suffix in self._suffixes()]

    def expands_weights(self, steps: int, batch: int) -> bool:
        """Whether a call without gradients expands symmetric weights, and so every such call does.

        Where it does, a model for inference wants them expanded once: :meth:`to_plain`.
        """
        backend = self.backend
        if backend == "auto":
            weight = self._some_weight()
            backend = dispatch.choose(self._traits, [weight], steps, batch, False)
        return backend not in ("fused", "folded")

    def stream(self, batch: int = 1) -> Stream:
        """The layers at inference over so many sequences, a few steps at a time: :class:`Stream`.

        The weights are those of now. ValueError if the layers are bidirectional.
        """
        return Stream(self, batch)

    def _suffixes(self) -> list[str]:
        """What the names of each layer's and direction's weights end in, in PyTorch's order."""
        return [
            f"_l{layer}{direction}"
            for layer in range(self.num_layers)
            for direction in ("", "_reverse")[: self._directions]
        ]

    def _other_ways(self) -> str:
        name = self.PLAIN.__name__
        return (
            f". {type(self).__name__}.from_{name.lower()} takes the weights of an nn.{name}, "
            f"to_{name.lower()} gives them"
        )

    # ---- what users of PyTorch's layers reach for ----------------------------------------------

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The expanded weights of each layer and direction, as ``nn.LSTM.all_weights``."""
        return [
            [getattr(self, name) for name in self._weight_names if name.endswith(suffix)]
            for suffix in self._suffixes()
        ]

    def flatten_parameters(self) -> None:
        """Drop the packed weights that are cached for the native kernels; the next call packs anew.

        Needed only after a change that nothing gives away: of some entries only (a pruning mask, a
        clamp), written through ``.data``, a NumPy view, or the vector that
        ``vector_to_parameters`` made the parameters views of. Not to be called before every call,
        as that would pack every time. For other backends there is nothing to do: the expanded
        weights are laid out for the operator on every call.
        """
        self._cache = Cache()

    def __prepare_scriptable__(self) -> nn.Module:
        if self.training and (self.state_dropout or self.weight_dropout):
            raise ValueError(
                "a scripted module has neither state_dropout nor weight_dropout, got: "
                f"{self.state_dropout} and {self.weight_dropout} in training: call eval() first"
            )
        return torchscript.scripted_layer(
            self.layer_weights(),
            self._attributes()._replace(dropout=self.dropout),
            self.batch_first,
            self.state_shapes(batch=0),
            self.wrong_dimensions(),
        )


def _probability(name: str, p: Any) -> float:
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], got: {p!r}")
    return float(p)
