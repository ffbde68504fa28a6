"""A picture of recurrent matrices: their eigenvalues in the complex plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symrnn.rnn import RecurrentLayer
from symrnn.rnn.weights import GateMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def eigenvalues(matrix: Tensor) -> Tensor:
    """The eigenvalues (N,), complex, of a real matrix (N, N). A symmetric one's are real."""
    matrix = matrix.detach().to("cpu", torch.float64)
    if torch.equal(matrix, matrix.mT):  # a cheaper algorithm, and no rounding off the real line
        return torch.linalg.eigvalsh(matrix).to(torch.complex128)
    return torch.linalg.eigvals(matrix)


def spectrum_figure(*layers: RecurrentLayer) -> Figure:
    """One panel for each layer and gate with the eigenvalues of its hidden weights.

    layers: recurrent modules of one or more layers, lowest first.
    """
    weights = [w for rnn in layers for w in rnn.layer_weights()]
    rows = {f"layer {k}": _gates(w.hh) for k, w in enumerate(weights)}
    return _figure(rows, layers[0].GATES)


def compare_spectra(models: Mapping[str, RecurrentLayer], layer: int, weights: str) -> Figure:
    """One row of panels for each model, by its label, with the eigenvalues of one layer's gates.

    layer: from 0, the lowest.
    weights: "hh", the hidden weights, or "ih", the input weights, whose blocks are to be square.

    Raises ValueError for a layer that a model does not have, gates that differ, or such weights.
    """
    rows, gates = {}, {rnn.GATES for rnn in models.values()}
    if len(gates) != 1:
        raise ValueError(f"models should have the same gates, got: {', '.join(sorted(gates))}")
    for label, rnn in models.items():
        layers = rnn.layer_weights()
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer should be 0 to {len(layers) - 1}, got: {layer}")
        matrix = layers[layer].ih if weights == "ih" else layers[layer].hh
        if matrix.layout.rows != matrix.layout.columns:
            raise ValueError(f"the blocks of {matrix.layout.name} are not square")
        rows[label] = _gates(matrix)
    return _figure(rows, gates.pop())


def _gates(matrix: GateMatrix) -> list[Tensor]:
    return [eigenvalues(block) for block in matrix.dense().chunk(len(matrix.layout.gates))]


def _figure(rows: Mapping[str, list[Tensor]], gates: str) -> Figure:
    """Spectra by the label of their row, a panel for each gate, all on the same scale."""
    from matplotlib.figure import Figure

    radius = 1.05 * max(float(v.abs().max()) for row in rows.values() for v in row) or 1.0
    figure = Figure(figsize=(2.2 * len(gates), 2.2 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(gates), squeeze=False, sharex=True, sharey=True)
    for (label, row), of_row in zip(rows.items(), panels, strict=True):
        for gate, values, panel in zip(gates, row, of_row, strict=True):
            panel.axhline(0, color="0.85", linewidth=0.8)
            panel.axvline(0, color="0.85", linewidth=0.8)
            panel.plot(values.real, values.imag, ".", markersize=2)
            panel.set_title(f"{label}, gate {gate}", fontsize=8)
            panel.tick_params(labelsize=6)
            panel.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal")
    figure.supxlabel("real part", fontsize=8)
    figure.supylabel("imaginary part", fontsize=8)
    return figure
