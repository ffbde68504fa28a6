"""Counts of parameters, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from symrnn import ParameterCount, SymLSTM, SymLSTMCell, count_parameters, get_symmetry

# One layer of 200 units: 4 gates of 200 × 200 input weights, as many hidden ones, 8 × 200 biases.
INPUT, FULL, BIASES = 160_000, 160_000, 1_600
SYMMETRIC = 4 * 200 * 201 // 2  # 80,400


@pytest.mark.parametrize(
    ("options", "training", "recurrent"),
    [
        ({"symm": "none"}, INPUT + FULL + BIASES, FULL),
        ({"symm": "avg"}, INPUT + SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "tri"}, INPUT + SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "avg", "symm_hh": "if"}, INPUT + 40_200 + 80_000 + BIASES, 40_200 + 80_000),
        ({"symm": "avg", "symm_hh": ""}, INPUT + FULL + BIASES, FULL),
        ({"symm": "tri", "symm_ih": "ifgo"}, 2 * SYMMETRIC + BIASES, SYMMETRIC),
        ({"symm": "avg", "symm_hh": "", "symm_ih": "g"}, 120_000 + 20_100 + FULL + BIASES, FULL),
        ({"symm": "avg", "bias": False}, INPUT + SYMMETRIC, SYMMETRIC),
        ({"symm": "avg", "num_layers": 2}, 2 * (INPUT + SYMMETRIC + BIASES), 2 * SYMMETRIC),
        (
            {"symm": "avg", "num_layers": 2, "bidirectional": True},
            2 * (INPUT + SYMMETRIC + BIASES) + 2 * (2 * INPUT + SYMMETRIC + BIASES),
            4 * SYMMETRIC,
        ),
        (
            {"symm_hh": "", "proj_size": 50},
            INPUT + 40_000 + BIASES + 50 * 200,
            40_000,
        ),
    ],
)
def test_sym_lstm(options: dict[str, Any], training: int, recurrent: int) -> None:
    lstm = SymLSTM(200, 200, **options)
    assert count_parameters(lstm) == ParameterCount(training, training, recurrent)
    assert training == sum(p.numel() for p in lstm.parameters())


@pytest.mark.parametrize("module", [SymLSTM, SymLSTMCell])
def test_avg_full_trains_the_full_matrices_and_ships_the_orbits(module: type[nn.Module]) -> None:
    assert count_parameters(module(200, 200, symm="avg:full")) == ParameterCount(
        training=INPUT + FULL + BIASES,
        deployed=INPUT + SYMMETRIC + BIASES,
        recurrent=SYMMETRIC,
    )
    mixed = module(200, 200, symm="avg:full", symm_hh="i", symm_ih="fo")
    assert count_parameters(mixed) == ParameterCount(
        training=INPUT + FULL + BIASES,
        deployed=(80_000 + 40_200) + (120_000 + 20_100) + BIASES,
        recurrent=120_000 + 20_100,
    )


@pytest.mark.parametrize(
    ("hidden", "plain", "symmetric"), [(200, 4_653_200, 4_494_000), (650, 19_780_400, 18_093_000)]
)
def test_the_language_models_of_the_recipes(hidden: int, plain: int, symmetric: int) -> None:
    """10,000 words, embedding and decoder of their own, two layers; Zaremba's small and medium."""
    for symm, expected in (("none", plain), ("avg", symmetric)):
        with torch.device("meta"):
            model = nn.Sequential(
                nn.Embedding(10_000, hidden),
                SymLSTM(hidden, hidden, 2, symm=symm),
                nn.Linear(hidden, 10_000),
            )
        assert count_parameters(model).training == expected
        assert expected == 20_000 * hidden + 10_000 + 2 * (
            4 * hidden**2
            + 8 * hidden
            + 4 * (hidden**2 if symm == "none" else hidden * (hidden + 1) // 2)
        )


def test_parameters_that_are_shared_count_once() -> None:
    lstm = SymLSTM(20, 20, symm="avg:full")
    once = count_parameters(lstm)
    assert count_parameters(nn.ModuleList([lstm, lstm])) == once
    other = SymLSTM(20, 20, symm="avg:full")
    other.weight_hh_l0_avg_full = lstm.weight_hh_l0_avg_full
    both = count_parameters(nn.ModuleList([lstm, other]))
    assert both == ParameterCount(
        training=2 * once.training - 1600, deployed=2 * once.deployed - 840, recurrent=840
    )
    embedding, decoder = nn.Embedding(100, 20), nn.Linear(20, 100, bias=False)
    decoder.weight = embedding.weight
    tied = nn.Sequential(embedding, lstm, decoder)
    assert count_parameters(tied).training == once.training + 2000


@pytest.mark.parametrize(("name", "training"), [("tri", 210), ("avg", 210), ("avg:full", 400)])
def test_layers_with_a_symmetric_parametrization(name: str, training: int) -> None:
    layer = nn.Linear(20, 20)
    assert count_parameters(layer) == ParameterCount(420, 420, 0)
    parametrize.register_parametrization(layer, "weight", get_symmetry(name, 20))
    assert count_parameters(nn.Sequential(layer, nn.Linear(20, 3))) == ParameterCount(
        training + 20 + 63, 210 + 20 + 63, 0
    )
    layer.requires_grad_(False)
    assert count_parameters(layer) == ParameterCount(training + 20, 230, 0)
    recurrent = nn.RNN(7, 20)
    parametrize.register_parametrization(recurrent, "weight_hh_l0", get_symmetry(name, 20))
    assert count_parameters(recurrent) == ParameterCount(140 + training + 40, 140 + 210 + 40, 210)


def test_plain_recurrent_layers() -> None:
    assert count_parameters(nn.LSTM(7, 20, 2, bidirectional=True)) == ParameterCount(
        *[2 * (4 * 20 * (7 + 20) + 160) + 2 * (4 * 20 * (40 + 20) + 160)] * 2, 4 * 1600
    )
    assert count_parameters(nn.GRUCell(7, 20)) == ParameterCount(1740, 1740, 1200)
    assert count_parameters(nn.Linear(3, 2)) == ParameterCount(8, 8, 0)
    assert count_parameters(nn.Identity()) == ParameterCount(0, 0, 0)
