"""SymLSTMCell, SymGRUCell, SymRNNCell: one step, where PyTorch's cells stood."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from symrnn.rnn import dispatch, torchscript
from symrnn.rnn.call import CellCall
from symrnn.rnn.fused import backend as fused
from symrnn.rnn.fused import inference
from symrnn.rnn.fused.plans import Shapes
from symrnn.rnn.modes import MODES
from symrnn.rnn.module import GatedModule
from symrnn.rnn.stack import Attributes, State
from symrnn.rnn.stream import Stream
from symrnn.rnn.weights import LayerWeights, check_devices


class RecurrentCell(CellCall, GatedModule):
    """Base of the cells; a subclass says which of PyTorch's it stands in for.

    plain: that one with the arguments of the call, without storage (device "meta").
    mode: the kind, as of the layer made of such cells, ``nn.LSTM(…).mode``.
    symm, symm_hh, symm_ih, backend, device, dtype: of :class:`symrnn.SymLSTM`.
    """

    PLAIN: ClassVar[type[nn.RNNCellBase]]

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")

    def __init__(
        self,
        plain: nn.RNNCellBase,
        mode: str,
        symm: str,
        symm_hh: str,
        symm_ih: str,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = plain.input_size
        self.hidden_size = plain.hidden_size
        self.bias = plain.bias
        self._register(plain, symm, symm_hh, symm_ih, backend, device=device, dtype=dtype)
        if not self.bias:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """input (B, I) or (I,) and hx -> the new hx.

        hx: h (B, H) or (H,), of an LSTM the pair of it and c of the same shape; zeros by default.
        """
        entry = self._cache.entry
        if entry is not None and not torch.compiler.is_compiling():
            plan = entry[0].plans.get(input.shape) if type(input) is Tensor else None
            result = None if plan is None else plan.call(self._parameters, input, hx)
            if result is None:
                result = self._fast_path(input, hx)
            if result is not None:
                return result
        return self._call(input, hx)

    def _fast_path(self, input: Any, hx: Any) -> Any:
        """As :meth:`symrnn.rnn.layer.RecurrentLayer._fast_path`: the new hx, or None."""
        if torch.is_grad_enabled() or type(input) is not Tensor:
            return None
        packed = self._cache.get(self._parameters.values())
        if packed is None or self._backend not in ("auto", "fused"):
            return None
        if input.dim() not in (1, 2):
            return None
        *rows, width = input.shape
        batch, state_shape = rows[0] if rows else 1, (*rows, self.hidden_size)
        if hx is not None and self.STATES == "h":
            hx = (hx,)
        if (
            width != self.input_size
            or batch == 0
            or not inference.is_ready(packed, input, hx, state_shape)
        ):
            return None
        _, state = packed.run(input, rows, 1, batch, 0, hx, state_shape, 0.0)
        self._plan_call(Shapes(tuple(input.shape), state_shape, state_shape), 1, batch)
        return self._whole(state)

    def _step(self, input: Tensor, state: State) -> State:
        tensors = [input, self._some_weight(), *state]
        weights, attributes = self.layer_weights(), self._attributes()
        wants_gradient = fused.wants_gradient(input, state, weights)
        backend = dispatch.resolve(
            self.backend, self._traits, tensors, 1, input.size(0), wants_gradient
        )
        check_devices(weights)
        if (
            backend == "fused"
            and not wants_gradient
            and self._can_run_packed(input, state, weights)
        ):
            fused.check(input, state, weights, attributes)
            shape = (input.size(0),)
            return self._packed(weights, attributes).run(
                input.contiguous(), shape, 1, *shape, 0, [part.contiguous() for part in state],
                state[0].shape, 0.0,
            )[1]  # fmt: skip
        return dispatch.BACKENDS[backend].cell(input, state, weights[0], attributes)

    def stream(self, batch: int = 1) -> Stream:
        """The cell at inference over so many sequences, its state inside: :class:`Stream`.

        The weights are those of now.
        """
        return Stream(self, batch)

    def layer_weights(self) -> list[LayerWeights]:
        """The weights as a value, in a list as a layer's are."""
        return [self._layer_weights("")]

    def _attributes(self) -> Attributes:
        return Attributes(self.mode, training=self.training, inference_dtype=self._inference_dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        return torchscript.scripted_cell(
            self._layer_weights(""), self.mode, self.wrong_dimensions()
        )


class SymLSTMCell(RecurrentCell):
    """One step of a long short-term memory with symmetric weights, where ``nn.LSTMCell`` stood.

    Arguments, call and outputs are those of ``nn.LSTMCell``; ``symm``, ``symm_hh``, ``symm_ih``
    and ``backend`` those of :class:`symrnn.SymLSTM`.

    >>> cell = SymLSTMCell(10, 20, symm="avg")
    >>> h, c = cell(torch.randn(3, 10))
    >>> h.shape
    torch.Size([3, 20])
    """

    PLAIN = nn.LSTMCell
    GATES = MODES["LSTM"].gates
    STATES = MODES["LSTM"].states

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        plain = nn.LSTMCell(input_size, hidden_size, bias, device="meta")
        super().__init__(plain, "LSTM", symm, symm_hh, symm_ih, backend, device, dtype)


class SymGRUCell(RecurrentCell):
    """One step of a gated recurrent unit with symmetric weights, where ``nn.GRUCell`` stood.

    Arguments, call and outputs are those of ``nn.GRUCell``; ``symm``, ``symm_hh``, ``symm_ih``
    and ``backend`` those of :class:`symrnn.SymGRU`.

    >>> cell = SymGRUCell(10, 20, symm="avg")
    >>> cell(torch.randn(3, 10)).shape
    torch.Size([3, 20])
    """

    PLAIN = nn.GRUCell
    GATES = MODES["GRU"].gates

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "rzn",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        plain = nn.GRUCell(input_size, hidden_size, bias, device="meta")
        super().__init__(plain, "GRU", symm, symm_hh, symm_ih, backend, device, dtype)


class SymRNNCell(RecurrentCell):
    """One step of an Elman network with symmetric weights, where ``nn.RNNCell`` stood.

    Arguments, call and outputs are those of ``nn.RNNCell``; ``symm``, ``symm_hh``, ``symm_ih``
    and ``backend`` those of :class:`symrnn.SymRNN`. An unknown ``nonlinearity`` is a ValueError
    here and now, in the words of ``nn.RNN``, where ``nn.RNNCell`` waits for the first call.

    >>> cell = SymRNNCell(10, 20, nonlinearity="relu", symm="avg")
    >>> cell(torch.randn(3, 10)).shape
    torch.Size([3, 20])
    """

    PLAIN = nn.RNNCell
    GATES = MODES["RNN_TANH"].gates
    ARGUMENTS = (*RecurrentCell.ARGUMENTS, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "h",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        plain = nn.RNNCell(input_size, hidden_size, bias, nonlinearity, device="meta")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if nonlinearity not in modes:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        mode = modes[nonlinearity]
        super().__init__(plain, mode, symm, symm_hh, symm_ih, backend, device, dtype)
        self.nonlinearity = nonlinearity
