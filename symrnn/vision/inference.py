"""Models made ready for inference: plain layers, batch norm folded into convolutions."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from symrnn.deployment import plain_layers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_for_inference(model: nn.Module) -> nn.Module:
    """A copy of the model in evaluation mode, of plain layers, that gives the same outputs.

    - Dirac convolutions become plain ones with the weight that they convolved by.
    - Symmetric weights are expanded and their layers plain ones, as :func:`symrnn.deploy` has them;
      soft symmetry is no form but a penalty, and stays as it is: :func:`symrnn.harden` first.
    - A batch norm right after a convolution goes into its weight and bias, an ``nn.Identity``
      standing in its place.

    The model itself is left alone, whatever mode it is in. The classes and names of modules that
    hold others stay; from the state_dict the keys of norms and forms go, and convolutions have a
    bias. What is folded already stays as it is.

    **Which batch norms.** Those for which the model's graph (``torch.fx``) proves it: the norm's
    input is a convolution's output, wherever either is called, and nothing else uses that output,
    nor the parameters of either by hand. Not a norm before a convolution, as in pre-activation
    blocks: the convolution pads with zeros, and there is a ReLU between. Not one without running
    statistics, which reads those of its batch, nor one behind a hook, a further parametrization
    or a subclass of PyTorch's layers. These remain, and remain exact. Inputs should have a batch
    dimension, as batch norm wants them.

    A convolution that several places share and different norms follow becomes one of its own in
    each of these places, as in a plain network of the same shape: faster, and larger on disk.

    Not proven is what a model does after it asked for the type of its input, such as by
    ``isinstance(x, Tensor)``: while its graph is traced the answer is no. Where that decides
    whether a norm follows a convolution, compare outputs.

    A model whose graph cannot be traced, since its control flow depends on its input's values or
    its ``forward`` has optional arguments (whose presence might change the graph), keeps every
    batch norm; a warning says so and why. All else is done.

    Forms that fold their input (``block4`` and its kin) multiply by smaller matrices as trained,
    which in large layers is faster than the plain convolution that they become here.

    The arithmetic is done in float64 and rounded once to the weight's type: outputs agree to the
    rounding of that type. A norm whose folded numbers would be too large for it remains.

    Raises ValueError for a symmetric weight with further parametrizations.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> fold_for_inference(model)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    made = plain_layers(model)
    if any(isinstance(part, _NORMS) for part in made.modules()):
        _own_places(made, set())
        _fold_norms(made)
    return made


def _own_places(module: nn.Module, seen: set[nn.Module]) -> None:
    """Give every place below a module that holds convolutions or norms a module of its own.

    The copies have the same parameters and buffers: nothing is larger.
    """
    for name, child in module._modules.items():
        if child is None or not any(isinstance(p, _CONVOLUTIONS + _NORMS) for p in child.modules()):
            continue
        if child in seen:
            twin = object.__new__(type(child))  # copy.copy would ask parametrized ones for a pickle
            twin.__dict__.update(vars(child))
            for attribute in ("_parameters", "_buffers", "_modules"):
                vars(twin)[attribute] = dict(vars(child)[attribute])
            module._modules[name] = child = twin
        seen.add(child)
        _own_places(child, seen)


# ---- batch norm --------------------------------------------------------------------------------


class _Reads(TorchFunctionMode):
    """Keeps the ids of the tensors that are computed with, however the model came by them."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        map_aggregate((args, kwargs), self._note)
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.read.add(id(value))


class _Tracer(fx.Tracer):
    """Traces a model and keeps which of its tensors are used by hand, not by a layer's call."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor):
            self.read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _fold_norms(model: nn.Module) -> None:
    """Fold what the graph proves can be, in place; each module stands in one place."""
    try:
        graph, read = _trace(model)
    except Exception as error:  # whatever the model's own code makes of symbolic inputs
        warnings.warn(
            f"batch norm is not folded: {type(model).__name__} cannot be traced ({error})",
            stacklevel=3,
        )
        return
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(model.get_submodule(str(node.target)), []).append(node)
    for norm, nodes in list(calls.items()):  # in the order of the first calls
        sources = [node.args[0] if node.args else None for node in nodes]
        # Wherever the one is called the other follows, and nothing else does.
        convolution = next((part for part, at in calls.items() if at == sources), None)
        if convolution is None or any(len(source.users) != 1 for source in calls[convolution]):
            continue
        if _may_fold(convolution, norm, read) and _fold(convolution, norm):
            for node, source in zip(nodes, calls[convolution], strict=True):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
            del calls[norm]


def _trace(model: nn.Module) -> tuple[fx.Graph, set[int]]:
    """The graph of a call, and the ids of the parameters and buffers that are used by hand."""
    for name, part in model.named_modules():
        if "forward" in vars(part):
            raise ValueError(f"{name or 'the model'} has a forward of its own, not of its class")
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ValueError(f"its forward has the optional argument {parameter.name!r}")
    # A model may note something of a call, which is symbolic here. So it is a copy that is called,
    # with the same tensors.
    tensors = [*model.parameters(), *model.buffers()]
    probe = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    tracer = _Tracer()
    with _Reads() as reads:  # as of ``parameters()``, which asks for no attribute
        graph = tracer.trace(probe)
    at = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return graph, tracer.read | reads.read | {id(operator.attrgetter(name)(probe)) for name in at}


def _may_fold(convolution: nn.Module, norm: nn.Module, read: set[int]) -> bool:
    """Whether these are layers that can be folded, the norm following the convolution."""
    if type(convolution) not in _CONVOLUTIONS or type(norm) not in _NORMS:
        return False
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    if norm.num_features != convolution.out_channels:  # whose error it is
        return False
    for part in (convolution, norm):
        if part._forward_hooks or part._forward_pre_hooks:
            return False
        if any(id(tensor) in read for tensor in (*part.parameters(), *part.buffers())):
            return False
    return True


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> bool:
    """Fold a norm into the convolution before it, in place; False if that cannot be stated exactly.

    y = γ·(w∗x + c − μ)/√(σ² + ε) + β = (s·w)∗x + (s·(c − μ) + β) with s = γ/√(σ² + ε).
    """
    old: Tensor = convolution.weight
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -mean if convolution.bias is None else convolution.bias.double() - mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = old.double() * scale.view(-1, *[1] * (old.dim() - 1))
    weight, bias = weight.to(old.dtype), bias.to(old.dtype)
    if not old.is_meta and not (weight.isfinite().all() and bias.isfinite().all()):
        return False
    convolution.weight = nn.Parameter(weight, old.requires_grad)
    convolution.bias = nn.Parameter(bias, old.requires_grad)
    identity = nn.Identity().train(norm.training)
    norm.__dict__.clear()
    norm.__dict__.update(vars(identity))
    norm.__class__ = nn.Identity
    return True
