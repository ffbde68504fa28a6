"""What a user gets who reads a symmetric weight: its expanded numbers, not to be changed in place.

A symmetric weight is computed from its parameters at every reading. Whoever writes into what was
read, as ``nn.init.orthogonal_(lstm.weight_hh_l0)`` does, would change a copy and never know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ExpandedWeight(Tensor):
    """The numbers of an expanded weight, and views of them: what would change them in place raises.

    All else gives plain tensors, with PyTorch's gradients: results, clones, pickles, deep copies.
    Made by :func:`read_only`. A compiled function takes none as an argument: give it a clone().

    ways: what such an error says of the weight.
    """

    ways: str

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        for weight in _tensors(_written(func, args, kwargs)):
            if isinstance(weight, cls):
                raise RuntimeError(
                    f"{func.__name__} would change nothing but a copy: {weight.ways} "
                    "(clone() gives a copy to change)"
                )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            read = [t for t in _tensors([*args, *kwargs.values()]) if isinstance(t, cls)]
            return _views_marked(result, read)

    @property
    def _is_param(self) -> bool:
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        # Set by ``nn.Parameter(weight)``, which is a parameter in its own right from here on.
        del self.ways
        self.__class__ = nn.Parameter  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)


def read_only(weight: Tensor, ways: str) -> Tensor:
    """``weight``, an expanded one, as it is handed out; a tensor of another class as it is.

    ways: how it is stored, and how to change it, for the error of a change in place.

    What a compiler, a tracer, a mode or a transform of torch.func reads stays plain: those take no
    classes of others.
    """
    if torch.compiler.is_compiling() or type(weight) is not Tensor:
        return weight
    traced = torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
    if traced or torch._C._functorch.peek_interpreter_stack() is not None:
        return weight
    return _marked(weight, ways)


def plain(weight: Tensor) -> Tensor:
    """The same numbers, which autograd follows to the weight, as a tensor of no special class."""
    if not isinstance(weight, ExpandedWeight):
        return weight
    with torch._C.DisableTorchFunctionSubclass():
        return weight.as_subclass(Tensor)


def _marked(weight: Tensor, ways: str) -> ExpandedWeight:
    made = weight.as_subclass(ExpandedWeight)
    made.ways = ways
    return made


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call writes to."""
    name = func.__name__
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    if in_place or name == "__setitem__" or func == _SET_DATA or kwargs.get("inplace"):
        return [*args, *kwargs.values()][:1]
    return [kwargs.get("out")]


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among values, and among lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _views_marked(result: Any, read: list[ExpandedWeight]) -> Any:
    """The result of a call; what shares memory with a weight that was read is read-only too."""
    if isinstance(result, list | tuple) and type(result) in (list, tuple):
        return type(result)(_views_marked(one, read) for one in result)
    for weight in read:
        memory = weight.untyped_storage().data_ptr()
        if type(result) is Tensor and memory and result.untyped_storage().data_ptr() == memory:
            return _marked(result, weight.ways)
        if isinstance(result, np.ndarray) and np.may_share_memory(result, weight.detach().numpy()):
            result.flags.writeable = False
    return result
