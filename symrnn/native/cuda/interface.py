"""symrnn_cuda.h in ctypes: its functions, to be changed along with it.

The structures are those of symrnn.h (:mod:`symrnn.native.interface`), and arrays are passed as
addresses in the same way, here of a GPU's memory.
"""

from __future__ import annotations

from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p

from symrnn.native.interface import Functions, Gpu, Layer

# layer, kernel, tf32, steps, batch, reverse
_RUN = (POINTER(Layer), c_int, c_int, c_int64, c_int64, c_int)
# layers, tf32, steps, batch, w_ih, between
_RUN_TWO = (POINTER(Layer), c_int, c_int64, c_int64, c_void_p, c_void_p)
_PLACE = (c_void_p, c_int64, c_int, c_void_p)  # workspace, bytes, device, stream

# Each function's result, and its arguments.
FUNCTIONS: Functions = {
    "symrnn_cuda_interface": (c_int, []),
    "symrnn_cuda_error": (c_char_p, []),
    "symrnn_cuda_gpu": (c_int, [c_int, POINTER(Gpu)]),  # device, gpu
    "symrnn_cuda_pack": (
        c_int,
        [
            *(c_int64, c_int),  # side, gates
            *(c_int, c_void_p, c_int64, c_int64),  # from_dtype, from, gate_stride, row_stride
            *(c_int, c_void_p),  # to_dtype, to
            *(c_int, c_void_p),  # device, stream
        ],
    ),
    # gates, saved_cells, h0, c0, output, hn, cn
    "symrnn_cuda_forward": (c_int, [*_RUN, *[c_void_p] * 7, *_PLACE]),
    "symrnn_cuda_forward_wavefront": (c_int, [*_RUN_TWO, *[c_void_p] * 7, *_PLACE]),
    # gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates, d_hidden, d_h0, d_c0
    "symrnn_cuda_backward": (c_int, [*_RUN, *[c_void_p] * 12, *_PLACE]),
    "symrnn_cuda_backward_wavefront": (c_int, [*_RUN_TWO, *[c_void_p] * 12, *_PLACE]),
}
