"""SymLSTMCell, the drop-in for ``nn.LSTMCell`` whose gates' weights may be symmetric."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from symrnn.rnn import reference, script
from symrnn.rnn.backends import check_backend
from symrnn.rnn.keeping import GatedModule
from symrnn.rnn.scriptable import ScriptableLSTMCell
from symrnn.rnn.stack import LayerWeights


class SymLSTMCell(GatedModule):
    """One step of a long short-term memory with symmetric weights, where ``nn.LSTMCell`` stood.

    Arguments, call and outputs are those of ``nn.LSTMCell``; ``symm``, ``symm_hh``, ``symm_ih``
    and ``backend`` those of :class:`symrnn.SymLSTM`.

    >>> cell = SymLSTMCell(10, 20, symm="avg")
    >>> h, c = cell(torch.randn(3, 10))
    >>> h.shape
    torch.Size([3, 20])
    """

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
        super().__init__()
        plain = nn.LSTMCell(input_size, hidden_size, bias, device="meta")
        check_backend(backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.backend = backend
        self._keep(plain, symm, symm_hh, symm_ih, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias_ih", None)
            self.register_parameter("bias_hh", None)
        self.reset_parameters()

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """input (B, I) or (I,); hx: h and c, each (B, H) or (H,), zeros by default -> h, c."""
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for k, state in enumerate(hx or ()):
            if state.dim() not in (1, 2):
                raise ValueError(
                    f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {state.dim()}D instead"
                )
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        if hx is None:
            zeros = input.new_zeros(input.size(0), self.hidden_size)
            hx = (zeros, zeros)
        self._check(input, hx)
        w = LayerWeights(
            self._weight("weight_ih"),
            self._weight("weight_hh"),
            self._weight("bias_ih"),
            self._weight("bias_hh"),
            None,
        )
        h, c = self._step(input, hx[0], hx[1], w)
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))

    def _step(self, x: Tensor, h: Tensor, c: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
        if self.backend == "reference":
            return reference.cell(x, h, c, w)
        if self.backend == "script":
            return script.step(x, h, c, w)
        return torch.lstm_cell(x, (h, c), w.ih, w.hh, w.bias_ih, w.bias_hh)

    def _check(self, input: Tensor, hx: tuple[Tensor, Tensor]) -> None:
        # In the words of PyTorch's operator, for the backends that do not call it.
        if input.size(1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}"
            )
        if len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        for k, state in enumerate(hx):
            if state.size(0) != input.size(0):
                raise RuntimeError(
                    f"Input batch size {input.size(0)} doesn't match hidden{k} batch size "
                    f"{state.size(0)}"
                )
            if state.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, expected "
                    f"{self.hidden_size}"
                )

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, {self._symmetry_repr()}"

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptableLSTMCell(self)
