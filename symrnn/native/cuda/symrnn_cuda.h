/* The same layers on an NVIDIA GPU of compute capability 8.0 or later: the C interface.
 *
 * As symrnn.h has it, with these differences. The hidden weights of all gates are symmetric: one
 * term, packed as on a CPU. They stay on the chip for the whole sequence; `symrnn_fit_gpu` says of
 * which sizes that can be. All steps run all sequences. Arrays are on the GPU, of the dtype of the
 * packed weights (SYMRNN_FLOAT, SYMRNN_BFLOAT16, SYMRNN_HALF) where no other is named; sums and
 * what a cell remembers are in float.
 *
 * `tf32` lets products of float be rounded to TF32's 11 bits; without, they are exact and summed in
 * float. Every sum is taken in one fixed order: two calls give the same bits.
 *
 * `device` is a GPU's number, `stream` a cudaStream_t of it (null for the default one). Work is
 * only put on the stream: a call returns at once, allocates nothing, and may be captured into a
 * CUDA graph. What it needs beside its arguments is the workspace.
 *
 * Functions return SYMRNN_OK or a status of symrnn.h; of SYMRNN_GPU `symrnn_cuda_error` has the
 * words of CUDA.
 */
#ifndef SYMRNN_CUDA_H
#define SYMRNN_CUDA_H

#include "../symrnn.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

int symrnn_cuda_interface(void);     /* SYMRNN_INTERFACE of this build */
const char *symrnn_cuda_error(void); /* of the calling thread's last SYMRNN_GPU; never null */

/* What `symrnn_fit_gpu` wants to know of a GPU. SYMRNN_FIT if these kernels cannot run there at all:
 * it is too old, or this build has no code for it. */
int symrnn_cuda_gpu(int device, symrnn_gpu *gpu);

/* Pack symmetric matrices, of which the upper triangle is read.
 * from: of dtype from_dtype;  matrix g begins at from + g · gate_stride, and its row r is
 *     r · row_stride further, both counted in numbers.
 * to: (symrnn_packed_length), of dtype to_dtype, aligned to 16 bytes. */
int symrnn_cuda_pack(int64_t side, int gates, int from_dtype, const void *from,
                     int64_t gate_stride, int64_t row_stride, int to_dtype, void *to, int device,
                     void *stream);

/* T steps of a layer, T and B at least 1.
 *
 * layer: its hidden weights, packed, on the GPU; no input weights; of a GRU bias_n (H) or null.
 * gates: (T·B, G·H), the input's part of the gates with biases added on entry, the activated gates
 *     on return.
 * cells: (T·B, H) of float: as of symrnn_forward; null if unwanted.
 * h0, c0: (B, H); null for zeros.  output: (T·B, H).  hn, cn: (B, H); cn null but for an LSTM.
 * workspace: of at least the bytes that `symrnn_fit_gpu` names for this call, aligned to 64. */
int symrnn_cuda_forward(const symrnn_layer *layer, int tf32, int64_t steps, int64_t batch,
                        int reverse, void *gates, float *cells, const void *h0, const void *c0,
                        void *output, void *hn, void *cn, void *workspace, int64_t bytes,
                        int device, void *stream);

/* The way back through time: the arguments of symrnn_backward, all on the GPU; cells are float. */
int symrnn_cuda_backward(const symrnn_layer *layer, int tf32, int64_t steps, int64_t batch,
                         int reverse, const void *gates, const float *cells, const void *h0,
                         const void *c0, const void *output, const void *d_output,
                         const void *d_hn, const void *d_cn, void *d_gates, void *d_hidden,
                         void *d_h0, void *d_c0, void *workspace, int64_t bytes, int device,
                         void *stream);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
