"""Nested state comes back exactly."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from symrnn.training import (
    load_checkpoint,
    pack_state,
    save_checkpoint,
    unpack_state,
)
from symrnn.training.state import check_like


def through_a_file(state: Any, folder: Path) -> Any:
    tensors, packed = pack_state(state, "state")
    save_checkpoint(folder / "c", tensors, {"state": packed})
    checkpoint = load_checkpoint(folder / "c")
    return unpack_state(checkpoint.tensors, checkpoint.meta["state"])


def test_nested_values_keep_type_order_and_bits(tmp_path: Path) -> None:
    state = {
        0: "int key",
        "0": "str key",
        (1, "a"): "tuple key",
        None: [True, 1, 1.0, -0.0, math.inf, None, "é"],
        "tuples": ((), ((1,), [2]), []),
        "z": {"tensor": "a dict that looks packed"},
        "a": {"tuple": []},
        "counter": Counter({30: 2, 80: 1}),
        "ordered": OrderedDict(b=1, a=2),
        "huge": 2**200,
    }
    back = through_a_file(state, tmp_path)
    assert repr(back) == repr(state)  # repr tells types and order apart, == does not
    assert math.isnan(through_a_file([math.nan], tmp_path)[0])


def test_tensors_and_arrays(tmp_path: Path) -> None:
    shared = torch.randn(3)
    state = {
        0: shared,
        "0": torch.tensor(5),
        "again": (shared, [shared]),
        "bf16": torch.ones(2, 0, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::2],
        "scalar array": np.array(2.5),
    }
    back = through_a_file(state, tmp_path)
    assert torch.equal(back[0], shared)
    assert back["0"] == 5
    assert back["again"][0] is back[0]
    assert back["again"][1][0] is back[0]
    assert (back["bf16"].dtype, back["bf16"].shape) == (torch.bfloat16, (2, 0))
    assert type(back["parameter"]) is torch.Tensor
    np.testing.assert_array_equal(back["array"], state["array"], strict=True)
    np.testing.assert_array_equal(back["scalar array"], np.array(2.5), strict=True)


def test_names_say_where_a_tensor_stood() -> None:
    tensors, _ = pack_state({"state": {0: {"momentum_buffer": torch.ones(1)}}}, "optimizer")
    assert list(tensors) == ["optimizer/state/0/momentum_buffer"]


@pytest.mark.parametrize("value", [{1, 2}, np.float64(1), namedtuple("P", "x")(1), object, 1j])
def test_what_would_not_come_back_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^s/a/1 is "):
        pack_state({"a": [0, value]}, "s")


def test_packed_values_that_do_not_fit() -> None:
    tensors, packed = pack_state([torch.ones(1)], "s")
    with pytest.raises(ValueError, match="'s/0' is missing"):
        unpack_state({}, packed)
    with pytest.raises(ValueError, match="not made by pack_state"):
        unpack_state(tensors, {"a": 1, "b": 2})


def make_optimizer(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True
        )
        return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 4])
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}], lr=0.1, amsgrad=True
    )
    if name == "adamw":
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
    cool = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return model, optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [3])


@pytest.mark.parametrize("name", ["sgd", "adamw", "sequential"])
def test_optimizers_and_schedulers_go_on_exactly(tmp_path: Path, name: str) -> None:
    def steps(parts: tuple[Any, Any, Any], count: int) -> None:
        model, optimizer, scheduler = parts
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            scheduler.step()

    straight, halted, resumed = (make_optimizer(name) for _ in range(3))
    steps(straight, 6)
    steps(halted, 3)
    states = through_a_file([part.state_dict() for part in halted], tmp_path)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    steps(resumed, 3)
    for one, other in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert repr(straight[2].state_dict()) == repr(resumed[2].state_dict())


def test_own_generators_can_be_packed(tmp_path: Path) -> None:
    generator, array_generator = torch.Generator().manual_seed(3), np.random.default_rng(3)
    own = {"t": generator.get_state(), "n": array_generator.bit_generator.state}
    back = through_a_file(own, tmp_path)
    first = torch.rand(2, generator=generator).tolist(), array_generator.random()
    generator.set_state(back["t"])
    array_generator.bit_generator.state = back["n"]
    assert (torch.rand(2, generator=generator).tolist(), array_generator.random()) == first


@pytest.mark.parametrize(
    ("value", "like", "message"),
    [
        (True, 1, "x should be of type int, got: True"),
        (1, True, "x should be of type bool, got: 1"),
        ("1", 1.0, "x should be of type float, got: '1'"),
        (0, None, "x should be of type NoneType, got: 0"),
        ({"a": 1}, {"b": 1}, r"x should have \['b'\], got: \['a'\]"),
        ({"a": {"b": 1}}, {"a": {"b": "1"}}, "x/a/b should be of type str, got: 1"),
        ([1, "2"], [0], "x/1 should be of type int, got: '2'"),
        ([1.0], torch.zeros(1), r"x should be of type Tensor, got: \[1.0\]"),
        (torch.zeros(2), torch.zeros(1), r"x should be torch.float32 of shape \(1,\), got: "),
        (torch.zeros(1).int(), torch.zeros(1), "got: torch.int32 of shape"),
    ],
)
def test_what_is_not_built_alike(value: object, like: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check_like(value, like, "x")


def test_what_is_built_alike() -> None:
    check_like(1, 0.5, "x")
    check_like({"anything": 1}, {}, "x")
    check_like({"a": [1, 2], "b": torch.ones(2)}, {"a": [0], "b": torch.zeros(2)}, "x")
