"""Packed models: one file that holds each symmetric matrix by its parameters.

The file is what the safetensors library writes, so ``safetensors.torch.load_file`` gives the
model's ``state_dict`` as it stands; of tied tensors it holds the first. The entry "symrnn.packed"
of its ``__metadata__`` (see :mod:`symrnn.files.verified`; its sha256 covers all of this) has under
"meta" a JSON object of

    forms  plain name of each symmetric matrix -> its form, enough to build it from its parameters
    tied   name -> the name of the same tensor that is in the file
    meta   as given

A matrix is stored in one of three ways, with "kind" for

    gates   stacked gates of a recurrent layer, some of them symmetric: symm, side, gates, symmetric
    matrix  a square weight parametrized by a form: symm, side
    tensor  a weight parametrized over two of its axes: symm, axes, shape, groups

Of a file with matrices in int8 there is also

    int8   name of each -> the name of its scales (see :mod:`symrnn.rounding`)

and of one of a deployed model, with modules that hold packed weights,

    packed   name of each such module -> "dtype", which its weights were packed as, and "structure",
             a fingerprint of how the numbers lie
"""

from __future__ import annotations

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from symrnn.files.atomic import to_json
from symrnn.files.errors import UserError
from symrnn.files.verified import FileKind
from symrnn.rnn.fused.packing import triangle_of
from symrnn.rnn.gates import GateLayout, check_gates
from symrnn.rnn.module import GatedModule
from symrnn.rnn.packed import PackedModule
from symrnn.rnn.weights import GateMatrix
from symrnn.rounding import restore_full, restore_symmetric, round_full, round_symmetric
from symrnn.symmetry import (
    SymmetricTensor,
    Symmetry,
    check_symmetry_name,
    get_symmetry,
    numel_of,
    parameter_shape,
)
from symrnn.symmetry.tensor import check_axes

_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.int8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PackedError(UserError):
    """A packed model could not be written, is not one, or is not one of this model."""


_KIND = FileKind(
    key="symrnn.packed",
    version=1,
    noun="packed model",
    title="packed model",
    error=PackedError,
)


def save_packed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Write the ``state_dict`` of ``model`` to ``path``, symmetric matrices by their parameters.

    Tied tensors are written once. A former file is replaced in one step; what fails leaves it
    untouched, and nothing beside it.

    dtype: torch.float16, torch.bfloat16 or torch.float32, which floating tensors are rounded to
        (numbers too small for float16 to zero); by default each stays as it is. Or torch.int8: of
        this library's recurrent layers the weights that are plain, or of the form "tri" or "avg",
        are rounded, as for ``inference_dtype``, and nothing else is.
    meta: JSON (dicts with str keys, lists, str, int, float, bool, None) to go with it.

    Raises PackedError for a full disk, a missing folder, no permission, for a finite number above
    the largest of ``dtype``, and for one that is not finite in int8; ValueError for another
    ``dtype`` and for what has no packed form: a tensor that is sparse, sharded or on the meta
    device, extra state that is no tensor, further parametrizations on a symmetric one; TypeError
    for ``meta`` that is not JSON.

    >>> save_packed(model, "model.safetensors", dtype=torch.float16)
    >>> load_packed(model, "model.safetensors")
    """
    path = Path(path)
    if dtype is not None and dtype not in _STORED:
        allowed = ", ".join(map(str, _STORED))
        raise ValueError(f"dtype should be None or one of {allowed}, got: {dtype}")
    meta = {} if meta is None else meta
    if not isinstance(meta, dict):
        raise TypeError(f"meta should be of type dict, got: {type(meta).__name__}")
    to_json(meta, "meta")  # here, so that an error names a place in what was given
    forms = _forms_of(model)
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} of the state_dict is {type(tensor).__name__}, not a tensor")
        if _is_sharded(tensor):
            raise ValueError(
                f"{name} is sharded over processes: gather the state_dict by get_model_state_dict("
                "model, options=StateDictOptions(full_state_dict=True)) of "
                "torch.distributed.checkpoint.state_dict, load it into an unsharded model and pack "
                "that"
            )
    for form in forms.values():
        for key in form.keys:
            if key not in state:
                raise ValueError(f"the state_dict has no {key!r}, which {form.name} is stored in")
    tied: dict[str, str] = {}
    for first, *others in _same_tensors(state):
        tied.update(dict.fromkeys(others, first))
    tensors = {name: state[name] for name in state if name not in tied}
    specs = {name: form.spec() for name, form in forms.items()}
    contents: dict[str, Any] = {"forms": specs, "tied": tied, "meta": meta}
    if dtype == torch.int8:
        contents["int8"] = _round_to_int8(model, tensors, path)
    elif dtype is not None:
        for name, tensor in tensors.items():
            if tensor.dtype in _FLOATS:
                tensors[name] = _rounded(tensor, dtype, f"{path}: {name}")
    if packed := {name: part.packing() for name, part in _packed_modules(model)}:
        contents["packed"] = packed
    _KIND.write(path, tensors, contents)


def load_packed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill ``model`` with a packed model; short for ``open_packed(path).load_into(model)``."""
    open_packed(path).load_into(model)


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a packed model rather than anything else, whole or not."""
    return _KIND.is_at(Path(path))


def open_packed(path: str | os.PathLike[str]) -> Packed:
    """Read and verify a packed model. Needs the file's size in memory once.

    Raises PackedError, each with its own message, for a path that is missing, a folder, or not
    readable; for an empty file, a pickle (never opened), a file that is not safetensors, one that
    is but holds no packed model, one of another version; for a truncated or overlong file, if
    anything in it was changed, and if what it says of its matrices does not hold.
    """
    path = Path(path)
    tensors, contents = _KIND.read(path)
    try:
        forms = {name: _read_form(name, spec) for name, spec in contents["forms"].items()}
        tied, meta, int8 = contents["tied"], contents["meta"], contents.get("int8", {})
        packed = contents.get("packed", {})
        objects = (tied, meta, int8, packed, *packed.values())
        if not all(isinstance(part, dict) for part in objects):
            raise TypeError("its tied, meta, int8 and packed are no objects")
        _restore_from_int8(tensors, int8, forms)
        _check_contents(tensors, forms, tied)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PackedError(f"{path}: is refused, as it contradicts itself: {error}") from error
    return Packed(path, meta, tensors, tied, forms, packed)


@dataclass(frozen=True)
class Packed:
    """A packed model as read.

    path: of the file.
    meta: as given to :func:`save_packed`.
    tensors: what the file holds, on the CPU, by the names of the ``state_dict``; of int8 the
        numbers that it stands for, float32.
    tied: the other names of tied tensors, each with the one that is in ``tensors``.
    """

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    tied: dict[str, str]
    _forms: dict[str, _Form]
    _packed: dict[str, Any]

    def check_plain(self, model: nn.Module) -> None:
        """Raise PackedError unless the matrices, expanded, have the names and shapes of ``model``.

        Before a model is built as the file's own ``meta`` says, which may name any size: a plain
        model on the meta device takes no memory.
        """
        state = model.state_dict()
        held = self.tensors.keys() | self.tied.keys()
        absorbed = {key for form in self._forms.values() for key in form.keys}
        self._check_names((held - absorbed) | self._forms.keys(), state)
        shapes = {name: form.full_shape for name, form in self._forms.items()}
        shapes |= {name: tuple(self._tensor(name).shape) for name in state if name not in shapes}
        for name, shape in shapes.items():
            if shape != tuple(state[name].shape):
                raise self._another("size", name, shape, tuple(state[name].shape))

    def load_into(self, model: nn.Module) -> None:
        """Fill ``model``, on any device, which must match name by name.

        A matrix that the model stores in the same form gets the parameters; one that it stores
        plain, such as ``rnn.weight_hh_l0`` of an ``nn.LSTM``, gets the expanded matrix, computed
        in the widest of float32 and the types of file and model. Floating numbers are rounded
        once to the type that the model has; other types must agree. Weights of a deployed model
        were packed, and must be, as those of the model.

        Raises PackedError, before anything was changed, for a matrix stored in another form or
        plain in the file alone; weights packed otherwise; a tensor of another shape or type; a
        number above the largest of the model's type; tensors that only one of the two has; and
        where the model ties what are two tensors in the file. ValueError for a model on the meta
        device, or a sharded one.
        """
        forms = _forms_of(model)
        state = model.state_dict()
        for name, tensor in state.items():
            if not isinstance(tensor, Tensor) or tensor.is_meta:
                raise ValueError(f"{name} of the model is no tensor, or on the meta device")
            if _is_sharded(tensor):
                raise ValueError(
                    f"{name} of the model is sharded over processes: fill an unsharded one, and "
                    "shard that, or pass its state_dict to set_model_state_dict(model, state_dict, "
                    "options=StateDictOptions(full_state_dict=True)) of "
                    "torch.distributed.checkpoint.state_dict"
                )
        for name in [*forms, *self._forms]:
            self._check_form(name, forms.get(name), state)
        # What fills each tensor of the model: one of the file, or the matrix of a form.
        expanded = {
            name: form for name, form in self._forms.items() if name in state and name not in forms
        }
        absorbed = {key for form in expanded.values() for key in form.keys}
        held = ((self.tensors.keys() | self.tied.keys()) - absorbed) | expanded.keys()
        self._check_names(held, state)
        for name, part in _packed_modules(model):
            self._check_packing(name, part)
        made = {
            name: self._expanded(expanded[name], tensor)
            if name in expanded
            else self._rounded(name, self._tensor(name), tensor)
            for name, tensor in state.items()
        }
        for first, *others in _same_tensors(state):
            for other in others:
                if self._source(first, expanded) != self._source(other, expanded):
                    raise PackedError(
                        f"{self.path}: {first} and {other} are two tensors in the file; "
                        "the model ties them"
                    )
        state.update(made)  # in place: it carries the versions of the model's modules
        model.load_state_dict(state)

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[self.tied.get(name, name)]

    def _source(self, name: str, expanded: Mapping[str, _Form]) -> object:
        """Equal for two names that the file fills with the same numbers."""
        if name not in expanded:
            return self.tied.get(name, name)
        form = expanded[name]
        return form.spec(), [self.tied.get(key, key) for key in form.keys]

    def _check_form(self, name: str, theirs: _Form | None, state: Mapping[str, Tensor]) -> None:
        """Refuses a matrix that the model stores as ``theirs``, if it does, and the file otherwise.

        Not where the model stores it plain, or lacks it.
        """
        ours = self._forms.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            if ours.full_shape != theirs.full_shape:
                raise self._another("size", name, ours.full_shape, theirs.full_shape)
            raise self._another("form", name, ours, theirs)
        if ours is None and theirs is not None and self._holds(name):
            raise PackedError(
                f"{self.path}: {name} is a plain matrix in the file; the model stores it as "
                f"{theirs} (load it into a plain model and make that symmetric)"
            )
        # Parameters of a form that only one side names may have the shape of any other's.
        if ours is None and theirs is not None and any(self._holds(key) for key in theirs.keys):
            raise self._another("form", name, "none", theirs)
        if theirs is None and ours is not None and any(key in state for key in ours.keys):
            raise self._another("form", name, ours, "none")

    def _check_packing(self, name: str, part: PackedModule) -> None:
        """Refuses numbers that were packed otherwise than those of the module of this name.

        They may be as many, and would be taken for others.
        """
        where, own, given = name or "the model", part.packing(), self._packed.get(name)
        if given is not None:
            if given.get("dtype") != own["dtype"]:
                raise self._another("packing", where, given.get("dtype"), own["dtype"])
            if given.get("structure") != own["structure"]:
                raise PackedError(f"{self.path}: {where} is of other forms or sizes in the file")
            return
        # Formerly it was not noted. Nothing is packed as float16: that is a rounding of others.
        for key in part.packed_names:
            key = f"{name}.{key}" if name else key
            found = self._tensor(key).dtype
            if str(found) != own["dtype"] and found != torch.float16:
                raise PackedError(
                    f"{self.path}: does not say how {key} was packed, and holds {found} where the "
                    f"model packs {own['dtype']}: numbers of these lie differently"
                )

    def _holds(self, name: str) -> bool:
        return name in self.tensors or name in self.tied

    def _another(self, what: str, name: str, ours: object, theirs: object) -> PackedError:
        return PackedError(
            f"{self.path}: {name} has another {what}: {ours} in the file, {theirs} in the model"
        )

    def _check_names(self, held: Set[str], state: Mapping[str, Tensor]) -> None:
        missing = [name for name in state if name not in held]
        unexpected = sorted(held - state.keys())
        differences = []
        if missing:
            differences.append(f"the file lacks {_some(missing)}")
        if unexpected:
            differences.append(f"the model lacks {_some(unexpected)}")
        if differences:
            raise PackedError(f"{self.path}: is not of this model: {'; '.join(differences)}")

    def _rounded(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        """``tensor`` of the file, to fill ``like`` of the model."""
        if tensor.shape != like.shape:
            raise self._another("size", name, tuple(tensor.shape), tuple(like.shape))
        if tensor.dtype != like.dtype and not {tensor.dtype, like.dtype} <= {*_FLOATS}:
            raise self._another("type", name, tensor.dtype, like.dtype)
        return _rounded(tensor, like.dtype, f"{self.path}: {name}")

    def _expanded(self, form: _Form, like: Tensor) -> Tensor:
        """The full matrix of ``form``, to fill ``like`` of the model."""
        if form.full_shape != tuple(like.shape):  # before it is built: what a file says may be huge
            raise self._another("size", form.name, form.full_shape, tuple(like.shape))
        numbers = [self._tensor(key) for key in form.keys]
        types = {like.dtype, *(tensor.dtype for tensor in numbers)}
        if not types <= {*_FLOATS}:
            raise self._another("type", form.name, numbers[0].dtype, like.dtype)
        wide = torch.float64 if torch.float64 in types else torch.float32
        try:
            with torch.no_grad():
                full = form.build([tensor.to(wide) for tensor in numbers])
        except (TypeError, ValueError, RuntimeError) as error:
            raise PackedError(
                f"{self.path}: {form.name}, {form}, cannot be built: {error}"
            ) from error
        return self._rounded(form.name, full, like)


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP2 makes them: asked so, its module need not be imported."""
    return hasattr(tensor, "full_tensor")


def _same_tensors(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors that are one and the same memory, two or more each."""
    groups: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel():
            place = (tensor.device, tensor.data_ptr())
            seen_as = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj())
            groups.setdefault((place, seen_as), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _rounded(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """``tensor`` in ``dtype``; PackedError if a finite number becomes infinite."""
    if tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    if torch.any(rounded.isinf() & tensor.isfinite()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise PackedError(
            f"{what} holds {largest:.6g}, too large for {dtype}, "
            f"which ends at {torch.finfo(dtype).max:.6g}"
        )
    return rounded


def _round_to_int8(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
    """Rounds recurrent weights among ``tensors``, where their scales are put too.

    Returns the names of the scales by those of the weights.
    """
    scales: dict[str, str] = {}
    for prefix, layout in _layouts_of(model):
        for name in layout.parameter_names:
            key = prefix + name
            symmetry = _triangle_form(layout) if name == layout.symmetric_name else None
            if key not in tensors or (name == layout.symmetric_name and symmetry is None):
                continue
            w = tensors[key].detach().cpu().float()
            if not torch.all(w.isfinite()):
                raise PackedError(
                    f"{path}: {key} holds numbers that are not finite, for torch.int8"
                )
            if symmetry is None:
                tensors[key], scale = round_full(w)
            else:
                tensors[key], scale = round_symmetric(symmetry.expand(w))
            scales[key] = f"{key}.scale"
            tensors[scales[key]] = scale
    return scales


def _restore_from_int8(
    tensors: dict[str, Tensor], scales: Mapping[str, str], forms: Mapping[str, _Form]
) -> None:
    """The inverse of :func:`_round_to_int8`."""
    symmetric = {form.keys[0]: form for form in forms.values() if isinstance(form, _Gates)}
    for name, scale in scales.items():
        form, q, of_rows = symmetric.get(name), tensors[name], tensors.pop(scale)
        if form is not None:
            tensors[name] = form.restore(q, of_rows)
            continue
        # Others would be broadcast, and a small file take any memory.
        if q.dim() != 2 or of_rows.shape != (len(q), 1):
            shapes = f"{tuple(q.shape)} and {tuple(of_rows.shape)}"
            raise ValueError(f"{name} and its scales should be (R, C) and (R, 1), got: {shapes}")
        tensors[name] = restore_full(q, of_rows)


def _triangle_form(layout: GateLayout) -> Symmetry | None:
    """The form of the symmetric gates, if each entry of the upper triangle is a parameter."""
    return triangle_of(get_symmetry(layout.form, layout.rows))


def _layouts_of(model: nn.Module) -> Iterator[tuple[str, GateLayout]]:
    """How each gate matrix of the recurrent layers is stored, and what its names begin with."""
    for path, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, GatedModule):
            for layout in part.gate_layouts():
                yield f"{path}." if path else "", layout


def _packed_modules(model: nn.Module) -> Iterator[tuple[str, PackedModule]]:
    """The modules that hold packed weights, and their names."""
    for path, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, PackedModule):
            yield path, part


def _some(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# ---- the forms of a model's matrices ----------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How one symmetric matrix is stored: enough to build it from its parameters.

    name: its plain name, such as "rnn.weight_hh_l0".
    symm: the symmetry's name.
    """

    kind: ClassVar[str]

    name: str
    symm: str

    def __post_init__(self) -> None:
        check_symmetry_name(f"the form of {self.name}", self.symm)

    @property
    def keys(self) -> list[str]:
        """The names of its parameters in a state_dict."""
        # Where `torch.nn.utils.parametrize` puts a parametrized tensor.
        owner, dot, tensor = self.name.rpartition(".")
        return [f"{owner}{dot}parametrizations.{tensor}.original"]

    @property
    @abstractmethod
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of its parameters, in the order of ``keys``."""

    @property
    @abstractmethod
    def full_shape(self) -> tuple[int, ...]:
        """The shape of the full matrix."""

    @abstractmethod
    def build(self, numbers: list[Tensor]) -> Tensor:
        """The full matrix, from its parameters in the order of ``keys``."""

    def spec(self) -> dict[str, Any]:
        """As it stands in a file."""
        fields = dataclasses.asdict(self)
        del fields["name"]
        return {"kind": self.kind, **fields}


@dataclass(frozen=True)
class _Matrix(_Form):
    """A square weight parametrized by a symmetry."""

    kind = "matrix"

    side: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(f"the side of {self.name}", self.side)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [(numel_of(self.symm, self.side),)]

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.side, self.side

    def build(self, numbers: list[Tensor]) -> Tensor:
        return get_symmetry(self.symm, self.side)(numbers[0])

    def __str__(self) -> str:
        return f"{self.symm} of side {self.side}"


@dataclass(frozen=True)
class _Tensor(_Form):
    """A weight parametrized by a symmetry over two of its axes."""

    kind = "tensor"

    axes: str
    shape: list[int]
    groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes(self.axes)
        if not isinstance(self.shape, list):
            raise TypeError(f"the shape of {self.name} is {self.shape!r}")
        _check_sizes(f"the shape of {self.name}", *self.shape)
        _check_sizes(f"the groups of {self.name}", self.groups)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [parameter_shape(self.symm, self.shape, self.axes, self.groups)]

    @property
    def full_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    def build(self, numbers: list[Tensor]) -> Tensor:
        form = SymmetricTensor(symm=self.symm, axes=self.axes, shape=self.shape, groups=self.groups)
        return form.expand(numbers[0])

    def __str__(self) -> str:
        groups = "" if self.groups == 1 else f" in {self.groups} groups"
        return f"{self.symm} of shape {self.full_shape}{groups}, axes={self.axes!r}"


@dataclass(frozen=True)
class _Gates(_Form):
    """Stacked gates of a recurrent layer, some of which are symmetric."""

    kind = "gates"

    side: int
    gates: str
    symmetric: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(f"the side of {self.name}", self.side)
        if not (isinstance(self.gates, str) and isinstance(self.symmetric, str)):
            raise TypeError(f"the gates of {self.name} are {self.gates!r}, {self.symmetric!r}")
        if len(set(self.gates)) != len(self.gates) or not self.symmetric:
            raise ValueError(f"the gates of {self.name} are {self.gates!r}, {self.symmetric!r}")
        if check_gates(f"the gates of {self.name}", self.symmetric, self.gates) != self.symmetric:
            raise ValueError(f"the gates of {self.name} are in another order: {self.symmetric!r}")

    @property
    def keys(self) -> list[str]:
        owner, dot, _ = self.name.rpartition(".")
        return [f"{owner}{dot}{name}" for name in self._layout.parameter_names]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [*self._layout.shapes.values()]

    @property
    def full_shape(self) -> tuple[int, ...]:
        return len(self.gates) * self.side, self.side

    def build(self, numbers: list[Tensor]) -> Tensor:
        symmetry = get_symmetry(self.symm, self.side)
        rest = numbers[1] if numbers[1:] else None
        return GateMatrix(self._layout, symmetry, numbers[0], rest).dense()

    def restore(self, q: Tensor, scale: Tensor) -> Tensor:
        """The parameters of the symmetric gates, from int8."""
        count, side = len(self.symmetric), self.side
        # Before anything is built: what a file says may be huge.
        fits = scale.shape == (count, side) and q.shape == (count, side * (side + 1) // 2)
        symmetry = _triangle_form(self._layout) if fits else None
        if symmetry is None:
            raise ValueError(f"{self.name} is stored as {self}, which is not in int8 so")
        return symmetry.project(restore_symmetric(q, scale))

    @property
    def _layout(self) -> GateLayout:
        name = self.name.rpartition(".")[2]
        return GateLayout(name, self.gates, self.symmetric, self.side, self.side, self.symm)

    def __str__(self) -> str:
        return f"{self.symm} of side {self.side} for the gates {self.symmetric} of {self.gates}"


_KINDS: dict[str, type[_Form]] = {form.kind: form for form in (_Matrix, _Tensor, _Gates)}


def _check_sizes(what: str, *sizes: int) -> None:
    for size in sizes:
        if type(size) is not int or size < 1:
            raise ValueError(f"{what} should be int and at least 1, got: {size!r}")


def _read_form(name: str, spec: dict[str, Any]) -> _Form:
    """The form of a specification; TypeError, ValueError if it can be none."""
    fields = dict(spec)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"{name} is stored as {kind!r}; known are {', '.join(_KINDS)}")
    return _KINDS[kind](name=name, **fields)


def _check_contents(
    tensors: Mapping[str, Tensor], forms: Mapping[str, _Form], tied: Mapping[str, str]
) -> None:
    """Raises ValueError unless a file has the forms' parameters, of their sizes, and the tied."""
    for name, stored in tied.items():
        if name in tensors or stored not in tensors:
            raise ValueError(f"{name} cannot be tied to {stored}")
    held = tensors.keys() | tied.keys()
    for name, form in forms.items():
        absent = [key for key in form.keys if key not in held]
        if absent:
            raise ValueError(f"{name} is stored as {form}, but there is no {absent[0]}")
        if name in held:
            raise ValueError(f"{name} is stored as {form}, and plain too")
        for key, shape in zip(form.keys, form.shapes, strict=True):
            found = tuple(tensors[tied.get(key, key)].shape)
            if found != shape:
                raise ValueError(
                    f"{name} is stored as {form}, whose parameters have another size: {shape}, and "
                    f"{key} has {found}"
                )


def _forms_of(model: nn.Module) -> dict[str, _Form]:
    """The forms of the symmetric matrices of ``model``, by their plain names."""
    specs: dict[str, dict[str, Any]] = {}
    for prefix, layout in _layouts_of(model):
        if layout.symmetric:
            specs[prefix + layout.name] = layout.spec()
    for path, part in model.named_modules(remove_duplicate=False):
        if isinstance(part, ParametrizationList):
            # The path of a weight's parametrizations, and the weight's own name.
            owner, _, tensor = path.rpartition("parametrizations.")
            own = [form for form in part if isinstance(form, Symmetry | SymmetricTensor)]
            if own and len(part) > 1:
                raise ValueError(
                    f"{owner}{tensor} has other parametrizations beside its symmetry; "
                    "pack it without"
                )
            specs.update((owner + tensor, form.spec()) for form in own)
    return {name: _read_form(name, spec) for name, spec in specs.items()}
