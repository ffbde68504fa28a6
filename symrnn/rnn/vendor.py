"""PyTorch's own LSTM (oneDNN on a CPU, cuDNN on an NVIDIA GPU) run on expanded weights.

A CPU takes the expanded matrices as they are. cuDNN wants all weights in one buffer, in an order
of its own, and copies them there on every call (with a warning) unless the tensors it is given
already lie so. :func:`_in_one_buffer` lays them out: the one place that knows that order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from symrnn.rnn.stack import LayerWeights, StackOptions, State


# Under torch.compile the operator stays as it is: traced, it would be taken apart into a loop.
@torch.compiler.disable
def lstm(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[LayerWeights],
    options: StackOptions,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Backend`."""
    flat = [tensor for layer in weights for tensor in layer if tensor is not None]
    if input.is_cuda and _cudnn_takes(flat):
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
    if batch_sizes is None:
        output, h, c = torch.lstm(input, state, *common, False)
    else:
        output, h, c = torch.lstm(input, batch_sizes, state, *common)
    return output, (h, c)


def _cudnn_takes(flat: list[Tensor]) -> bool:
    return torch.backends.cudnn.is_acceptable(flat[0]) and all(
        tensor.is_cuda and tensor.dtype == flat[0].dtype for tensor in flat
    )


def _in_one_buffer(
    flat: list[Tensor], first: LayerWeights, options: StackOptions
) -> list[Tensor]:
    """The same tensors, as views of one buffer in the order cuDNN wants; differentiable."""
    order = _cudnn_order(
        tuple(tuple(tensor.shape) for tensor in flat),
        first.bias_ih is not None,
        first.hh.size(0) // 4,
        0 if first.hr is None else first.hr.size(0),
        options.num_layers,
        options.bidirectional,
        flat[0].dtype,
        flat[0].device,
    )
    buffer = torch.cat([flat[k].reshape(-1) for k in order])
    pieces = buffer.split([flat[k].numel() for k in order])
    views = {k: piece.view_as(flat[k]) for k, piece in zip(order, pieces, strict=True)}
    return [views[k] for k in range(len(flat))]


@lru_cache(maxsize=64)
def _cudnn_order(
    shapes: tuple[tuple[int, ...], ...],
    bias: bool,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[int, ...]:
    """The order in which cuDNN keeps the tensors of these shapes in its buffer.

    There is no public way to ask, so a plain LSTM of the same shapes is flattened once and the
    places of its weights are read off.
    """
    plain = torch.nn.LSTM(
        shapes[0][1],
        hidden_size,
        num_layers,
        bias,
        bidirectional=bidirectional,
        proj_size=proj_size,
        dtype=dtype,
        device="meta",  # no starting values are drawn, so no random stream moves
    )
    plain.to_empty(device=device)
    plain.flatten_parameters()
    starts = [parameter.data_ptr() for parameter in plain.parameters()]
    return tuple(sorted(range(len(starts)), key=starts.__getitem__))
