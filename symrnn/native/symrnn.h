/* Recurrent layers whose weights are packed once and read fast: the C interface.
 *
 * Nothing here knows of Python or PyTorch. All arrays are dense and row-major; a shape such as
 * (R, G·H) stands beside each pointer. Nothing is kept between calls but scratch memory, so calls
 * may come from any number of threads at once, each with its own arrays.
 *
 * Letters: T time, B batch, R rows (the sum of the B_t of all steps, T·B where none ends early),
 * I input size, H hidden size, G gates in PyTorch's order (LSTM i f g o, GRU r z n, else one).
 *
 * Packed matrices. The G gates' matrices, each rows × columns, are cut into tiles of 16 × 16,
 * padded with zeros at the last rows and columns. A tile is stored column by column. A "panel" is
 * a row of tiles, of one gate after the other; of a matrix that is its own transpose ("symmetric")
 * a panel holds the column of tiles from the diagonal down, so that (but for the tiles on the
 * diagonal) each pair of equal entries is stored once. See layout.h for the arithmetic.
 *
 * Every function returns SYMRNN_OK or one of the codes below; `symrnn_message` puts them in words.
 */
#ifndef SYMRNN_H
#define SYMRNN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* The number of this interface; a caller made for another one must not go on. */
#define SYMRNN_INTERFACE 3

enum symrnn_status {
    SYMRNN_OK = 0,
    SYMRNN_NULL = 1,      /* a pointer that must not be null is */
    SYMRNN_SIZE = 2,      /* a size is out of range or does not fit another, or an address its
                             alignment */
    SYMRNN_DTYPE = 3,     /* a type of numbers that is unknown, or not allowed here */
    SYMRNN_MODE = 4,      /* an unknown kind of layer */
    SYMRNN_LENGTHS = 5,   /* lengths grow, or do not begin with the batch, or end below one */
    SYMRNN_MAP = 6,       /* a map whose indices lead outside, or maps of some terms only */
    SYMRNN_MEMORY = 7,    /* no memory */
    SYMRNN_CPU = 8,       /* kernels that this processor, or this build, does not have */
    SYMRNN_FIT = 9,       /* a layer that does not fit a GPU, or is none that it can run */
    SYMRNN_GPU = 10       /* an error of CUDA */
};

enum symrnn_dtype {
    SYMRNN_FLOAT = 0,
    SYMRNN_DOUBLE = 1,
    SYMRNN_BFLOAT16 = 2,  /* on a CPU of packed matrices only: the arithmetic is in float */
    SYMRNN_HALF = 3       /* IEEE's of 16 bits; on GPUs only */
};

enum symrnn_mode { SYMRNN_LSTM = 0, SYMRNN_GRU = 1, SYMRNN_RNN_TANH = 2, SYMRNN_RNN_RELU = 3 };

/* A sparse linear map: to[i] = Σ scale[k] · from[index[k]] over k in start[i] … start[i+1] - 1. */
typedef struct symrnn_map {
    int32_t from, to;       /* the lengths */
    const int32_t *start;   /* (to + 1) */
    const int32_t *index;   /* (start[to]) */
    const float *scale;     /* (start[to]) */
} symrnn_map;

/* One packed matrix for each of some gates, and what is done to the vectors around it:
 * y[gate] += outputs(M[gate] · inputs(x)). */
typedef struct symrnn_term {
    int32_t symmetric;                 /* whether the matrices are their own transposes */
    int32_t rows, columns;             /* of each matrix */
    int32_t gates;                     /* the gates it serves: bit g for gate g */
    const void *packed;                /* (symrnn_packed_length), aligned to 64 bytes */
    const symrnn_map *inputs;          /* from the vector's length to `columns`; null: none is needed */
    const symrnn_map *outputs;         /* from `rows` to the length of a gate; null likewise */
    const symrnn_map *inputs_adjoint;  /* their transposes, for the way back: null where its map is, */
    const symrnn_map *outputs_adjoint; /* and not read where only products forth are asked for */
} symrnn_term;

/* G matrices (H × C), as a sum of terms. Maps are of all terms or of none; of terms without maps
 * each gate has exactly one. */
typedef struct symrnn_product {
    int32_t dtype;     /* of the packed matrices */
    int32_t gates;     /* G, 1 to 4 */
    int32_t rows;      /* H */
    int32_t columns;   /* C: H for hidden weights, I for input weights */
    int32_t terms;     /* 1 to 8 */
    const symrnn_term *term; /* (terms) */
} symrnn_product;

int symrnn_interface(void);             /* SYMRNN_INTERFACE of this build */
const char *symrnn_message(int status); /* never null */

/* Which kernels are in use: "avx512", "avx2" or "portable"; at first the best that the processor
 * has. `symrnn_use_cpu` takes another for the whole process: SYMRNN_CPU where it cannot run. */
const char *symrnn_cpu(void);
int symrnn_use_cpu(const char *name);

/* Threads are those of an OpenMP runtime that the process has anyway: the addresses of its
 * GOMP_parallel, omp_get_thread_num and omp_get_num_threads. Until they are given, and in children
 * made by fork, everything runs on the calling thread. How the work is split, and with it every
 * bit of the result, depends on `threads` as asked for (1 to 64; others are taken as the nearest),
 * not on how many there are. Not to be called while other functions run. */
int symrnn_use_openmp(void *parallel, void *thread_num, void *num_threads);

/* How many numbers a packed matrix of so many gates has; negative: a status, with its sign
 * changed. */
int64_t symrnn_packed_length(int symmetric, int64_t rows, int64_t columns, int gates);

/* Pack matrices. Of symmetric ones the upper triangle is read.
 * from: its dtype float or double;  matrix g of `gates` begins at from + g · gate_stride, and its
 *     row r is r · row_stride further, both counted in numbers.
 * to: (symrnn_packed_length), aligned to 64 bytes, of dtype `to_dtype`: that of `from`, or bfloat16
 *     of a float's. */
int symrnn_pack(int symmetric, int64_t rows, int64_t columns, int gates,
                int from_dtype, const void *from, int64_t gate_stride, int64_t row_stride,
                int to_dtype, void *to, int threads);

/* The inverse, to dense (gates, rows, columns) of float, or of double where packed so. */
int symrnn_unpack(int symmetric, int64_t rows, int64_t columns, int gates,
                  int from_dtype, const void *from, void *to);

/* y (B, G·H) = x (B, C) · Wᵀ or, transposed, y (B, C) = x (B, G·H) · W. `repeat` times the same. */
int symrnn_multiply(const symrnn_product *w, int transposed, int64_t batch,
                    const void *x, void *y, int repeat, int threads);

/* out (M, N) = a · b + bias, dense matrices of float or double.
 * a: (M, K), or (K, M) if a_turned.  b: (K, N), or (N, K) if b_turned.  Of K = 0 none is read.
 * bias: (N), added to each row; or null. */
int symrnn_matmul(int dtype, int64_t m, int64_t n, int64_t k, const void *a, int a_turned,
                  const void *b, int b_turned, const void *bias, void *out, int threads);

/* A layer in one direction. Numbers are float, or double where the products are. */
typedef struct symrnn_layer {
    int32_t mode;
    const symrnn_product *hh;  /* the hidden weights, G matrices H × H */
    const symrnn_product *ih;  /* the input weights, G matrices H × I, of the same dtype; or null */
    const void *bias;          /* (G·H), added to the gates; read only with ih; or null */
    const void *bias_n;        /* (H), of a GRU the hidden bias of n; or null */
} symrnn_layer;

/* T steps of a layer, T at least 1. Of an empty batch nothing is read or written. Pointers of which
 * it is not said must not be null.
 *
 * lengths: (T), B_t, which begin with B and never grow; null where all are B.
 * reverse: from the last step to the first.
 * x: (R, I), the input; null without layer->ih.
 * gates: (R, G·H); without layer->ih the input's part of the gates, biases added, on entry. The
 *     activated gates on return. May be null with layer->ih where they are not wanted.
 * cells: (R, H), of an LSTM the cell state after each step, of a GRU W_n·h + b_n; null if unwanted.
 * h0, c0: (B, H), the state before; null for zeros; c0 is of an LSTM only.
 * output: (R, H).  hn, cn: (B, H), the state after; cn null but for an LSTM. */
int symrnn_forward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                   int reverse, const void *x, void *gates, void *cells, const void *h0,
                   const void *c0, void *output, void *hn, void *cn, int threads);

/* The way back through time; of `layer` the input weights and biases are not read.
 * gates, cells, h0, c0, output: as `symrnn_forward` left them or took them.
 * d_output (R, H), d_hn, d_cn (B, H): the gradients of its results; null for zeros.
 * d_gates: (R, G·H), that of the input's part of the gates.
 * d_hidden: (R, G·H), of a GRU that of the hidden part, which differs in n; else null.
 * d_h0, d_c0: (B, H), those of the state before; d_c0 null but for an LSTM. */
int symrnn_backward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                    int reverse, const void *gates, const void *cells, const void *h0,
                    const void *c0, const void *output, const void *d_output, const void *d_hn,
                    const void *d_cn, void *d_gates, void *d_hidden, void *d_h0, void *d_c0,
                    int threads);

/* y = sigmoid(x) (kind 0) or tanh(x) (kind 1), n numbers of float or double.
 *
 * In float within 3 units in the last place, tanh within 2; below -87.33 a sigmoid is some number
 * from 0 to 1.3e-38. In double as accurate as the C library. The kernels of a layer use the same. */
int symrnn_activate(int kind, int dtype, int64_t n, const void *x, void *y);

/* Of a GPU: its multiprocessors, and the shared memory in bytes that a block of threads can have. */
typedef struct symrnn_gpu {
    int32_t multiprocessors, shared_bytes;
} symrnn_gpu;

/* How a layer is laid out on a GPU, its hidden weights shared out among the multiprocessors. */
typedef struct symrnn_fit {
    int32_t blocks;            /* of threads, one on a multiprocessor */
    int32_t squares;           /* the squares along a side that each gate's matrix is cut into */
    int32_t together;          /* the gates that a block has its square of */
    int32_t columns;           /* the sequences that are multiplied at once */
    int64_t shared_bytes;      /* of a block: its weights, and what they are multiplied by */
    int64_t workspace_bytes;   /* of symrnn_cuda_forward or symrnn_cuda_backward */
} symrnn_fit;

/* Whether, and how, a layer whose gates are all symmetric runs on such a GPU with its weights on the
 * chip: SYMRNN_OK, or SYMRNN_FIT where they do not fit. See schedule.h for the rule.
 * dtype: of the packed weights; float, bfloat16 or half.  backward: 0, or 1 for the way back. */
int symrnn_fit_gpu(const symrnn_gpu *gpu, int mode, int dtype, int64_t side, int64_t batch,
                   int backward, symrnn_fit *fit);

/* A hash of 16 numbers of 4 bytes spread over each array, or of all where it is shorter: it tells
 * whether most of an array was written to since.
 * arrays: (count), each aligned to 4 bytes.  bytes: (count), their sizes. */
uint64_t symrnn_sample(int64_t count, const void *const *arrays, const int64_t *bytes);

/* Reads so many bytes, `repeat` times, as fast as it can: what a product is measured against.
 * sum: (1), something that depends on every byte. */
int symrnn_read(const void *from, int64_t bytes, int repeat, int threads, float *sum);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
