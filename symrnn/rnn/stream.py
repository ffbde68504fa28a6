"""A recurrent module that goes through its sequences a few steps at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from symrnn.rnn import torch_state
from symrnn.rnn.call import RecurrentCall
from symrnn.rnn.fused.plans import Shapes, step_plan
from symrnn.rnn.stack import State, autocast_on


class Stream:
    """What ``module.stream(batch)`` gives: the module at inference, its state inside.

    >>> stream = SymLSTM(10, 20, num_layers=2).stream(batch=3)
    >>> stream(torch.randn(3, 10)).shape  # one step
    torch.Size([3, 20])
    >>> stream(torch.randn(5, 3, 10)).shape  # the next five
    torch.Size([5, 3, 20])
    >>> stream.reset([1])  # the second sequence begins anew

    The outputs are those of the module in evaluation mode, called with the last state each time;
    a call costs less, as nothing is checked again and all layers are one call of the native
    kernels. The weights are those of the module when the stream was made; but those of a deployed
    module are shared with it, and ``load_state_dict`` of the module changes them here too. Where
    the kernels do not run (on a GPU, under autocast, by another ``backend``, without the library) a
    copy of the module is called. No gradients: what a call gives is detached. Not to be called by
    two threads at once.
    """

    def __init__(self, module: RecurrentCall, batch: int) -> None:
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"batch should be an int from 1 on, got: {batch!r}")
        if getattr(module, "bidirectional", False):
            raise ValueError("a stream goes forward in time: bidirectional should be False")
        like = module._some_weight()
        self.batch = batch
        self._input_size = module.input_size
        self._is_cell = module.IS_CELL
        self._batch_first = getattr(module, "batch_first", False)
        self._whole = module._whole
        self._dtype = like.dtype
        with torch.inference_mode(False):  # whose tensors could not be changed outside it
            self._state = [like.new_zeros(shape) for shape in module.state_shapes(batch)]
        self._width = self._state[0].size(-1)
        self._packed = module.packed_stack()
        self._plan: Any = None
        self._module: Any = None
        if self._packed is not None:
            self._bound = self._packed.bind(self._state)
            shapes = Shapes((batch, self._input_size), (batch, self._width), (0,))
            self._plan = step_plan(self._packed, self._bound, shapes, batch)
        else:
            whole: Any = module
            self._module = copy.deepcopy(whole).eval().requires_grad_(False)

    def __call__(
        self, x: Tensor, *, out: Tensor | None = None, rows: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The next output, and the state moves on.

        x: (B, I), one step; or (T, B, I), T ≥ 1 steps, with ``batch_first`` (B, T, I).
        out: where the output goes, of its shape; a new tensor by default.
        rows: which of the sequences these are, B' different indices, B' ≥ 0, where not all go on: x
            is then (B', I) or (T, B', I).

        Returns (B, H) or (T, B, H): in the form of x. Raises ValueError for another shape, dtype or
        device.
        """
        if self._plan is not None and rows is None and not torch.compiler.is_compiling():
            y: Tensor | None = self._plan.step(x, out)
            if y is not None:
                return y
        return self._general(x, out, rows)

    @property
    def state(self) -> Any:
        """The state (L, B, H), of a cell (B, H), as the module takes and gives it: a copy.

        Assigning one copies it in.
        """
        return self._whole([part.clone() for part in self._state])

    @state.setter
    def state(self, hx: Any) -> None:
        parts = [hx] if len(self._state) == 1 else list(hx)
        shapes = [tuple(part.shape) for part in self._state]
        if [tuple(part.shape) for part in parts] != shapes:
            got = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"state should have the shapes {shapes}, got: {got}")
        with torch.no_grad():
            for own, part in zip(self._state, parts, strict=True):
                own.copy_(part)

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Set the state of these sequences to zeros, of all by default."""
        with torch.no_grad():
            for part in self._state:
                if rows is None:
                    part.zero_()
                else:
                    part.index_fill_(-2, self._indices(rows), 0)

    # ---- the general call ----------------------------------------------------------------------

    @torch.no_grad()
    def _general(
        self, x: Tensor, out: Tensor | None, rows: Sequence[int] | Tensor | None
    ) -> Tensor:
        if torch.compiler.is_compiling() or torch_state.is_transformed():
            raise RuntimeError(
                "a stream changes its state in place: call the module inside torch.compile, "
                "torch.export and torch.func"
            )
        indices = None if rows is None else self._indices(rows)
        batch = self.batch if indices is None else indices.numel()
        self._check(x, batch)
        steps_first = x.dim() == 3 and not self._batch_first
        x3 = x if steps_first else x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1)
        state = self._state
        if indices is not None:
            state = [part.index_select(-2, indices) for part in state]
        y3, new = self._run(x3, state)
        for own, part in zip(self._state, new, strict=True):
            if indices is not None:
                own.index_copy_(-2, indices, part)
            elif own is not part:
                own.copy_(part)
        y = y3 if steps_first else y3.squeeze(0) if x.dim() == 2 else y3.transpose(0, 1)
        if out is None:
            return y
        self._check_out(out, tuple(y.shape))
        return out.copy_(y)

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (T, B, I) and the state, which the kernels change in place, to output and new state."""
        if x.size(1) == 0:
            return x.new_empty(x.size(0), 0, self._width), state
        if self._packed is None:
            if self._is_cell:
                hx = self._module(x[0], self._whole(state))
                new = [hx] if len(state) == 1 else list(hx)
                return new[0].unsqueeze(0), new
            output, hx = self._module(
                x.transpose(0, 1) if self._batch_first else x, self._whole(state)
            )
            new = [hx] if len(state) == 1 else list(hx)
            return output.transpose(0, 1) if self._batch_first else output, new
        if autocast_on("cpu"):
            raise RuntimeError(
                "this stream was made outside autocast: call it there, or make another"
            )
        x = x.contiguous()
        output = x.new_empty(*x.shape[:2], self._width)
        bound = self._bound if state is self._state else self._packed.bind(state)
        for first in range(0, x.size(0), chunk := self._packed.most_steps(x.size(1))):
            part, to = x[first : first + chunk], output[first : first + chunk]
            self._packed.advance(bound, part.size(0), part.size(1), part, to)
        return output, state

    # ---- checks --------------------------------------------------------------------------------

    def _check(self, x: Tensor, batch: int) -> None:
        place = self._state[0].device
        if x.dtype != self._dtype and not (self._packed is None and autocast_on(place.type)):
            raise ValueError(f"x should be {self._dtype}, got: {x.dtype}")
        if x.device != place:
            raise ValueError(f"x should be on the device {place}, got: {x.device}")
        allowed = f"({batch}, {self._input_size})"
        fits = tuple(x.shape) == (batch, self._input_size)
        if not self._is_cell:
            order = f"{batch}, T" if self._batch_first else f"T, {batch}"
            allowed += f" or ({order}, {self._input_size}), T ≥ 1"
            steps = x.dim() == 3 and x.size(1 if self._batch_first else 0)
            shape = (batch, steps) if self._batch_first else (steps, batch)
            fits = fits or (steps >= 1 and tuple(x.shape) == (*shape, self._input_size))
        if not fits:
            raise ValueError(f"x should have shape {allowed}, got: {tuple(x.shape)}")

    def _check_out(self, out: Tensor, shape: tuple[int, ...]) -> None:
        place = self._state[0].device
        if (
            out.shape != shape
            or out.dtype != self._dtype
            or out.device != place
            or not out.is_contiguous()
            or out.requires_grad
            or out.is_neg()
        ):
            raise ValueError(
                f"out should be a contiguous {self._dtype} tensor of shape {shape} on the device "
                f"{place} that requires no gradient, got: {tuple(out.shape)}, {out.dtype}, "
                f"{out.device}"
            )

    def _indices(self, rows: Sequence[int] | Tensor) -> Tensor:
        found = [row.item() if isinstance(row, Tensor) else row for row in rows]
        # Of a mask too: its values are no indices.
        ints = all(isinstance(row, Integral) and not isinstance(row, bool) for row in found)
        if not ints or len({*found}) != len(found) or not all(0 <= r < self.batch for r in found):
            raise ValueError(
                f"rows should be different ints from 0 to {self.batch - 1}, got: {found}"
            )
        return torch.tensor(found, dtype=torch.int64, device=self._state[0].device)
