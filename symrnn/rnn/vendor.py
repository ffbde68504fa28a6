"""PyTorch's own operators (oneDNN on a CPU, cuDNN on an NVIDIA GPU) run on expanded weights.

A CPU takes the expanded matrices as they are. cuDNN wants all weights in one buffer, at places of
its own, and copies them there on every call (with a warning) unless the tensors it is given
already lie so. :func:`_in_one_buffer` lays them out: the one place that knows of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from symrnn.rnn.stack import LayerWeights, StackOptions, State

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


def cell(mode: str, x: Tensor, state: State, w: LayerWeights) -> State:
    """One step of a cell; the arguments of :func:`symrnn.rnn.reference.cell`."""
    hx = state if mode == "LSTM" else state[0]
    new = CELL_OPERATORS[mode](x, hx, w.ih, w.hh, w.bias_ih, w.bias_hh)
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
    flat = [tensor for layer in weights for tensor in layer if tensor is not None]
    if not torch.compiler.is_exporting() and _cudnn_takes(flat):
        flat = _in_one_buffer(flat, weights[0], options)
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


def _in_one_buffer(flat: list[Tensor], first: LayerWeights, options: StackOptions) -> list[Tensor]:
    """The same tensors, as views of one buffer laid out as cuDNN wants it; differentiable."""
    places, total = _cudnn_layout(
        options.mode,
        tuple(tuple(tensor.shape) for tensor in flat),
        first.hh.size(1) if first.hr is None else first.hr.size(1),
        0 if first.hr is None else first.hr.size(0),
        options.num_layers,
        options.bidirectional,
        flat[0].dtype,
        flat[0].device,
    )
    # Zeros fill what is nobody's: without biases cuDNN has places for them all the same.
    order = sorted(range(len(flat)), key=places.__getitem__)
    pieces: list[Tensor] = []
    end = 0
    for k in order:
        pieces += [flat[k].new_zeros(places[k] - end), flat[k].reshape(-1)]
        end = places[k] + flat[k].numel()
    pieces.append(flat[0].new_zeros(total - end))
    # One split, as its gradient is one copy; that of slices is a whole buffer for each of them.
    views = torch.cat(pieces).split([piece.numel() for piece in pieces])[1::2]
    placed = {k: view.view_as(flat[k]) for k, view in zip(order, views, strict=True)}
    return [placed[k] for k in range(len(flat))]


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
