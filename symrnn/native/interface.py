"""symrnn.h in ctypes: its constants, structures and functions, to be changed along with it.

symrnn.h says what a pointer points to, its shape, and whether it may be null. Arrays are passed as
addresses (``tensor.data_ptr()``, or None for null). A structure holds addresses too: whoever fills
one keeps what it points to alive.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

INTERFACE = 10  # SYMRNN_INTERFACE


class Status(IntEnum):
    """enum symrnn_status"""

    OK = 0
    NULL = 1
    SIZE = 2
    DTYPE = 3
    MODE = 4
    LENGTHS = 5
    MAP = 6
    MEMORY = 7
    CPU = 8
    FIT = 9
    GPU = 10
    FILE = 11
    TOKEN = 12
    LOGITS = 13
    TEXT = 14


class Dtype(IntEnum):
    """enum symrnn_dtype"""

    FLOAT = 0
    DOUBLE = 1
    BFLOAT16 = 2
    HALF = 3
    INT8 = 4
    BFLOAT16_BOTH = 5


class Mode(IntEnum):
    """enum symrnn_mode"""

    LSTM = 0
    GRU = 1
    RNN_TANH = 2
    RNN_RELU = 3


class Kernel(IntEnum):
    """Which kernel runs a layer on a GPU, as symrnn.h has them"""

    ANY = 0
    ROWS = 1
    PACKED = 2
    WAVEFRONT = 3


class Map(ctypes.Structure):
    """struct symrnn_map"""

    _fields_ = (
        ("from_", c_int32),
        ("to", c_int32),
        ("start", c_void_p),
        ("index", c_void_p),
        ("scale", c_void_p),
    )


class Term(ctypes.Structure):
    """struct symrnn_term"""

    _fields_ = (
        ("symmetric", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("gates", c_int32),
        ("packed", c_void_p),
        ("inputs", POINTER(Map)),
        ("outputs", POINTER(Map)),
        ("inputs_adjoint", POINTER(Map)),
        ("outputs_adjoint", POINTER(Map)),
    )


class Skew(ctypes.Structure):
    """struct symrnn_skew"""

    _fields_ = (("rank", c_int32), ("gates", c_int32), ("packed", c_void_p))


class Product(ctypes.Structure):
    """struct symrnn_product"""

    _fields_ = (
        ("dtype", c_int32),
        ("gates", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("terms", c_int32),
        ("term", POINTER(Term)),
        ("skew", POINTER(Skew)),
    )


class Layer(ctypes.Structure):
    """struct symrnn_layer"""

    _fields_ = (
        ("mode", c_int32),
        ("hh", POINTER(Product)),
        ("ih", POINTER(Product)),
        ("bias", c_void_p),
        ("bias_n", c_void_p),
        ("state_mask", c_void_p),
    )


class Stream(ctypes.Structure):
    """struct symrnn_stream"""

    _fields_ = (
        ("layers", c_int32),
        ("layer", POINTER(Layer)),
        ("h", c_void_p),
        ("c", c_void_p),
    )


class Gpu(ctypes.Structure):
    """struct symrnn_gpu"""

    _fields_ = (("multiprocessors", c_int32), ("shared_bytes", c_int32))


class Fit(ctypes.Structure):
    """struct symrnn_fit"""

    _fields_ = (
        ("kernel", c_int32),
        ("blocks", c_int32),
        ("units", c_int32),
        ("squares", c_int32),
        ("together", c_int32),
        ("columns", c_int32),
        ("shared_bytes", c_int64),
        ("workspace_bytes", c_int64),
    )


_SHAPE = (c_int, c_int64, c_int64, c_int)  # symmetric, rows, columns, gates
_RUN = (POINTER(Layer), c_int64, c_int64, c_void_p, c_int)  # layer, steps, batch, lengths, reverse

# Each function's result, and its arguments.
Functions = dict[str, tuple[Any, list[Any]]]
FUNCTIONS: Functions = {
    "symrnn_interface": (c_int, []),
    "symrnn_message": (c_char_p, [c_int]),
    "symrnn_cpu": (c_char_p, []),
    "symrnn_use_cpu": (c_int, [c_char_p]),
    "symrnn_packed_length": (c_int64, [*_SHAPE, c_int]),  # dtype
    "symrnn_pack": (
        c_int,
        [
            *_SHAPE,
            *(c_int, c_void_p, c_int64, c_int64),  # from_dtype, from, gate_stride, row_stride
            *(c_int, c_void_p),  # to_dtype, to
            c_int,  # threads
        ],
    ),
    "symrnn_pack_triangles": (
        c_int,
        [
            *(c_int64, c_int64, c_int),  # side, block, gates
            *(c_int, c_void_p, c_int64),  # from_dtype, from, gate_stride
            *(c_double, c_int, c_void_p, c_int),  # scale, to_dtype, to, threads
        ],
    ),
    "symrnn_triangle_adjoint": (
        c_int,
        # side, block, gates, dtype, from, scale, to, threads
        [c_int64, c_int64, c_int, c_int, c_void_p, c_double, c_void_p, c_int],
    ),
    "symrnn_unpack": (c_int, [*_SHAPE, c_int, c_void_p, c_void_p]),  # from_dtype, from, to
    "symrnn_multiply": (
        c_int,
        [
            *(POINTER(Product), c_int, c_int64),  # w, transposed, batch
            *(c_void_p, c_void_p, c_int, c_int),  # x, y, repeat, threads
        ],
    ),
    "symrnn_matmul": (
        c_int,
        [
            *(c_int, c_int64, c_int64, c_int64),  # dtype, m, n, k
            *(c_void_p, c_int, c_void_p, c_int),  # a, a_transposed, b, b_transposed
            *(c_void_p, c_void_p, c_int),  # bias, out, threads
        ],
    ),
    # x, gates, saved_cells, h0, c0, output, hn, cn; threads
    "symrnn_forward": (c_int, [*_RUN, *[c_void_p] * 8, c_int]),
    # stream, by its address; steps, batch, x, between, output, threads
    "symrnn_advance": (c_int, [c_void_p, c_int64, c_int64, *[c_void_p] * 3, c_int]),
    # gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates, d_hidden, d_h0, d_c0;
    # threads
    "symrnn_backward": (c_int, [*_RUN, *[c_void_p] * 12, c_int]),
    "symrnn_activate": (c_int, [c_int, c_int, c_int64, c_void_p, c_void_p]),  # kind, dtype, n, x, y
    # gpu, kernel, mode, dtype, side, batch, backward, fit
    "symrnn_fit_gpu": (
        c_int,
        [POINTER(Gpu), *[c_int] * 3, c_int64, c_int64, c_int, POINTER(Fit)],
    ),
    "symrnn_prefer_huge_pages": (None, [c_void_p, c_int64, c_int]),  # from, bytes, now
    "symrnn_sample": (c_uint64, [c_int64, c_void_p, c_void_p]),  # count, arrays, bytes
    "symrnn_read": (c_int, [c_void_p, c_int64, c_int, c_int, c_void_p]),  # …, repeat, threads, sum
}


def declare(library: ctypes.CDLL, functions: Functions = FUNCTIONS) -> None:
    """Give the library's functions their types. AttributeError names one that it lacks."""
    for name, (result, arguments) in functions.items():
        function = library[name]
        function.restype, function.argtypes = result, arguments
        setattr(library, name, function)  # library[name] is made anew on every look
