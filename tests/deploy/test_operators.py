"""The operators themselves: what they refuse, whoever calls them with whatever a file held."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from symrnn import SymGRU, SymLSTM, SymRNN, deploy, symmetrize

H = 8


def arguments(packed: Any, time: int = 2, batch: int = 3) -> list[Any]:
    state = [torch.zeros(shape) for shape in packed.state_shapes(batch)]
    return [torch.randn(time, batch, H), None, state, packed._weights(), packed.structure, H]


def test_shapes_and_types_are_checked(operators: Any) -> None:
    packed: Any = deploy(SymLSTM(H, H))
    x, _, state, weights, structure, size = arguments(packed)
    run = operators.ops.packed_layers
    lengths = torch.tensor([3, 2])
    wrong: dict[str, tuple[Any, ...]] = {
        "input should be float32": (x.double(), None, state, weights, structure, size),
        "input should have 3 dimensions": (x[0], None, state, weights, structure, size),
        "should have 8 columns, got: 4": (x[..., :4], None, state, weights, structure, size),
        "state should be of 2 sequences": (x[:, :2], None, state, weights, structure, size),
        "and state be h and c": (x, None, state[:1], weights, structure, size),
        r"state should be of shape \(1, 3, 8\)": (
            *(x, None, [state[0], state[1].double()], weights, structure, size),
        ),
        "Expected sequence length": (x[:0], None, state, weights, structure, size),
        "batch_sizes should sum to the 6": (x.flatten(0, 1), lengths, state, weights, structure, 8),
        "batch_sizes should fall from 3": (
            *(x.flatten(0, 1), lengths.flip(0), state, weights, structure, size),
        ),
        "structure does not fit the weights": (x, None, state, weights[:-1], structure, size),
        "structure does not fit the packed weights": (
            *(x, None, state, [weights[0][:-64], *weights[1:]], structure, size),
        ),
        "a bias should have 32 numbers": (
            *(x, None, state, [*weights[:2], weights[2][:-1]], structure, size),
        ),
        "packed weights should be float32": (
            *(x, None, state, [weights[0].half(), *weights[1:]], structure, size),
        ),
        "structure should be int32": (x, None, state, weights, structure.long(), size),
        "structure ends too early": (x, None, state, weights, structure[:-1], size),
    }
    for words, given in wrong.items():
        with pytest.raises(RuntimeError, match=words):
            run(*given)
    # What the kernels find wrong they say in their own words.
    within = torch.empty(weights[0].nbytes + 4, dtype=torch.uint8)[4:].view(torch.float32)
    with pytest.raises(RuntimeError, match="symrnn's native kernels: a size is out of range"):
        run(x, None, state, [within.copy_(weights[0]), *weights[1:]], structure, size)


@pytest.mark.parametrize("symm", ["avg", "block4", "avg:skew2"])
def test_no_structure_leads_outside_the_tensors(operators: Any, symm: str) -> None:
    """Each number of it exchanged: an error or numbers, never a crash."""
    packed: Any = deploy(SymGRU(H, H, symm=symm, bias=False))
    given = arguments(packed)
    refused = 0
    for place, number in itertools.product(
        range(min(given[4].numel(), 120)), (-(2**31), -1, 0, 1, 7, 9, 64, 2**20, 2**31 - 1)
    ):
        structure: Tensor = given[4].clone()
        structure[place] = number
        try:
            output = operators.ops.packed_layers(*given[:4], structure, H)[0]
            assert output.shape == (2, 3, H)
        except RuntimeError:
            refused += 1
    assert refused > 100


def test_a_skew_part_is_as_high_as_its_matrix(operators: Any) -> None:
    """The kernels read one of 16 rows 40 rows far, beyond its packed numbers."""
    side, tile = 40, 256
    packed: Any = deploy(SymRNN(side, side, symm="avg:skew2", bias=False))
    state, x = [torch.zeros(1, 3, side)], torch.randn(2, 3, side)
    hh, ih = packed._weights()
    place = packed.structure.tolist().index(-1)  # of symmetric, rows, columns, gates and no maps
    assert packed.structure[place : place + 6].tolist() == [-1, side, 4, 1, 0, 0]
    for at, number, numbers in ((1, 16, hh[: -2 * tile]), (2, 3, hh)):
        structure = packed.structure.clone()
        structure[place + at] = number
        with pytest.raises(RuntimeError, match="structure has a skew part that cannot be one"):
            operators.ops.packed_layers(x, None, state, [numbers, ih], structure, side)


def test_a_linear_layer_of_no_columns_is_an_error(operators: Any) -> None:
    linear = nn.Sequential(nn.Linear(H, H))
    symmetrize(linear, "avg")
    packed: Any = deploy(linear).get_submodule("0")
    assert packed.structure[:2].tolist() == [H, H]
    for place, x in ((0, torch.randn(2, H)), (1, torch.randn(2, 0))):
        for number in (0, -1):
            structure: Tensor = packed.structure.clone()
            structure[place] = number
            with pytest.raises(RuntimeError, match="structure has a matrix of"):
                operators.ops.packed_linear(
                    x, packed.packed_weight, None, structure, int(structure[0])
                )


def test_nothing_runs_of_no_sequences(operators: Any) -> None:
    packed: Any = deploy(SymLSTM(H, H))
    output, h, c = operators.ops.packed_layers(*arguments(packed, batch=0))
    assert (output.shape, h.shape, c.shape) == ((2, 0, H), (1, 0, H), (1, 0, H))
