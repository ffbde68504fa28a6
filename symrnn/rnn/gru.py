"""SymGRU, the drop-in for ``nn.GRU`` whose gates' weights may be symmetric."""

from __future__ import annotations

import torch
from torch import nn

from symrnn.rnn.layer import RecurrentLayer


class SymGRU(RecurrentLayer):
    """Gated recurrent units with symmetric weights, where ``nn.GRU`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.GRU``; with ``symm="none"`` so are the state_dict and every number.

    symm_hh: the gates, of "rzn" (reset, update, new), whose hidden weights are symmetric.
    symm, symm_ih, backend, and how the weights are kept: as in :class:`symrnn.SymLSTM`.

    >>> gru = SymGRU(10, 20, num_layers=2, symm="avg")
    >>> output, h = gru(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    PLAIN = nn.GRU
    GATES = "rzn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "rzn",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        plain = nn.GRU(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device="meta",
        )
        super().__init__(plain, symm, symm_hh, symm_ih, backend, device, dtype)

    @classmethod
    def from_gru(
        cls,
        gru: nn.GRU,
        symm: str = "avg",
        symm_hh: str = "rzn",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> SymGRU:
        """A SymGRU with the symmetric weights nearest to those of a (trained) ``nn.GRU``.

        Device, dtype and training mode are those of ``gru``; its weights are copied.
        """
        return cls.from_plain(gru, symm, symm_hh, symm_ih, backend)

    def to_gru(self) -> nn.GRU:
        """A plain ``nn.GRU`` with the expanded weights, copied; its outputs are equal."""
        gru: nn.GRU = self.to_plain()
        return gru
