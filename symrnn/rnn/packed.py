"""Recurrent modules for inference whose only tensors are packed weights and biases.

:func:`symrnn.deploy` puts them where ours stood. A call past PyTorch's dispatcher runs on the
native kernels alone; in a graph (torch.compile, torch.export, AOTInductor, a trace) it is one
operator of :mod:`symrnn.native.torch`, on the module's own buffers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from symrnn.native.torch import load
from symrnn.rnn import torch_state
from symrnn.rnn.call import CellCall, LayerCall, RecurrentCall
from symrnn.rnn.fused.cache import Cache, Sources
from symrnn.rnn.fused.inference import PackedStack
from symrnn.rnn.fused.packed import pack_layers
from symrnn.rnn.fused.packed_run import PackedRun
from symrnn.rnn.fused.plans import MOST_PLANS, MOST_ROWS, Shapes, packed_plan
from symrnn.rnn.fused.structure import structure_of_layers
from symrnn.rnn.modes import MODES
from symrnn.rnn.module import GatedModule
from symrnn.rnn.stack import State, autocast_on
from symrnn.rnn.stream import Stream

Module = TypeVar("Module", bound="PackedModule")


class PackedModule(nn.Module):
    """Base of modules that hold packed weights, which can be moved and loaded, but never cast.

    ``structure`` is a buffer too, int32, which is not in the state_dict: it belongs to the module
    as its sizes do (:mod:`symrnn.rnn.fused.structure`).
    """

    structure: Tensor
    _structure: Tensor | None = None
    """On the CPU, while the module is on the meta device."""

    def _hold(
        self, structure: Tensor, packed: Mapping[str, Tensor], others: Mapping[str, Tensor | None]
    ) -> None:
        """Register the buffers: packed numbers, biases, the structure."""
        self._packed = tuple(packed)
        self._cache = Cache()
        for name, tensor in {**packed, **others}.items():
            self.register_buffer(name, tensor)
        self.register_buffer("structure", structure, persistent=False)
        self._settle()

    @property
    def packed_dtype(self) -> torch.dtype:
        """Of the packed numbers: float32, float64, bfloat16 or int8."""
        numbers: Tensor = getattr(self, self._packed[0])
        return numbers.dtype

    @property
    def packed_names(self) -> tuple[str, ...]:
        """The names of the buffers that hold them."""
        return self._packed

    def packing(self) -> dict[str, str]:
        """What packed numbers must be alike in to mean the same: their type, and how they lie."""
        return {"dtype": str(self.packed_dtype), "structure": self._fingerprint()}

    def _dtype(self) -> torch.dtype:
        """Of input, state and arithmetic."""
        return torch.float64 if self.packed_dtype == torch.float64 else torch.float32

    def _some_weight(self) -> Tensor:
        """Without numbers, of that dtype and the device."""
        return torch.empty(0, dtype=self._dtype(), device=self.structure.device)

    def _settle(self) -> None:
        """Have the numbers where the kernels can read them, and PyTorch counts their changes."""
        for name, tensor in self._buffers.items():
            if tensor is None or not tensor.is_cpu:
                continue
            if tensor.is_inference() or not tensor.is_contiguous() or tensor.data_ptr() % 64:
                with torch.inference_mode(False), torch.no_grad():
                    # PyTorch aligns what it allocates.
                    self._buffers[name] = torch.empty_like(tensor).copy_(tensor)

    def _operands(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The input, called ``name``, and the state as a call takes them; an error if it cannot."""
        kind, dtype, device = type(self).__name__, self._dtype(), self.structure.device
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"{kind} is for inference and has no gradients: call it under torch.no_grad(), "
                "or with inputs that want none"
            )
        if device.type != "cpu":
            raise RuntimeError(
                f"{kind} runs on the device cpu, its packed weights are on {device}: "
                'deploy(model, form="plain") has weights for others'
            )
        if torch.onnx.is_in_onnx_export():
            raise RuntimeError('ONNX knows no packed weights: export deploy(model, form="plain")')
        if torch_state.is_transformed() or torch_state.has_tangent(tensors):
            raise RuntimeError(f"{kind} has no derivatives and no vmap")
        if autocast_on("cpu"):
            tensors = [tensor.to(dtype) for tensor in tensors]
        for which, tensor in zip((name, "hx", "hx[1]"), tensors, strict=False):
            if tensor.device != device:
                raise ValueError(f"{which} should be on the device cpu, got: {tensor.device}")
            if tensor.dtype != dtype:
                raise ValueError(f"{which} should be {dtype}, got: {tensor.dtype}")
        return [*tensors]

    @staticmethod
    def _can_bypass(tensors: Sequence[Tensor]) -> bool:
        """Whether a call of these operands can go past the dispatcher."""
        if torch.compiler.is_compiling() or not torch_state.are_plain(tensors):
            return False
        if not autocast_on("cpu"):
            return torch_state.can_bypass_dispatcher()
        with torch.autocast("cpu", enabled=False):  # which the operands have obeyed
            return torch_state.can_bypass_dispatcher()

    # ---- what happens to modules -----------------------------------------------------------------

    def _apply(self: Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        like = self._some_weight()
        structure = self._structure if self.structure.is_meta else self.structure
        for probe in (like, like.to(torch.uint8)):
            if (got := fn(probe)).dtype != probe.dtype:
                raise ValueError(
                    f"packed weights of {type(self).__name__} stay {self.packed_dtype} and compute "
                    f"in {like.dtype}, got: {got.dtype}; symrnn.deploy(model, dtype=…) packs others"
                )
            if structure is None and not got.is_meta:
                raise ValueError(
                    f"{type(self).__name__} was loaded to the device meta, without what it takes "
                    f"to read packed weights on {got.device}: load it to cpu"
                )
        # Bytes, which no cast to a type of numbers touches.
        own = {name: self._buffers[name] for name in self._packed}
        self._buffers.update(
            {name: t.view(torch.uint8) for name, t in own.items() if t is not None}
        )
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in own.items():
                moved = self._buffers[name]
                if tensor is not None and moved is not None:
                    self._buffers[name] = moved.view(tensor.dtype)
            self._cache = Cache()
        # It belongs to the module: to_empty() takes no numbers along, and no state_dict has these.
        here, self._structure = self.structure, None
        if here.is_meta:
            self._structure = None if structure is None else structure.cpu()
        elif structure is not None and here is not structure:
            here.copy_(structure)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settle()

    def _fingerprint(self) -> str:
        """Of what lies in the packed numbers."""
        if self.structure.is_meta:
            return ""
        return hashlib.sha256(self.structure.cpu().numpy().tobytes()).hexdigest()[:16]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["structure"] = self._fingerprint()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Numbers that lie otherwise may be as many, and would be copied without a word.
        wrong = []
        theirs, own = local_metadata.get("structure", ""), self._fingerprint()
        if theirs and own and theirs != own:
            wrong.append(f"{prefix[:-1] or 'the state_dict'} holds weights packed otherwise")
        for name in self._packed:
            given, buffer = state_dict.get(prefix + name), self._buffers[name]
            if given is not None and buffer is not None and given.dtype != buffer.dtype:
                wrong.append(
                    f"{prefix}{name} should be packed as {buffer.dtype}, got: {given.dtype}"
                )
        if wrong:
            error_msgs += wrong
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        numbers: Tensor = getattr(self, self._packed[0])
        if self._structure is not None and not numbers.is_meta:  # by assign=True
            self.structure, self._structure = self._structure, None
        self._settle()

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script takes no {type(self).__name__}: use torch.export or "
            'torch.jit.trace, or script deploy(model, form="plain")'
        )


class PackedRecurrent(PackedModule, RecurrentCall):
    """What the layers and the cells share."""

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("mode", "input_size", "hidden_size", "bias")
    """What they take over from the module that they are made of."""

    mode: str

    def __init__(self, module: GatedModule, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(module, GatedModule) or module.PLAIN is not self.PLAIN:
            raise TypeError(
                f"module should be a symrnn module in the place of nn.{self.PLAIN.__name__}, "
                f"got: {type(module).__name__}"
            )
        if module.proj_size:
            raise ValueError(
                f"packed layers have no projections, got: proj_size={module.proj_size}"
            )
        for name in self.ARGUMENTS:
            setattr(self, name, getattr(module, name))
        if hasattr(module, "nonlinearity"):
            self.nonlinearity = module.nonlinearity
        weights = module.layer_weights()
        tensors = [tensor for w in weights for tensor in w.tensors]
        dtype = dtype or module.inference_dtype or tensors[0].dtype
        with torch.inference_mode(False):
            layers = pack_layers(weights, self.mode, self._directions == 2, dtype)
            structure = structure_of_layers(layers, self.mode, self._directions, self.hidden_size)
        packed: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        self._names: list[str] = []  # as the operator takes them
        for w, layer in zip(weights, layers, strict=True):
            suffix = w.hh.layout.name.removeprefix("weight_hh")
            matrices = {"weight_hh": layer.hh.numbers, "weight_ih": layer.ih.numbers}
            biases = {"bias_sum": layer.bias, "bias_n": layer.bias_n}
            own = {f"{name}{suffix}": bias for name, bias in biases.items() if bias is not None}
            packed |= {f"{name}{suffix}": numbers for name, numbers in matrices.items()}
            others |= own
            self._names += [*(f"{name}{suffix}" for name in matrices), *own]
        self._hold(structure, packed, others)
        self.eval()

    @property
    def _directions(self) -> int:
        return 1

    def _weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _ready(self) -> PackedRun:
        """The buffers as the kernels take them: cached while they are the same."""
        buffers = self._buffers.values()
        run: PackedRun | None = self._cache.get(buffers)
        if run is None:
            sources = Sources(buffers)
            run = PackedRun(self.structure, self._weights())
            self._cache.put(run, sources)
        return run

    def _run_all(
        self, input: Tensor, batch_sizes: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        """A :data:`symrnn.rnn.stack.Run`."""
        input, *state = self._operands("input", [input, *state])
        if self._can_bypass([input, *state]):
            return self._ready().run(input, batch_sizes, state)
        have_operators()
        output, h, c = torch.ops.symrnn.packed_layers(
            input, batch_sizes, state, self._weights(), self.structure,
            self._directions * self.hidden_size,
        )  # fmt: skip
        return output, [h, c][: len(state)]

    def _planned(self, input: Any, hx: Any) -> Any:
        """The result of a call like one before, made in C; None if there was none."""
        entry = self._cache.entry
        plan = None
        if entry is not None and type(input) is Tensor:
            plan = entry[0].plans.get(input.shape)
        return None if plan is None else plan.call(self._buffers, input, hx)

    def _plan(self, shapes: Shapes, steps: int, batch: int) -> None:
        """Have the next call of these shapes made in C, if it is one of a few steps."""
        entry = self._cache.entry
        if entry is None or not 0 < steps * batch <= MOST_ROWS:
            return
        run, sources = entry
        if run.stack is None or shapes.x in run.plans or len(run.plans) >= MOST_PLANS:
            return
        run.plans[shapes.x] = packed_plan(run.stack, sources, shapes, steps, batch, self.IS_CELL)

    def stream(self, batch: int = 1) -> Stream:
        """The module over so many sequences, a few steps at a time: :class:`Stream`.

        It shares the packed weights of the module.
        """
        return Stream(self, batch)

    def packed_stack(self) -> PackedStack | None:
        if not self.structure.is_cpu or not torch_state.can_bypass_dispatcher():
            return None
        return self._ready().stack

    def extra_repr(self) -> str:
        plain: str = self.PLAIN.extra_repr(self)
        return f"{plain}, packed_dtype={self.packed_dtype}"


class _PackedLayers(LayerCall, PackedRecurrent):
    ARGUMENTS = (
        *PackedRecurrent.ARGUMENTS,
        "num_layers",
        "batch_first",
        "dropout",
        "bidirectional",
    )

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Arguments and results are those of PyTorch's layer; there is no dropout."""
        if torch.compiler.is_compiling():
            return self._call(input, hx)
        result = self._planned(input, hx)
        if result is None:
            result = self._call(input, hx)
            if type(input) is Tensor:
                self._plan_layers(input, *result)
        return result

    def flatten_parameters(self) -> None:
        """Nothing, for whoever calls it of ``nn.LSTM``."""

    def _run(self, input: Tensor, batch_sizes: Tensor | None, state: State) -> tuple[Tensor, State]:
        if input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return self._run_all(input, batch_sizes, state)

    def _plan_layers(self, input: Tensor, output: Tensor, hx: Any) -> None:
        steps, batch = (*input.shape[:-1], 1)[:2]
        if input.dim() == 3 and self.batch_first:
            if steps > 1 and batch > 1:
                return
            steps, batch = batch, steps
        state = self._parts(hx)[0].shape
        self._plan(Shapes(*map(tuple, (input.shape, output.shape, state))), steps, batch)


class _PackedCell(CellCall, PackedRecurrent):
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Arguments and results are those of PyTorch's cell."""
        if torch.compiler.is_compiling():
            return self._call(input, hx)
        result = self._planned(input, hx)
        if result is None:
            result = self._call(input, hx)
            if type(input) is Tensor:
                state = tuple(self._parts(result)[0].shape)
                batch = input.size(0) if input.dim() == 2 else 1
                self._plan(Shapes(tuple(input.shape), state, state), 1, batch)
        return result

    def _step(self, input: Tensor, state: State) -> State:
        _, new = self._run_all(input.unsqueeze(0), None, [part.unsqueeze(0) for part in state])
        return [part.squeeze(0) for part in new]


class PackedLSTM(_PackedLayers):
    """A :class:`symrnn.SymLSTM` with packed weights, for inference on a CPU.

    lstm: which it is made of; without projections.
    dtype: of the packed weights, that of the module, or of float32 bfloat16 or int8; None is its
        ``inference_dtype`` if that is set, else its own.

    Call, results, packed sequences, unbatched input and errors are those of ``nn.LSTM``, numbers
    those of the module on the fused backend. There is no dropout, and are no gradients. Its buffers
    are ``weight_hh_l0`` and ``weight_ih_l0``, each a vector of packed numbers, and ``bias_sum_l0``,
    and so on; of a GRU ``bias_n_l0`` too. They are changed by ``load_state_dict`` alone, of another
    such module; ``.to(dtype)`` to another type than it computes in (float32, or float64 of such
    weights) is an error.

    >>> packed = PackedLSTM(SymLSTM(10, 20, num_layers=2), torch.int8)
    >>> output, (h, c) = packed(torch.randn(5, 3, 10))
    >>> output.shape, packed.weight_hh_l0.dtype
    (torch.Size([5, 3, 20]), torch.int8)
    """

    PLAIN = nn.LSTM
    STATES = MODES["LSTM"].states


class PackedGRU(_PackedLayers):
    """A :class:`symrnn.SymGRU` with packed weights; as :class:`PackedLSTM`."""

    PLAIN = nn.GRU


class PackedRNN(_PackedLayers):
    """A :class:`symrnn.SymRNN` with packed weights; as :class:`PackedLSTM`."""

    PLAIN = nn.RNN


class PackedLSTMCell(_PackedCell):
    """A :class:`symrnn.SymLSTMCell` with packed weights; as :class:`PackedLSTM`."""

    PLAIN = nn.LSTMCell
    STATES = MODES["LSTM"].states


class PackedGRUCell(_PackedCell):
    """A :class:`symrnn.SymGRUCell` with packed weights; as :class:`PackedLSTM`."""

    PLAIN = nn.GRUCell


class PackedRNNCell(_PackedCell):
    """A :class:`symrnn.SymRNNCell` with packed weights; as :class:`PackedLSTM`."""

    PLAIN = nn.RNNCell


PACKED: dict[Any, type[PackedRecurrent]] = {
    kind.PLAIN: kind
    for kind in (PackedLSTM, PackedGRU, PackedRNN, PackedLSTMCell, PackedGRUCell, PackedRNNCell)
}
"""By PyTorch's class that they stand in for."""


@torch_state.constant_in_graphs
def have_operators() -> bool:
    """Have them while a graph is made, which is when they are first wanted."""
    with torch_state.without_modes():
        load()
    return True
