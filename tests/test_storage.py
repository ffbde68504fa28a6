"""Packed models come back in every way they can be read, or are refused with the reason."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import symrnn
from symrnn import (
    PackedError,
    SymGRU,
    SymLSTM,
    deploy,
    get_symmetry,
    list_symmetries,
    load_packed,
    native,
    open_packed,
    save_packed,
    symmetrize,
)
from symrnn.files.verified import FileKind
from symrnn.storage import is_packed
from symrnn.symmetry import SymmetricTensor
from symrnn.training import CheckpointError, load_checkpoint, save_checkpoint

H = 8
KIND = FileKind("symrnn.packed", 1, "packed model", "packed model", PackedError)


class Model(nn.Module):
    """Every kind of symmetric matrix beside plain tensors, one of them tied.

    symm: a symmetry, or "plain" for PyTorch's own layers.
    """

    def __init__(self, symm: str = "avg", side: int = H, **gates: str) -> None:
        super().__init__()
        self.encoder = nn.Embedding(11, side)
        self.rnn: nn.Module = nn.LSTM(side, side, 2)
        self.fc = nn.Linear(side, side)
        self.conv = nn.Conv2d(side, side, 3, groups=2)
        self.norm = nn.BatchNorm1d(side)
        self.decoder = nn.Linear(side, 11)
        self.decoder.weight = self.encoder.weight
        if symm != "plain":
            self.rnn = SymLSTM(side, side, 2, symm=symm, **{"symm_ih": "og", **gates})
            channels = SymmetricTensor(symm, (side, side // 2, 3, 3), groups=2)
            register_parametrization(self.fc, "weight", get_symmetry(symm, side))
            register_parametrization(self.conv, "weight", channels)


needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def expanded(model: Model) -> dict[str, Tensor]:
    """The state of the plain model that computes the same."""
    made = Model("plain")
    made.rnn = model.rnn.to_lstm()
    made.norm = model.norm
    with torch.no_grad():
        made.encoder.weight.copy_(model.encoder.weight)
        made.decoder.bias.copy_(model.decoder.bias)
        for layer in ("fc", "conv"):
            getattr(made, layer).weight.copy_(getattr(model, layer).weight)
            getattr(made, layer).bias.copy_(getattr(model, layer).bias)
    return state_of(made)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same names, types and numbers."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def refusal(model: nn.Module, path: Path) -> str:
    """Why `load_packed` refuses, on one line; the model must be as it was."""
    before = state_of(model)
    with pytest.raises(PackedError) as caught:
        load_packed(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert same(state_of(model), before)
    return message.removeprefix(f"{path}: ")


# ---- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("symm", [*list_symmetries(), "avg:diag3", "eigen:3"])
def test_a_model_comes_back_bit_for_bit_and_expanded(tmp_path: Path, symm: str) -> None:
    model = Model(symm)
    save_packed(model, tmp_path / "m")
    again = Model(symm)
    assert not same(state_of(again), state_of(model))
    load_packed(again, tmp_path / "m")
    assert same(state_of(again), state_of(model))
    full = Model("plain")
    load_packed(full, tmp_path / "m")
    assert same(state_of(full), expanded(model))


@pytest.mark.parametrize("symm_hh", ["ifgo", "fo", "g", ""])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_some_gates_and_both_directions(tmp_path: Path, symm_hh: str, bidirectional: bool) -> None:
    options = {"bidirectional": bidirectional, "dtype": torch.float64}
    lstm = SymLSTM(3, 5, 2, symm="avg", symm_hh=symm_hh, **options)
    save_packed(lstm, tmp_path / "m")
    again = SymLSTM(3, 5, 2, symm="avg", symm_hh=symm_hh, **options)
    load_packed(again, tmp_path / "m")
    assert same(state_of(again), state_of(lstm))
    full = nn.LSTM(3, 5, 2, **options)
    load_packed(full, tmp_path / "m")
    assert same(state_of(full), state_of(lstm.to_lstm()))


@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_other_layers_and_cells(tmp_path: Path, kind: str) -> None:
    model, again = (getattr(symrnn, f"Sym{kind}")(3, 5, symm="tri") for _ in range(2))
    save_packed(model, tmp_path / "m")
    load_packed(again, tmp_path / "m")
    assert same(state_of(again), state_of(model))
    full = getattr(nn, kind)(3, 5)
    load_packed(full, tmp_path / "m")
    for name, weight in full.state_dict().items():
        assert torch.equal(weight, getattr(model, name)), name


@pytest.mark.parametrize("axes", ["channel", "space", "both"])
def test_the_axes_of_a_convolution(tmp_path: Path, axes: str) -> None:
    convolution = nn.Conv2d(6, 6, 3)
    register_parametrization(convolution, "weight", SymmetricTensor("tri", (6, 6, 3, 3), axes=axes))
    save_packed(convolution, tmp_path / "m")
    full = nn.Conv2d(6, 6, 3)
    load_packed(full, tmp_path / "m")
    assert torch.equal(full.weight, convolution.weight)


def test_a_model_without_symmetry(tmp_path: Path) -> None:
    model = Model("plain")
    save_packed(model, tmp_path / "m")
    again = Model("plain")
    load_packed(again, tmp_path / "m")
    assert same(state_of(again), state_of(model))


def test_a_shared_module_is_stored_once(tmp_path: Path) -> None:
    def make(symmetric: bool) -> nn.Sequential:
        layer = nn.Linear(H, H)
        if symmetric:
            register_parametrization(layer, "weight", get_symmetry("tri", H))
        return nn.Sequential(layer, nn.ReLU(), layer)

    model, again, full = make(True), make(True), make(False)
    save_packed(model, tmp_path / "m")
    assert len(open_packed(tmp_path / "m").tensors) == 2
    load_packed(again, tmp_path / "m")
    load_packed(full, tmp_path / "m")
    assert same(state_of(again), state_of(model))
    assert torch.equal(full[2].weight, model[0].weight)
    untied = nn.Sequential(nn.Linear(H, H), nn.ReLU(), nn.Linear(H, H))
    load_packed(untied, tmp_path / "m")
    assert torch.equal(untied[0].weight, model[0].weight)
    assert torch.equal(untied[2].weight, model[0].weight)


def test_any_safetensors_reader_gets_the_free_numbers(tmp_path: Path) -> None:
    model = Model("tri4")
    save_packed(model, tmp_path / "m")
    loaded = safetensors.torch.load_file(tmp_path / "m")
    state = state_of(model)
    assert torch.equal(state.pop("decoder.weight"), loaded["encoder.weight"])
    assert same(loaded, state)
    with safetensors.safe_open(tmp_path / "m", "pt") as file:
        contents = json.loads(file.metadata()["symrnn.packed"])["meta"]
    assert contents["tied"] == {"decoder.weight": "encoder.weight"}
    assert contents["forms"]["rnn.weight_ih_l1"] == {
        "kind": "gates",
        "symm": "tri4",
        "side": H,
        "gates": "ifgo",
        "symmetric": "go",
    }
    assert contents["forms"]["fc.weight"] == {"kind": "matrix", "symm": "tri4", "side": H}
    assert contents["forms"]["conv.weight"] == {
        "kind": "tensor",
        "symm": "tri4",
        "axes": "channel",
        "shape": [H, H // 2, 3, 3],
        "groups": 2,
    }


def test_meta_goes_with_the_model(tmp_path: Path) -> None:
    meta = {"config": {"size": "large"}, "words": ["the", "é"], "loss": 1 / 3, "best": math.inf}
    save_packed(nn.Linear(2, 3), tmp_path / "m", meta=meta)
    packed = open_packed(tmp_path / "m")
    assert (packed.meta, packed.path) == (meta, tmp_path / "m")
    model = nn.Linear(2, 3)
    packed.load_into(model)
    assert same(state_of(model), packed.tensors)
    with pytest.raises(TypeError, match=r"meta\['a'\] is builtins.tuple"):
        save_packed(model, tmp_path / "m", meta={"a": (1, 2)})
    with pytest.raises(TypeError, match="meta should be of type dict, got: list"):
        save_packed(model, tmp_path / "m", meta=[])  # type: ignore[arg-type]


def test_the_same_model_makes_the_same_file(tmp_path: Path) -> None:
    model = Model()
    save_packed(model, tmp_path / "a")
    save_packed(model, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_recurrent_weights_take_half_the_bytes(tmp_path: Path) -> None:
    """Zaremba's large size: two layers of 1500."""
    hidden, layers = 1500, 2
    sizes = {}
    for symm in ("avg", "none"):
        lstm = SymLSTM(1, hidden, layers, symm=symm, device="meta").to_empty(device="cpu")
        save_packed(lstm, tmp_path / symm)
        sizes[symm] = (tmp_path / symm).stat().st_size
        recurrent = sum(w.nbytes for name, w in lstm.state_dict().items() if "weight_hh" in name)
        others = sum(w.nbytes for name, w in lstm.state_dict().items() if "weight_hh" not in name)
        assert sizes[symm] - others == pytest.approx(recurrent, abs=4096)  # the header
        sizes[symm] -= others
    assert sizes["none"] == pytest.approx(layers * 4 * hidden**2 * 4, abs=4096)
    assert sizes["avg"] / sizes["none"] == pytest.approx(0.5, rel=0.01)


# ---- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_one_rounding(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Model()
    save_packed(model, tmp_path / "m", dtype=dtype)
    save_packed(model, tmp_path / "full")
    stored = open_packed(tmp_path / "m").tensors
    assert {tensor.dtype for tensor in stored.values()} == {dtype, torch.int64}
    assert (tmp_path / "m").stat().st_size < 0.8 * (tmp_path / "full").stat().st_size
    again = Model()
    load_packed(again, tmp_path / "m")
    bound, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal
    for name, numbers in state_of(model).items():
        got = again.state_dict()[name]
        assert got.dtype == numbers.dtype
        least = bound * torch.clamp(numbers.abs(), min=tiny)  # below it spacing is constant
        assert torch.all((got - numbers).abs() <= least), name
    # A plain model gets the stored numbers expanded in float32.
    full = Model("plain")
    load_packed(full, tmp_path / "m")
    assert same(state_of(full), expanded(again))


@pytest.mark.parametrize("symm", ["avg", "tri", "none", "tri4"])
def test_recurrent_weights_of_int8(tmp_path: Path, symm: str) -> None:
    """Half a unit off: of a symmetric matrix the product of two scales, of a row its own."""
    gates = "" if symm == "none" else "if"
    model = nn.ModuleDict(
        {"rnn": SymLSTM(40, 40, 2, symm=symm, symm_hh=gates), "decoder": nn.Linear(40, 9)}
    )
    save_packed(model, tmp_path / "full")
    save_packed(model, tmp_path / "m", dtype=torch.int8)
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_packed(again, tmp_path / "m")
    held = safetensors.torch.load_file(tmp_path / "m")
    rounded = {name for name, tensor in held.items() if tensor.dtype == torch.int8}
    names = {f"rnn.{name}" for name, _ in model["rnn"].named_parameters() if "weight" in name}
    assert rounded == {name for name in names if "tri4" not in name}
    for name, numbers in model.state_dict().items():
        got = again.state_dict()[name]
        if name not in rounded:
            assert torch.equal(got, numbers), name
    for name in ("weight_hh_l0", "weight_hh_l1", "weight_ih_l1"):
        got, exact = (getattr(m["rnn"], name).detach() for m in (again, model))
        for w, v in zip(got.split(40), exact.split(40), strict=True):
            assert (w - v).norm() < 0.01 * v.norm()
            if torch.equal(v, v.mT):
                assert torch.equal(w, w.mT)
    plain = nn.ModuleDict({"rnn": nn.LSTM(40, 40, 2), "decoder": nn.Linear(40, 9)})
    load_packed(plain, tmp_path / "m")
    difference = plain["rnn"].weight_hh_l1 - again["rnn"].weight_hh_l1
    assert difference.abs().max() <= 1e-7
    if symm != "tri4":
        sizes = [(tmp_path / name).stat().st_size for name in ("full", "m")]
        assert sizes[1] < 0.4 * sizes[0]
    with torch.no_grad():
        model["rnn"].weight_ih_l0[0, 0] = math.nan
    with pytest.raises(PackedError, match=r"rnn.weight_ih_l0 holds numbers that are not finite"):
        save_packed(model, tmp_path / "m", dtype=torch.int8)


def test_floating_types_are_rounded_to_the_models(tmp_path: Path) -> None:
    model = SymLSTM(3, 5, dtype=torch.float64)
    save_packed(model, tmp_path / "m")
    for dtype in (torch.float32, torch.bfloat16):
        again = SymLSTM(3, 5, dtype=dtype)
        load_packed(again, tmp_path / "m")
        assert same(state_of(again), {k: v.to(dtype) for k, v in state_of(model).items()})
        full = nn.LSTM(3, 5, dtype=dtype)
        load_packed(full, tmp_path / "m")  # expanded in float64, then rounded once
        wanted = state_of(model.to_lstm())
        assert same(state_of(full), {k: v.to(dtype) for k, v in wanted.items()})
    save_packed(model, tmp_path / "m", dtype=torch.float32)
    again = SymLSTM(3, 5, dtype=torch.float64)
    load_packed(again, tmp_path / "m")
    assert same(state_of(again), {k: v.float().double() for k, v in state_of(model).items()})


def test_numbers_too_large_for_a_type_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([math.inf, -7e4]))
    save_packed(model, tmp_path / "m")
    with pytest.raises(
        PackedError, match=r"m: bias holds 70000, too large for torch.float16, .*65"
    ):
        save_packed(model, tmp_path / "m", dtype=torch.float16)
    assert open_packed(tmp_path / "m").tensors["bias"].tolist() == [math.inf, -7e4]
    assert "too large for torch.float16" in refusal(nn.Linear(2, 2).half(), tmp_path / "m")
    save_packed(model, tmp_path / "m", dtype=torch.bfloat16)
    load_packed(model, tmp_path / "m")
    assert model.bias[0] == math.inf
    with pytest.raises(ValueError, match=r"one of torch.float16, .*got: torch.uint8"):
        save_packed(model, tmp_path / "m", dtype=torch.uint8)


def test_integers_are_not_taken_for_floating_numbers(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    save_packed(model, tmp_path / "m")
    other = nn.BatchNorm1d(3)
    other.num_batches_tracked = torch.tensor(0.0)
    assert refusal(other, tmp_path / "m") == (
        "num_batches_tracked has another type: torch.int64 in the file, torch.float32 in the model"
    )


# ---- what is refused ----------------------------------------------------------------------------


def test_another_model_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_packed(Model("avg"), path)
    assert refusal(Model("tri"), path) == (
        "rnn.weight_ih_l0 has another form: avg of side 8 for the gates go of ifgo in the file, "
        "tri of side 8 for the gates go of ifgo in the model"
    )
    assert refusal(Model("avg", symm_hh="if"), path) == (
        "rnn.weight_hh_l0 has another form: avg of side 8 for the gates ifgo of ifgo in the file, "
        "avg of side 8 for the gates if of ifgo in the model"
    )
    assert refusal(Model("avg", 10), path) == (
        "rnn.weight_ih_l0 has another size: (32, 8) in the file, (40, 10) in the model"
    )
    assert refusal(Model("plain", 10), path) == (
        "encoder.weight has another size: (11, 8) in the file, (11, 10) in the model"
    )
    model = Model("avg")
    model.conv = nn.Conv2d(H, H, 3, groups=4)
    assert refusal(model, path) == (
        "conv.weight has another size: (8, 4, 3, 3) in the file, (8, 2, 3, 3) in the model"
    )
    model = Model("avg")
    model.conv = nn.Conv2d(H // 2, H, 3)
    register_parametrization(
        model.conv, "weight", SymmetricTensor("avg", (H, H // 2, 3, 3), axes="space")
    )
    assert refusal(model, path) == (
        "conv.weight has another form: avg of shape (8, 4, 3, 3) in 2 groups, axes='channel' in "
        "the file, avg of shape (8, 4, 3, 3), axes='space' in the model"
    )


def test_numbers_are_not_taken_for_those_of_another_parametrization(tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            return v.new_zeros(H, H) + v.sum()

        def right_inverse(self, w: Tensor) -> Tensor:
            return w.flatten()[: H * (H + 1) // 2]

    symmetric, other = nn.Linear(H, H), nn.Linear(H, H)
    register_parametrization(symmetric, "weight", get_symmetry("tri", H))
    register_parametrization(other, "weight", Other())
    save_packed(symmetric, tmp_path / "m")
    assert refusal(other, tmp_path / "m") == (
        "weight has another form: tri of side 8 in the file, none in the model"
    )
    save_packed(other, tmp_path / "m")
    assert refusal(symmetric, tmp_path / "m") == (
        "weight has another form: none in the file, tri of side 8 in the model"
    )


def test_a_plain_matrix_is_not_made_symmetric(tmp_path: Path) -> None:
    save_packed(Model("plain"), tmp_path / "m")
    message = refusal(Model("avg"), tmp_path / "m")
    assert "rnn.weight_ih_l0 is a plain matrix in the file; the model stores it as avg" in message


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_packed(SymLSTM(3, 5, 2), path)
    assert refusal(SymLSTM(3, 5, 1), path) == (
        "is not of this model: the model lacks bias_hh_l1, bias_ih_l1, weight_hh_l1_avg and 1 more"
    )
    assert refusal(nn.LSTM(3, 5, 2, bias=False), path) == (
        "is not of this model: the model lacks bias_hh_l0, bias_hh_l1, bias_ih_l0 and 1 more"
    )
    save_packed(SymLSTM(3, 5, 1), path)
    assert refusal(nn.LSTM(3, 5, 2), path) == (
        "is not of this model: the file lacks weight_ih_l1, weight_hh_l1, bias_ih_l1 and 1 more"
    )
    assert refusal(nn.Linear(3, 5), path).startswith(
        "is not of this model: the file lacks weight, bias; the model lacks bias_hh_l0, "
    )


def test_two_tensors_are_not_tied(tmp_path: Path) -> None:
    model = Model()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().clone())
    save_packed(model, tmp_path / "m")
    assert refusal(Model(), tmp_path / "m") == (
        "encoder.weight and decoder.weight are two tensors in the file; the model ties them"
    )


@needs_kernels
def test_a_deployed_model_is_filled_by_weights_packed_as_its_own(tmp_path: Path) -> None:
    path, lstm = tmp_path / "m", SymLSTM(H, H)
    half = deploy(lstm, dtype=torch.bfloat16)
    save_packed(nn.ModuleDict({"rnn": half}), path)
    other = deploy(SymLSTM(H, H), dtype=torch.bfloat16)
    load_packed(nn.ModuleDict({"rnn": other}), path)
    assert same(state_of(other), state_of(half))
    assert refusal(nn.ModuleDict({"rnn": deploy(lstm)}), path) == (
        "rnn has another packing: torch.bfloat16 in the file, torch.float32 in the model"
    )
    save_packed(deploy(SymLSTM(H, H, symm_hh="if")), path)
    assert refusal(deploy(SymLSTM(H, H, symm_hh="go")), path) == (
        "the model is of other forms or sizes in the file"
    )
    # A rounding of packed numbers is not another packing.
    save_packed(deploy(lstm), path, dtype=torch.bfloat16)
    load_packed(deploy(lstm), path)
    assert "another packing: torch.float32 in the file" in refusal(half, path)


@needs_kernels
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_file_that_does_not_say_how_it_was_packed_goes_by_its_type(
    tmp_path: Path, dtype: torch.dtype | None
) -> None:
    path, gru = tmp_path / "m", SymGRU(H, H)
    save_packed(deploy(gru), path, dtype=dtype)
    forge(path, lambda c, t: c.pop("packed"))
    other = deploy(SymGRU(H, H))
    load_packed(other, path)
    assert torch.allclose(other.weight_hh_l0, deploy(gru).weight_hh_l0, atol=1e-3)
    if dtype is None:
        assert refusal(deploy(gru, dtype=torch.bfloat16), path) == (
            "does not say how weight_hh_l0 was packed, and holds torch.float32 where the model "
            "packs torch.bfloat16: numbers of these lie differently"
        )


def test_models_that_cannot_be_packed_or_filled(tmp_path: Path) -> None:
    save_packed(nn.Linear(H, H), tmp_path / "m")
    with pytest.raises(ValueError, match="weight of the model is no tensor, or on the meta device"):
        load_packed(nn.Linear(H, H, device="meta"), tmp_path / "m")
    with pytest.raises(ValueError, match="only dense tensors"):
        save_packed(nn.Linear(H, H, device="meta"), tmp_path / "m")
    twice = nn.Linear(H, H)
    register_parametrization(twice, "weight", get_symmetry("tri", H))
    register_parametrization(twice, "weight", nn.Identity())
    with pytest.raises(ValueError, match="weight has other parametrizations beside its symmetry"):
        save_packed(twice, tmp_path / "m")
    load_packed(nn.Linear(H, H), tmp_path / "m")


def test_foreign_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    path, model = tmp_path / "m", nn.Linear(2, 2)
    assert "no such packed model file" in refusal(model, path)
    path.mkdir()
    assert "is a folder" in refusal(model, path)
    path.rmdir()
    path.touch()
    assert "is empty (0 bytes)" in refusal(model, path)
    torch.save(model.state_dict(), path)
    assert "is a pickle" in refusal(model, path)
    path.write_text("the cat sat on the mat\n")
    assert "no safetensors file" in refusal(model, path)
    safetensors.torch.save_file(model.state_dict(), path)
    assert "not a packed model of this program" in refusal(model, path)
    save_checkpoint(path, model.state_dict(), {})
    assert "not a packed model of this program" in refusal(model, path)
    save_packed(model, path)
    with pytest.raises(CheckpointError, match="not a training checkpoint of this program"):
        load_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    total = f"{len(whole):,}"
    assert refusal(model, path) == (
        f"is truncated or damaged: it ends after {len(whole) - 5:,} of {total} bytes"
    )
    path.write_bytes(whole + b"more")
    assert "file not fully covered" in refusal(model, path)
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    assert "is damaged, or another program changed it: its sha256" in refusal(model, path)
    tensors, contents = model.state_dict(), {"forms": {}, "tied": {}, "meta": {}}
    FileKind("symrnn.packed", 2, "", "", PackedError).write(path, tensors, contents)
    assert "format version 2; this program reads 1" in refusal(model, path)


def test_packed_models_are_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert not is_packed(path)
    assert not is_packed(tmp_path)
    path.touch()
    assert not is_packed(path)
    save_checkpoint(path, {}, {})
    assert not is_packed(path)
    save_packed(nn.Linear(2, 2), path)
    assert is_packed(path)


def test_without_safetensors_everything_else_works(tmp_path: Path, repository: Path) -> None:
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import symrnn\n"
        "try:\n"
        "    symrnn.save_packed(symrnn.SymLSTM(2, 2), sys.argv[1])\n"
        "except symrnn.PackedError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m"], cwd=repository, capture_output=True, text=True
    )
    assert run.stdout == (
        f"{tmp_path / 'm'}: a packed model needs the safetensors package, which is not installed: "
        "pip install safetensors\n"
    ), run.stderr
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_former_file(small_disk: Path) -> None:
    path, model = small_disk / "m", nn.Linear(2, 2)
    save_packed(model, path)
    with pytest.raises(
        PackedError, match=r"packed model was not saved: the disk is full; .*former"
    ):
        save_packed(nn.Linear(700, 700), path)
    assert os.listdir(small_disk) == ["m"]
    load_packed(model, path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PackedError, match=r"the folder .*/none does not exist"):
        save_packed(nn.Linear(2, 2), tmp_path / "none" / "m")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_packed(Model("avg"), tmp_path / "packed")
    save_checkpoint(tmp_path / "checkpoint", Model("avg").state_dict(), {})

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    for name, load in (("packed", open_packed), ("checkpoint", load_checkpoint)):
        path, noun = tmp_path / name, name.replace("packed", "packed model")
        words = f"{path}: cannot be read: the memory is too small for the {noun}, of "
        with pytest.raises((PackedError, CheckpointError), match=f"^{re.escape(words)}"):
            load(path)


# ---- forged and mutated files -------------------------------------------------------------------

Contents = dict[str, Any]


def forge(path: Path, edit: Callable[[Contents, dict[str, Tensor]], object]) -> None:
    """Change a packed model in the file, with a digest that covers the change."""
    tensors, contents = KIND.read(path)
    edit(contents, tensors)
    KIND.write(path, tensors, contents)


FORM = "rnn.weight_hh_l0"
FORGERIES: list[tuple[Callable[[Contents, dict[str, Tensor]], object], str]] = [
    (lambda c, t: c["forms"][FORM].update(symm="tri"), "there is no rnn.weight_hh_l0_tri"),
    (lambda c, t: c["forms"]["fc.weight"].update(symm="tri"), "fc.weight has another form"),
    (lambda c, t: c["forms"]["conv.weight"].update(symm="ldl"), "conv.weight has another form"),
    (lambda c, t: c["forms"][FORM].update(symm="later"), "should be one of .*got: 'later'"),
    (lambda c, t: c["forms"][FORM].update(symm=[]), "contradicts itself"),
    (lambda c, t: c["forms"][FORM].update(side=9), "another size"),
    (lambda c, t: c["forms"][FORM].update(side=2**70), "another size"),
    (lambda c, t: c["forms"]["fc.weight"].update(side=50_000), r"another size: \(1250025000,\)"),
    (
        lambda c, t: c["forms"]["conv.weight"].update(shape=[80_000, 40_000, 3, 3]),
        r"another size: \(2, 3, 3, 800020000\), and",
    ),
    (lambda c, t: c["forms"][FORM].update(side=0), "at least 1, got: 0"),
    (lambda c, t: c["forms"][FORM].update(side=8.0), "at least 1, got: 8.0"),
    (lambda c, t: c["forms"][FORM].update(side=True), "at least 1, got: True"),
    (lambda c, t: c["forms"][FORM].update(gates="rzn"), "should name gates of 'rzn'"),
    (lambda c, t: c["forms"][FORM].update(gates="iffo"), "'iffo'"),
    (lambda c, t: c["forms"][FORM].update(gates="ifgox"), "there is no rnn.weight_hh_l0_rest"),
    (lambda c, t: c["forms"][FORM].update(symmetric="ifg"), "there is no rnn.weight_hh_l0_rest"),
    (lambda c, t: c["forms"][FORM].update(symmetric="fi"), "in another order"),
    (lambda c, t: c["forms"][FORM].update(symmetric=""), "'ifgo', ''"),
    (lambda c, t: c["forms"][FORM].update(symmetric=3), "'ifgo', 3"),
    (lambda c, t: c["forms"][FORM].update(more=1), "contradicts itself"),
    (lambda c, t: c["forms"][FORM].pop("side"), "contradicts itself"),
    (lambda c, t: c["forms"][FORM].update(kind="pickle"), "known are matrix, tensor, gates"),
    (lambda c, t: c["forms"][FORM].update(kind=[]), "contradicts itself"),
    (
        lambda c, t: c["forms"]["conv.weight"].update(axes="space"),
        r"another size: \(8, 4, 6\), and",
    ),
    (
        lambda c, t: c["forms"]["conv.weight"].update(axes=[1]),
        r"axes should be one of .*got: \[1\]",
    ),
    (lambda c, t: c["forms"]["conv.weight"].update(groups=1), "has no square matrices"),
    (lambda c, t: c["forms"]["conv.weight"].update(groups=-2), "at least 1, got: -2"),
    (lambda c, t: c["forms"]["conv.weight"].update(shape=[8]), "has no square matrices"),
    (lambda c, t: c["forms"]["conv.weight"].update(shape=[8, "4"]), "at least 1, got: '4'"),
    (lambda c, t: c["forms"]["conv.weight"].update(shape=8), "shape of conv.weight is 8"),
    (lambda c, t: c["forms"].pop(FORM), "another form|the model lacks"),
    (lambda c, t: c["forms"].pop("fc.weight"), "another form: none in the file|the model lacks"),
    (lambda c, t: c["forms"].update({FORM: None}), "contradicts itself"),
    (lambda c, t: c["forms"].update({"norm.weight": c["forms"][FORM]}), "there is no norm.weight_"),
    (lambda c, t: c.update(forms=[]), "contradicts itself"),
    (lambda c, t: c.update(packed={"rnn": 1}), "contradicts itself"),
    (lambda c, t: c.pop("forms"), "contradicts itself"),
    (lambda c, t: t.update({FORM: torch.zeros(32, 8)}), "and plain too"),
    (lambda c, t: t.update({"rnn.weight_hh_l0_avg": torch.zeros(4, 35)}), "another size|cannot be"),
    (lambda c, t: t.update({"rnn.weight_hh_l0_avg": torch.zeros(3, 36)}), "another size"),
    (lambda c, t: t.update({"rnn.weight_hh_l0_avg": torch.ones(4, 36).int()}), "another type"),
    (lambda c, t: t.update({"rnn.bias_hh_l0": torch.ones(8)}), "another size"),
    (lambda c, t: t.update({"rnn.bias_hh_l0": torch.ones(32).int()}), "another type"),
    (lambda c, t: t.update(more=torch.ones(3)), "the model lacks more"),
    (lambda c, t: t.pop("norm.bias"), "the file lacks norm.bias"),
    (lambda c, t: c["tied"].update({"decoder.weight": "no"}), "cannot be tied to no"),
    (lambda c, t: c["tied"].update({"decoder.weight": "decoder.weight"}), "cannot be tied"),
    (lambda c, t: c["tied"].update({"decoder.weight": []}), "contradicts itself"),
    (lambda c, t: c["tied"].update({"decoder.weight": "decoder.bias"}), "another size"),
    (lambda c, t: c["tied"].update({"norm.bias": "norm.weight"}), "norm.bias cannot be tied"),
    (lambda c, t: c["tied"].update({"more": "norm.weight"}), "the model lacks more"),
    (lambda c, t: c["tied"].clear(), "the file lacks decoder.weight"),
    (lambda c, t: c.update(tied=[["decoder.weight", "encoder.weight"]]), "contradicts itself"),
    (lambda c, t: c.update(meta=[]), "contradicts itself"),
    (
        lambda c, t: (c.update(int8={"norm.weight": "s"}), t.update(s=torch.ones(8, 1))),
        r"should be \(R, C\) and \(R, 1\), got: \(8,\) and \(8, 1\)",
    ),
    (
        lambda c, t: (c.update(int8={"encoder.weight": "s"}), t.update(s=torch.ones(8))),
        r"should be \(R, C\) and \(R, 1\), got: \(11, 8\) and \(8,\)",
    ),
    (lambda c, t: c.clear(), "contradicts itself"),
]


@pytest.mark.parametrize(("edit", "reason"), FORGERIES, ids=[reason for _, reason in FORGERIES])
def test_forged_files_are_refused(
    tmp_path: Path, edit: Callable[[Contents, dict[str, Tensor]], object], reason: str
) -> None:
    save_packed(Model("avg"), tmp_path / "m")
    forge(tmp_path / "m", edit)
    assert re.search(reason, refusal(Model("avg"), tmp_path / "m"))
    if not reason.endswith("another form"):  # to a plain model it is the file of that form
        assert re.search(reason, refusal(Model("plain"), tmp_path / "m"))


# What a random edit puts in.
JUNK = [
    None,
    True,
    0,
    -1,
    7,
    2**70,
    1.5,
    math.nan,
    "",
    "avg",
    "tri",
    "ifgo",
    "é\ud800",
    [],
    [[]],
    {},
]


def replace_somewhere(rng: random.Random, value: Any, junk: Any) -> Any:
    """The JSON `value` with one part of it replaced, removed or doubled."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return junk
    made = copy.copy(value)
    place = rng.choice(list(made) if isinstance(made, dict) else range(len(made)))
    kind = rng.randrange(8)
    if kind == 0:
        del made[place]
    elif kind == 1 and isinstance(made, dict):
        made[rng.choice(list(made))] = made[place]
    elif kind == 2 and isinstance(made, dict) and isinstance(junk, str):
        made[place + junk] = made.pop(place)
    else:
        made[place] = replace_somewhere(rng, made[place], junk)
    return made


def test_random_forgeries_are_refused_or_change_nothing(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "m"
    original = Model("avg")
    save_packed(original, path)
    tensors, contents = KIND.read(path)
    models = {"avg": Model("avg"), "plain": Model("plain")}
    before = {symm: state_of(model) for symm, model in models.items()}
    wanted = {"avg": state_of(original), "plain": expanded(original)}
    refused = 0
    for _ in range(200):
        forged = replace_somewhere(rng, contents, rng.choice(JUNK))
        KIND.write(path, tensors, forged if isinstance(forged, dict) else {"forms": forged})
        for symm, model in models.items():
            try:
                load_packed(model, path)
            except PackedError:
                refused += 1
                assert same(state_of(model), before[symm])
            else:
                assert same(state_of(model), wanted[symm])
                model.load_state_dict(before[symm])
    assert 200 < refused < 400


def mutated(rng: random.Random, whole: bytes, other: bytes) -> bytes:
    """`whole` after one accident; `other` is another packed model."""
    data = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    # Half of the time in the header, which is where lies are.
    start = rng.randrange(header if rng.random() < 0.5 else len(data))
    end = min(len(data), start + rng.choice([1, 2, 4, 16, 300]))
    kind = rng.randrange(10)
    if kind == 0:
        del data[start:]
    elif kind == 1:
        del data[start:end]
    elif kind == 2:
        data[start:start] = rng.randbytes(end - start)
    elif kind == 3:
        data[start:end] = rng.randbytes(end - start)
    elif kind == 4:
        data[start:end] = bytes(end - start)
    elif kind == 5:  # two pieces swapped
        place = rng.randrange(end, len(data) + 1)
        data[start:place] = data[end:place] + data[start:end]
    elif kind == 6:  # another number, name or sign in the header
        places = [i for i in range(8, header) if chr(data[i]).isalnum()]
        data[rng.choice(places)] = rng.choice(b"0123456789abcdefgilmnoprstuvwxyzEF_")
    elif kind == 7:  # an edit of the header, of which the length knows
        del data[8:header]
        text = whole[8:start] + rng.choice([b"", b" ", b"0", b"9", b"null"]) + whole[end:header]
        data[:8] = len(text).to_bytes(8, "little")
        data[8:8] = text
    elif kind == 8:  # the end of another file
        start = rng.randrange(header, len(data))
        data[start:] = other[start:]
    else:
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            place = start if rng.random() < 0.5 else rng.randrange(len(data))
            data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_thousands_of_mutated_files(tmp_path: Path) -> None:
    def make() -> nn.Module:
        lstm = SymLSTM(2, 3, symm="avg", symm_hh="ig")
        decoder = nn.Linear(3, 3)
        register_parametrization(decoder, "weight", get_symmetry("tri", 3))
        return nn.ModuleDict({"rnn": lstm, "decoder": decoder, "again": decoder})

    rng, path = random.Random(0), tmp_path / "m"
    original, model = make(), make()
    save_packed(make(), path, meta={"words": ["the", "cat"]})
    other = path.read_bytes()
    save_packed(original, path, meta={"words": ["the", "cat"]})
    whole = path.read_bytes()
    before, wanted, now = state_of(model), state_of(original), model.state_dict()
    refused = 0
    for number in range(2_000):
        with path.open("r+b") as file:  # emptying a file first is what takes a disk its time
            file.truncate(file.write(mutated(rng, whole, other)))
        try:
            load_packed(model, path)
        except PackedError:
            refused += 1
            assert same(now, before), number
        else:
            assert same(now, wanted), number
            model.load_state_dict(before)
    assert refused > 1_800


def test_a_file_of_the_first_version_is_read() -> None:
    """Written by the first release's code, with the expanded matrices of its own beside it."""
    model = nn.ModuleDict(
        {
            "rnn": SymLSTM(3, 3, symm="avg", symm_hh="fo", symm_ih="ifgo"),
            "square": nn.Linear(4, 4),
            "conv": nn.Conv2d(3, 3, 3, bias=False),
            "lower": nn.Linear(4, 4),
        }
    )
    symmetrize(model, "tri4", where="square")
    symmetrize(model, "eigen:1", where="conv")
    register_parametrization(model["lower"], "weight", get_symmetry("ldl", 4))
    model["again"] = model["square"]
    path = Path(__file__).with_name("packed_version_1.safetensors")
    load_packed(model, path)
    matrices = open_packed(path).meta
    assert len(matrices) == 5
    for name, expected in matrices.items():
        owner, attribute = name.split(".")
        found = getattr(model[owner], attribute)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)
