"""TorchScript: a scripted step in a scripted loop, and what ``torch.jit.script`` makes of a module.

The backend's input product of all steps is one multiplication ahead of the loop, biases included,
and a step is one multiplication and the arithmetic of its kind. TorchScript is deprecated in
PyTorch from 2.11 on; this file is the only one that uses it, and compiles at the first call.

A scripted module shares the parameters and runs PyTorch's operator. An LSTM takes and gives the
pair of h and c, all others h alone; TorchScript wants either in the signature. Inside, a state is a
list, and an empty one stands for zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import Attributes, State, autocast_on, by_layer, steps_of
from symrnn.rnn.weights import GateMatrix, LayerWeights
from symrnn.symmetry.linear import LinearSymmetry


@cache
def compiled(mode: str) -> Any:
    """The loop of one kind, compiled without TorchScript's notice of deprecation."""
    pointwise = MODES[mode].pointwise

    def step(
        projected: Tensor,
        state: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        state_mask: Tensor | None,
    ) -> list[Tensor]:
        """One step: projected x W_ihᵀ + b_ih (B, G·H) and the state to the new state."""
        h = state[0]
        if state_mask is not None:
            h = h * state_mask[: h.size(0)]
        from_hidden = torch.mm(h, w_hh.t())
        if b_hh is not None:
            from_hidden = from_hidden + b_hh
        new = pointwise(projected, from_hidden, state)
        if w_hr is not None:
            new[0] = F.linear(new[0], w_hr)
        return new

    def loop(
        steps: list[Tensor],
        state: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
        state_mask: Tensor | None,
        reverse: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """T projected steps (B_t, G·H) to T outputs (B_t, P), state; as the reference's layer."""
        outputs: list[Tensor] = []
        for t in range(len(steps)):
            x = steps[len(steps) - 1 - t] if reverse else steps[t]
            running = x.size(0)
            if running == state[0].size(0):
                state = step(x, state, w_hh, b_hh, w_hr, state_mask)
                outputs.append(state[0])
            else:
                new = step(x, [part[:running] for part in state], w_hh, b_hh, w_hr, state_mask)
                outputs.append(new[0])
                state = [torch.cat([new[k], state[k][running:]]) for k in range(len(new))]
        if reverse:
            outputs.reverse()
        return outputs, state

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch.jit", DeprecationWarning)
        return torch.jit.script(loop)


def layer(
    mode: str, x: Tensor, batch_sizes: Tensor | None, state: State, w: LayerWeights, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction; the arguments of :func:`symrnn.rnn.reference.layer`."""
    bias_ih, bias_hh = w.bias_ih, w.bias_hh
    if bias_ih is not None and bias_hh is not None and not MODES[mode].separate_bias:
        bias_ih, bias_hh = bias_ih + bias_hh, None
    projected = F.linear(x, w.ih.dense(), bias_ih)
    steps = steps_of(projected, batch_sizes, state[0].size(0))
    others = [w.hh.dense(), bias_hh, w.hr, w.state_mask]
    with _autocast_settled(projected, [*state, *others]) as settled:
        *state, w_hh, bias_hh, w_hr, mask = settled
        with _pytorch_gradients():
            outputs, state = compiled(mode)(steps, state, w_hh, bias_hh, w_hr, mask, reverse)
    return torch.cat(outputs), state


BACKEND = by_layer(layer)


def _pytorch_gradients() -> AbstractContextManager[None]:
    """Where gradients are asked for, leave them to PyTorch.

    TorchScript makes its own otherwise, from the second call on, and those fail where a result has
    no part in the loss: a cell of which only c is used.
    """
    return torch.jit.optimized_execution(not torch.is_grad_enabled())


@contextmanager
def _autocast_settled(projected: Tensor, tensors: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The tensors as the scripted code is to have them.

    TorchScript compiles autocast's dtype into the code and then fails under another. So autocast
    is settled here: all is cast as ``projected`` was, and autocast is off inside.
    """
    device = projected.device.type
    if not autocast_on(device):
        yield tensors
        return
    with torch.autocast(device, enabled=False):
        yield [None if tensor is None else tensor.to(projected.dtype) for tensor in tensors]


# ---- torch.jit.script of a layer or a cell -----------------------------------------------------


class SymmetricMatrix(nn.Module):
    """A stacked gate matrix some of whose gates are symmetric."""

    def __init__(self, matrix: GateMatrix) -> None:
        super().__init__()
        layout, parameters, rest = matrix.layout, matrix.parameters, matrix.rest
        assert parameters is not None
        symmetry = matrix.symmetry
        assert symmetry is not None
        if isinstance(symmetry, LinearSymmetry):
            symmetry = symmetry.scriptable(parameters.device)
        self.symmetry = symmetry
        self.numbers = parameters
        self.rest = parameters.new_empty(0, layout.columns) if rest is None else rest
        self.rows = layout.rows
        self.columns = layout.columns
        # Where each gate's block stands when the symmetric ones come first, the others after.
        self.order = [(layout.symmetric + layout.rest).index(gate) for gate in layout.gates]

    def forward(self) -> Tensor:
        expanded = self.symmetry(self.numbers)
        if self.rest.size(0) == 0:
            return expanded.view(-1, self.columns)
        blocks = torch.cat([expanded, self.rest.view(-1, self.rows, self.columns)])
        return torch.cat([blocks[k] for k in self.order])


class PlainTensor(nn.Module):
    """A weight that is used as it is stored."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def _weight_modules(weights: Sequence[LayerWeights]) -> nn.ModuleList:
    """One module for each of PyTorch's weights, in its order; parameters are shared."""
    modules = nn.ModuleList()
    for w in weights:
        for weight in (w.ih, w.hh, w.bias_ih, w.bias_hh, w.hr):
            if isinstance(weight, Tensor):
                modules.append(PlainTensor(weight))
            elif weight is not None and weight.parameters is not None:
                modules.append(SymmetricMatrix(weight))
            elif weight is not None:
                modules.append(PlainTensor(weight.dense()))
    return modules


class _Layer(nn.Module):
    """A recurrent layer for TorchScript: shares its parameters, runs PyTorch's operator.

    Takes tensors, batched or not; a PackedSequence needs the eager module.
    """

    def __init__(
        self,
        weights: Sequence[LayerWeights],
        attributes: Attributes,
        batch_first: bool,
        shapes: list[tuple[int, int, int]],
        wrong_dimensions: str,
    ) -> None:
        super().__init__()
        self.weights = _weight_modules(weights)
        self.mode = attributes.mode
        self.num_layers = attributes.num_layers
        self.bias = weights[0].bias_ih is not None
        self.batch_first = batch_first
        self.dropout = attributes.dropout
        self.bidirectional = attributes.bidirectional
        self.shapes = shapes
        self.wrong_dimensions = wrong_dimensions
        self.train(attributes.training)

    def run(self, input: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if input.dim() != 2 and input.dim() != 3:
            raise ValueError(self.wrong_dimensions.format(input.dim()))
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            state = [part.unsqueeze(1) for part in state]
        if len(state) == 0:
            batch = input.size(0) if self.batch_first else input.size(1)
            state = [input.new_zeros([count, batch, width]) for count, _, width in self.shapes]
        output, state = self.operator(input, state)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            state = [part.squeeze(1) for part in state]
        return output, state

    def operator(self, input: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight())
        bias, layers, dropout, training = self.bias, self.num_layers, self.dropout, self.training
        both, first = self.bidirectional, self.batch_first
        if self.mode == "LSTM":
            output, h, c = torch.lstm(
                input, state, flat, bias, layers, dropout, training, both, first
            )
            return output, [h, c]
        h = state[0]
        if self.mode == "GRU":
            output, h = torch.gru(input, h, flat, bias, layers, dropout, training, both, first)
        elif self.mode == "RNN_TANH":
            output, h = torch.rnn_tanh(input, h, flat, bias, layers, dropout, training, both, first)
        else:
            output, h = torch.rnn_relu(input, h, flat, bias, layers, dropout, training, both, first)
        return output, [h]


class ScriptableLayer(_Layer):
    """A SymGRU or a SymRNN for TorchScript."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state: list[Tensor] = []
        if hx is not None:
            state = [hx]
        output, state = self.run(input, state)
        return output, state[0]


class ScriptableLSTM(_Layer):
    """A SymLSTM for TorchScript."""

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state: list[Tensor] = []
        if hx is not None:
            state = [hx[0], hx[1]]
        output, state = self.run(input, state)
        return output, (state[0], state[1])


class _Cell(nn.Module):
    """A cell for TorchScript: shares its parameters, runs PyTorch's operator."""

    def __init__(self, weights: LayerWeights, mode: str, wrong_dimensions: str) -> None:
        super().__init__()
        self.weights = _weight_modules([weights])
        self.mode = mode
        self.states = len(MODES[mode].states)
        self.hidden_size = weights.hh.layout.rows
        self.wrong_dimensions = wrong_dimensions

    def run(self, input: Tensor, state: list[Tensor]) -> list[Tensor]:
        if input.dim() != 1 and input.dim() != 2:
            raise ValueError(self.wrong_dimensions.format(input.dim()))
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            state = [part.unsqueeze(0) for part in state]
        if len(state) == 0:
            state = [input.new_zeros([input.size(0), self.hidden_size])] * self.states
        state = self.operator(input, state)
        return state if batched else [part.squeeze(0) for part in state]

    def operator(self, input: Tensor, state: list[Tensor]) -> list[Tensor]:
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight())
        b_ih: Tensor | None = None
        b_hh: Tensor | None = None
        if len(flat) == 4:
            b_ih, b_hh = flat[2], flat[3]
        if self.mode == "LSTM":
            h, c = torch.lstm_cell(input, state, flat[0], flat[1], b_ih, b_hh)
            return [h, c]
        h = state[0]
        if self.mode == "GRU":
            return [torch.gru_cell(input, h, flat[0], flat[1], b_ih, b_hh)]
        if self.mode == "RNN_TANH":
            return [torch.rnn_tanh_cell(input, h, flat[0], flat[1], b_ih, b_hh)]
        return [torch.rnn_relu_cell(input, h, flat[0], flat[1], b_ih, b_hh)]


class ScriptableCell(_Cell):
    """A SymGRUCell or a SymRNNCell for TorchScript."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        state: list[Tensor] = []
        if hx is not None:
            state = [hx]
        return self.run(input, state)[0]


class ScriptableLSTMCell(_Cell):
    """A SymLSTMCell for TorchScript."""

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        state: list[Tensor] = []
        if hx is not None:
            state = [hx[0], hx[1]]
        state = self.run(input, state)
        return state[0], state[1]


def scripted_layer(
    weights: Sequence[LayerWeights],
    attributes: Attributes,
    batch_first: bool,
    shapes: list[tuple[int, int, int]],
    wrong_dimensions: str,
) -> nn.Module:
    """A recurrent layer in the form that TorchScript compiles.

    shapes: those of the state of an empty batch.  wrong_dimensions: what is said of an input of {}.
    """
    made = ScriptableLSTM if attributes.mode == "LSTM" else ScriptableLayer
    return made(weights, attributes, batch_first, shapes, wrong_dimensions)


def scripted_cell(weights: LayerWeights, mode: str, wrong_dimensions: str) -> nn.Module:
    """A cell in the form that TorchScript compiles."""
    made = ScriptableLSTMCell if mode == "LSTM" else ScriptableCell
    return made(weights, mode, wrong_dimensions)
