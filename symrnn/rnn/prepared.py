"""Packed weights, kept for as long as the parameters they were made of do not change.

A call without gradients needs the packed matrices, a sum of biases and a few structures for the
kernels. They are made once for a module and kept with it; a call then checks that they still stand
for the parameters, allocates its results and hands over addresses.

**What is noticed**: another parameter in the place of one; other memory under it (``.data = …``,
``.to()``); a change in place, which PyTorch counts (an optimizer's step, ``copy_``,
``load_state_dict``). Writing through ``.data`` or a NumPy view, or in another process that shares
the memory, is not counted by PyTorch; so 16 numbers spread over each parameter are compared too,
which sees whatever changes most of it. What is not seen is such a write that changes some entries
only: a pruning mask, a clamp, ``w.data[i, j] = …``. Nor is, after ``vector_to_parameters(v, …)``,
whose parameters are views of v, such a change through v. ``flatten_parameters()`` of a layer drops
what is kept, and so does setting ``inference_dtype``.

Calls with gradients pack anew. They expand the matrices anyway, which takes longer, and numerical
gradients (``torch.autograd.gradcheck``) are taken by just such writes to single entries.

Nothing is kept where changes cannot be followed: of computed weights (parametrizations), of
parameters made in inference mode, which count no changes, and of those that are not contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from symrnn import native
from symrnn.rnn.operators import joined_biases, layer_structure, linear
from symrnn.rnn.packing import check_numbers, check_shape, library, matrices_of, plan_of

if TYPE_CHECKING:
    from symrnn.rnn.keeping import GatedModule

MOST_ROWS = 2048
"""Up to so many rows the kernels multiply the input too; more are one product by PyTorch.

The kernels do it faster on weights that are packed already, but hold all rows' gates as they do.
"""

SAMPLES = 16


# There is no public way to ask for the transforms of torch.func, for modes and for a tracer.
_transforms = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_mode = torch._C._is_torch_function_mode_enabled
_tracer = torch._C._get_tracing_state


def is_transformed() -> bool:
    """Whether a transform of torch.func is about to take the call."""
    return not torch.compiler.is_compiling() and _transforms() is not None


def is_plain() -> bool:
    """Whether a call is nothing but numbers: no tracing, transform, mode, autocast or tangent.

    Only then may the kernels be called past PyTorch's dispatcher. A default device that is the CPU
    is a mode too, and does nothing here.
    """
    return (
        not torch.compiler.is_compiling()
        and _transforms() is None
        and _dispatch_modes() == 0
        and (not _function_mode() or _is_default_cpu())
        and _tracer() is None
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
    )


def _is_default_cpu() -> bool:
    """Whether the one function mode is ``torch.set_default_device("cpu")``."""
    modes = _get_current_function_mode_stack()
    return len(modes) == 1 and type(modes[0]) is DeviceContext and modes[0].device.type == "cpu"


# ---- what the kept was made of -----------------------------------------------------------------


class _Source(NamedTuple):
    """What a parameter was like when it was read.

    place: gives its address now.  strides: gives those of its dimensions now.
    sample: gives the bits of a few of its numbers now. It keeps their memory, so that nothing else
        comes to lie at that address.
    """

    name: str
    parameter: Tensor
    place: Callable[[], int]
    address: int
    strides: Callable[[], tuple[int, ...]]
    steps: tuple[int, ...]
    version: int
    sample: Callable[[], bytes]
    bits: bytes


def _sources(module: GatedModule, names: Sequence[str]) -> tuple[_Source, ...] | None:
    """The parameters of these names as they are; None if one's changes cannot be followed."""
    sources = []
    for name in names:
        parameter = module._parameters.get(name)
        if (
            parameter is None
            or type(parameter) not in (Parameter, Tensor)
            or parameter.is_inference()
            or not parameter.is_contiguous()
        ):
            return None
        # Not a view of the parameter for PyTorch, whose memory may go on being swapped.
        numbers = parameter.data.view(-1).numpy()
        sample = numbers[:: _step(parameter)].tobytes
        place, strides, version = parameter.data_ptr, parameter.stride, parameter._version
        sources.append(
            _Source(name, parameter, place, place(), strides, strides(), version, sample, sample())
        )
    return tuple(sources)


def _step(parameter: Tensor) -> int:
    """From one sample to the next; they lie in as many columns as can be, not all in one."""
    columns = parameter.size(-1) if parameter.dim() else 1
    step = max(-(-parameter.numel() // SAMPLES), 1)
    while math.gcd(step, columns) > 1:
        step += 1
    return step


def _unchanged(module: GatedModule, sources: tuple[_Source, ...]) -> bool:
    parameters = module._parameters
    for name, parameter, place, address, strides, steps, version, sample, bits in sources:
        if (
            parameters.get(name) is not parameter
            or place() != address
            or strides() != steps
            or parameter._version != version
            or sample() != bits
        ):
            return False
    return True


class Cache:
    """What a module keeps; a copy of the module, or its pickle, begins with nothing kept."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return Cache()

    def __reduce__(self) -> tuple[type[Cache], tuple[()]]:
        return Cache, ()


# ---- what a call without gradients needs -------------------------------------------------------


class _Direction:
    """One layer in one direction, packed.

    packed_dtype: of the packed weights; bfloat16, or that of all other numbers.
    most_rows: up to how many the input weights are read packed.
    """

    def __init__(
        self, module: GatedModule, suffix: str, packed_dtype: torch.dtype, most_rows: int
    ) -> None:
        self.function = library().symrnn_forward
        self.mode = module.mode
        self.reverse = suffix.endswith("_reverse")
        self.most_rows = most_rows
        self.packed_dtype = packed_dtype
        self.hh, self.ih = (module._matrices[f"weight_{kind}{suffix}"] for kind in ("hh", "ih"))
        # The kernels read where they are told to: whoever has put other tensors in the place of the
        # weights must have put such as they take.
        length = len(module.GATES) * self.hh.rows
        biases = {name: module._weight(name) for name in (f"bias_ih{suffix}", f"bias_hh{suffix}")}
        check_numbers(**{"weights": module._some_weight(), **biases})
        for name, bias in biases.items():
            check_shape(name, bias, length)
        self.bias, self.bias_n = joined_biases(self.mode, *biases.values())
        self.plans = [
            plan_of(module.GATES, kept.rows, kept.columns, module.symm, kept.symmetric)
            for kept in (self.hh, self.ih)
        ]
        matrices = matrices_of(self.hh, module, module.symmetry)
        self.packed = [self.plans[0].pack(matrices, packed_dtype)]
        self.product = self.plans[0].product(self.packed[0])
        self.alone = layer_structure(self.mode, self.product, bias_n=self.bias_n)
        self.with_input: native.Layer | None = None
        self.w_ih: Tensor | None = None

    def run(
        self,
        module: GatedModule,
        x: Tensor,
        rows: int,
        steps: int,
        batch: int,
        lengths: int,
        h0: int,
        c0: int,
        output: int,
        hn: int,
        cn: int,
    ) -> None:
        """x (…, I) of so many rows, contiguous; the rest are addresses as symrnn.h has them, or 0.

        module: whose weights these are.
        """
        if rows <= self.most_rows:
            structure = self.with_input or self._pack_input(module)
            given, gates = x.data_ptr(), 0
        else:
            # In a variable, so that it lives as long as the kernels write to it.
            product = linear(x.view(rows, -1), self._input_weights(module), self.bias)
            structure = self.alone
            given, gates = 0, product.data_ptr()
        status = self.function(
            structure, steps, batch, lengths, self.reverse, given, gates, 0,
            h0, c0, output, hn, cn, torch.get_num_threads(),
        )  # fmt: skip
        if status:
            native.check(status)

    # Not before a call needs it. If the weights changed since the hidden ones were packed, the next
    # call will see that they did.

    def _pack_input(self, module: GatedModule) -> native.Layer:
        matrices = matrices_of(self.ih, module, module.symmetry)
        packed = self.plans[1].pack(matrices, self.packed_dtype)
        self.packed.append(packed)
        product = self.plans[1].product(packed)
        made = layer_structure(self.mode, self.product, product, self.bias, self.bias_n)
        self.with_input = made
        return made

    def _input_weights(self, module: GatedModule) -> Tensor:
        if self.w_ih is not None:
            return self.w_ih
        w_ih = self.ih.assemble(module, module.symmetry).detach()
        check_shape(self.ih.name, w_ih, len(module.GATES) * self.ih.rows, self.ih.columns)
        if w_ih.dtype != self.packed_dtype:
            w_ih = w_ih.to(self.packed_dtype).to(w_ih.dtype)  # the numbers that are packed
        self.w_ih = w_ih
        return w_ih


class Prepared:
    """All layers and directions of a module, packed.

    dtype: of input, state and output.
    count: L·D.
    states: of how many parts a state is.
    sources: the parameters that this was made of; None if it is not to be kept.
    """

    def __init__(self, module: GatedModule) -> None:
        # Noted before anything is read, so that what changes meanwhile is seen to have changed.
        self.sources = _sources(module, _names(module))
        self.dtype = module._dtype()
        packed_dtype = module.inference_dtype or self.dtype
        most_rows = 0 if self.sources is None else MOST_ROWS
        suffixes = module._suffixes()
        every = [_Direction(module, suffix, packed_dtype, most_rows) for suffix in suffixes]
        directions = 2 if every[-1].reverse else 1
        self.layers = [every[k : k + directions] for k in range(0, len(every), directions)]
        self.count = len(every)
        self.states = len(module.STATES)
        # In bytes, what one sequence's state of one layer and direction takes.
        self.state_bytes = module.hidden_size * self.dtype.itemsize

    def run(
        self,
        module: GatedModule,
        x: Tensor,
        shape: Sequence[int],
        steps: int,
        batch: int,
        lengths: int,
        hx: Sequence[Tensor] | None,
        state_shape: Sequence[int],
        dropout: float,
    ) -> tuple[Tensor, list[Tensor]]:
        """Input x (*shape, I) and the state to the output (*shape, D·H) and the new state.

        Contiguous numbers of ``dtype`` on the CPU. Nothing is checked here.

        shape: of the rows, R in all.
        lengths: the address of B_t (T,), or 0 where all are B.
        state_shape: of each part of the new state, and of ``hx``, which is zeros if None.
        dropout: between the layers.
        """
        rows = steps * batch if lengths == 0 else shape[0]
        state = [x.new_empty(*state_shape)]
        hn, cn, h0, c0, part = state[0].data_ptr(), 0, 0, 0, batch * self.state_bytes
        if hx is not None:
            h0 = hx[0].data_ptr()
        if self.states == 2:
            state.append(x.new_empty(*state_shape))
            cn = state[1].data_ptr()
            c0 = 0 if hx is None else hx[1].data_ptr()
        for layer in self.layers:
            if dropout and layer is not self.layers[0]:
                x = F.dropout(x, dropout, True)
            outputs = []
            for direction in layer:
                output = x.new_empty(*shape, module.hidden_size)
                outputs.append(output)
                direction.run(
                    module, x, rows, steps, batch, lengths, h0, c0, output.data_ptr(), hn, cn
                )
                # Those of the next, if there are such.
                hn, cn, h0, c0 = hn + part, cn and cn + part, h0 and h0 + part, c0 and c0 + part
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return x, state


def _names(module: GatedModule) -> list[str]:
    """The parameters that a module's weights are made of."""
    names: list[str] = []
    for name in module._weight_names:
        matrix = module._matrices.get(name)
        names += [name] if matrix is None else matrix.kept_names()
    return names


def tensors_of(module: GatedModule) -> list[Tensor]:
    """What a module's weights are made of: its parameters, and what stands in their place.

    That is a plain attribute where a network makes the weights, or what a parametrization gives.
    """
    names = [name for name in _names(module) if name not in module._parameters]
    others = [getattr(module, name) for name in names]
    return [*module.parameters(), *(tensor for tensor in others if tensor is not None)]


def prepare(module: GatedModule) -> Prepared:
    """The module's packed weights: those kept, or made anew and kept if that may be."""
    kept = module._cache.prepared
    if kept is None or kept.sources is None or not _unchanged(module, kept.sources):
        with torch.no_grad():
            kept = Prepared(module)
        module._cache.prepared = None if kept.sources is None else kept
    return kept


def is_ready(
    kept: Prepared, module: GatedModule, input: Tensor, hx: Any, state_shape: tuple[int, ...]
) -> bool:
    """Whether a call may run on weights kept packed: :meth:`Prepared.run`, as it stands.

    That is if no gradient is wanted and nothing but numbers, the weights are what they were, and
    input and state as they have to be.

    input: a tensor that is not empty; the size of its rows is right.
    hx: None or a tuple that should hold the parts of the state.
    """
    if (
        torch.is_grad_enabled()
        or input.dtype is not kept.dtype
        or not input.is_cpu
        or not input.is_contiguous()
        or input.is_neg()
        or not is_plain()
    ):
        return False
    if hx is not None:
        if type(hx) is not tuple or len(hx) != kept.states:
            return False
        for part in hx:
            if (
                type(part) is not Tensor
                or part.shape != state_shape
                or part.dtype is not kept.dtype
                or not part.is_cpu
                or not part.is_contiguous()
                or part.is_neg()
            ):
                return False
    return kept.sources is not None and _unchanged(module, kept.sources)
