"""What ``torch.jit.script`` makes of a layer or a cell: the same in a form TorchScript compiles.

An LSTM takes and gives the pair of h and c, all others h alone; TorchScript wants either in the
signature. Inside, a state is a list, and an empty one stands for zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from symrnn.rnn.gates import GateMatrix
from symrnn.rnn.keeping import GatedModule
from symrnn.symmetry import Symmetry


class SymmetricMatrix(nn.Module):
    """A stacked gate matrix some of whose gates are symmetric."""

    def __init__(self, matrix: GateMatrix, owner: nn.Module, symmetry: Symmetry) -> None:
        super().__init__()
        free, rest = matrix.free(owner), matrix.plain(owner)
        assert free is not None
        self.symmetry = symmetry
        self.free = free
        self.rest = free.new_empty(0, matrix.columns) if rest is None else rest
        self.rows = matrix.rows
        self.columns = matrix.columns
        # Where each gate's block stands when the symmetric ones come first, the others after.
        self.order = [(matrix.symmetric + matrix.rest).index(gate) for gate in matrix.gates]

    def forward(self) -> Tensor:
        expanded = self.symmetry(self.free)
        if self.rest.size(0) == 0:
            return expanded.view(-1, self.columns)
        blocks = torch.cat([expanded, self.rest.view(-1, self.rows, self.columns)])
        return torch.cat([blocks[k] for k in self.order])


class PlainTensor(nn.Module):
    """A weight that is used as it is kept."""

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def _weight_modules(owner: GatedModule) -> nn.ModuleList:
    """One module for each of PyTorch's weights, in its order; parameters are shared."""
    modules = nn.ModuleList()
    for name in owner._weight_names:
        matrix = owner._matrices.get(name)
        if matrix is not None and matrix.symmetric:
            assert owner.symmetry is not None
            modules.append(SymmetricMatrix(matrix, owner, owner.symmetry))
        else:
            modules.append(PlainTensor(getattr(owner, name)))
    return modules


class _Layer(nn.Module):
    """A recurrent layer for TorchScript: shares its parameters, runs PyTorch's operator.

    Takes tensors, batched or not; a PackedSequence needs the eager module.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weights = _weight_modules(layer)
        self.mode = layer.mode
        self.num_layers = layer.num_layers
        self.bias = layer.bias
        self.batch_first = layer.batch_first
        self.dropout = layer.dropout
        self.bidirectional = layer.bidirectional
        self.shapes = layer.state_shapes(batch=0)
        self.wrong_dimensions = layer.wrong_dimensions()
        self.train(layer.training)

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

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.weights = _weight_modules(cell)
        self.mode = cell.mode
        self.states = len(cell.STATES)
        self.hidden_size = cell.hidden_size
        self.wrong_dimensions = cell.wrong_dimensions()

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


def scriptable_layer(layer: GatedModule) -> nn.Module:
    """A recurrent layer in the form that TorchScript compiles."""
    return ScriptableLayer(layer) if layer.STATES == "h" else ScriptableLSTM(layer)


def scriptable_cell(cell: GatedModule) -> nn.Module:
    """A cell in the form that TorchScript compiles."""
    return ScriptableCell(cell) if cell.STATES == "h" else ScriptableLSTMCell(cell)
