/* Recurrent layers whose weights are packed once and read fast: the C interface.
 *
 * The caller allocates every array. Arrays are dense and row-major; the shape stands beside each
 * pointer, such as (R, G·H). Nothing is stored between calls but scratch memory, so any number of
 * threads may call at once, each with its own arrays.
 *
 * Letters: T time steps, B batch size, B_t sequences that run at step t, R rows (the sum of all
 * B_t; T·B where all sequences have the same length), I input size, H hidden size, G gates (LSTM
 * 4: i f g o; GRU 3: r z n; RNN 1).
 *
 * Packed matrices. Each gate has a matrix of rows × columns. It is cut into tiles of 16 × 16; the
 * last ones are padded with zeros. A tile is stored column by column. A "panel" is a row of tiles,
 * one gate after the other. Of a symmetric matrix (W = Wᵀ) a panel is a column of tiles, from the
 * diagonal down: each pair of equal entries is stored once, but for the tiles on the diagonal.
 * layout.h has the index arithmetic.
 *
 * Free blocks. A matrix may be symmetric but for blocks along its diagonal, of f × f tiles, which are
 * stored whole. `symmetric`, wherever it stands below, is 0 of full matrices, else this f. Tiles on
 * the diagonal are stored whole anyway, so it is 1 of every symmetric matrix. Of 5 × 5 tiles and
 * f = 2, where capital letters are free:
 *
 *     A B c d e        stored: A B C D, of the second block F G H I, of the last J;
 *     C D f g h        and below them each small letter once, as the tile on the left
 *     c f F G i
 *     d g H I j        (equal letters are transposes)
 *     e h i j J
 *
 * int8. An entry of a full matrix is W[i,j] = s[i] · Q[i,j], of a symmetric one s[i] · s[j] · Q[i,j],
 * which keeps it symmetric; |Q| ≤ 127. A vector x is rounded at each product: z[j] = x[j], or of a
 * symmetric matrix s[j] · x[j]; a = max |z|; u[j] = z[j] · (127 / a) to the nearest integer, ties to
 * even; and then y[i] = (Σ Q[i,j] · u[j]) · (s[i] · (a / 127)). The sum is exact and each other
 * operation rounded in float, so no bit of a product depends on the processor or on threads. A vector
 * below 1e-30 is zero; an infinity or NaN makes NaNs of all y.
 *
 * Every function returns SYMRNN_OK or a status below; `symrnn_message` says it in words.
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

/* The version of this interface. A caller compiled for another one must stop. */
#define SYMRNN_INTERFACE 10

enum symrnn_status {
    SYMRNN_OK = 0,
    SYMRNN_NULL = 1,      /* a pointer that must not be null is */
    SYMRNN_SIZE = 2,      /* a size is out of range or contradicts another, or an address is not
                             aligned */
    SYMRNN_DTYPE = 3,     /* a dtype that is unknown, or not allowed here */
    SYMRNN_MODE = 4,      /* an unknown kind of layer */
    SYMRNN_LENGTHS = 5,   /* lengths grow, do not begin with B, or fall below one */
    SYMRNN_MAP = 6,       /* a map with an index out of range, or maps in some terms only */
    SYMRNN_MEMORY = 7,    /* out of memory */
    SYMRNN_CPU = 8,       /* kernels that this processor, or this build, does not have */
    SYMRNN_FIT = 9,       /* a layer that does not fit a GPU, or that its kernels cannot run */
    SYMRNN_GPU = 10,      /* a CUDA error */
    /* of symrnn_runtime.h */
    SYMRNN_FILE = 11,     /* a file that cannot be read, or is no model */
    SYMRNN_TOKEN = 12,    /* a token that the model does not know */
    SYMRNN_LOGITS = 13,   /* logits of which there is no softmax: NaN, +inf, or all -inf */
    SYMRNN_TEXT = 14      /* text that cannot be encoded, or a model that reads or writes none */
};

enum symrnn_dtype {
    SYMRNN_FLOAT = 0,
    SYMRNN_DOUBLE = 1,
    SYMRNN_BFLOAT16 = 2,  /* on CPUs for packed matrices only; accumulated in float */
    SYMRNN_HALF = 3,      /* IEEE 754 binary16; on GPUs only */
    SYMRNN_INT8 = 4,      /* on CPUs for packed matrices of the forward pass only */
    SYMRNN_BFLOAT16_BOTH = 5 /* of a product on CPUs: matrices packed as bfloat16, and each vector
                                rounded to it before it is multiplied by them, but not by a skew part;
                                numbers below 2⁻¹²⁶ may count as zeros */
};

enum symrnn_mode { SYMRNN_LSTM = 0, SYMRNN_GRU = 1, SYMRNN_RNN_TANH = 2, SYMRNN_RNN_RELU = 3 };

/* A sparse linear map: to[i] = Σ scale[k] · from[index[k]] over k in start[i] … start[i+1] - 1. */
typedef struct symrnn_map {
    int32_t from, to;       /* the lengths of the vectors */
    const int32_t *start;   /* (to + 1) */
    const int32_t *index;   /* (start[to]) */
    const float *scale;     /* (start[to]) */
} symrnn_map;

/* A packed matrix for each of some gates, and the maps before and after it:
 * y[gate] += outputs(M[gate] · inputs(x)). */
typedef struct symrnn_term {
    int32_t symmetric;                 /* 0, or f ≥ 1: M = Mᵀ but for free blocks of f × f tiles */
    int32_t rows, columns;             /* of each matrix */
    int32_t gates;                     /* a bit mask: bit g for gate g */
    const void *packed;                /* (symrnn_packed_length), aligned to 16 bytes, better to 64 */
    const symrnn_map *inputs;          /* from the length of x to `columns`; null: the identity */
    const symrnn_map *outputs;         /* from `rows` to H; null: the identity */
    const symrnn_map *inputs_adjoint;  /* the transposed maps, for products with Wᵀ (the backward */
    const symrnn_map *outputs_adjoint; /* pass); null exactly where the map is */
} symrnn_term;

/* A skew part U Vᵀ - V Uᵀ of low rank, of square matrices without maps. */
typedef struct symrnn_skew {
    int32_t rank;       /* R ≥ 1: U and V are H × R */
    int32_t gates;      /* a bit mask */
    const void *packed; /* [U V] (H × 2R) of these gates, packed as full matrices, aligned so too:
                           of the product's dtype, but float if that is int8 */
} symrnn_skew;

/* The matrices W of G gates (H × C), each a sum of terms, and perhaps a skew part. Either all terms
 * have maps or none has; without maps each gate has exactly one term. */
typedef struct symrnn_product {
    int32_t dtype;     /* of the packed matrices, or SYMRNN_BFLOAT16_BOTH */
    int32_t gates;     /* G, 1 to 4 */
    int32_t rows;      /* H */
    int32_t columns;   /* C: H for hidden weights, I for input weights */
    int32_t terms;     /* 1 to 8 */
    const symrnn_term *term; /* (terms) */
    const symrnn_skew *skew; /* what is added to the terms of some gates; or null */
} symrnn_product;

int symrnn_interface(void);             /* SYMRNN_INTERFACE of this build */
const char *symrnn_message(int status); /* never null */

/* The kernels in use: "avx512", "avx2" or "portable"; at first the best that the processor can
 * run. `symrnn_use_cpu` chooses others for the whole process, or returns SYMRNN_CPU. */
const char *symrnn_cpu(void);
int symrnn_use_cpu(const char *name);

/* `threads`, an argument below, is the size of the thread team, the caller included (clamped to
 * 1 … 64). It decides how sums are split, and so every bit of a result; how many threads come does
 * not. The library has threads of its own for it, which sleep between calls, in children made by
 * fork too. A call never waits for a thread that the system does not run: its work is divided into
 * shares that are claimed, and the caller claims what is left. */

/* The size of the packed matrices of so many gates, in elements of the dtype; if negative, minus a
 * status. Of int8 it has room for the scales, and at most 65536 columns are allowed. */
int64_t symrnn_packed_length(int symmetric, int64_t rows, int64_t columns, int gates, int dtype);

/* Pack matrices. Of symmetric ones the free blocks are read, which with f = 1 are the tiles on the
 * diagonal, and what is right of them.
 * from: float or double; matrix g begins at from + g · gate_stride, and its row r at r · row_stride
 *     from there, strides in elements.
 * to: (symrnn_packed_length), aligned to 64 bytes. to_dtype: that of `from`, or bfloat16 or int8
 *     from float. */
int symrnn_pack(int symmetric, int64_t rows, int64_t columns, int gates,
                int from_dtype, const void *from, int64_t gate_stride, int64_t row_stride,
                int to_dtype, void *to, int threads);

/* Pack symmetric matrices from their upper triangles, row after row, which are never expanded.
 * block: b, of free blocks of b × b entries along the diagonal; the last may be smaller. A divisor or
 *     a multiple of 16, or at least `side`. The packed matrices have symmetric = ⌈b / 16⌉.
 * from: float or double; the numbers of gate g from from + g · gate_stride on. Row i has the entries
 *     from the first column of its block on, i / b · b. Those outside the blocks are multiplied by
 *     `scale`. With b = 1 there are side·(side+1)/2 numbers, else more.
 * to: as in symrnn_pack. */
int symrnn_pack_triangles(int64_t side, int64_t block, int gates, int from_dtype, const void *from,
                          int64_t gate_stride, double scale, int to_dtype, void *to, int threads);

/* The adjoint: from the gradients of the whole matrices those of the triangles. Entry (i, j) of a
 * triangle is scale · (W[i,j] + W[j,i]), in a free block W[i,j].
 * from: (gates, side, side), float or double.  to: the triangles, adjacent, of the same dtype. */
int symrnn_triangle_adjoint(int64_t side, int64_t block, int gates, int dtype, const void *from,
                            double scale, void *to, int threads);

/* Unpack to dense (gates, rows, columns): double from double, else float. */
int symrnn_unpack(int symmetric, int64_t rows, int64_t columns, int gates,
                  int from_dtype, const void *from, void *to);

/* y (B, G·H) = x (B, C) · Wᵀ or, if transposed and not int8, y (B, C) = x (B, G·H) · W. Computed
 * `repeat` times, for measuring. Its scratch memory grows up to B = 64, and no further. */
int symrnn_multiply(const symrnn_product *w, int transposed, int64_t batch,
                    const void *x, void *y, int repeat, int threads);

/* A GEMM: out (M, N) = a · b + bias, in float or double.
 * a: (M, K), or (K, M) if a_transposed.  b: (K, N), or (N, K) if b_transposed.  Not read if K = 0.
 * bias: (N), added to each row; or null. */
int symrnn_matmul(int dtype, int64_t m, int64_t n, int64_t k, const void *a, int a_transposed,
                  const void *b, int b_transposed, const void *bias, void *out, int threads);

/* A layer in one direction. Arrays are double if the weights are, else float. */
typedef struct symrnn_layer {
    int32_t mode;
    const symrnn_product *hh;  /* the hidden weights, G matrices H × H */
    const symrnn_product *ih;  /* the input weights, G matrices H × I, of the same dtype; or null */
    const void *bias;          /* (G·H), added to the gates, read only with ih; or null */
    const void *bias_n;        /* (H), a GRU's hidden bias of n; or null */
    const void *state_mask;    /* (B, H), what h is multiplied by before the hidden weights, the same
                                  at every step, and for a GRU there alone; or null, for ones */
} symrnn_layer;

/* The forward pass over T ≥ 1 steps. If B = 0 nothing is read or written. A pointer may be null
 * only where that is said.
 *
 * lengths: (T), the B_t; the first is B, and they never grow. Null: all are B.
 * reverse: whether the last step is run first.
 * x: (R, I), the input; null without layer->ih.
 * gates: (R, G·H). On entry, without layer->ih: W_ih·x + b, computed by the caller. On return: the
 *     gate activations, for the backward pass. With layer->ih, null if those are not wanted.
 * saved_cells: (R, H), on return, for the backward pass: an LSTM's cell states, a GRU's
 *     W_n·h + b_n. Null if they are not wanted, and for an RNN.
 * h0, c0: (B, H), the initial state; null for zeros. c0 is read for an LSTM only.
 * output: (R, H), the hidden state after each step.
 * hn, cn: (B, H), the final state. cn is written for an LSTM only, else null. */
int symrnn_forward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                   int reverse, const void *x, void *gates, void *saved_cells, const void *h0,
                   const void *c0, void *output, void *hn, void *cn, int threads);

/* A stack of layers, one above the other, that goes through its sequences a few steps at a time. */
typedef struct symrnn_stream {
    int32_t layers;             /* L ≥ 1 */
    const symrnn_layer *layer;  /* (L), from the lowest on: each with input weights, of one mode and H */
    void *h, *c;                /* (L, B, H), the state; c is for an LSTM only, else null */
} symrnn_stream;

/* The next T ≥ 1 steps: symrnn_forward of each layer, from the state to the state.
 *
 * x: (T, B, I), the input of the lowest layer.  output: (T, B, H), that of the highest.
 * between: (T, B, H), scratch memory; null for one layer. */
int symrnn_advance(const symrnn_stream *stream, int64_t steps, int64_t batch, const void *x,
                   void *between, void *output, int threads);

/* The backward pass (BPTT). The layer's input weights and biases are not read. Not of int8.
 *
 * gates, saved_cells, h0, c0, output: those of the forward pass.
 * d_output (R, H), d_hn, d_cn (B, H): the gradients of its results; null for zeros.
 * d_gates: (R, G·H), the gradient of W_ih·x + b, the pre-activations' input part.
 * d_hidden: (R, G·H), the gradient of W_hh·h, for a GRU, where it differs in n; else null.
 * d_h0, d_c0: (B, H), the gradients of the initial state. d_c0 is for an LSTM only, else null. */
int symrnn_backward(const symrnn_layer *layer, int64_t steps, int64_t batch, const int64_t *lengths,
                    int reverse, const void *gates, const void *saved_cells, const void *h0,
                    const void *c0, const void *output, const void *d_output, const void *d_hn,
                    const void *d_cn, void *d_gates, void *d_hidden, void *d_h0, void *d_c0,
                    int threads);

/* y = sigmoid(x) (kind 0) or tanh(x) (kind 1) of n floats or doubles, as a layer computes them.
 *
 * In float sigmoid is within 3 ulp and tanh within 2; below -87.33 a sigmoid is anything from 0 to
 * 1.3e-38. In double both are as accurate as the C library. */
int symrnn_activate(int kind, int dtype, int64_t n, const void *x, void *y);

/* A GPU: its multiprocessors, and the bytes of shared memory that a thread block can have. */
typedef struct symrnn_gpu {
    int32_t multiprocessors, shared_bytes;
} symrnn_gpu;

/* Which kernel runs a layer on a GPU. */
enum {
    SYMRNN_KERNEL_ANY = 0,     /* by rows where these fit, else packed; a backward pass whose rows
                                * shared memory alone does not hold is rather packed */
    SYMRNN_KERNEL_ROWS = 1,    /* a thread block has whole rows of the full matrices */
    SYMRNN_KERNEL_PACKED = 2,  /* a thread block has squares of the packed ones: half the memory */
    SYMRNN_KERNEL_WAVEFRONT = 3  /* two layers of H units in one launch, by rows: of
                                  * symrnn_cuda_forward_wavefront and its backward pass */
};

/* How the hidden weights of a layer are distributed over a GPU's multiprocessors. */
typedef struct symrnn_fit {
    int32_t kernel;            /* which kernel; not SYMRNN_KERNEL_ANY */
    int32_t blocks;            /* thread blocks, at most one on a multiprocessor */
    int32_t units;             /* by rows: of which, in each layer, a thread block has the rows; else 0 */
    int32_t squares;           /* packed: square blocks of weights along a side of each gate's
                                * matrix; else 0 */
    int32_t together;          /* packed: gates of which a thread block has the same square; else 0 */
    int32_t columns;           /* sequences that are multiplied at once */
    int64_t shared_bytes;      /* of a thread block: its weights, but for those that registers hold,
                                * and operands or sums */
    int64_t workspace_bytes;   /* of symrnn_cuda_forward or symrnn_cuda_backward */
} symrnn_fit;

/* Whether a layer whose gates are all symmetric runs on a GPU with its weights on the chip, and
 * how they are distributed: SYMRNN_OK, or SYMRNN_FIT where they do not fit. rows_schedule.h and
 * schedule.h have the rules.
 * kernel: which may run it, a value of the enumeration above; SYMRNN_SIZE for any other.
 * dtype: of the packed weights; float, bfloat16 or half.  backward: 1 for the backward pass, else 0. */
int symrnn_fit_gpu(const symrnn_gpu *gpu, int kernel, int mode, int dtype, int64_t side,
                   int64_t batch, int backward, symrnn_fit *fit);

/* Asks the operating system for huge pages under an array, where it has such and leaves the choice to
 * programs (Linux). A step reads all packed weights, one page after the other, and a page of 4 KiB costs
 * it a search for its address. Numbers stay as they are, nothing is promised, and there is no error.
 * from: (bytes), of which whole pages of 2 MiB count.
 * now: whether what is written there already is moved at once; else what is written from now on. */
void symrnn_prefer_huge_pages(const void *from, int64_t bytes, int now);

/* A hash of 16 numbers of 4 bytes spread over each array, or of all where it is shorter: it tells
 * whether most of an array was written to since.
 * arrays: (count), each aligned to 4 bytes.  bytes: (count), their sizes. */
uint64_t symrnn_sample(int64_t count, const void *const *arrays, const int64_t *bytes);

/* Reads so many bytes, `repeat` times, as fast as it can: the memory bandwidth that bounds a product.
 * sum: (1), a number that depends on every byte. */
int symrnn_read(const void *from, int64_t bytes, int repeat, int threads, float *sum);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
