"""SymRNN, the drop-in for ``nn.RNN`` whose weights may be symmetric."""

from __future__ import annotations

import torch
from torch import nn

from symrnn.rnn.layer import RecurrentLayer


class SymRNN(RecurrentLayer):
    """An Elman network with symmetric weights, where ``nn.RNN`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.RNN``; with ``symm="none"`` so are the state_dict and every number.

    symm_hh: "h", the only gate there is, for symmetric hidden weights; "" for plain ones.
    symm, symm_ih, backend, and how the weights are kept: as in :class:`symrnn.SymLSTM`.

    >>> rnn = SymRNN(10, 20, num_layers=2, nonlinearity="relu", symm="avg")
    >>> output, h = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    PLAIN = nn.RNN
    GATES = "h"
    ARGUMENTS = (*RecurrentLayer.ARGUMENTS, "nonlinearity")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "h",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> None:
        plain = nn.RNN(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device="meta",
        )
        super().__init__(plain, symm, symm_hh, symm_ih, backend, device, dtype)
        self.nonlinearity = nonlinearity

    @classmethod
    def from_rnn(
        cls,
        rnn: nn.RNN,
        symm: str = "avg",
        symm_hh: str = "h",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> SymRNN:
        """A SymRNN with the symmetric weights nearest to those of a (trained) ``nn.RNN``.

        Device, dtype and training mode are those of ``rnn``; its weights are copied.
        """
        return cls.from_plain(rnn, symm, symm_hh, symm_ih, backend)

    def to_rnn(self) -> nn.RNN:
        """A plain ``nn.RNN`` with the expanded weights, copied; its outputs are equal."""
        rnn: nn.RNN = self.to_plain()
        return rnn
