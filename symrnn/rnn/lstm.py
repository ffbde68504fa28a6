"""SymLSTM, the drop-in for ``nn.LSTM`` whose gates' weights may be symmetric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from symrnn.rnn.backends import check_backend, choose
from symrnn.rnn.keeping import GatedModule
from symrnn.rnn.scriptable import ScriptableLSTM
from symrnn.rnn.stack import LayerWeights, StackOptions, State


class SymLSTM(GatedModule):
    """A long short-term memory with symmetric weights, where ``nn.LSTM`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.LSTM``; with ``symm="none"`` so are the state_dict and every number.

    symm: the symmetric form, a name of :func:`symrnn.list_symmetries`, or "none".
    symm_hh: the gates, of "ifgo", whose hidden weights are symmetric; "" for none.
    symm_ih: likewise for the input weights of every layer; their blocks must be square, so the
        input size has to equal the hidden size, and deeper layers must not be bidirectional.
    backend: "reference" (a plain loop), "script" (TorchScript), "vendor" (PyTorch's own oneDNN or
        cuDNN operator on the expanded weights), or "auto", the fastest for each call.

    The free numbers of the symmetric gates are parameters of shape (gates, numel), named after
    the matrix and the form: ``weight_hh_l0_avg``. The matrix itself can be read as
    ``weight_hh_l0``, as on ``nn.LSTM``; assigning to it takes the nearest symmetric one. (Changing
    in place what was read has no effect on the layer.)

    Raises what ``nn.LSTM`` raises, and ValueError for an unknown form, gate or backend, for
    ``proj_size`` > 0 with symmetric hidden weights, and for symmetric input weights that are not
    square.

    >>> lstm = SymLSTM(10, 20, num_layers=2, symm="avg")
    >>> output, (h, c) = lstm(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        # A plain LSTM without storage checks the arguments, and raises what it always raised.
        plain = nn.LSTM(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device="meta",
        )
        check_backend(backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.backend = backend
        self._keep(plain, symm, symm_hh, symm_ih, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run the layers; arguments and results are those of ``nn.LSTM``.

        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) unbatched, or a PackedSequence.
        hx: h (L·D, B, P) and c (L·D, B, H), without B for unbatched input; zeros by default.

        Returns the output, (T, B, D·P) or in the form of the input, and the last (h, c). T time,
        B batch, I input, L layers, D directions, H hidden, P the projection's size or H.
        """
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            self._check_input(data, 2)
            batch = int(batch_sizes[0])
            state = self._zeros(data, batch) if hx is None else _select(hx, sorted_indices)
            self._check_state(state, batch)
            output, state = self._run(data, batch_sizes, state)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, _select(state, unsorted_indices)

        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        self._check_input(input, input.dim())
        if hx is not None and (hx[0].dim() != input.dim() or hx[1].dim() != input.dim()):
            raise RuntimeError(
                f"For {'batched 3-D' if batched else 'unbatched 2-D'} input, hx and cx should also "
                f"be {input.dim()}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        if not batched:
            input = input.unsqueeze(1)
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        elif self.batch_first:
            input = input.transpose(0, 1)
        state = self._zeros(input, input.size(1)) if hx is None else (hx[0], hx[1])
        self._check_state(state, input.size(1))
        output, state = self._run(input, None, state)
        if not batched:
            return output.squeeze(1), (state[0].squeeze(1), state[1].squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, state

    def _run(self, input: Tensor, batch_sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        backend = choose(self.backend, input, batch_sizes, self.hidden_size)
        options = StackOptions(self.num_layers, self.bidirectional, self.dropout, self.training)
        return backend(input, batch_sizes, state, self.layer_weights(), options)

    def layer_weights(self) -> list[LayerWeights]:
        """The expanded weights of every layer and direction, in PyTorch's order."""
        suffixes = [
            f"_l{layer}{direction}"
            for layer in range(self.num_layers)
            for direction in ("", "_reverse")[: self._directions]
        ]
        stems = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return [LayerWeights(*(self._weight(stem + s) for stem in stems)) for s in suffixes]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _zeros(self, input: Tensor, batch: int) -> State:
        count = self.num_layers * self._directions
        h = input.new_zeros(count, batch, self.proj_size or self.hidden_size)
        return h, input.new_zeros(count, batch, self.hidden_size)

    def _check_input(self, input: Tensor, dimensions: int) -> None:
        dtype = next(self.parameters()).dtype
        if input.dtype != dtype and not _autocast_enabled(input.device.type):
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

    def _check_state(self, state: State, batch: int) -> None:
        count = self.num_layers * self._directions
        for k, width in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
            expected = (count, batch, width)
            if state[k].shape != expected:
                raise RuntimeError(
                    f"Expected hidden[{k}] size {expected}, got {list(state[k].shape)}"
                )

    # ---- to and from nn.LSTM -------------------------------------------------------------------

    @classmethod
    def from_lstm(
        cls,
        lstm: nn.LSTM,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> SymLSTM:
        """A SymLSTM with the symmetric weights nearest to those of a (trained) ``nn.LSTM``.

        Device, dtype and training mode are those of ``lstm``; its weights are copied.
        """
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"lstm should be an nn.LSTM, got: {type(lstm).__name__}")
        like = next(lstm.parameters())
        # Made without starting values, so that no random stream moves.
        made = cls(
            **_arguments(lstm),
            device="meta",
            dtype=like.dtype,
            symm=symm,
            symm_hh=symm_hh,
            symm_ih=symm_ih,
            backend=backend,
        )
        made.to_empty(device=like.device)
        made._take(lstm)
        return made.train(lstm.training)

    def to_lstm(self) -> nn.LSTM:
        """A plain ``nn.LSTM`` with the expanded weights, copied; its outputs are equal."""
        like = next(self.parameters())
        # As above, without starting values.
        plain = nn.LSTM(**_arguments(self), device="meta", dtype=like.dtype)
        plain.to_empty(device=like.device)
        self._give(plain)
        return plain.train(self.training)

    # ---- what users of nn.LSTM reach for -------------------------------------------------------

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The expanded weights of each layer and direction, as ``nn.LSTM.all_weights``."""
        return [
            [tensor for tensor in layer if tensor is not None] for layer in self.layer_weights()
        ]

    def flatten_parameters(self) -> None:
        """Nothing to do: the expanded weights are laid out for the operator on every call."""

    def extra_repr(self) -> str:
        plain = nn.LSTM.extra_repr(self)  # type: ignore[arg-type]
        return f"{plain}, {self._symmetry_repr()}"

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptableLSTM(self)


def _arguments(lstm: nn.LSTM | SymLSTM) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {name: getattr(lstm, name) for name in (*names, "bidirectional", "proj_size")}


def _select(state: State, order: Tensor | None) -> State:
    """The batch of h and c (…, B, …) in another order."""
    if order is None:
        return state
    return state[0].index_select(1, order), state[1].index_select(1, order)


def _autocast_enabled(device_type: str) -> bool:
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)
