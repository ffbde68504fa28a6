"""The oracle of these tests: PyTorch's own modules, on weights expanded here by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, SymRNNCell
from symrnn.rnn.dispatch import choose
from symrnn.rnn.fused import inference

PLAIN: dict[type[nn.Module], Any] = {
    SymLSTM: nn.LSTM,
    SymGRU: nn.GRU,
    SymRNN: nn.RNN,
    SymLSTMCell: nn.LSTMCell,
    SymGRUCell: nn.GRUCell,
    SymRNNCell: nn.RNNCell,
}

GATES = {
    SymLSTM: "ifgo",
    SymGRU: "rzn",
    SymRNN: "h",
    SymLSTMCell: "ifgo",
    SymGRUCell: "rzn",
    SymRNNCell: "h",
}

OWN_ARGUMENTS = {
    SymLSTM: ["proj_size"],
    SymRNN: ["nonlinearity"],
    SymRNNCell: ["nonlinearity"],
}

Module = Any  # a layer or a cell of those above


def expanded(numbers: Tensor, form: str, side: int) -> Tensor:
    """Free numbers (S, numel) to matrices (S, N, N), written without the library's orbit maps."""
    if form == "avg_full":
        w = numbers.reshape(-1, side, side)
        return (w + w.mT) / 2
    rows, columns = torch.triu_indices(side, side)
    upper = numbers.new_zeros(len(numbers), side, side)
    upper = upper.index_put((torch.arange(len(numbers))[:, None], rows, columns), numbers)
    above = upper.triu(1)
    if form == "avg":
        above = above / 2**0.5
    return above + above.mT + torch.diag_embed(upper.diagonal(dim1=-2, dim2=-1))


def dense_weights(module: Module, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's weights by PyTorch's names, from a module's parameters by theirs."""
    weights: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = {}
    side, gates = module.hidden_size, GATES[type(module)]
    for key, value in numbers.items():
        kept = re.fullmatch(r"(weight_(?:ih|hh).*?)_(tri|avg_full|avg|rest)", key)
        if kept is None:
            weights[key] = value
            continue
        name, form = kept.groups()
        symmetric = module.symm_hh if name.startswith("weight_hh") else module.symm_ih
        if form == "rest":
            letters = [gate for gate in gates if gate not in symmetric]
            parts = value.reshape(len(letters), side, -1)
        else:
            letters = [gate for gate in gates if gate in symmetric]
            parts = expanded(value, form, side)
        blocks.setdefault(name, {}).update(zip(letters, parts, strict=True))
    for name, by_gate in blocks.items():
        weights[name] = torch.cat([by_gate[gate] for gate in gates])
    return weights


def plain_like(module: Module) -> nn.Module:
    """A plain module of PyTorch with the same arguments, on the same device."""
    like = next(module.parameters())
    names = ["input_size", "hidden_size", "bias", *OWN_ARGUMENTS.get(type(module), [])]
    if isinstance(module, SymLSTM | SymGRU | SymRNN):
        names += ["num_layers", "batch_first", "dropout", "bidirectional"]
    arguments = {name: getattr(module, name) for name in names}
    plain = PLAIN[type(module)](**arguments, device=like.device, dtype=like.dtype)
    return plain.train(module.training)


def flat_outputs(result: Any) -> list[Tensor]:
    """The tensors of a result, in order; a PackedSequence gives all its fields."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in flat_outputs(part)]


def leaves(value: Any) -> Any:
    """The same input with fresh tensors that ask for gradients."""
    if isinstance(value, PackedSequence):
        return value._replace(data=leaves(value.data))
    if isinstance(value, tuple):
        return tuple(leaves(part) for part in value)
    return None if value is None else value.detach().clone().requires_grad_()


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors_of(part)]
    return [] if value is None else [value]


def outputs_and_gradients(
    run: Callable[..., Any], numbers: dict[str, Tensor], input: Any, hx: Any, seed: int = 1
) -> dict[str, Tensor]:
    """Everything a call gives, by name: outputs, and gradients of a random weighing of them.

    run: called with the input and, if given, hx; reads ``numbers``.
    """
    input, hx = leaves(input), leaves(hx)
    torch.manual_seed(seed)  # of the dropout
    outputs = flat_outputs(run(input) if hx is None else run(input, hx))
    generator = torch.Generator().manual_seed(2)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        if output.is_floating_point():
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (output.cpu() * weights).sum()
    wanted = {f"gradient of {name}": tensor for name, tensor in numbers.items()}
    for k, tensor in enumerate(tensors_of((input, hx))):
        wanted[f"gradient of argument {k}"] = tensor
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    found = {f"output {k}": output.detach() for k, output in enumerate(outputs)}
    found.update(zip(wanted, gradients, strict=True))
    return found


class Oracle:
    """Compares a module with PyTorch's own, called as a function of the same free numbers."""

    def of(self, module: Module, input: Any, hx: Any = None) -> dict[str, Tensor]:
        plain = plain_like(module)
        numbers = {
            name: parameter.detach().clone().requires_grad_()
            for name, parameter in module.named_parameters()
        }

        def run(*arguments: Any) -> Any:
            return functional_call(plain, dense_weights(module, numbers), arguments)

        return outputs_and_gradients(run, numbers, input, hx)

    def check(
        self,
        module: Module,
        input: Any,
        hx: Any = None,
        *,
        rtol: float = 0.0,
        atol: float = 1e-12,
    ) -> None:
        """Outputs, states and every gradient agree."""
        found = outputs_and_gradients(module, dict(module.named_parameters()), input, hx)
        expected = self.of(module, input, hx)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )

    def weights(self, module: Module) -> dict[str, Tensor]:
        """PyTorch's weights by its names."""
        return dense_weights(module, {n: p.detach() for n, p in module.named_parameters()})


def chosen(module: Module, input: Tensor, batch_sizes: Tensor | None = None) -> str:
    """What backend="auto" is for an input: (T, B, I), (R, I) with batch_sizes, a cell's (B, I).

    Gradients are wanted where they are enabled.
    """
    batch = input.size(-2) if batch_sizes is None else int(batch_sizes[0])
    steps = input.size(0) if batch_sizes is None else len(batch_sizes)
    steps = steps if isinstance(module, SymLSTM | SymGRU | SymRNN) else 1
    tensors = [input, module._some_weight()]
    return choose(module._traits, tensors, steps, batch, torch.is_grad_enabled())


@pytest.fixture(scope="session")
def choice() -> Callable[..., str]:
    return chosen


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices of a few rows a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short inputs are enough for those that are not multiplied by packed weights."""
    monkeypatch.setattr(inference, "MOST_ROWS", 64)
