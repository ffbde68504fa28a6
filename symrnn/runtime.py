"""Trained models without PyTorch: the C runtime on a model file, with numpy arrays in and out.

>>> from symrnn import runtime
>>> model = runtime.open("model.symrnn")  # of symrnn.save_runtime, or lm.export --to runtime
>>> session = model.session()
>>> for token in session.generate("the company said", 20, seed=7):
...     print(model.decode([token]), end=" ")

This module, numpy and the native library are all that is loaded; symrnn_runtime.h is the same in C.
"""

from __future__ import annotations

import ctypes
import json
import operator
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symrnn import native
from symrnn.native.runtime import About, Generator, Vocabulary
from symrnn.native.runtime import library as _find_library

__all__ = ["Model", "ModelError", "Session", "open"]

Floats = NDArray[np.float32]

_DTYPES = {
    native.Dtype.FLOAT: "float32",
    native.Dtype.BFLOAT16: "bfloat16",
    native.Dtype.INT8: "int8",
}


class ModelError(Exception):
    """A file that cannot be read or is no model, or a model asked for what it does not do."""


def open(path: str | os.PathLike[str]) -> Model:
    """The model in a file, mapped into memory.

    Raises ModelError if there is none, and where the native library is not.
    """
    return Model(path)


class Model:
    """What a file holds; never changes, and may be used by any number of threads and sessions.

    path: of the file.
    about: what whoever made the file says of the model, as JSON.
    mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
    dtype: of the packed matrices, "float32", "bfloat16" or "int8".
    layers, input_size, hidden_size, output_size: L, I, H and O, the rows of the linear end (or H).
    tokens: V of a model that takes tokens, 0 of one that takes vectors.
    eos, unknown: the tokens of a line end and of what is not known; None where there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        found = _find_library()
        if found is None:
            raise ModelError(f"{self.path}: {native.why_not()}")
        self._library = found
        self._pointer = ctypes.c_void_p()
        self._check(found.symrnn_model_open(os.fsencode(path), ctypes.byref(self._pointer)))
        weakref.finalize(self, found.symrnn_model_close, self._pointer)
        about = About()
        self._check(found.symrnn_model_about(self._pointer, ctypes.byref(about)))
        self.mode = native.Mode(about.mode).name
        self.dtype = _DTYPES[native.Dtype(about.dtype)]
        self.layers: int = about.layers
        self.input_size: int = about.input_size
        self.hidden_size: int = about.hidden_size
        self.output_size: int = about.output_size
        self.tokens: int = about.tokens
        self.eos: int | None = about.eos if about.eos >= 0 else None
        self.unknown: int | None = about.unknown if about.unknown >= 0 else None
        self._vocabulary = Vocabulary(about.vocabulary)
        try:
            self.about: dict[str, Any] = json.loads(found.symrnn_model_json(self._pointer))
        except ValueError as error:
            raise ModelError(f"{self.path}: what it says of itself is no JSON: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Model, (self.path,)

    def session(self, batch: int = 1, threads: int = 1) -> Session:
        """A batch of sequences at their beginning, of which at most so many threads run a step.

        Raises ValueError for a number below 1.
        """
        return Session(self, batch, threads)

    @property
    def pieces(self) -> bytes | None:
        """The model of sentencepiece, for its ``LoadFromSerializedProto``; None without one."""
        if self._vocabulary != Vocabulary.PIECES:
            return None
        place, length = ctypes.c_void_p(), ctypes.c_int64()
        found = (ctypes.byref(place), ctypes.byref(length))
        self._check(self._library.symrnn_model_pieces(self._pointer, *found))
        return ctypes.string_at(place, length.value)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text of words: one for each, and ``eos`` for each line end.

        Raises ModelError for a text that cannot be encoded, and if the model's tokens are no words:
        sentencepiece itself makes them of ``pieces``.
        """
        given = text.encode("utf-8", "surrogatepass")
        tokens = np.empty(len(given) + 1, np.int32)
        count = ctypes.c_int64()
        self._check(
            self._library.symrnn_encode(
                self._pointer, given, len(given), tokens.ctypes.data, len(tokens),
                ctypes.byref(count),
            )
        )  # fmt: skip
        return [int(token) for token in tokens[: count.value]]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens: words with one space between, a line end for each ``eos``."""
        return "".join(map(self.writer(), tokens))

    def writer(self) -> Callable[[int], str]:
        """A function from each next token to what it adds to the text.

        Raises ModelError, as :meth:`decode` does, for a token that there is not, and if the file
        has no vocabulary.
        """
        line, count = ctypes.c_int32(), ctypes.c_int64()
        room = 64
        text = ctypes.create_string_buffer(room)

        def write(token: int) -> str:
            nonlocal room, text
            before = line.value
            while True:
                self._check(
                    self._library.symrnn_write(
                        self._pointer, token, ctypes.byref(line), text, room, ctypes.byref(count)
                    )
                )
                if count.value <= room:
                    return text.raw[: count.value].decode("utf-8", "replace")
                room, line.value = count.value, before
                text = ctypes.create_string_buffer(room)

        return write

    def _check(self, status: int) -> None:
        if status:
            why = self._library.symrnn_why().decode("utf-8", "replace")
            kind = {native.Status.MEMORY: MemoryError, native.Status.SIZE: ValueError}
            raise kind.get(native.Status(status), ModelError)(why)


class Session:
    """A batch of sequences on their way through a model; for one thread at a time.

    model: which it runs.
    batch: B.
    """

    def __init__(self, model: Model, batch: int = 1, threads: int = 1) -> None:
        self.model = model
        self.batch = operator.index(batch)
        self._threads = operator.index(threads)
        pointer = ctypes.c_void_p()
        model._check(
            model._library.symrnn_session_open(
                model._pointer, self.batch, self._threads, ctypes.byref(pointer)
            )
        )
        self._own(pointer)

    def _own(self, pointer: ctypes.c_void_p) -> None:
        self._pointer = pointer
        weakref.finalize(self, self.model._library.symrnn_session_close, pointer)

    def step(self, inputs: Any) -> Floats:
        """The outputs of the next step, or of the next T ≥ 1 of them; the state moves on.

        inputs: tokens, integers from 0 to V - 1: (B,) or (T, B), or one int where B = 1. Or
            vectors of float32, (B, I) or (T, B, I).

        Returns the logits, or what the linear end or the highest layer gives, float32: (B, O),
        (T, B, O), or of one int (O,). Raises ValueError for others.
        """
        x, steps, shape = self._inputs(inputs)
        output = np.empty((*shape, self.model.output_size), np.float32)
        self._run(x, steps, steps, output)
        return output

    def generate(
        self,
        prompt: str | Iterable[int],
        tokens: int,
        *,
        seed: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Iterator[int]:
        """So many tokens that follow a prompt, those of ``python -m lm.generate`` for that seed.

        prompt: text of words, which begins a line; or at least one token.
        tokens: how many, from 0.
        seed: from 0 to 2**32 - 1.
        temperature: from 0, which takes the likeliest token.
        top_k, top_p: only so many of the likeliest tokens; only the fewest whose probabilities sum
            to so much.

        Raises ValueError for others and where B is not 1, and ModelError if the model takes no
        tokens or gives no probabilities, and for a text that it cannot encode: at the call, when
        nothing has run.
        """
        model = self.model
        if self.batch != 1:
            raise ValueError(f"generate is for a batch of 1, this session's is {self.batch}")
        if not model.tokens or model.output_size != model.tokens:
            raise ModelError(f"{model.path}: this model gives no logits of tokens")
        tokens = _integer("tokens", tokens, 0)
        seed = _integer("seed", seed, 0, 2**32 - 1)
        likeliest = model.tokens if top_k is None else _integer("top_k", top_k, 1)
        share = 1.0 if top_p is None else float(top_p)
        options = float(temperature), min(likeliest, model.tokens), share
        generator, logit, token = Generator(), ctypes.c_float(), ctypes.c_int32()
        # The library checks the options where it draws: here of one logit, before the prompt runs.
        to, drawn = ctypes.byref(logit), ctypes.byref(token)
        model._check(model._library.symrnn_draw(1, to, generator, *options, drawn))
        if isinstance(prompt, str):
            if model.eos is None:
                raise ModelError(f"{model.path}: this model reads no text: it has no vocabulary")
            prompt = [model.eos, *model.encode(prompt)]
        x, steps, _ = self._inputs(np.array([*prompt])[:, None])
        model._library.symrnn_seed(generator, seed)
        return self._generate(x, steps, tokens, generator, options)

    def _generate(
        self,
        x: NDArray[np.int32],
        steps: int,
        tokens: int,
        generator: Generator,
        options: tuple[float, int, float],
    ) -> Iterator[int]:
        """options: temperature, top_k and top_p as the library takes them."""
        library, model = self.model._library, self.model
        token = ctypes.c_int32()
        logits = np.empty(model.output_size, np.float32)
        at, to, size = x.ctypes.data, logits.ctypes.data, len(logits)
        drawn = ctypes.addressof(token)
        for _ in range(tokens):
            model._check(library.symrnn_run_tokens(self._pointer, steps, at, 1, to))
            model._check(library.symrnn_draw(size, to, generator, *options, drawn))
            yield token.value
            at, steps = drawn, 1

    @property
    def state(self) -> tuple[Floats, ...]:
        """h, and of an LSTM c too, each (L, B, H): a copy. Assigning one copies it in."""
        parts = tuple(np.empty(self._state_shape, np.float32) for _ in self._states)
        self.model._check(self.model._library.symrnn_session_state(*self._addresses(parts)))
        return parts

    @state.setter
    def state(self, state: Iterable[Floats]) -> None:
        parts = [np.ascontiguousarray(part) for part in state]
        shapes = [(part.shape, str(part.dtype)) for part in parts]
        if shapes != [(self._state_shape, "float32")] * len(self._states):
            raise ValueError(
                f"state should be {len(self._states)} arrays {self._state_shape} of float32, got: "
                + ", ".join(f"{shape} of {dtype}" for shape, dtype in shapes)
            )
        self.model._check(self.model._library.symrnn_session_set_state(*self._addresses(parts)))

    def reset(self, row: int | None = None) -> None:
        """Set the state of one sequence to zeros, of all by default."""
        if row is not None and not 0 <= row < self.batch:
            raise ValueError(f"row should be None or from 0 to {self.batch - 1}, got: {row}")
        place = -1 if row is None else row
        self.model._check(self.model._library.symrnn_session_reset(self._pointer, place))

    def copy(self) -> Session:
        """Another session of the same model in the same state."""
        made = Session.__new__(Session)
        made.model, made.batch, made._threads = self.model, self.batch, self._threads
        pointer = ctypes.c_void_p()
        self.model._check(
            self.model._library.symrnn_session_copy(self._pointer, ctypes.byref(pointer))
        )
        made._own(pointer)
        return made

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Session:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.model, self.batch, self._threads, self.state)

    @property
    def _states(self) -> str:
        return "hc" if self.model.mode == "LSTM" else "h"

    @property
    def _state_shape(self) -> tuple[int, int, int]:
        return self.model.layers, self.batch, self.model.hidden_size

    def _addresses(self, parts: Iterable[Floats]) -> list[Any]:
        found: list[Any] = [self._pointer, *(part.ctypes.data for part in parts)]
        return found + [None] * (3 - len(found))

    def _inputs(self, inputs: Any) -> tuple[NDArray[Any], int, tuple[int, ...]]:
        """The inputs as the library takes them, how many steps they are, and the outputs' shape."""
        x = np.asarray(inputs)
        size = () if self.model.tokens else (self.model.input_size,)
        shape = x.shape[: x.ndim - len(size)]
        if self.model.tokens and x.ndim == 0 and self.batch == 1:
            x, steps = x.reshape(1, 1), 1
        else:
            steps = shape[0] if len(shape) == 2 else 1
            if shape not in ((self.batch,), (steps, self.batch)) or x.shape != (*shape, *size):
                one = ", ".join(map(str, (self.batch, *size)))
                raise ValueError(f"inputs should have shape ({one}) or (T, {one}), got: {x.shape}")
        if steps < 1:
            raise ValueError(f"inputs should be at least one step, got: {x.shape}")
        if not self.model.tokens:
            if x.dtype != np.float32:
                raise ValueError(f"inputs should be float32, got: {x.dtype}")
            return np.ascontiguousarray(x), steps, shape
        if x.dtype.kind not in "iu":
            raise ValueError(f"tokens should be integers, got: {x.dtype}")
        least, most = int(x.min()), int(x.max())
        if least < 0 or most >= self.model.tokens:
            wrong = least if least < 0 else most
            raise ValueError(f"tokens should be from 0 to {self.model.tokens - 1}, got: {wrong}")
        return np.ascontiguousarray(x, np.int32), steps, shape

    def _run(self, x: NDArray[Any], steps: int, wanted: int, output: Floats) -> None:
        library = self.model._library
        run = library.symrnn_run_tokens if self.model.tokens else library.symrnn_run_vectors
        self.model._check(run(self._pointer, steps, x.ctypes.data, wanted, output.ctypes.data))


def _integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An argument as an int; ValueError for what is none in this range."""
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least or (most is not None and found > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} should be an integer {allowed}, got: {value!r}")
    return found


def _restored(model: Model, batch: int, threads: int, state: tuple[Floats, ...]) -> Session:
    made = Session(model, batch, threads)
    made.state = state
    return made
