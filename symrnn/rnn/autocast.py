"""Under autocast every backend gives the dtypes that PyTorch's own operator gives.

They depend on the kind of layer, the dtypes given, the processor and the version of PyTorch. So
PyTorch is asked: its operator runs once for each case, on a number or two.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from symrnn.rnn import torch_state
from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import Attributes, Backend, State, autocast_on
from symrnn.rnn.weights import LayerWeights

Dtypes = tuple[torch.dtype, ...]
How = Literal["cell", "layer", "equal", "unequal"]
"""What runs: a step of a cell, or a layer, if on a PackedSequence of equal or unequal lengths."""


def as_pytorch(backend: Backend) -> Backend:
    """The backend, its results in the dtypes of PyTorch's operator where autocast is on."""

    def run(
        input: Tensor,
        batch_sizes: Tensor | None,
        state: State,
        weights: list[LayerWeights],
        attributes: Attributes,
    ) -> tuple[Tensor, State]:
        output, last = backend.run(input, batch_sizes, state, weights, attributes)
        if autocast_on(input.device.type):
            how: How = "layer"
            if batch_sizes is not None:
                how = "equal" if batch_sizes[0] == batch_sizes[-1] else "unequal"
            dtypes = _dtypes_of(how, attributes.mode, input, state, weights[0])
            output, *last = _cast([output, *last], dtypes)
        return output, last

    def cell(input: Tensor, state: State, weights: LayerWeights, attributes: Attributes) -> State:
        new = backend.cell(input, state, weights, attributes)
        if autocast_on(input.device.type):
            new = _cast(new, _dtypes_of("cell", attributes.mode, input, state, weights))
        return new

    return Backend(run, cell)


def _cast(tensors: list[Tensor], dtypes: Dtypes) -> list[Tensor]:
    return [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]


def _dtypes_of(how: How, mode: str, input: Tensor, state: State, w: LayerWeights) -> Dtypes:
    device = input.device.type
    given = (input.dtype, w.hh.tensors[0].dtype, *(part.dtype for part in state))
    return _dtypes(how, mode, w.hr is not None, device, torch.get_autocast_dtype(device), *given)


@torch_state.constant_in_graphs
def _dtypes(
    how: How, mode: str, projects: bool, device: str, low: torch.dtype, *given: torch.dtype
) -> Dtypes:
    return _asked(how, mode, projects, device, low, *given)


@lru_cache(maxsize=256)
def _asked(
    how: How,
    mode: str,
    projects: bool,
    device: str,
    low: torch.dtype,
    of_input: torch.dtype,
    of_weights: torch.dtype,
    *of_state: torch.dtype,
) -> Dtypes:
    """The dtypes of the output, but of a cell, and of the new state.

    low: autocast's dtype.
    """
    kind, side = MODES[mode], 2 if projects else 1
    gates = len(kind.gates) * side
    lengths = {"equal": [1], "unequal": [2, 1]}.get(how)
    batch = 1 if lengths is None else lengths[0]
    with (
        torch_state.without_modes(),
        torch.no_grad(),
        torch.autocast(device, low),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # a user's call may warn, this one not

        def zeros(*shape: int, dtype: torch.dtype = of_weights) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        weights = [zeros(gates, 1), zeros(gates, 1), zeros(gates), zeros(gates)]
        weights += [zeros(1, side)] if projects else []
        leading = (batch,) if how == "cell" else (1, batch)
        state = [
            zeros(*leading, width, dtype=dtype)
            for width, dtype in zip((1, side), of_state, strict=False)
        ]
        hx = state if len(state) == 2 else state[0]
        fixed = weights, True, 1, 0.0, False, False
        try:
            if how == "cell":
                results = kind.cell_operator(zeros(1, 1, dtype=of_input), hx, *weights)
            elif lengths is None:
                results = kind.operator(zeros(1, 1, 1, dtype=of_input), hx, *fixed, False)
            else:
                x = zeros(sum(lengths), 1, dtype=of_input)
                results = kind.operator(x, torch.tensor(lengths), hx, *fixed)
        except RuntimeError:  # none of this dtype on this processor: an LSTM of float16
            return (low,) * (len(of_state) + (how != "cell"))
    return tuple(t.dtype for t in ([results] if isinstance(results, Tensor) else results))
