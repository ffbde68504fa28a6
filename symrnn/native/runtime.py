"""symrnn_runtime.h in ctypes: its structures and functions, to be changed along with it."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_uint32, c_void_p
from enum import IntEnum

from symrnn import native
from symrnn.native.interface import Functions, declare


class Vocabulary(IntEnum):
    """enum symrnn_vocabulary"""

    NO_TEXT = 0
    WORDS = 1
    TOKENS = 2
    PIECES = 3


class About(ctypes.Structure):
    """struct symrnn_about"""

    _fields_ = (
        ("mode", c_int32),
        ("dtype", c_int32),
        ("layers", c_int32),
        ("input_size", c_int32),
        ("hidden_size", c_int32),
        ("output_size", c_int32),
        ("tokens", c_int32),
        ("vocabulary", c_int32),
        ("eos", c_int32),
        ("unknown", c_int32),
        ("bytes", c_int64),
    )


class Generator(ctypes.Structure):
    """struct symrnn_generator"""

    _fields_ = (("state", c_uint32 * 624), ("next", c_int32))


# Arrays, numbers that are written and what is not seen into are addresses; ctypes.byref is one.
_MODEL = _SESSION = c_void_p
_TO = c_void_p

FUNCTIONS: Functions = {
    "symrnn_why": (c_char_p, []),
    "symrnn_model_open": (c_int, [c_char_p, _TO]),
    "symrnn_model_close": (None, [_MODEL]),
    "symrnn_model_about": (c_int, [_MODEL, POINTER(About)]),
    "symrnn_model_json": (c_char_p, [_MODEL]),
    "symrnn_model_pieces": (c_int, [_MODEL, _TO, _TO]),
    "symrnn_session_open": (c_int, [_MODEL, c_int64, c_int, _TO]),  # batch, threads
    "symrnn_session_copy": (c_int, [_SESSION, _TO]),
    "symrnn_session_close": (None, [_SESSION]),
    "symrnn_session_reset": (c_int, [_SESSION, c_int64]),
    "symrnn_session_state": (c_int, [_SESSION, c_void_p, c_void_p]),
    "symrnn_session_set_state": (c_int, [_SESSION, c_void_p, c_void_p]),
    # steps, tokens or x, wanted, output
    "symrnn_run_tokens": (c_int, [_SESSION, c_int64, c_void_p, c_int64, c_void_p]),
    "symrnn_run_vectors": (c_int, [_SESSION, c_int64, c_void_p, c_int64, c_void_p]),
    "symrnn_seed": (None, [POINTER(Generator), c_uint32]),
    "symrnn_uniform": (c_double, [POINTER(Generator)]),
    "symrnn_draw": (
        c_int,
        # n, logits, generator, temperature, top_k, top_p, token
        [c_int64, c_void_p, POINTER(Generator), c_double, c_int64, c_double, _TO],
    ),
    "symrnn_encode": (c_int, [_MODEL, c_char_p, c_int64, c_void_p, c_int64, _TO]),
    # token, line, text, room, count
    "symrnn_write": (c_int, [_MODEL, c_int32, _TO, c_char_p, c_int64, _TO]),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library with these functions typed; None where there is none: ``native.why_not()``."""
    found = native.library()
    if found is not None:
        declare(found, FUNCTIONS)
    return found
