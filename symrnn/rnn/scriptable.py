"""What ``torch.jit.script`` makes of a SymLSTM: the same layers in a form TorchScript compiles."""

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


class ScriptableLSTM(nn.Module):
    """A SymLSTM for TorchScript: shares its parameters, runs PyTorch's operator.

    Takes tensors, batched or not; a PackedSequence needs the eager module.
    """

    def __init__(self, lstm: Any) -> None:
        super().__init__()
        self.weights = _weight_modules(lstm)
        self.num_layers = lstm.num_layers
        self.count = lstm.num_layers * (2 if lstm.bidirectional else 1)
        self.bias = lstm.bias
        self.batch_first = lstm.batch_first
        self.dropout = lstm.dropout
        self.bidirectional = lstm.bidirectional
        self.hidden_size = lstm.hidden_size
        self.output_size = lstm.proj_size or lstm.hidden_size
        self.train(lstm.training)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if input.dim() != 2 and input.dim() != 3:
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        batch = input.size(0) if self.batch_first else input.size(1)
        if hx is None:
            h = input.new_zeros([self.count, batch, self.output_size])
            c = input.new_zeros([self.count, batch, self.hidden_size])
        elif batched:
            h, c = hx
        else:
            h, c = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight())
        output, h, c = torch.lstm(
            input,
            [h, c],
            flat,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
        )
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            h, c = h.squeeze(1), c.squeeze(1)
        return output, (h, c)


class ScriptableLSTMCell(nn.Module):
    """A SymLSTMCell for TorchScript."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.weights = _weight_modules(cell)
        self.hidden_size = cell.hidden_size

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if input.dim() != 1 and input.dim() != 2:
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
        if hx is None:
            h = input.new_zeros([input.size(0), self.hidden_size])
            c = h
        elif batched:
            h, c = hx
        else:
            h, c = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight())
        if len(flat) == 4:
            h, c = torch.lstm_cell(input, [h, c], flat[0], flat[1], flat[2], flat[3])
        else:
            h, c = torch.lstm_cell(input, [h, c], flat[0], flat[1])
        if not batched:
            return h.squeeze(0), c.squeeze(0)
        return h, c
