"""Writes the file that the C runtime runs: packed weights as the kernels read them.

docs/format.md is its specification, symrnn_runtime.h and :mod:`symrnn.runtime` are what runs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from symrnn import native
from symrnn.files import UserError, describe_os_error, replacing, to_json
from symrnn.rnn import RecurrentLayer, SymGRU, SymLSTM, SymRNN
from symrnn.rnn.fused.packed import PackedMatrix, pack_layers
from symrnn.rnn.fused.packing import DTYPES, SparseMap, library, plan_of
from symrnn.rnn.module import GatedModule

KEY = "symrnn.runtime"
"""Of the entry in ``__metadata__`` that has the structure, in JSON; "symrnn" has ``about``."""

ALIGNMENT = 64
"""Bytes, of every tensor: what the kernels want of packed numbers."""

STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}
"""What weights are packed as, and safetensors' names for it."""

# What native/model.cpp reads at most.
_INT8_COLUMNS = 32768
_LAYERS = 1024
_HEADER_BYTES = 4 << 20


class Words(NamedTuple):
    """The vocabulary of a model that takes tokens.

    kind: "word" where tokens are the words between white space, "callable" where a function made
        them, "sentencepiece".
    tokens: the text of each token, in the order of their ids; of sentencepiece its pieces.
    eos, unknown: the ids of a line end and, or None, of what is not known.
    model: the serialised model of sentencepiece; else None.
    """

    kind: str
    tokens: Sequence[str]
    eos: int
    unknown: int | None
    model: bytes | None = None


@torch.no_grad()
def save_runtime(
    layers: nn.Module,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    embedding: nn.Embedding | None = None,
    linear: nn.Linear | None = None,
    words: Words | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write recurrent layers, and what may stand before and after them, for the C runtime.

    layers: of this library, a cell of it, or ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``; in one direction,
        without projections, float32 on the CPU.
    path: a former file there is replaced in one step.
    dtype: as what weights are packed: torch.float32, torch.bfloat16 or torch.int8; by default
        ``layers.inference_dtype``, or float32.
    embedding: (V, I), of a model that takes tokens.
    linear: (O, H), after the layers. One weight that it has in common with the embedding is
        written once.
    words: the vocabulary, of an embedding.
    about: JSON that goes with the model.

    Raises ValueError for what cannot be written so, which a header of more than 4 MiB is too,
    RuntimeError where the native library is not, and :class:`symrnn.files.UserError` for a full
    disk, a missing folder, no permission.

    >>> save_runtime(SymLSTM(32, 64, symm="avg"), "layer.symrnn", linear=nn.Linear(64, 10))
    """
    own = _own_layers(layers)
    attributes = own._attributes()
    if attributes.bidirectional:
        raise ValueError("the runtime goes forward in time: bidirectional should be False")
    if getattr(own, "proj_size", 0):
        raise ValueError(f"the runtime has no projections: proj_size is {own.proj_size}")
    if dtype is None:
        dtype = own.inference_dtype or torch.float32
    if dtype not in STORED:
        raise ValueError(f"dtype should be one of {', '.join(map(str, STORED))}, got: {dtype}")
    weights = own.layer_weights()
    if len(weights) > _LAYERS:
        raise ValueError(f"the runtime has at most {_LAYERS} layers, got: {len(weights)}")
    _check_float32("layers", *(tensor for w in weights for tensor in w.tensors))
    made = _File(dtype)
    structure: dict[str, Any] = {
        "version": 1,
        "mode": attributes.mode,
        "dtype": STORED[dtype],
        "input_size": own.input_size,
        "hidden_size": own.hidden_size,
        "layers": [],
    }
    for n, layer in enumerate(pack_layers(weights, attributes.mode, False, dtype)):
        described: dict[str, Any] = {
            name: {
                "numbers": made.add(f"layers.{n}.{name}", matrix.numbers),
                "groups": made.groups(matrix),
            }
            for name, matrix in (("hh", layer.hh), ("ih", layer.ih))
        }
        for name, bias in (("bias", layer.bias), ("bias_n", layer.bias_n)):
            described[name] = None if bias is None else made.add(f"layers.{n}.{name}", bias)
        structure["layers"].append(described)
    if embedding is not None:
        _check_shape("embedding", embedding.weight, (None, own.input_size))
        structure["embedding"] = made.matrix("embedding", embedding.weight)
    if linear is not None:
        _check_shape("linear", linear.weight, (None, own.hidden_size))
        if embedding is not None and linear.weight is embedding.weight:
            end = dict(structure["embedding"])
        else:
            end = made.matrix("linear", linear.weight)
        if linear.bias is not None:
            _check_float32("linear", linear.bias)
            end["bias"] = made.add("linear.bias", linear.bias)
        structure["linear"] = end
    if words is not None:
        if embedding is None or len(words.tokens) != embedding.num_embeddings:
            raise ValueError(
                f"words should have a token for each row of the embedding, got: {len(words.tokens)}"
            )
        structure["vocabulary"] = made.vocabulary(words)
    structure["maps"] = made.maps
    about_text = to_json({} if about is None else about, "about")
    try:
        with replacing(Path(path)) as new:
            made.write(new, {KEY: json.dumps(structure), "symrnn": about_text})
    except OSError as error:
        raise UserError(f"{path}: was not written: {describe_os_error(error)}") from error


def pack_matrix(weight: Tensor, dtype: torch.dtype) -> PackedMatrix:
    """A full matrix (rows, columns), float32 on the CPU, as the kernels multiply by it."""
    rows, columns = weight.shape
    plan = plan_of("h", rows, columns, "", "")
    return PackedMatrix(plan, plan.pack([weight.detach().unsqueeze(0)], dtype))


def unpack_matrix(matrix: PackedMatrix) -> Tensor:
    """The numbers (rows, columns), float32, that a packed full matrix stands for."""
    (group,) = matrix.plan.groups
    dense = torch.empty(group.rows, group.columns)
    numbers = matrix.numbers
    status = library().symrnn_unpack(
        *(0, group.rows, group.columns, 1),
        *(DTYPES[numbers.dtype], numbers.data_ptr(), dense.data_ptr()),
    )
    native.check(status)
    return dense


class PackedLinear(nn.Module):
    """A linear layer on packed weights, as the runtime computes it: for comparison with it."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._matrix = pack_matrix(linear.weight, dtype)
        self._product = self._matrix.plan.product(self._matrix.numbers)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (…, columns) to (…, rows), float32; without gradients."""
        y = torch.empty(*x.shape[:-1], self._matrix.plan.rows)
        given = x.detach().contiguous()
        rows = given.numel() // given.size(-1)
        status = library().symrnn_multiply(
            self._product, 0, rows, given.data_ptr(), y.data_ptr(), 1, torch.get_num_threads()
        )
        native.check(status)
        return y if self._bias is None else y + self._bias


def _own_layers(layers: nn.Module) -> GatedModule:
    if isinstance(layers, GatedModule):
        return layers
    kinds: tuple[type[RecurrentLayer], ...] = (SymLSTM, SymGRU, SymRNN)
    for kind in kinds:
        if isinstance(layers, kind.PLAIN) and not getattr(layers, "proj_size", 0):
            return kind.from_plain(layers, "none")
    names = "a recurrent layer or cell of this library, nn.LSTM, nn.GRU or nn.RNN without proj_size"
    raise ValueError(f"layers should be {names}, got: {type(layers).__name__}")


def _check_float32(name: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype != torch.float32 or not tensor.is_cpu:
            raise ValueError(
                f"{name} should be float32 on the CPU, got: {tensor.dtype} on {tensor.device}"
            )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    _check_float32(name, tensor)
    if any(size not in (None, own) for size, own in zip(shape, tensor.shape, strict=True)):
        words = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} should have a weight ({words}), got: {tuple(tensor.shape)}")


class _File:
    """Tensors that are gathered for a file.

    maps: of folded forms, as the structure describes them: each once.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.maps: list[dict[str, Any]] = []
        self._tensors: dict[str, tuple[str, int, NDArray[np.uint8]]] = {}

    def add(self, name: str, numbers: Tensor | NDArray[Any]) -> str:
        """Take a vector, padded with zeros to a multiple of 64 bytes; its name."""
        if isinstance(numbers, Tensor):
            flat = numbers.detach().contiguous()
            kind, size = STORED[flat.dtype], flat.element_size()
            raw: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
        else:
            kinds = {np.uint8: "U8", np.int32: "I32", np.int64: "I64", np.float32: "F32"}
            kind, size = kinds[numbers.dtype.type], numbers.itemsize
            raw = np.ascontiguousarray(numbers).view(np.uint8)
        padded = np.pad(raw, (0, -len(raw) % ALIGNMENT)) if len(raw) % ALIGNMENT else raw
        self._tensors[name] = (kind, len(padded) // size, padded)
        return name

    def matrix(self, name: str, weight: Tensor) -> dict[str, Any]:
        """Take a full matrix; how the structure describes it."""
        packed = pack_matrix(weight, self.dtype)
        numbers = self.add(name, packed.numbers)
        return {"numbers": numbers, "rows": weight.size(0), "groups": self.groups(packed)}

    def groups(self, matrix: PackedMatrix) -> list[dict[str, Any]]:
        """How the structure describes the groups of a packed matrix."""
        found = []
        for group in matrix.plan.groups:
            if group.is_empty:
                continue
            if self.dtype == torch.int8 and group.columns > _INT8_COLUMNS:
                raise ValueError(
                    f"dtype=torch.int8 is for at most {_INT8_COLUMNS} columns, got: {group.columns}"
                )
            described: dict[str, Any] = {
                "rows": group.rows,
                "columns": group.columns,
                "gates": sum(1 << gate for gate in group.gates),
                "symmetric": group.symmetric,
            }
            if group.skew:
                described["skew"] = True
            if group.maps is not None:
                described["inputs"] = self._map(group.maps.inputs)
                described["outputs"] = self._map(group.maps.outputs)
            found.append(described)
        return found

    def _map(self, map: SparseMap) -> int:
        """The place of a map in the list, where it is put if it is not there."""
        for place, other in enumerate(self.maps):
            if self._is_stored(map, other):
                return place
        place = len(self.maps)
        described: dict[str, Any] = {"from": map.columns, "to": len(map.start) - 1}
        for part in ("start", "index", "scale"):
            described[part] = self.add(f"maps.{place}.{part}", getattr(map, part))
        self.maps.append(described)
        return place

    def _is_stored(self, map: SparseMap, other: Mapping[str, Any]) -> bool:
        if (other["from"], other["to"]) != (map.columns, len(map.start) - 1):
            return False
        for part in ("start", "index", "scale"):
            raw = getattr(map, part).view(np.uint8)
            stored = self._tensors[other[part]][2]
            if len(stored) != len(raw) + -len(raw) % ALIGNMENT or (stored[: len(raw)] != raw).any():
                return False
        return True

    def vocabulary(self, words: Words) -> dict[str, Any]:
        """Take a vocabulary; how the structure describes it."""
        encoded = [token.encode() for token in words.tokens]
        start = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        described: dict[str, Any] = {
            "kind": words.kind,
            "eos": words.eos,
            "unknown": words.unknown,
            "text": self.add("vocabulary.text", np.frombuffer(b"".join(encoded), np.uint8)),
            "start": self.add("vocabulary.start", start),
        }
        if words.kind == "word":
            order = np.array(sorted(range(len(encoded)), key=encoded.__getitem__), np.int32)
            described["order"] = self.add("vocabulary.order", order)
        if words.model is not None:
            raw = np.frombuffer(words.model, np.uint8)
            described["model"] = self.add("vocabulary.model", raw)
            described["model_bytes"] = len(words.model)
        return described

    def write(self, path: Path, metadata: dict[str, str]) -> None:
        """As safetensors has it, the header padded with spaces to a multiple of 64 bytes."""
        header: dict[str, Any] = {"__metadata__": metadata}
        place = 0
        for name, (kind, elements, raw) in self._tensors.items():
            offsets = [place, place := place + len(raw)]
            header[name] = {"dtype": kind, "shape": [elements], "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        if len(text) > _HEADER_BYTES:
            raise ValueError(
                f"layers and about should make a header of at most {_HEADER_BYTES:,} bytes, "
                f"got: {len(text):,}"
            )
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, _, raw in self._tensors.values():
                file.write(raw.data)
