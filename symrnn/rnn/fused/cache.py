"""The packed weights of a module, cached for as long as they stand for its parameters.

**The rule**: packed weights are used again while each parameter they were made of is the same
tensor, contiguous at the same address, of the same version, and the same in 16 numbers spread over
it.

PyTorch counts in the version what it writes: an optimizer's step, ``copy_``, ``load_state_dict``.
It does not count what is written through ``.data``, through a NumPy view, or by another process
that shares the memory; the 16 numbers see such a write if it changes most of the parameter, as an
average of weights does that is swapped in. They do not see one that changes a few entries only: a
pruning mask, a clamp, ``w.data[i, j] = …``; nor, after ``vector_to_parameters(v, …)``, such a
change through v. ``flatten_parameters()`` of a layer drops what is cached, and so does setting
``inference_dtype``.

Nothing is cached of parameters whose changes cannot be followed: those made in inference mode,
which count no changes, those that are not contiguous or not on a CPU, and tensors that stand in the
place of parameters for a call (``torch.func.functional_call``).
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from symrnn import native
from symrnn.rnn.fused.packing import library


class Sources:
    """The parameters that something was made of, and how to see that they changed.

    parameters: of a module in its order; None where it has none of that name.
    """

    def __init__(self, parameters: Collection[Tensor | None]) -> None:
        self._parameters = list(parameters)
        own = [p for p in parameters if p is not None]
        # Held, so that nothing else comes to lie at their addresses.
        self._storages = [p.untyped_storage() for p in own]
        self._own = own
        self._places = [p.data_ptr for p in own]
        self._contiguous = [p.is_contiguous for p in own]
        self._versions = [p._version for p in own]
        self._addresses = [p.data_ptr() for p in own]
        count = len(own)
        arrays = (ctypes.c_void_p * count)(*self._addresses)
        sizes = (ctypes.c_int64 * count)(*(p.nbytes for p in own))
        self._arrays = arrays, sizes
        # Addresses of both, which ctypes passes faster than the arrays themselves.
        self._given = count, ctypes.addressof(arrays), ctypes.addressof(sizes)
        self._sample = library().symrnn_sample
        self._sampled = self._sample(*self._given)

    def noted(self) -> tuple[Any, ...]:
        """What :meth:`unchanged` compares with, as python/calls.cpp takes it."""
        own = zip(self._own, self._versions, self._addresses, strict=True)
        listed = tuple((None, 0, 0) if p is None else next(own) for p in self._parameters)
        return listed, native.address_of(self._sample), *self._given, self._sampled

    @staticmethod
    def can_be_followed(parameters: Collection[Tensor]) -> bool:
        """Whether they lie in memory that may be read, and PyTorch counts their changes."""
        return all(
            type(p) is Parameter
            and p.is_cpu
            and p.layout is torch.strided
            and not p.is_inference()
            and p.is_contiguous()
            for p in parameters
        )

    def unchanged(self, parameters: Collection[Tensor | None]) -> bool:
        """The rule."""
        # On the way of every call: loops that run in C where there are such.
        return (
            len(parameters) == len(self._parameters)
            and all(map(operator.is_, parameters, self._parameters))
            and [p._version for p in self._own] == self._versions
            and [place() for place in self._places] == self._addresses
            and all([contiguous() for contiguous in self._contiguous])  # noqa: C419
            and self._sample(*self._given) == self._sampled
        )


class Cache:
    """What one module has cached; a copy of the module, or its pickle, begins with nothing."""

    def __init__(self) -> None:
        self.entry: tuple[Any, Sources] | None = None  # one attribute: threads see both or none

    def put(self, packed: Any, sources: Sources) -> None:
        """Cache what was made of these parameters."""
        self.entry = packed, sources

    def get(self, parameters: Collection[Tensor | None]) -> Any:
        """What is cached, if it was made of these parameters as they are now; else None."""
        entry = self.entry
        if entry is None:
            return None
        if entry[1].unchanged(parameters):
            return entry[0]
        self.entry = None  # lest it hold the former weights while new ones are packed
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return Cache()

    def __reduce__(self) -> tuple[type[Cache], tuple[()]]:
        return Cache, ()
