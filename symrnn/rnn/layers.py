"""SymLSTM, SymGRU and SymRNN: where ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` stood."""

from __future__ import annotations

import torch
from torch import nn

from symrnn.rnn.layer import RecurrentLayer
from symrnn.rnn.modes import MODES


class SymLSTM(RecurrentLayer):
    """A long short-term memory with symmetric weights, where ``nn.LSTM`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.LSTM``; with ``symm="none"`` so is the state_dict, and with ``backend="vendor"``
    then every number, to the last bit.

    symm: the symmetric form, a name of :func:`symrnn.list_symmetries`, or "none".
    symm_hh: the gates, of "ifgo", whose hidden weights are symmetric; "" for none.
    symm_ih: likewise for the input weights of every layer; their blocks must be square, so the
        input size has to equal the hidden size, and deeper layers must not be bidirectional.
    backend: "reference" (a plain loop), "script" (TorchScript), "vendor" (PyTorch's own oneDNN or
        cuDNN operator on the expanded weights), "folded" (a loop whose recurrent product is folded,
        for hidden weights of all gates in a form that folds), "fused" (our kernels on packed
        weights, without projections: float32 and float64 on CPUs; on NVIDIA GPUs float32, bfloat16
        and float16, where the symmetric weights of all gates fit on the chip, else the vendor's
        operator and one warning), or "auto", the fastest for each call.
    state_dropout: in training the chance that a unit of h is zero before the hidden weights: one
        mask for each sequence, layer and direction, the same at every step of a call (Gal and
        Ghahramani 2016); the other units are divided by 1 - p. PyTorch's operators have no such
        argument, so that "vendor" runs the plain loop then, as "fused" does on a GPU.
    weight_dropout: in training the chance that a parameter of the hidden weights is zero for a call
        (DropConnect, as of Merity et al. 2018); the others are divided by 1 - p. An orbit falls as
        one, and a symmetric matrix stays so.

    The symmetric gates' parameters are of shape (gates, numel), named after the matrix and the
    form: ``weight_hh_l0_avg``. The matrix itself can be read as ``weight_hh_l0``, as on
    ``nn.LSTM``. Assigning to it takes the nearest symmetric one, and copies: a Parameter that is
    assigned is not the layer's, and a warning says so. Changing in place what was read, as
    ``nn.init.orthogonal_(lstm.weight_hh_l0)`` does, is an error: assign a matrix that was drawn so,
    or use ``reset_parameters(draw)``.

    Raises what ``nn.LSTM`` raises, and ValueError for an unknown form, gate or backend, for
    ``proj_size`` > 0 with symmetric hidden weights, and for symmetric input weights that are not
    square.

    >>> lstm = SymLSTM(10, 20, num_layers=2, symm="avg")
    >>> output, (h, c) = lstm(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    PLAIN = nn.LSTM
    GATES = MODES["LSTM"].gates
    STATES = MODES["LSTM"].states
    ARGUMENTS = (*RecurrentLayer.ARGUMENTS, "proj_size")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        plain = nn.LSTM(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device="meta",
        )
        super().__init__(
            plain, symm, symm_hh, symm_ih, backend, device, dtype, state_dropout, weight_dropout
        )

    @classmethod
    def from_lstm(
        cls,
        lstm: nn.LSTM,
        symm: str = "avg",
        symm_hh: str = "ifgo",
        symm_ih: str = "",
        backend: str = "auto",
    ) -> SymLSTM:
        """A SymLSTM with the symmetric weights nearest to those of a (trained) ``nn.LSTM``.

        Device, dtype and training mode are those of ``lstm``; its weights are copied.
        """
        return cls.from_plain(lstm, symm, symm_hh, symm_ih, backend)

    def to_lstm(self) -> nn.LSTM:
        """A plain ``nn.LSTM`` with the expanded weights, copied; its outputs are equal."""
        lstm: nn.LSTM = self.to_plain()
        return lstm


class SymGRU(RecurrentLayer):
    """Gated recurrent units with symmetric weights, where ``nn.GRU`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.GRU``; with ``symm="none"`` so is the state_dict, and with ``backend="vendor"``
    then every number, to the last bit.

    symm_hh: the gates, of "rzn" (reset, update, new), whose hidden weights are symmetric.
    symm, symm_ih, backend, state_dropout, weight_dropout, and how the weights are stored: as in
        :class:`symrnn.SymLSTM`.

    >>> gru = SymGRU(10, 20, num_layers=2, symm="avg")
    >>> output, h = gru(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    PLAIN = nn.GRU
    GATES = MODES["GRU"].gates

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
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
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
        super().__init__(
            plain, symm, symm_hh, symm_ih, backend, device, dtype, state_dropout, weight_dropout
        )

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


class SymRNN(RecurrentLayer):
    """An Elman network with symmetric weights, where ``nn.RNN`` stood.

    Arguments, call, outputs, packed sequences, unbatched input, starting values and errors are
    those of ``nn.RNN``; with ``symm="none"`` so is the state_dict, and with ``backend="vendor"``
    then every number, to the last bit.

    symm_hh: "h", the only gate there is, for symmetric hidden weights; "" for plain ones.
    symm, symm_ih, backend, state_dropout, weight_dropout, and how the weights are stored: as in
        :class:`symrnn.SymLSTM`.

    >>> rnn = SymRNN(10, 20, num_layers=2, nonlinearity="relu", symm="avg")
    >>> output, h = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    PLAIN = nn.RNN
    GATES = MODES["RNN_TANH"].gates
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
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
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
        super().__init__(
            plain, symm, symm_hh, symm_ih, backend, device, dtype, state_dropout, weight_dropout
        )
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
