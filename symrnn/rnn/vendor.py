"""PyTorch's own operators (oneDNN on a CPU, cuDNN on an NVIDIA GPU) run on expanded weights.

A CPU takes the expanded matrices as they are. cuDNN wants all weights in one buffer, at places of
its own, and copies them there on every call (with a warning) unless the tensors it is given
already lie so. :class:`_OneBuffer` lays them out, symmetric matrices expanded to where they belong:
the one place that knows of that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symrnn.rnn.stack import LayerWeights, StackOptions, State
from symrnn.symmetry.linear import OrbitCoordinates

OPERATORS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}

CELL_OPERATORS: dict[str, Any] = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}


class FreeMatrix(NamedTuple):
    """A stacked matrix (G·H, H), symmetric in all gates, that is not expanded yet.

    free: its free numbers (G, numel).
    """

    symmetry: OrbitCoordinates
    free: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.free) * self.symmetry.side, self.symmetry.side

    def expand(self) -> Tensor:
        return self.symmetry.expand(self.free).flatten(0, 1)


def _expanded(weight: Tensor | FreeMatrix) -> Tensor:
    return weight.expand() if isinstance(weight, FreeMatrix) else weight


def cell(mode: str, x: Tensor, state: State, w: LayerWeights) -> State:
    """One step of a cell; the arguments of :func:`symrnn.rnn.reference.cell`."""
    hx = state if mode == "LSTM" else state[0]
    new = CELL_OPERATORS[mode](x, hx, _expanded(w.ih), _expanded(w.hh), w.bias_ih, w.bias_hh)
    return [new] if isinstance(new, Tensor) else list(new)


def run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    options: StackOptions,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Backend`."""
    if torch.compiler.is_exporting():
        return _call(input, batch_sizes, state, weights, options)
    return _call_as_it_is(input, batch_sizes, state, weights, options)


def _call(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    options: StackOptions,
) -> tuple[Tensor, State]:
    whole = [weight for layer in weights for weight in layer if weight is not None]
    kept = [weight.free if isinstance(weight, FreeMatrix) else weight for weight in whole]
    if not torch.compiler.is_exporting() and _cudnn_takes(kept):
        flat = _in_one_buffer(whole, kept, weights[0], options)
    else:
        flat = [_expanded(weight) for weight in whole]
    bias = weights[0].bias_ih is not None
    common = (
        flat,
        bias,
        options.num_layers,
        options.dropout,
        options.training,
        options.bidirectional,
    )
    operator = OPERATORS[options.mode]
    hx = state if options.mode == "LSTM" else state[0]
    with _no_word_of_projections(weights[0]):
        if batch_sizes is None:
            output, *last = operator(input, hx, *common, False)
        else:
            output, *last = operator(input, batch_sizes, hx, *common)
    return output, last


# torch.compile leaves the operator alone: traced, it would be taken apart into a loop.
_call_as_it_is = torch.compiler.disable(_call)


@contextmanager
def _no_word_of_projections(first: LayerWeights) -> Iterator[None]:
    """Without the warning that oneDNN has no projections: PyTorch runs its own loop, and well."""
    if first.hr is None or torch.compiler.is_exporting():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported", UserWarning)
        yield


def _cudnn_takes(flat: list[Tensor]) -> bool:
    first = flat[0]
    if not first.is_cuda or any(tensor.dtype != first.dtype for tensor in flat):
        return False
    if not torch._use_cudnn_rnn_flatten_weight():  # another vendor's library
        return False
    if first.dtype == torch.bfloat16:  # which `is_acceptable` does not know of yet
        capable = torch.cuda.get_device_capability(first.device) >= (8, 0)
        return capable and torch.backends.cudnn.enabled
    return torch.backends.cudnn.is_acceptable(first)


def _in_one_buffer(
    whole: Sequence[Tensor | FreeMatrix],
    kept: Sequence[Tensor],
    first: LayerWeights,
    options: StackOptions,
) -> list[Tensor]:
    """The weights as views of one buffer laid out as cuDNN wants it; differentiable.

    kept: the tensors that they are made of.
    """
    shapes = tuple(tuple(weight.shape) for weight in whole)
    places, total = _cudnn_layout(
        options.mode,
        shapes,
        first.hh.shape[1] if first.hr is None else first.hr.size(1),
        0 if first.hr is None else first.hr.size(0),
        options.num_layers,
        options.bidirectional,
        kept[0].dtype,
        kept[0].device,
    )
    symmetries = [weight.symmetry if isinstance(weight, FreeMatrix) else None for weight in whole]
    views: tuple[Tensor, ...] = _OneBuffer.apply(symmetries, shapes, places, total, *kept)
    return list(views)


class _OneBuffer(torch.autograd.Function):
    """Tensors, and symmetric matrices by their free numbers, to views of one new buffer."""

    @staticmethod
    def forward(
        ctx: Any,
        symmetries: Sequence[OrbitCoordinates | None],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        total: int,
        *kept: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.symmetries = symmetries
        buffer = kept[0].new_empty(total)
        views = [
            buffer[place : place + math.prod(shape)].view(shape)
            for place, shape in zip(places, shapes, strict=True)
        ]
        end = 0
        for place, view in sorted(zip(places, views, strict=True), key=lambda one: one[0]):
            # Zeros fill what is nobody's: without biases cuDNN has places for them all the same.
            buffer[end:place].zero_()
            end = place + view.numel()
        buffer[end:].zero_()
        for view, symmetry, tensor in zip(views, symmetries, kept, strict=True):
            if symmetry is None:
                view.copy_(tensor)
            else:
                symmetry.write(tensor, view.unflatten(0, (-1, symmetry.side)))
        return tuple(views)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # Not once differentiable only: without cuDNN the operator has gradients of gradients.
        found = [
            gradient
            if symmetry is None
            else symmetry.adjoint(gradient.unflatten(0, (-1, symmetry.side)))
            for symmetry, gradient in zip(ctx.symmetries, gradients, strict=True)
        ]
        return None, None, None, None, *found


@lru_cache(maxsize=64)
def _cudnn_layout(
    mode: str,
    shapes: tuple[tuple[int, ...], ...],
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[int], int]:
    """Where in its buffer cuDNN keeps tensors of these shapes, and how long the buffer is.

    In elements. There is no public way to ask, so tensors of these shapes are flattened once, as
    ``nn.LSTM.flatten_parameters`` does, and the places read off.
    """
    from torch.backends.cudnn import rnn

    tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    with torch.cuda.device(device), torch.no_grad():
        buffer = torch._cudnn_rnn_flatten_weight(
            tensors,
            len(shapes) // (num_layers * (2 if bidirectional else 1)),
            shapes[0][1],
            rnn.get_cudnn_mode(mode),
            hidden_size,
            proj_size,
            num_layers,
            False,  # batch_first, which the layout does not depend on
            bidirectional,
        )
    return [int(tensor.storage_offset()) for tensor in tensors], buffer.numel()
