"""The call of a recurrent module as PyTorch's layers and cells have it: what every kind shares.

The forms of input (batched or not, time or batch first, packed sequences), the state in and out,
and the checks, in PyTorch's words. How the steps are run is the module's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from symrnn.rnn.fused.cache import Cache
from symrnn.rnn.fused.inference import PackedStack
from symrnn.rnn.stack import State, autocast_on


class RecurrentCall:
    """Mixed into modules; what layers and cells share."""

    PLAIN: ClassVar[Any]
    """PyTorch's class, for which this one stands in."""

    STATES: ClassVar[str] = "h"
    """What a step passes to the next, by letter; "hc" for an LSTM."""

    IS_CELL: ClassVar[bool] = False
    """Whether a call is one step."""

    input_size: int
    hidden_size: int

    def state_shapes(self, batch: int) -> Sequence[tuple[int, ...]]:
        """The shapes of h, and of an LSTM c, for so many sequences."""
        raise NotImplementedError

    def _some_weight(self) -> Tensor:
        """Its dtype and device are those that a call computes with."""
        raise NotImplementedError

    def _dtype(self) -> torch.dtype:
        return self._some_weight().dtype

    def packed_stack(self) -> PackedStack | None:
        """What a stream runs on: the weights of now, packed; None where the kernels do not run."""
        raise NotImplementedError

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


def as_leaf(module: Any, *arguments: Any) -> Any:
    """A call that torch.fx traces, its input a proxy: one node, as one of PyTorch's module is.

    Its tracers ask where a module's class stands, and take those of ``torch.nn`` alone for leaves;
    other modules they run.
    """
    tracer = arguments[0].tracer
    path = tracer.path_of_module(module)
    if not path:
        name = type(module).__name__
        raise fx.proxy.TraceError(
            f"{name} is one node of a graph of torch.fx: trace a module that holds it, such as "
            f"nn.Sequential({name}(…))"
        )
    return tracer.create_proxy("call_module", path, arguments, {})


class LayerCall(RecurrentCall):
    """The call of layers."""

    batch_first: bool
    num_layers: int
    bidirectional: bool
    proj_size: int = 0
    _cache: Cache

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "batch_first":  # the plans of calls are found by the shape of the input alone
            self._cache = Cache()

    def _run(self, input: Tensor, batch_sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        """As :data:`symrnn.rnn.stack.Run`, with weights and attributes of its own."""
        raise NotImplementedError

    def _call(self, input: Any, hx: Any) -> tuple[Any, Any]:
        """What the module's ``forward`` says."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, *((input,) if hx is None else (input, hx)))
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            self._check_input(data, 2)
            batch = int(batch_sizes[0])
            if hx is None:
                state = self._zeros(data, batch)
            else:
                state = _select(self._parts(hx), sorted_indices)
            self._check_state(state, batch)
            output, state = self._run(data, batch_sizes, state)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self._whole(_select(state, unsorted_indices))

        if input.dim() not in (2, 3):
            raise ValueError(self.wrong_dimensions().format(input.dim()))
        batched = input.dim() == 3
        self._check_input(input, input.dim())
        given = None if hx is None else self._parts(hx)
        if given is not None:
            self._check_dimensions(given, input.dim())
        if not batched:
            input = input.unsqueeze(1)
            given = None if given is None else [part.unsqueeze(1) for part in given]
        elif self.batch_first:
            input = input.transpose(0, 1)
        state = self._zeros(input, input.size(1)) if given is None else given
        self._check_state(state, input.size(1))
        output, state = self._run(input, None, state)
        if not batched:
            return output.squeeze(1), self._whole([part.squeeze(1) for part in state])
        return output.transpose(0, 1) if self.batch_first else output, self._whole(state)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """The shapes of h, and of an LSTM c, for so many sequences."""
        count = self.num_layers * self._directions
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self.STATES)]
        return [(count, batch, width) for width in widths]

    def _zeros(self, input: Tensor, batch: int) -> State:
        return [input.new_zeros(shape) for shape in self.state_shapes(batch)]

    # ---- checks, in PyTorch's words ------------------------------------------------------------

    def wrong_dimensions(self) -> str:
        """What is said of an input of {} dimensions."""
        word = " tensor" if self.PLAIN is nn.RNN else ""
        return f"{self.PLAIN.__name__}: Expected input to be 2D or 3D, got {{}}D{word} instead"

    def _check_input(self, input: Tensor, dimensions: int) -> None:
        dtype = self._dtype()
        if input.dtype != dtype and not autocast_on(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        if input.dim() != dimensions:
            raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def _check_dimensions(self, state: State, dimensions: int) -> None:
        if all(part.dim() == dimensions for part in state):
            return
        found = [f"{part.dim()}-D" for part in state]
        if len(found) == 1:
            which, got = "hx", f"{found[0]} tensor"
        else:
            which, got = "hx and cx", f"({', '.join(found)}) tensors"
        kind = "batched 3-D" if dimensions == 3 else "unbatched 2-D"
        raise RuntimeError(f"For {kind} input, {which} should also be {dimensions}-D but got {got}")

    def _check_state(self, state: State, batch: int) -> None:
        for k, (part, expected) in enumerate(zip(state, self.state_shapes(batch), strict=True)):
            if part.shape != expected:
                which = "hidden" if len(state) == 1 else f"hidden[{k}]"
                raise RuntimeError(f"Expected {which} size {expected}, got {list(part.shape)}")


def _select(state: State, order: Tensor | None) -> State:
    """The batch of each part (…, B, …) in another order."""
    return state if order is None else [part.index_select(1, order) for part in state]


class CellCall(RecurrentCall):
    """The call of cells."""

    IS_CELL = True

    def _step(self, input: Tensor, state: State) -> State:
        """input (B, I) and the state to the new state."""
        raise NotImplementedError

    def _call(self, input: Any, hx: Any) -> Any:
        """What the module's ``forward`` says."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, *((input,) if hx is None else (input, hx)))
        if input.dim() not in (1, 2):
            raise ValueError(self.wrong_dimensions().format(input.dim()))
        single = self.STATES == "h"
        state: State | None = None
        if hx is not None:
            state = [hx] if single else list(hx)
            for k, part in enumerate(state):
                if part.dim() not in (1, 2):
                    which = "hidden" if single else f"hx[{k}]"
                    raise ValueError(self.wrong_dimensions(which).format(part.dim()))
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            state = None if hx is None else [part.unsqueeze(0) for part in self._parts(hx)]
        if state is None:
            state = [input.new_zeros(input.size(0), self.hidden_size)] * len(self.STATES)
        self._check(input, state)
        new = self._step(input, state)
        return self._whole(new if batched else [part.squeeze(0) for part in new])

    def state_shapes(self, batch: int) -> list[tuple[int, int]]:
        """The shapes of h, and of an LSTM c, for so many sequences."""
        return [(batch, self.hidden_size)] * len(self.STATES)

    def wrong_dimensions(self, which: str = "input") -> str:
        """What is said of an input, or a state, of {} dimensions; in PyTorch's words."""
        return f"{self.PLAIN.__name__}: Expected {which} to be 1D or 2D, got {{}}D instead"

    def _check(self, input: Tensor, state: State) -> None:
        # In the words of PyTorch's operators, for the backends that do not call them.
        if input.size(1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}"
            )
        if len(state) != len(self.STATES):
            raise RuntimeError("lstm_cell expects two hidden states")
        for k, part in enumerate(state):
            if part.size(0) != input.size(0):
                raise RuntimeError(
                    f"Input batch size {input.size(0)} doesn't match hidden{k} batch size "
                    f"{part.size(0)}"
                )
            if part.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size: got {part.size(1)}, expected "
                    f"{self.hidden_size}"
                )
