"""A layer on the native kernels for NVIDIA GPUs, where they can run it; else on PyTorch's operator.

They can if the hidden weights of all gates are symmetric and fit on the chip, and if all sequences
take all steps. Under autocast everything is cast to its dtype, as PyTorch's layers do.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symrnn import native
from symrnn.native import cuda
from symrnn.rnn import vendor
from symrnn.rnn.operators_gpu import DTYPES, SYMM, fit
from symrnn.rnn.packing import matrices_of
from symrnn.rnn.stack import StackOptions, State, over_layers

if TYPE_CHECKING:
    from symrnn.rnn.fused import FusedWeights
    from symrnn.rnn.keeping import GatedModule


def run(
    input: Tensor,
    batch_sizes: Tensor | None,
    state: State,
    weights: list[FusedWeights],
    options: StackOptions,
) -> tuple[Tensor, State]:
    """A :data:`symrnn.rnn.stack.Backend` for CUDA tensors."""
    module = weights[0].module
    low = _autocast_dtype(module)
    dtype = low or module._dtype()
    why = "" if batch_sizes is None else "sequences of a PackedSequence may end before others"
    why = why or why_not(module, dtype, state[0].size(1), input.device)
    if why:
        _notice(why)
        layers = [module._layer_weights(w.suffix) for w in weights]
        return vendor.run(input, batch_sizes, state, layers, options)
    # Autocast would look at every product within, and has been obeyed by then.
    with torch.autocast("cuda", enabled=False):
        output, last = over_layers(
            input.to(dtype).flatten(0, 1),
            [part.to(dtype) for part in state],
            options,
            lambda k, x, parts: _layer(weights[k], x, parts),
        )
    return output.unflatten(0, input.shape[:-1]), last


def why_not(module: GatedModule, dtype: torch.dtype, batch: int, device: torch.device) -> str:
    """Why the kernels cannot run a module's layers in this dtype on this GPU; "" if they can."""
    if module.symmetry is None or module.symm_hh != module.GATES:
        return f"the hidden weights of all gates should be symmetric: {module._symmetry_repr()}"
    if not module.symmetry.own_transpose:
        return f"matrices of symm={module.symm!r} are not their own transposes"
    if dtype not in DTYPES:
        return f"they have no {dtype}"
    if batch == 0:
        return "there are no sequences"
    return _why_not_there(device.index or 0, module.mode, dtype, module.hidden_size, int(batch))


@torch.compiler.assume_constant_result
def _why_not_there(device: int, mode: str, dtype: torch.dtype, side: int, batch: int) -> str:
    if not native.available():
        return native.why_not()
    if cuda.machine(device) is None:
        return cuda.why_not(device)
    for backward in (False, True):
        if fit(device, mode, dtype, side, batch, backward) is None:
            return f"hidden_size={side} in {dtype} does not fit on the chip of GPU {device}"
    return ""


def _autocast_dtype(module: GatedModule) -> torch.dtype | None:
    """That of autocast, where it is on; float64 it leaves alone."""
    if not torch.is_autocast_enabled("cuda") or module._dtype() == torch.float64:
        return None
    return torch.get_autocast_dtype("cuda")


def _layer(w: FusedWeights, x: Tensor, state: State) -> tuple[Tensor, State]:
    """x (R, I) and the state (B, H) to the output (R, H) and the new state, by operators."""
    module, dtype = w.module, x.dtype
    matrix = module._matrices[f"weight_hh{w.suffix}"]
    matrices = [m.to(dtype) for m in matrices_of(matrix, module, module.symmetry, folded=False)]
    how = (module.GATES, matrix.rows, matrix.columns, SYMM, module.GATES)
    packed = torch.ops.symrnn.pack([m.detach() for m in matrices], *how, dtype)
    w_ih, bias_ih, bias_hh = (
        None if weight is None else weight.to(dtype)
        for weight in (module._weight(f"{stem}{w.suffix}") for stem in _STEMS)
    )
    h0, c0 = state[0], state[1] if len(state) == 2 else None
    output, hn, cn, *_ = torch.ops.symrnn.layer(
        x, w_ih, bias_ih, bias_hh, matrices, packed, h0, c0, None,
        module.mode, SYMM, module.GATES, w.suffix.endswith("_reverse"),
    )  # fmt: skip
    return output, [hn] if c0 is None else [hn, cn]


_STEMS = ("weight_ih", "bias_ih", "bias_hh")

_said: set[str] = set()
_lock = threading.Lock()


def _notice(why: str) -> None:
    """Warn, once for each reason, that PyTorch's operator stands in."""
    if torch.compiler.is_compiling():
        return
    with _lock:
        if why in _said:
            return
        _said.add(why)
    warnings.warn(
        f'backend="fused" runs on PyTorch\'s operator here: {why}',
        UserWarning,
        stacklevel=native.users_frame(),
    )
