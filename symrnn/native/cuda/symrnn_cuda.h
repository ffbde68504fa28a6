/* The layers of symrnn.h on an NVIDIA GPU of compute capability 8.0 or later: the C interface.
 *
 * What differs from symrnn.h: the hidden weights of all gates are symmetric: one term, packed as on
 * a CPU. They stay on the chip for the whole sequence; `symrnn_fit_gpu` says for which sizes
 * that is possible. All sequences have the same length. Arrays are in GPU memory and have the dtype
 * of the packed weights (SYMRNN_FLOAT, SYMRNN_BFLOAT16, SYMRNN_HALF) unless another is named.
 * Accumulation and the cell state are in float.
 *
 * kernel: which kernel may run the layer, as in `symrnn_fit_gpu`.
 * tf32: whether factors of float are rounded to TF32 (11 bits of significand). If not, products
 * are exact and summed in float. Every sum has one fixed order: two calls give the same bits.
 *
 * device: a GPU's ordinal.  stream: a cudaStream_t of it, null for the default stream. Calls are
 * asynchronous, allocate nothing, and may be captured into a CUDA graph. All scratch memory is in
 * the workspace.
 *
 * Functions return SYMRNN_OK or a status of symrnn.h. After SYMRNN_GPU `symrnn_cuda_error` has
 * CUDA's message.
 *
 * The thread blocks of a layer wait for one another. Should one wait in vain for some seconds, the launch
 * is stopped: CUDA reports a launch failure, as it would after any trap, and the process has lost the
 * GPU. From then on `symrnn_cuda_error` says which block waited for what.
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

/* Describe a GPU for `symrnn_fit_gpu`. SYMRNN_FIT if these kernels cannot run there at all: it is
 * too old, or this build has no code for it. */
int symrnn_cuda_gpu(int device, symrnn_gpu *gpu);

/* Pack symmetric matrices; only the upper triangle is read.
 * from: of dtype from_dtype; matrix g begins at from + g · gate_stride, and its row r at
 *     r · row_stride from there, strides in elements.
 * to: (symrnn_packed_length), of dtype to_dtype, aligned to 16 bytes. */
int symrnn_cuda_pack(int64_t side, int gates, int from_dtype, const void *from,
                     int64_t gate_stride, int64_t row_stride, int to_dtype, void *to, int device,
                     void *stream);

/* The forward pass over T ≥ 1 steps of B ≥ 1 sequences.
 *
 * layer: packed hidden weights, in GPU memory; no input weights; a GRU's bias_n (H) or null; state_mask
 *     (B, H) or null.
 * gates: (T·B, G·H). On entry W_ih·x + b, on return the gate activations.
 * saved_cells: (T·B, H) of float, as in symrnn_forward; null if they are not wanted.
 * h0, c0: (B, H); null for zeros.  output: (T·B, H).  hn, cn: (B, H); cn for an LSTM, else null.
 * workspace: scratch space, aligned to 64 bytes.  bytes: its size, at least the workspace_bytes of
 *     `symrnn_fit_gpu`. */
int symrnn_cuda_forward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps,
                        int64_t batch, int reverse, void *gates, float *saved_cells, const void *h0,
                        const void *c0, void *output, void *hn, void *cn, void *workspace,
                        int64_t bytes, int device, void *stream);

/* The forward pass of two layers of one kind and size, the second a step behind the first, in one launch
 * by rows: SYMRNN_FIT where the three matrices of each gate do not fit (`symrnn_fit_gpu` with
 * SYMRNN_KERNEL_WAVEFRONT).
 *
 * layers: (2), as above, each with its state_mask or null; the second's `bias` (G·H), of its input, or
 *     null.
 * w_ih: (G·H, H), the second layer's input weights, not packed.
 * between: (T·B, H), what the first layer's output is multiplied by before them; or null.
 * The arrays are those of symrnn_cuda_forward, of the first layer and then of the second: (2, …). What is
 *     in the second's `gates` on entry is not read. */
int symrnn_cuda_forward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                                  const void *w_ih, const void *between, void *gates,
                                  float *saved_cells, const void *h0, const void *c0, void *output,
                                  void *hn, void *cn, void *workspace, int64_t bytes, int device,
                                  void *stream);

/* The backward pass: the arguments of symrnn_backward, in GPU memory; saved_cells are float. */
int symrnn_cuda_backward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps,
                         int64_t batch, int reverse, const void *gates, const float *saved_cells, const void *h0,
                         const void *c0, const void *output, const void *d_output,
                         const void *d_hn, const void *d_cn, void *d_gates, void *d_hidden,
                         void *d_h0, void *d_c0, void *workspace, int64_t bytes, int device,
                         void *stream);

/* The backward pass of two layers in one launch, the first a step behind the second; SYMRNN_FIT likewise.
 * Either pass may be that of each layer by itself: what they leave for one another is the same.
 *
 * layers, w_ih, between: as above; the biases are not read.
 * The arrays are those of symrnn_cuda_backward, of the first layer and then of the second: (2, …).
 * d_output: the gradients of both outputs, of the first but for what comes through the second layer. */
int symrnn_cuda_backward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                                   const void *w_ih, const void *between, const void *gates,
                                   const float *saved_cells, const void *h0, const void *c0,
                                   const void *output, const void *d_output, const void *d_hn,
                                   const void *d_cn, void *d_gates, void *d_hidden, void *d_h0,
                                   void *d_c0, void *workspace, int64_t bytes, int device,
                                   void *stream);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
