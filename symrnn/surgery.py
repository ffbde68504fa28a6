"""Working on whole models: make their weights symmetric, soften, count, group for an optimizer.

Everything here works in place, on models that need not know of this library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from symrnn.layers import FOLDED
from symrnn.rnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell
from symrnn.rnn.module import GatedModule, source_parameter
from symrnn.symmetry import SymmetricTensor, Symmetry, check_symmetry_name
from symrnn.symmetry.soft import asymmetry, upper
from symrnn.symmetry.tensor import check_axes, square_sides
from symrnn.threads import one_thread

Where = str | type[nn.Module] | Sequence[str | type[nn.Module]] | Callable[[str, nn.Module], bool]
"""Which weights are meant: a pattern with * and ?, such as "encoder.*", for the name of a module
or of a weight ("encoder.0.weight"), any of its names if it stands in several places; a type of
module; several of these; or a function of the weight's name, the first, and its module. Of a
recurrent module all but the function mean its hidden weights; the input weights only if the
pattern says "weight_ih"."""

_COUNTERPART: dict[type[nn.Module], type[GatedModule]] = {
    nn.LSTM: SymLSTM,
    nn.GRU: SymGRU,
    nn.RNN: SymRNN,
    nn.LSTMCell: SymLSTMCell,
    nn.GRUCell: SymGRUCell,
    nn.RNNCell: SymRNNCell,
}
"""Each recurrent module, and what it becomes; the symmetric ones stay what they are."""
_COUNTERPART |= {symmetric: symmetric for symmetric in _COUNTERPART.values()}

# ---- counting ----------------------------------------------------------------------------------


class ParameterCount(NamedTuple):
    """Numbers of a model, each counted once however often it is used.

    training: how many the optimizer changes.
    deployed: how many remain when each symmetric matrix is stored as one number per orbit; differs
        from ``training`` only for over-complete forms, such as ``avg:full``.
    recurrent: of the deployed ones, those in hidden-to-hidden weights.
    """

    training: int
    deployed: int
    recurrent: int


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of any module; symmetric forms are recognised wherever they stand.

    Parameters that do not require gradients count as the others do.

    Raises ValueError for an over-complete form whose weight is computed from several parameters.

    >>> count_parameters(SymLSTM(200, 200, symm="avg"))
    ParameterCount(training=242000, deployed=242000, recurrent=80400)
    """
    over_complete = _symmetric(module, lambda form: form.numel > form.deployed)
    spare = {id(v): _spare(v, form) for v, form in over_complete}
    training = deployed = recurrent = 0
    for name, parameter in module.named_parameters():
        count = parameter.numel() - spare.get(id(parameter), 0)
        training += parameter.numel()
        deployed += count
        # Any part: a parametrized one is called "parametrizations.weight_hh_l0.original".
        if any(part.startswith("weight_hh") for part in name.split(".")):
            recurrent += count
    return ParameterCount(training, deployed, recurrent)


def parameter_groups(
    module: nn.Module, lr: float, *, adaptive: bool = False
) -> list[dict[str, Any]]:
    """The parameters in groups for an optimizer, with the rates that symmetric forms want.

    The gradient of a raw number (``tri``, ``block``, ``chunk``) is the sum over its orbit, and a
    step moves every entry of it: gradient descent moves the matrix as many times as far as it does
    in orthonormal coordinates. Those groups get ``lr`` divided by the mean orbit size N²/numel;
    all others ``lr``. Each group names its factor as "lr_scale", for schedules that set "lr".

    adaptive: of optimizers whose steps do not grow with the gradient (Adam, RMSprop). A raw number
        is then an entry, and wants no factor; in orthonormal coordinates (``avg``, ``avg4``) the
        step of a parameter is that of its entries times the root of the orbit's size, and ``lr`` is
        multiplied by the root of the mean one.

    Raises ValueError for a form that wants another rate if what it is on is computed from several
    parameters, as by weight norm; of pruned and parametrized ones it is that of the source.

    >>> groups = parameter_groups(SymLSTM(8, 8, symm="block4"), lr=1.0)
    >>> [group["lr"] for group in groups]
    [1.0, 0.25]
    """
    scale_of = attrgetter("adaptive_lr_scale" if adaptive else "lr_scale")
    scaled = _symmetric(module, lambda form: scale_of(form) != 1)
    scales = {id(v): scale_of(form) for v, form in scaled}
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in module.parameters():
        groups.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "lr_scale": scale}
        for scale, parameters in groups.items()
        if parameters
    ]


def _spare(v: nn.Parameter, form: Symmetry | SymmetricTensor) -> int:
    """By how many the parameters exceed the degrees of freedom of the expanded matrices."""
    return v.numel() // form.numel * (form.numel - form.deployed)


def _symmetric(
    module: nn.Module, wanted: Callable[[Any], bool]
) -> Iterator[tuple[nn.Parameter, Symmetry | SymmetricTensor]]:
    """Every parameter of the symmetric forms that are wanted, with its form."""
    for path, part in module.named_modules():
        found: list[tuple[str, nn.Parameter | None, Any]] = []
        if isinstance(part, GatedModule):
            found = [*part.symmetric_parameters()]
        elif _is_form(part):
            found = [("original", source_parameter(part, "original"), part[0])]
        for name, parameter, form in found:
            if not wanted(form):
                continue
            if parameter is None:
                full = f"{path}.{name}".lstrip(".")
                raise ValueError(
                    f"{full} is computed from several parameters, as by weight norm, and so it is "
                    "not known which counts as the form's: remove what computes it"
                )
            yield parameter, form


def _is_form(part: nn.Module) -> TypeGuard[ParametrizationList]:
    """Whether a module is the parametrization of a weight by a symmetric form."""
    return isinstance(part, ParametrizationList) and isinstance(part[0], Symmetry | SymmetricTensor)


# ---- symmetrising ------------------------------------------------------------------------------


class Change(NamedTuple):
    """What happened to one weight.

    name, shape: of the weight, in the model as it was.
    form: what it is now.
    before, after: its number of parameters.
    error: the relative error of the projection, ‖W − W'‖ / ‖W‖ in Frobenius norm; NaN on "meta".
    """

    name: str
    shape: tuple[int, ...]
    form: str
    before: int
    after: int
    error: float


class Report(tuple[Change, ...]):
    """The changes of a call, in the model's order; prints as a table."""

    def __str__(self) -> str:
        rows = [("tensor", "shape", "form", "before", "after", "relative error")]
        for change in self:
            shape = "×".join(map(str, change.shape))
            counts = f"{change.before:,}", f"{change.after:,}"
            rows.append((change.name, shape, change.form, *counts, f"{change.error:.4f}"))
        before, after = (sum(getattr(change, k) for change in self) for k in ("before", "after"))
        rows.append(("in all", "", "", f"{before:,}", f"{after:,}", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [f"{cell:<{w}}" for cell, w in zip(row[:3], widths[:3], strict=True)]
            cells += [f"{cell:>{w}}" for cell, w in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


@one_thread()
@torch.inference_mode(False)  # whose parameters could never be loaded into
@torch.no_grad()
def symmetrize(
    module: nn.Module, symm: str, where: Where | None = None, axes: str = "channel"
) -> Report:
    """Make weights of a model symmetric, in place, each projected to the nearest of the form.

    symm: a name of :func:`symrnn.list_symmetries`.
    where: which weights, see :data:`Where`; by default every one that can be: the hidden weights
        of recurrent layers and cells, and what is square of linear layers, of attention's
        projections and of convolutions.
    axes: "channel" (per group of a grouped convolution), "space" (the kernel) or "both".

    Recurrent modules become ``SymLSTM`` and its siblings; a bias that is pruned or the like becomes
    a parameter of the value that it has. Other weights get a parametrization
    (``torch.nn.utils.parametrize``), and linear layers and convolutions fold their input where the
    form folds (an attribute of theirs, ``fold``, set to True or False, decides otherwise). The
    parameters are new ones: make the optimizer afterwards. A projection is a mean and so smaller
    than what it is taken of: in an untrained model, draw new starting values by the layers'
    ``reset_parameters()``.

    Returns a report that prints as a table. :func:`unsymmetrize` leads back to plain layers.

    Raises ValueError for an unknown form, and if ``where`` names nothing, or a weight that cannot
    be symmetric: not square, shared with another module, computed from other parameters, not
    finite, symmetric already. The model is then as it was.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    >>> torch.nn.init.ones_(model[1].weight);
    >>> print(symmetrize(model, "tri"))
    tensor    shape  form  before  after  relative error
    1.weight  8×8    tri       64     36          0.0000
    in all                     64     36
    """
    check_symmetry_name("symm", symm)
    check_axes(axes)
    chosen = list(
        _with_forms(_chosen(module, where, axes), symm, axes, skip=where is None and axes != "both")
    )
    changes: list[Change] = []
    for part in {id(weight.module): weight.module for weight, _ in chosen}.values():
        weights = {weight: form for weight, form in chosen if weight.module is part}
        old = {weight: weight.value.detach().clone() for weight in weights}
        if type(part) in _COUNTERPART:
            _make_recurrent(part, list(weights), symm)
        else:
            _parametrize(weights)
        label = symm if axes == "channel" else f"{symm}, {axes}"
        for weight, form in weights.items():
            before = old[weight]
            counts = before.numel(), form.numel
            error = _error(before, weight.value)
            changes.append(Change(weight.name, tuple(before.shape), label, *counts, error))
    return Report(changes)


@one_thread()
@torch.inference_mode(False)
@torch.no_grad()
def unsymmetrize(module: nn.Module) -> None:
    """Turn every symmetric layer of a model into a plain one with the expanded weights, in place.

    What of a recurrent module is pruned, normalised or parametrized becomes a parameter of the
    value that it has.

    Raises ValueError, before anything is changed, for a weight of another layer that has further
    parametrizations beside its symmetry, and for a class derived from one of our recurrent modules,
    whose own code a plain layer would not run.
    """
    check_derived(module)
    for name, part in module.named_modules():
        if _is_form(part) and len(part) > 1:
            weight = name.replace("parametrizations.", "")
            raise ValueError(
                f"{weight} has {len(part)} parametrizations; remove those that came after its "
                "symmetry first"
            )
    for part in list(module.modules()):
        if isinstance(part, GatedModule):
            bake_in(part)
            become(part, part.to_plain())
        elif parametrize.is_parametrized(part):
            parametrized: Any = part.parametrizations
            for attribute, forms in list(parametrized.items()):
                if _is_form(forms):
                    # PyTorch takes the attribute off the class, which copies of the layer share.
                    kind = type(part)
                    part.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
                    forms.original = _anew(forms.original)
                    parametrize.remove_parametrizations(part, attribute)
            # As in a plain layer, weights first: optimizers know parameters by their order.
            part._parameters = dict(sorted(part._parameters.items(), key=lambda p: "bias" in p[0]))
            plain = {folded: plain for plain, folded in FOLDED.items()}
            if type(part) in plain:
                part.__class__ = plain[type(part)]


def check_derived(model: nn.Module) -> None:
    """Raise ValueError for a class derived from one of our recurrent modules."""
    for name, part in model.named_modules():
        kind = type_before_parametrizations(part)
        if isinstance(part, GatedModule) and not kind.__module__.startswith("symrnn."):
            ours = next(base for base in kind.mro() if base.__module__.startswith("symrnn."))
            raise ValueError(
                f"{name or 'model'} is a {kind.__name__}, a class derived from {ours.__name__}: "
                f"put {ours.__name__} itself in its place"
            )


@dataclass(frozen=True)
class _Weight:
    """A weight of a model that may be made symmetric.

    names: in the model, of each place where its module stands.  module, attribute: where it stands.
    groups: into how many square matrices its first axis should fall.
    """

    names: tuple[str, ...]
    module: nn.Module
    attribute: str
    groups: int

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def value(self) -> Tensor:
        value: Tensor = getattr(self.module, self.attribute)
        return value

    @property
    def is_input(self) -> bool:
        """Whether these are input weights of a recurrent module."""
        return self.attribute.startswith("weight_ih")

    @property
    def blocks(self) -> Tensor:
        """The square matrices (groups, N, N, \\*kernel), as a view."""
        return self.value.unflatten(0, (self.groups, -1))

    def why_not(self, axes: str) -> str:
        """Why it cannot be made symmetric; "" if it can."""
        if isinstance(self.module, GatedModule) and self.module.symmetry is not None:
            return "its module is symmetric already"
        if parametrize.is_parametrized(self.module, self.attribute):
            return "it has a parametrization already"
        if type(self.module) in _COUNTERPART:
            if axes != "channel":
                return f'recurrent weights want axes="channel", got: {axes!r}'
            own = {name for name, _ in _attributes(self.module)}
        else:
            own = {self.attribute}
        # Weight and spectral norm of the older kind, and pruning, set it anew before each call.
        if not own <= self.module._parameters.keys():
            return "it is computed from other parameters"
        if is_lazy(self.value):
            return "it has no shape before the first call"
        try:
            square_sides(self.value.shape, axes, self.groups)
        except ValueError as error:
            return str(error)
        return ""


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """The weights of the kinds of layer that can be symmetric."""
    places: dict[nn.Module, list[str]] = {}
    for prefix, module in _places(model):
        places.setdefault(module, []).append(prefix)
    for module, prefixes in places.items():
        for attribute, groups in _attributes(module):
            names = tuple(f"{prefix}.{attribute}".lstrip(".") for prefix in prefixes)
            yield _Weight(names, module, attribute, groups)


def _places(
    module: nn.Module, prefix: str = "", above: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, nn.Module]]:
    """Every place of the modules below and their names, in the order of ``named_modules``.

    above: the modules that hold this one; one that holds itself is not followed.
    """
    if module in above:
        return
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _places(child, f"{prefix}.{name}".lstrip("."), (*above, module))


def _attributes(module: nn.Module) -> Iterator[tuple[str, int]]:
    if isinstance(module, nn.Linear):
        yield "weight", 1
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        yield "weight", module.groups
    elif isinstance(module, nn.MultiheadAttention):
        if module._qkv_same_embed_dim:
            yield "in_proj_weight", 3  # those of query, key and value
        else:
            yield from ((f"{which}_proj_weight", 1) for which in "qkv")
    elif type(module) in _COUNTERPART:
        gates = len(_COUNTERPART[type(module)].GATES)
        if isinstance(module, GatedModule):
            names = [matrix.name for matrix in module.gate_layouts()]
        elif isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
        else:
            names = ["weight_ih", "weight_hh"]
        for name in names:
            if name.startswith(("weight_ih", "weight_hh")):
                yield name, gates


def _chosen(
    model: nn.Module, where: Where | None, axes: str, *, in_place: bool = False
) -> list[_Weight]:
    """The weights that ``where`` names, all of which can be symmetric; ValueError otherwise.

    in_place: the tensors themselves are meant, however many modules share one; each once.
    """
    weights = list(_weights(model))
    shared = set() if in_place else _shared(model)
    if in_place:
        # Held, for a computed weight is a new tensor each time, and a freed one's id is reused.
        held = [(weight, weight.value) for weight in reversed(weights)]
        weights = list({id(value): weight for weight, value in held}.values())[::-1]
    if where is None:
        return [
            weight
            for weight in weights
            if not weight.is_input
            and not weight.why_not(axes)
            and id(weight.value) not in shared
            # One number is as symmetric as can be: a depthwise convolution, a kernel of one point.
            and max(square_sides(weight.value.shape, axes, weight.groups)) > 1
        ]
    chosen = [weight for weight in weights if _matches(weight, where)]
    if not chosen:
        known = ", ".join(w.name for w in weights if not w.why_not(axes)) or "none"
        raise ValueError(
            f"where={where!r} names no weight that could be made symmetric; there are: {known}"
        )
    for weight in chosen:
        reason = weight.why_not(axes)
        if id(weight.value) in shared:
            reason = "another module shares it and would keep the full one"
        if reason:
            shape = list(weight.value.shape)
            raise ValueError(f"{weight.name} of shape {shape} cannot be symmetric: {reason}")
    for weight in chosen:
        if type(weight.module) in _COUNTERPART and not in_place:
            _require_whole(weight, chosen, weights)
    return chosen


def _matches(weight: _Weight, where: Where) -> bool:
    if isinstance(where, str):
        if weight.is_input and "weight_ih" not in where:
            return False
        modules = (name.rpartition(".")[0] for name in weight.names)
        return any(fnmatchcase(name, where) for name in (*weight.names, *modules))
    if isinstance(where, type):
        return isinstance(weight.module, where) and not weight.is_input
    if isinstance(where, Sequence):
        return any(_matches(weight, one) for one in where)
    if not callable(where):
        raise TypeError(
            "where should be a pattern, a type of module, a sequence of these, or a function of "
            f"name and module, got: {where!r}"
        )
    return bool(where(weight.name, weight.module))


def _require_whole(weight: _Weight, chosen: list[_Weight], weights: list[_Weight]) -> None:
    """ValueError if only some layers of the weight's recurrent module are chosen."""
    alike = [w for w in weights if w.module is weight.module and w.is_input == weight.is_input]
    missing = [w.name for w in alike if w not in chosen]
    if missing:
        raise ValueError(
            f"{weight.name} cannot be symmetric without {', '.join(missing)}: a recurrent module "
            "keeps the same form in all its layers"
        )


def _shared(model: nn.Module) -> set[int]:
    """The ids of the parameters that stand in more than one place."""
    seen: set[int] = set()
    shared: set[int] = set()
    for part in model.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _with_forms(
    weights: list[_Weight], symm: str, axes: str, *, skip: bool
) -> Iterator[tuple[_Weight, SymmetricTensor]]:
    """Each weight with its form; ValueError, naming the weight, if there is none.

    skip: leave out weights whose size the form does not come in.
    """
    for weight in weights:
        value = weight.value
        shape = list(value.shape)
        if not value.is_meta and not value.isfinite().all():
            raise ValueError(f"{weight.name} of shape {shape} holds numbers that are not finite")
        try:
            form = SymmetricTensor(symm, value.shape, axes, weight.groups)
        except ValueError as error:
            if skip:
                continue
            raise ValueError(f"{weight.name} of shape {shape} cannot be {symm}: {error}") from error
        yield weight, form


def _make_recurrent(module: nn.Module, weights: list[_Weight], symm: str) -> None:
    """Turn a recurrent module into its symmetric counterpart."""
    bake_in(module)
    kind = _COUNTERPART[type(module)]
    made = kind.from_plain(
        module.to_plain() if isinstance(module, GatedModule) else module,
        symm,
        symm_hh="" if all(weight.is_input for weight in weights) else kind.GATES,
        symm_ih=kind.GATES if any(weight.is_input for weight in weights) else "",
        backend=getattr(module, "backend", "auto"),
    )
    if isinstance(module, GatedModule):
        for name in ("state_dropout", "weight_dropout", "inference_dtype"):
            setattr(made, name, getattr(module, name))
    become(module, made)


def _parametrize(forms: dict[_Weight, SymmetricTensor]) -> None:
    """Put forms on the weights of a module that is not recurrent."""
    for weight, form in forms.items():
        if weight.attribute == "weight" and type(weight.module) in FOLDED:
            weight.module.__class__ = FOLDED[type(weight.module)]
        weight.module.register_parameter(weight.attribute, _anew(weight.value))
        parametrize.register_parametrization(weight.module, weight.attribute, form)


def _anew(parameter: Tensor) -> nn.Parameter:
    """The same numbers as a new parameter.

    PyTorch's parametrizations change one in place, its shape too, wherever else it is held.
    """
    numbers = parameter.detach()
    if numbers.is_inference():  # which is never changed in place
        numbers = numbers.clone()
    return nn.Parameter(numbers, parameter.requires_grad)


def bake_in(module: nn.Module) -> None:
    """Make parameters of what pruning, weight norm and spectral norm compute before each call.

    Those that hooks do; what ``torch.nn.utils.parametrize`` computes is there to be read.
    """
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


def become(module: nn.Module, other: nn.Module) -> None:
    """Make ``module`` what ``other`` is, wherever it is held.

    What users have put there stays: hooks, and attributes, parameters, buffers and modules of names
    that the module's kind has not.
    """
    kind = type_before_parametrizations(module)
    plainly = {"symm": "none"} if isinstance(module, GatedModule) else {}
    usual = vars(kind(1, 1, device="meta", **plainly))
    bare = vars(nn.Module())
    taken = {*other._parameters, *other._buffers, *other._modules}  # an attribute would hide them
    kept = {
        name: value
        for name, value in vars(module).items()
        if (name not in usual and name not in taken) or ("hook" in name and name in bare)
    }
    own = {*usual["_parameters"], "parametrizations"}
    if isinstance(module, GatedModule):
        own |= {*module.parameter_names, "symmetry"}
    elif isinstance(module, nn.RNNBase):
        own |= {*module._flat_weights_names}
    for held in ("_parameters", "_buffers", "_modules"):
        for name, value in vars(module)[held].items():
            if name not in own:
                vars(other)[held].setdefault(name, value)
    other._non_persistent_buffers_set |= module._non_persistent_buffers_set
    module.__dict__.clear()
    module.__dict__.update({**vars(other), **kept})
    object.__setattr__(module, "__class__", type(other))


def _error(old: Tensor, new: Tensor) -> float:
    """‖old − new‖ / ‖old‖ in Frobenius norm, 0 for nothing of nothing; NaN without numbers."""
    if old.is_meta:
        return math.nan
    exact = old.detach().to(torch.float64)
    norm = torch.linalg.vector_norm(exact)
    difference = torch.linalg.vector_norm(new.detach().to(torch.float64) - exact)
    return (difference / norm).item() if norm else difference.item()


# ---- soft symmetry -----------------------------------------------------------------------------


def soft_symmetry_penalty(module: nn.Module, p: int = 2, where: Where | None = None) -> Tensor:
    """The sum of ‖vec W − vec Wᵀ‖ₚ over the weights' square matrices: a scalar, differentiable.

    p: 1 or 2.  where: as of :func:`symmetrize`; the same weights by default.

    Of a stacked weight (gates; query, key and value; the groups of a convolution) each matrix
    counts by itself; Wᵀ of a convolution swaps its channels at each point of the kernel.

    Add it, times a rate, to a loss; :func:`harden` makes the weights symmetric in the end.
    """
    weights = _chosen(module, where, "channel", in_place=True)
    parts = [asymmetry(weight.blocks, p).sum() for weight in weights]
    if not parts:
        raise ValueError("the model has no square weight that is not symmetric already")
    return torch.stack(parts).sum()


def harden(module: nn.Module, where: Where | None = None) -> Report:
    """Make weights exactly symmetric by copying their upper triangle over the lower one, in place.

    The layers stay plain ones. where: as of :func:`soft_symmetry_penalty`.
    """
    changes = []
    for weight in _chosen(module, where, "channel", in_place=True):
        old = weight.value.detach().clone()
        with torch.no_grad():
            weight.blocks.copy_(upper(weight.blocks))
        side = weight.value.size(1)
        after = old.numel() * (side + 1) // (2 * side)
        error = _error(old, weight.value)
        changes.append(Change(weight.name, tuple(old.shape), "upper", old.numel(), after, error))
    return Report(changes)
