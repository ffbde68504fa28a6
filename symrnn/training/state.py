"""Exact resume: nested state into tensors and JSON and back."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DICTS: dict[str, type[dict[Any, Any]]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
}


def pack_state(state: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Takes a nested state apart into tensors and JSON, as `save_checkpoint` wants them.

    Allowed: None, bool, int, float (NaN, infinities), str, tensors, numpy arrays, lists, tuples,
    and dicts (also OrderedDict, Counter) with any of those as keys that can be: what
    `state_dict()` of optimizers, schedulers and gradient scalers and the hidden state of a layer
    are made of. Tensors are named by their place, `prefix/state/0/momentum_buffer`; they are
    detached, not copied, so save before the next step. A tensor that occurs twice is saved once
    and comes back as one object.

    Returns:
        the tensors by name, and the JSON value that `unpack_state` rebuilds the state from.

    Raises TypeError naming the place for anything else (sets, named tuples, numpy numbers,
    other objects), since it would not come back as it was.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # id of a tensor -> its name

    def keep(tensor: Tensor, owner: object, place: str) -> str:
        if id(owner) not in names:
            name, tie = place, 1
            while name in tensors:  # {"0": a, 0: b} give one place
                tie += 1
                name = f"{place}~{tie}"
            names[id(owner)] = name
            tensors[name] = tensor.detach()
        return names[id(owner)]

    def pack(value: Any, place: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return [pack(item, f"{place}/{number}") for number, item in enumerate(value)]
        if kind is tuple:
            items = [pack(item, f"{place}/{number}") for number, item in enumerate(value)]
            return {"tuple": items}
        if kind in _DICTS.values():
            pairs = [
                [pack(key, f"{place}/(key)"), pack(item, f"{place}/{key}")]
                for key, item in value.items()
            ]
            return {kind.__name__: pairs}
        if isinstance(value, Tensor):
            return {"tensor": keep(value, value, place)}
        if kind is np.ndarray:
            try:
                tensor = torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
            except (TypeError, ValueError):  # strings, objects, foreign byte order
                raise TypeError(f"{place}: numpy array of dtype {value.dtype}") from None
            return {"ndarray": keep(tensor, value, place)}
        raise TypeError(
            f"{place} is {kind.__module__}.{kind.__name__}; a state is made of dict, list, tuple, "
            "tensor, numpy array, str, int, float, bool and None"
        )

    return tensors, pack(state, prefix)


def unpack_state(tensors: Mapping[str, Tensor], packed: Any) -> Any:
    """Puts back together what `pack_state` took apart; `tensors` may hold others besides.

    Types, dict order, numbers and tensors come back exactly. Parameters come back as plain
    tensors; tensors of a GPU on the CPU (`load_state_dict` moves them; move hidden state
    yourself); attributes set on a dict (`_metadata` of a module's `state_dict`) not at all.

    Raises ValueError if `packed` names a tensor that is missing or is nothing of `pack_state`.
    """

    def tensor(name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"tensors: {name!r} is missing; the packed state needs it")
        return tensors[name]

    def unpack(value: Any) -> Any:
        if isinstance(value, list):
            return [unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((kind, content),) = value.items()
            if kind in _DICTS:
                return _DICTS[kind]({unpack(key): unpack(item) for key, item in content})
            if kind == "tuple":
                return tuple(unpack(item) for item in content)
            if kind == "tensor":
                return tensor(content)
            if kind == "ndarray":
                return tensor(content).numpy()
        raise ValueError(f"packed: {value!r} was not made by pack_state")

    return unpack(packed)


def check_like(value: Any, like: Any, place: str) -> None:
    """Raises TypeError or ValueError, naming the place, unless `value` is built like `like`.

    That is of the same types; dicts with the same keys (an empty one is like any), the items of a
    list like the first of `like`, tensors of one type and shape. An int is like a float.
    """
    kind: type = Tensor if isinstance(like, Tensor) else type(like)
    found: type = Tensor if isinstance(value, Tensor) else type(value)
    if found is not kind and (found, kind) != (int, float):
        raise TypeError(f"{place} should be of type {kind.__name__}, got: {value!r}")
    if kind is dict and like:
        if value.keys() != like.keys():
            raise ValueError(f"{place} should have {list(like)}, got: {list(value)}")
        for key in like:
            check_like(value[key], like[key], f"{place}/{key}")
    elif kind is list and like:
        for number, item in enumerate(value):
            check_like(item, like[0], f"{place}/{number}")
    elif kind is Tensor and (value.dtype, value.shape) != (like.dtype, like.shape):
        raise ValueError(
            f"{place} should be {like.dtype} of shape {tuple(like.shape)}, got: {value.dtype} of "
            f"shape {tuple(value.shape)}"
        )
