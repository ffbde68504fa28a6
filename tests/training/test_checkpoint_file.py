"""Checkpoints come back as they were saved, or are refused with the reason."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from symrnn.training import CheckpointError, load_checkpoint, save_checkpoint

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have one dtype, one shape, and the same bits (NaN included)."""
    bits = []
    for tensor in (a, b):
        plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        bits.append(plain.reshape(-1).view(torch.uint8).tolist())
    return a.dtype == b.dtype and a.shape == b.shape and bits[0] == bits[1]


def saved(path: Path) -> Path:
    save_checkpoint(path, {"w": torch.arange(50.0), "n": torch.tensor(3)}, {"step": 7, "s": "é"})
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "odd": torch.tensor([0, 1, 0, 1, 1]).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
        "byte": torch.ones(3, dtype=torch.uint8),
    }
    save_checkpoint(tmp_path / "c", tensors, {})
    loaded = load_checkpoint(tmp_path / "c").tensors
    assert list(loaded) == list(tensors)
    assert all(same(loaded[name], tensors[name]) for name in tensors)


def test_views_parameters_and_tied_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "tail": base[2:],
        "expanded": torch.tensor([1.0, math.nan]).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "computed": (torch.ones(2, requires_grad=True) * 2),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "negated": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj().imag,
        "single": torch.arange(6.0).reshape(3, 2)[:1, 1],  # one element, stride 2
    }
    save_checkpoint(tmp_path / "c", tensors, {})
    loaded = load_checkpoint(tmp_path / "c").tensors
    for name, tensor in tensors.items():
        assert same(loaded[name], tensor.resolve_conj().resolve_neg()), name
        assert not loaded[name].requires_grad
    loaded["base"].zero_()
    assert loaded["tied"].sum() == base.sum()  # each name has a tensor of its own


def test_no_tensors_at_all(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {}, {})
    loaded = load_checkpoint(str(tmp_path / "c"))
    assert (loaded.tensors, loaded.meta, loaded.path) == ({}, {}, tmp_path / "c")


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    tensors = {
        "b": torch.ones(3, dtype=torch.bool),
        'quo"te': torch.randn(2, 3),
        "ü": torch.ones(1),
    }
    save_checkpoint(tmp_path / "c", tensors, {"step": 1})
    loaded = safetensors.torch.load_file(tmp_path / "c")
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "c", "pt") as file:
        entry = json.loads(file.metadata()["symrnn.checkpoint"])
        assert (entry["version"], entry["meta"]) == (1, {"step": 1})


def test_meta_comes_back_with_its_types(tmp_path: Path) -> None:
    meta = {
        "best": math.inf,
        "worst": -math.inf,
        "none": None,
        "flag": True,
        "one": 1,
        "third": 1 / 3,
        "big": 2**100,
        "zero": -0.0,
        "text": 'é "\n\0 \ud800 €',
        "list": [[], {}, [1, 1.0]],
        "": "empty name",
    }
    save_checkpoint(tmp_path / "c", {}, {**meta, "nan": math.nan})
    loaded = load_checkpoint(tmp_path / "c").meta
    assert math.isnan(loaded.pop("nan"))
    assert repr(loaded) == repr(meta)


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({"a": (1, 2)}, r"meta\['a'\] is builtins.tuple"),
        ({"a": [{1: 2}]}, r"meta\['a'\]\[0\]: key 1 is int"),
        ({"a": torch.tensor(1.0)}, r"meta\['a'\] is torch.Tensor"),
        ([], "meta is list"),
    ],
)
def test_meta_that_would_come_back_changed_is_refused(
    tmp_path: Path, meta: dict[str, object], place: str
) -> None:
    with pytest.raises(TypeError, match=place):
        save_checkpoint(tmp_path / "c", {}, meta)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "t",
            torch.zeros(1, dtype=torch.complex128),
            "dtype torch.complex128; allowed are float64",
        ),
        ("t", torch.eye(2).to_sparse(), "only dense tensors"),
        ("t", torch.empty(2, device="meta"), "only dense tensors"),
        ("__metadata__", torch.zeros(1), "'__metadata__'"),
        ("\ud800", torch.zeros(1), "cannot be written as UTF-8"),
    ],
)
def test_tensors_that_cannot_be_saved_are_named(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    saved(tmp_path / "c")
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "c", {"good": torch.zeros(1), name: tensor}, {})
    assert load_checkpoint(tmp_path / "c").meta["step"] == 7
    assert os.listdir(tmp_path) == ["c"]


def test_the_same_state_makes_the_same_file(tmp_path: Path) -> None:
    assert saved(tmp_path / "a").read_bytes() == saved(tmp_path / "b").read_bytes()


def test_a_byte_flipped_anywhere_is_found(tmp_path: Path) -> None:
    whole = saved(tmp_path / "c").read_bytes()
    former = load_checkpoint(tmp_path / "c")
    read = []
    for place in range(len(whole)):
        for bit in (1, 32):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            (tmp_path / "c").write_bytes(damaged)
            with contextlib.suppress(CheckpointError):
                read.append((place, load_checkpoint(tmp_path / "c")))
    # "é" stands there as "\\\\u00e9"; with the "E" a capital it is the same text.
    assert [place for place, _ in read] == [whole.index(b"u00e9") + 3]
    loaded = read[0][1]
    assert loaded.meta == former.meta
    assert all(same(loaded.tensors[name], former.tensors[name]) for name in former.tensors)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    whole = saved(tmp_path / "c").read_bytes()
    messages = set()
    for size in range(len(whole)):
        (tmp_path / "c").write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "c")
        messages.add(str(caught.value).split(": ")[1])
    assert messages == {
        "is empty (0 bytes); a checkpoint was never written there",
        "is not a checkpoint",
        "is truncated or damaged",
    }


def test_bytes_after_the_end_are_found(tmp_path: Path) -> None:
    with open(saved(tmp_path / "c"), "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="file not fully covered"):
        load_checkpoint(tmp_path / "c")


def test_loaded_tensors_do_not_change_with_their_file(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path / "c"))
    with open(tmp_path / "c", "r+b") as file:
        file.write(b"\xff" * os.path.getsize(tmp_path / "c"))
    assert same(loaded.tensors["w"], torch.arange(50.0))


@pytest.mark.skipif(os.name != "posix", reason="needs umask")
def test_the_mode_is_what_umask_leaves(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        saved(tmp_path / "c")
    finally:
        os.umask(former)
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o640


def test_foreign_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def why() -> str:
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "no such checkpoint file" in why()
    path.mkdir()
    assert "is a folder" in why()
    path.rmdir()
    torch.save({"w": torch.ones(2)}, path)
    assert "pickle" in why()
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "pickle" in why()
    path.write_text("the cat sat on the mat\n")
    assert "no safetensors file" in why()
    path.write_text("{}")
    assert "no safetensors file" in why()
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    assert "not a training checkpoint" in why()
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    assert "its __metadata__ has no 'symrnn.checkpoint'" in why()


def raw(entry: object, tensors: dict[str, object], data: bytes = b"") -> bytes:
    """A file of any header, lies included."""
    header = {"__metadata__": {"symrnn.checkpoint": json.dumps(entry)}, **tensors}
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


# What `save_checkpoint(path, {}, {})` writes: `sha256` is that of its metadata and no tensors.
EMPTY = {"version": 1, "sha256": hashlib.sha256(b'["{}", []]').hexdigest(), "names": [], "meta": {}}


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**62, 0, 2**62], "data_offsets": [0, 0]},
        {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": []},
        {"dtype": "F32"},
        "F32",
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(tmp_path: Path, tensor: object) -> None:
    (tmp_path / "c").write_bytes(raw({**EMPTY, "names": ["w"]}, {"w": tensor}, bytes(8)))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "entry",
    [
        *({**EMPTY, "names": names} for names in (None, 3, [[]], ["w"], ["x"])),
        *({**EMPTY, "meta": meta} for meta in (None, [], {"a": 1})),
        *({name: EMPTY[name] for name in EMPTY if name != left_out} for left_out in EMPTY),
        *(None, [], 3, "text"),
    ],
    ids=str,
)
def test_an_entry_that_lies_is_refused(tmp_path: Path, entry: object) -> None:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    (tmp_path / "c").write_bytes(raw(entry, {"w": tensor}, bytes(8)))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "c")


def test_another_version_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(raw({**EMPTY, "version": 2}, {}))
    with pytest.raises(CheckpointError, match="format version 2; this program reads 1"):
        load_checkpoint(tmp_path / "c")
    (tmp_path / "c").write_bytes(raw(EMPTY, {}))
    assert load_checkpoint(tmp_path / "c").meta == {}


def test_a_full_disk_leaves_the_former_checkpoint(small_disk: Path) -> None:
    path = saved(small_disk / "last.safetensors")
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(path, {"w": torch.zeros(400_000)}, {"step": 8})
    message = str(caught.value)
    assert str(path) in message
    assert "the disk is full" in message
    assert "1,600," in message  # bytes needed: the tensor's 1,600,000 and the header
    assert "the former checkpoint is untouched" in message
    assert os.listdir(small_disk) == [path.name]
    assert load_checkpoint(path).meta["step"] == 7


def test_a_file_size_limit_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.safetensors")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, former[1]))
    try:
        with pytest.raises(CheckpointError, match=r"ulimit -f.*former checkpoint is untouched"):
            save_checkpoint(path, {"w": torch.zeros(400_000)}, {"step": 8})
        with pytest.raises(CheckpointError, match="nothing was left there"):
            save_checkpoint(tmp_path / "new", {"w": torch.zeros(400_000)}, {"step": 8})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert os.listdir(tmp_path) == [path.name]
    assert load_checkpoint(path).meta["step"] == 7


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the folder .*/none does not exist"):
        save_checkpoint(tmp_path / "none" / "c", {}, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="there is a folder of that name"):
        save_checkpoint(tmp_path / "folder", {}, {})
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        save_checkpoint(tmp_path / "file" / "c", {}, {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "elsewhere" / "real")
    saved(tmp_path / "c")
    assert (tmp_path / "c").is_symlink()
    assert load_checkpoint(tmp_path / "elsewhere" / "real").meta["step"] == 7
