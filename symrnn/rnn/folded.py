"""A layer whose recurrent product is folded: h folded, multiplied by small matrices, unfolded.

For hidden weights of all gates in a form that has a :class:`symrnn.symmetry.folding.Folding`. The
input product of all steps is one multiplication ahead of the loop. So are, after the backward pass,
the gradients of all weights: one product each over all steps, where a gradient added up step by
step would be read and written T times.

Shapes: T time, B_t the sequences that step t runs, R the sum of all B_t, I input, H hidden,
G gates; r rows and c columns of a small matrix for one gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from symrnn.rnn import torch_state
from symrnn.rnn.modes import MODES
from symrnn.rnn.stack import State, autocast_on, by_layer, steps_of, with_ended
from symrnn.rnn.weights import LayerWeights
from symrnn.symmetry.folding import Folding

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def layer(
    mode: str, x: Tensor, batch_sizes: Tensor | None, state: State, w: LayerWeights, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction; the arguments of :func:`symrnn.rnn.reference.layer`."""
    run: Any = _layer
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        _make_untraced()
        run = _layer_untraced
    found: tuple[Tensor, State] = run(mode, x, batch_sizes, state, w, reverse)
    return found


BACKEND = by_layer(layer)


def _layer(
    mode: str, x: Tensor, batch_sizes: Tensor | None, state: State, w: LayerWeights, reverse: bool
) -> tuple[Tensor, State]:
    assert w.hh.symmetry is not None
    assert w.hh.symmetry.folding is not None
    batch, side = state[0].shape
    folding = w.hh.symmetry.folding
    loop = _Loop(mode, folding, side, batch_sizes, batch, reverse, w.masked)
    matrices = [matrix.flatten(0, 1) for matrix in w.hh.folded()]
    tensors = [x, w.ih.dense(), w.bias_ih, w.bias_hh, *state, *matrices]
    with _autocast_settled(tensors) as settled:
        if torch.compiler.is_exporting() or _is_transformed():
            results = loop.composite(*settled)
        elif torch.is_grad_enabled():
            results = _Differentiable.apply(loop, *settled)
        else:
            results, _ = loop.run(*settled)
    output, *state = results[: 1 + len(state)]
    return output, state


def _is_transformed() -> bool:
    """Whether derivatives are taken, or batches made, in ways that know PyTorch's operators."""
    return torch_state.is_transformed() or torch_state.in_forward_mode()


# torch.compile leaves the loop alone: traced, it would be unrolled.
_layer_untraced: Any = None


@torch_state.constant_in_graphs
def _make_untraced() -> bool:
    """Made when a graph is, as it imports the compiler."""
    global _layer_untraced
    _layer_untraced = _layer_untraced or torch.compiler.disable(_layer)
    return True


# ---- the arithmetic of each kind, with its gradient --------------------------------------------


class _Kind(ABC):
    """What a step of one kind does entry by entry, in place where that saves memory.

    As in :mod:`symrnn.rnn.modes`, which is the specification.
    """

    @abstractmethod
    def forward(self, x: Tensor, hidden: Tensor, state: State) -> tuple[State, list[Tensor]]:
        """x (B, G, H) and hidden (B, G, H), to be overwritten, to the new state and what to cache.

        Afterwards x holds the activated gates.
        """

    @abstractmethod
    def backward(
        self, gates: Tensor, cached: list[Tensor], old: State, d_new: State, d_x: Tensor
    ) -> tuple[State, Tensor]:
        """The gradients of the old state, but for what went through the product, and of hidden.

        gates: the activated ones (B, G, H).  old: the state before the step.
        d_x: (B, G, H), where the gradient of x is to be written.
        """


class _LSTM(_Kind):
    def forward(self, x: Tensor, hidden: Tensor, state: State) -> tuple[State, list[Tensor]]:
        x += hidden
        x[:, :2].sigmoid_()
        x[:, 2].tanh_()
        x[:, 3].sigmoid_()
        i, f, g, o = x.unbind(1)
        c = (f * state[1]).addcmul_(i, g)
        tanh_c = c.tanh()
        return [o * tanh_c, c], [tanh_c]

    def backward(
        self, gates: Tensor, cached: list[Tensor], old: State, d_new: State, d_x: Tensor
    ) -> tuple[State, Tensor]:
        i, f, g, o = gates.unbind(1)
        d_i, d_f, d_g, d_o = d_x.unbind(1)
        (tanh_c,), (d_h, d_c) = cached, d_new
        sigmoid_backward(d_h * tanh_c, o, grad_input=d_o)
        through_h = d_h * o
        d_c = d_c + tanh_backward(through_h, tanh_c, grad_input=through_h)
        sigmoid_backward(d_c * g, i, grad_input=d_i)
        sigmoid_backward(d_c * old[1], f, grad_input=d_f)
        tanh_backward(d_c * i, g, grad_input=d_g)
        return [torch.zeros_like(d_h), d_c * f], d_x


class _GRU(_Kind):
    def forward(self, x: Tensor, hidden: Tensor, state: State) -> tuple[State, list[Tensor]]:
        x[:, :2] += hidden[:, :2]
        x[:, :2].sigmoid_()
        r, z, n = x.unbind(1)
        hidden_n = hidden[:, 2].clone()
        n.addcmul_(r, hidden_n).tanh_()
        return [torch.lerp(n, state[0], z)], [hidden_n]

    def backward(
        self, gates: Tensor, cached: list[Tensor], old: State, d_new: State, d_x: Tensor
    ) -> tuple[State, Tensor]:
        r, z, n = gates.unbind(1)
        d_r, d_z, d_n = d_x.unbind(1)
        (hidden_n,), (h,), (d_h,) = cached, old, d_new
        through_z = d_h * z
        tanh_backward(d_h - through_z, n, grad_input=d_n)
        sigmoid_backward(d_h * (h - n), z, grad_input=d_z)
        sigmoid_backward(d_n * hidden_n, r, grad_input=d_r)
        d_hidden = d_x.clone()
        d_hidden[:, 2] *= r
        return [through_z], d_hidden


class _RNNTanh(_Kind):
    def forward(self, x: Tensor, hidden: Tensor, state: State) -> tuple[State, list[Tensor]]:
        x += hidden
        return [x.tanh_()[:, 0].clone()], []  # not a view: what is handed out may be changed

    def backward(
        self, gates: Tensor, cached: list[Tensor], old: State, d_new: State, d_x: Tensor
    ) -> tuple[State, Tensor]:
        tanh_backward(d_new[0].unsqueeze(1), gates, grad_input=d_x)
        return [torch.zeros_like(d_new[0])], d_x


class _RNNReLU(_Kind):
    def forward(self, x: Tensor, hidden: Tensor, state: State) -> tuple[State, list[Tensor]]:
        x += hidden
        return [x.relu_()[:, 0].clone()], []

    def backward(
        self, gates: Tensor, cached: list[Tensor], old: State, d_new: State, d_x: Tensor
    ) -> tuple[State, Tensor]:
        torch.mul(d_new[0].unsqueeze(1), gates > 0, out=d_x)
        return [torch.zeros_like(d_new[0])], d_x


_KINDS: dict[str, _Kind] = {
    "LSTM": _LSTM(),
    "GRU": _GRU(),
    "RNN_TANH": _RNNTanh(),
    "RNN_RELU": _RNNReLU(),
}

# ---- the loop ----------------------------------------------------------------------------------


class _Saved(NamedTuple):
    """What the backward pass needs of the forward pass, all steps in one tensor each.

    gates: activated, (R, G·H).  old: the states before the steps, each (R, H).
    folded: what was multiplied by each small matrix, (R, c).  cached: what the kind caches, (R, H).
    """

    gates: Tensor
    old: list[Tensor]
    folded: list[Tensor]
    cached: list[Tensor]

    @staticmethod
    def of(gates: Tensor, taken: list[tuple[State, list[Tensor], list[Tensor]]]) -> _Saved:
        """Of each step's old state, folded input and what was cached, first to last."""
        joined = (
            [torch.cat(all) for all in zip(*one, strict=True)] for one in zip(*taken, strict=True)
        )
        return _Saved(gates, *joined)

    def flat(self) -> list[Tensor]:
        return [self.gates, *self.old, *self.folded, *self.cached]

    @staticmethod
    def unflat(tensors: Sequence[Tensor], states: int, matrices: int) -> _Saved:
        """Made of what :meth:`flat` gave."""
        gates, *rest = tensors
        folded = rest[states:]
        return _Saved(gates, rest[:states], folded[:matrices], folded[matrices:])


class _Loop(NamedTuple):
    """The steps of a layer.

    mode: PyTorch's name of the kind.
    side: H.
    batch_sizes, batch: the B_t of all steps, or None where all are B; and B.
    reverse: from the last step to the first.
    masked: (B_t, H) to what of it is multiplied; linear, entry by entry.
    """

    mode: str
    folding: Folding
    side: int
    batch_sizes: Tensor | None
    batch: int
    reverse: bool
    masked: Callable[[Tensor], Tensor]

    @property
    def kind(self) -> _Kind:
        return _KINDS[self.mode]

    @property
    def gates(self) -> int:
        """G."""
        return len(MODES[self.mode].gates)

    @property
    def states(self) -> int:
        """Of how many parts a state is."""
        return len(MODES[self.mode].states)

    def order(self, steps: Sequence[Any]) -> list[int]:
        """The numbers of the steps in the order in which they are run."""
        return list(range(len(steps)))[:: -1 if self.reverse else 1]

    def split(self, tensor: Tensor) -> list[Tensor]:
        """(R, …) as T views (B_t, …)."""
        return steps_of(tensor, self.batch_sizes, self.batch)

    def parts(self, tensors: Sequence[Tensor]) -> tuple[State, list[Tensor]]:
        """State and small matrices out of one sequence of both."""
        return list(tensors[: self.states]), list(tensors[self.states :])

    def split_gates(self, tensor: Tensor) -> list[Tensor]:
        """(R, G·H) as T views (B_t, G, H)."""
        return self.split(tensor.unflatten(1, (self.gates, self.side)))

    def product(self, folded: list[Tensor], matrices: list[Tensor], bias: Tensor | None) -> Tensor:
        """Folded h (B_t, c) times the small matrices (G·r, c), unfolded: (B_t, G, H)."""
        products = [
            (part @ m.mT).unflatten(1, (self.gates, -1))
            for part, m in zip(folded, matrices, strict=True)
        ]
        hidden = self.folding.outputs(products, self.side, -1)
        return hidden if bias is None else hidden + bias.view(-1, self.side)

    def composite(
        self,
        input: Tensor,
        w_ih: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Input (R, I), weights, state and matrices to outputs (R, H) and the last state.

        In operators that change nothing in place, with the gradients that autograd gives them.
        """
        state, matrices = self.parts(tensors)
        x = self.split(F.linear(input, w_ih, bias_ih))
        outputs: dict[int, Tensor] = {}
        for t in self.order(x):
            old = [part[: x[t].size(0)] for part in state]
            folded = self.folding.inputs(self.masked(old[0]), -1)
            hidden = self.product(folded, matrices, bias_hh)
            new = MODES[self.mode].pointwise(x[t], hidden.flatten(1), old)
            outputs[t] = new[0]
            state = with_ended(new, state)
        return torch.cat([outputs[t] for t in range(len(x))]), *state

    def run(
        self,
        input: Tensor,
        w_ih: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        *tensors: Tensor,
        saving: bool = False,
    ) -> tuple[tuple[Tensor, ...], _Saved | None]:
        """As :meth:`composite`, in fewer operators and less memory.

        saving: whether what the backward pass needs is wanted too.
        """
        state, matrices = self.parts(tensors)
        ahead = not MODES[self.mode].separate_bias
        if ahead and bias_ih is not None and bias_hh is not None:
            bias_ih, bias_hh = bias_ih + bias_hh, None
        gates = F.linear(input, w_ih, bias_ih)
        x = self.split_gates(gates)
        outputs: dict[int, Tensor] = {}
        taken: dict[int, tuple[State, list[Tensor], list[Tensor]]] = {}
        for t in self.order(x):
            old = [part[: x[t].size(0)] for part in state]
            folded = self.folding.inputs(self.masked(old[0]), -1)
            new, cached = self.kind.forward(x[t], self.product(folded, matrices, bias_hh), old)
            if saving:
                taken[t] = old, folded, cached
            outputs[t] = new[0]
            state = with_ended(new, state)
        steps = range(len(x))
        saved = _Saved.of(gates, [taken[t] for t in steps]) if saving else None
        return (torch.cat([outputs[t] for t in steps]), *state), saved


class _Differentiable(torch.autograd.Function):
    """:meth:`_Loop.run` with its gradient, backpropagation through time by hand.

    What the backward pass needs is returned beside the results, for so PyTorch saves it: freed
    after its use, and seen by hooks that store it elsewhere.
    """

    @staticmethod
    def forward(loop: _Loop, *tensors: Any) -> tuple[Tensor, ...]:
        results, saved = loop.run(*tensors, saving=True)
        assert saved is not None
        return *results, *saved.flat()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.loop, *tensors = inputs
        saved = output[1 + ctx.loop.states :]
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)  # zeros for what is saved too
        ctx.save_for_backward(*tensors, *saved)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        loop: _Loop = ctx.loop
        _, *wanted = ctx.needs_input_grad
        tensors, flat = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]
        state, matrices = loop.parts(tensors[4:])
        saved = _Saved.unflat(flat, len(state), len(matrices))
        like = [saved.old[0], *state]
        d = [
            torch.zeros_like(part) if given is None else given
            for given, part in zip(d_results[: len(like)], like, strict=True)
        ]
        again = torch.is_grad_enabled()
        if not again and not torch_state.are_batched(d):
            return None, *_backward(loop, saved, wanted, tensors, *d)
        # A gradient of this gradient is wanted, or those of many losses at once: autograd's.
        leaves = [tensor for tensor, wants in zip(tensors, wanted, strict=True) if wants]
        with torch.enable_grad():
            results = loop.composite(*tensors)
        found = iter(
            torch.autograd.grad(results, leaves, d, create_graph=again, materialize_grads=True)
        )
        return None, *(next(found) if wants else None for wants in wanted)


def _backward(
    loop: _Loop,
    saved: _Saved,
    wanted: Sequence[bool],
    tensors: Sequence[Any],
    d_output: Tensor,
    *d_last: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments ``tensors`` of :meth:`_Loop.run` from those of its results.

    wanted: for each argument whether its gradient is; None stands for it otherwise.
    """
    input, w_ih, bias, _, *rest = tensors
    _, matrices = loop.parts(rest)
    d_gates = torch.empty_like(saved.gates)
    gates, d_x = loop.split_gates(saved.gates), loop.split_gates(d_gates)
    cached = [loop.split(part) for part in saved.cached]
    old = [loop.split(part) for part in saved.old]
    d_outputs = loop.split(d_output)
    d_state = list(d_last)
    d_products: dict[int, list[Tensor]] = {}
    d_hidden: dict[int, Tensor] = {}
    for t in reversed(loop.order(gates)):
        d_new = [part[: gates[t].size(0)] for part in d_state]
        d_new[0] = d_new[0] + d_outputs[t]
        d_old, d_hidden[t] = loop.kind.backward(
            gates[t], [part[t] for part in cached], [part[t] for part in old], d_new, d_x[t]
        )
        parts = loop.folding.outputs_adjoint(d_hidden[t], -1)
        d_products[t] = [part.flatten(1) for part in parts]
        through = [part @ m for part, m in zip(d_products[t], matrices, strict=True)]
        d_old[0] += loop.masked(loop.folding.inputs_adjoint(through, loop.side, -1))
        d_state = with_ended(d_old, d_state)
    steps = range(len(gates))
    d_matrices = [
        torch.cat([d_products[t][k] for t in steps]).mT @ folded
        for k, folded in enumerate(saved.folded)
    ]
    d_bias = d_bias_hh = None
    if bias is not None:
        ahead = not MODES[loop.mode].separate_bias
        d_bias = d_gates.sum(0)
        d_bias_hh = d_bias.clone() if ahead else torch.cat(list(d_hidden.values())).sum(0).flatten()
    d_input = d_gates @ w_ih if wanted[0] else None
    d_w_ih = d_gates.mT @ input if wanted[1] else None
    return d_input, d_w_ih, d_bias, d_bias_hh, *d_state, *d_matrices


@contextmanager
def _autocast_settled(tensors: list[Any]) -> Iterator[list[Any]]:
    """The tensors in autocast's dtype, and autocast off inside."""
    device = tensors[0].device.type
    if not autocast_on(device):
        yield tensors
        return
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        yield [None if tensor is None else tensor.to(dtype) for tensor in tensors]
