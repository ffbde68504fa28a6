"""A picture of recurrent matrices: their eigenvalues in the complex plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symrnn.rnn import RecurrentLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eigenvalues(matrix: Tensor) -> Tensor:
    """The eigenvalues (N,), complex, of a real matrix (N, N). A symmetric one's are real."""
    matrix = matrix.detach().to("cpu", torch.float64)
    if torch.equal(matrix, matrix.mT):  # a cheaper algorithm, and no rounding off the real line
        return torch.linalg.eigvalsh(matrix).to(torch.complex128)
    return torch.linalg.eigvals(matrix)


def spectrum_figure(rnn: RecurrentLayer) -> Figure:
    """One panel for each layer and gate with the eigenvalues of its hidden weights."""
    from matplotlib.figure import Figure

    gates = rnn.GATES
    spectra = [
        [eigenvalues(block) for block in weights.hh.dense().chunk(len(gates))]
        for weights in rnn.layer_weights()
    ]
    radius = 1.05 * max(float(values.abs().max()) for row in spectra for values in row) or 1.0
    figure = Figure(figsize=(2.2 * len(gates), 2.2 * len(spectra)), layout="constrained")
    panels = figure.subplots(len(spectra), len(gates), squeeze=False, sharex=True, sharey=True)
    for layer, row in enumerate(spectra):
        for gate, values, panel in zip(gates, row, panels[layer], strict=True):
            panel.axhline(0, color="0.85", linewidth=0.8)
            panel.axvline(0, color="0.85", linewidth=0.8)
            panel.plot(values.real, values.imag, ".", markersize=2)
            panel.set_title(f"layer {layer}, gate {gate}", fontsize=8)
            panel.tick_params(labelsize=6)
            panel.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal")
    figure.supxlabel("real part", fontsize=8)
    figure.supylabel("imaginary part", fontsize=8)
    return figure
