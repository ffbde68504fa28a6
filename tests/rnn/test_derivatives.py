"""Derivatives as users of PyTorch's layers take them: many at once, by transforms, in place."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F

from symrnn import SymGRU, SymLSTM, SymRNN, native

LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": SymLSTM,
    "GRU": SymGRU,
    "tanh": SymRNN,
    "ReLU": functools.partial(SymRNN, nonlinearity="relu"),
}
BACKENDS = ["reference", "script", "vendor", "folded"]
BACKENDS += ["fused"] if native.available() else []

# As many steps as "auto" takes the kernels for in training.
T, B, IN, H = 8, 2, 2, 4


def make(kind: str, backend: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return LAYERS[kind](IN, H, symm="avg8", backend=backend, dtype=dtype, **options)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def parts(result: Any) -> list[Tensor]:
    """Output, h, and of an LSTM c."""
    output, state = result
    return [output, *([state] if isinstance(state, Tensor) else state)]


# ---- gradients of many losses at once ----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_many_gradients_at_once_are_those_one_by_one(kind: str, backend: str) -> None:
    layer = make(kind, backend, num_layers=2, bidirectional=True)
    x = random(3, B, IN).requires_grad_()
    results, leaves = parts(layer(x)), [x, *layer.parameters()]
    many = [random(3, *part.shape) for part in results]
    grad = functools.partial(torch.autograd.grad, results, leaves, retain_graph=True)
    one_by_one = [grad([part[k] for part in many]) for k in range(3)]
    expected = [torch.stack(gradients) for gradients in zip(*one_by_one, strict=True)]
    for again in (False, True):
        found = grad(many, is_grads_batched=True, create_graph=again)
        torch.testing.assert_close(list(found), expected, rtol=0, atol=1e-12)
        assert all(gradient.requires_grad == again for gradient in found)


@pytest.mark.parametrize("kind", LAYERS)
def test_whatever_auto_takes_gives_vectorized_jacobians(kind: str) -> None:
    layer = make(kind, "auto", dtype=torch.float32)
    plain = layer.to_plain()
    x = random(T, 1, IN, dtype=torch.float32)
    found = jacobian(lambda y: layer(y)[0], x, vectorize=True)
    torch.testing.assert_close(found, jacobian(lambda y: plain(y)[0], x), rtol=0, atol=1e-6)
    found = hessian(lambda y: layer(y)[0].square().sum(), x, vectorize=True)
    expected = hessian(lambda y: plain(y)[0].square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_batched_gradients(backend: str) -> None:
    layer = make("GRU", backend)
    run, x = lambda y: layer(y)[0], random(2, 1, IN).requires_grad_()
    assert torch.autograd.gradcheck(run, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, x, check_batched_grad=True, fast_mode=True)


# ---- torch.func and forward mode ---------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference", "script", "folded"])
@pytest.mark.parametrize("kind", LAYERS)
def test_transforms(kind: str, backend: str) -> None:
    layer = make(kind, backend)
    x = random(T, 1, IN)

    def run(y: Tensor) -> Tensor:
        output: Tensor = layer(y)[0]
        return output

    expected = jacobian(run, x)
    for taken in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(taken(run)(x), expected, rtol=0, atol=1e-12)
    forward = jacobian(run, x, strategy="forward-mode", vectorize=True)
    torch.testing.assert_close(forward, expected, rtol=0, atol=1e-12)
    batch = random(3, T, 1, IN)
    singly = torch.stack([run(one) for one in batch])
    torch.testing.assert_close(torch.func.vmap(run)(batch), singly, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference", "script", "folded"])
@pytest.mark.parametrize("kind", LAYERS)
def test_per_sample_gradients(kind: str, backend: str) -> None:
    layer = make(kind, backend)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    samples = random(3, T, IN)

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, values, (sample,))[0]
        return output.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, samples)
    for k, sample in enumerate(samples):
        singly = torch.autograd.grad(layer(sample)[0].square().sum(), list(layer.parameters()))
        of_sample = [found[name][k] for name, _ in layer.named_parameters()]
        torch.testing.assert_close(of_sample, list(singly), rtol=0, atol=1e-12)


# ---- weights that a network makes --------------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_a_hypernetwork_gets_its_gradient(backend: str) -> None:
    layer = make("LSTM", backend)
    names = {name: p.shape for name, p in layer.named_parameters()}
    hyper = nn.Linear(3, sum(shape.numel() for shape in names.values()), dtype=torch.float64)
    code, x = random(3), random(T, B, IN)

    def gradients(through: Any) -> tuple[Tensor, ...]:
        flat = hyper(code).split([shape.numel() for shape in names.values()])
        made = {n: part.view(names[n]) for n, part in zip(names, flat, strict=True)}
        loss = functional_call(through, made, (x,))[0].square().sum()
        return torch.autograd.grad(loss, list(hyper.parameters()))

    loop = make("LSTM", "reference")
    torch.testing.assert_close(gradients(layer), gradients(loop), rtol=0, atol=1e-10)


# ---- results that are changed in place ---------------------------------------------------------

CHANGES: list[Callable[[Tensor], Any]] = [F.relu_, nn.ReLU(inplace=True), lambda p: p.mul_(3.0)]


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_changed_in_place_have_the_gradients_of_changed_copies(
    kind: str, steps: int, backend: str
) -> None:
    """Or none, as those of PyTorch's LSTM, whose backward pass reads its output."""
    x = random(steps, B, IN, dtype=torch.float32)
    for options in ({}, {"batch_first": True, "num_layers": 2}):
        layer = make(kind, backend, torch.float32, **options)
        count = len(parts(layer(x)))
        for which, change in itertools.product(range(count), CHANGES):
            found = _gradients(layer, x, lambda part: part, change, which)
            if found is None:
                assert _gradients(layer.to_plain(), x, lambda part: part, change, which) is None
                continue
            expected = _gradients(layer, x, lambda part: part.clone(), change, which)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _gradients(
    layer: Any,
    x: Tensor,
    take: Callable[[Tensor], Tensor],
    change: Callable[[Tensor], Any],
    which: int,
) -> tuple[Tensor, ...] | None:
    """Of a loss of the results, one of them changed; None where autograd refuses them."""
    results = [take(part) for part in parts(layer(x))]
    change(results[which])
    loss = torch.stack([part.square().sum() for part in results]).sum()
    try:
        return torch.autograd.grad(loss, list(layer.parameters()))
    except RuntimeError as error:
        if "has been modified by an inplace operation" not in str(error):
            raise
        return None
