// The kernels of each processor, as a table of functions.

#ifndef SYMRNN_KERNELS_H
#define SYMRNN_KERNELS_H

#include <stdint.h>

namespace symrnn {

// Panels of packed matrices times a blocked vector: y[gate] += M[gate] · x, or transposed
// y += M[gate]ᵀ · x[gate].
// gate: the index of each packed gate. Gate g of x begins at g · x_gate, of y at g · y_gate; 0 where
// all gates share one vector. A tile of a blocked vector has `stride` elements, of which the first
// 16 · batch are used.
struct Multiplication {
    const void *packed;
    int symmetric;  // 0, or the side of a free block in tiles
    bool transposed;
    bool narrow;    // of a full matrix, if transposed: whether it is but a few tiles wide, and summed
                    // up one column of tiles after the other
    bool prefetch;  // whether to prefetch tiles for many vectors
    int64_t ahead;  // how many tiles ahead to prefetch for few; 0 for not
    int gates;
    const int *gate;
    int64_t columns;      // in tiles
    int64_t first, last;  // panels
    int64_t batch, stride;
    const void *x;
    void *y;
    int64_t x_gate, y_gate;
};

// A blocked vector as a sum of partial sums: one of each share of the work, for a range of tiles.
struct PartialSums {
    static constexpr int MAX = 64;
    int count;
    struct {
        const void *at;       // the address of tile 0
        int64_t first, last;  // tiles
    } sum[MAX];
    int64_t stride, gate;     // elements from one tile, and one gate, to the next
    const void *skew = nullptr;  // numbers to be added to the sums, blocked alike; or null

    // Of an int8 product the sums are integers, which stand for
    // (sum - offset · row_sum) · (scale · step): of gate g, row_sum and scale (rows), step (B).
    struct Integers {
        const float *scale, *step;
        const int32_t *row_sum;
    };
    bool integers = false;
    int offset;
    Integers of[4];
};

// Vectors to bytes, as symrnn.h has it, blocked alike.
struct Quantization {
    const float *x;
    const float *scale;  // (16 · tiles), what x is multiplied by before; null: 1
    int64_t tiles, batch, stride;
    uint8_t *to;
    float *step;         // (batch)
};

constexpr float INT8_LEAST = 1e-30f;  // smaller numbers are zeros: 127 / least is finite

// The pointwise part of one forward step: some tiles of hidden units of B_t sequences. Dense arrays
// are read row by row.
struct ForwardSlice {
    int mode;
    int64_t side;               // H
    int64_t first, last;        // tiles
    int64_t batch;              // B_t
    int64_t ahead;              // rows from this step to the one run next, or 0
    const PartialSums *hidden_sums;         // W_hh·h
    const PartialSums *input_sums;   // W_ih·x, from the step's first row on; or null
    const void *bias;           // (G·H) or null
    const void *bias_n;         // (H) or null
    void *gates;                // (B_t, G·H), in and out; or null
    bool gates_given;           // whether `gates` holds W_ih·x + b
    void *saved_cells;                // (B_t, H) or null
    void *h, *c;                // the blocked state
    int64_t stride;             // elements from one of its tiles to the next
    void *output;               // (B_t, H)
};

// The pointwise part of one backward step, likewise.
struct BackwardSlice {
    int mode;
    int64_t side;
    int64_t first, last;
    int64_t batch, before;            // B_t of this step, and of the one run before it, or 0
    const void *gates, *saved_cells;        // (B_t, G·H), (B_t, H)
    const void *h_before, *c_before;  // (before, H), of the step before; or null
    const void *h0, *c0;              // (B, H), or null
    const void *d_output;             // (B_t, H), or null
    void *d_gates;                    // (B_t, G·H)
    void *d_hidden;                   // likewise, or null
    void *d_h, *d_c;                  // the blocked gradients of the state
    int64_t stride;                   // elements from one of their tiles to the next
    void *blocked;                    // d_hidden, blocked: the operand of the next product
    int64_t gate;                     // elements from one of its gates to the next
};

template <typename T>
struct Kernels {
    void (*multiply)(const Multiplication &);
    void (*multiply_bfloat16)(const Multiplication &);  // null but for float
    // to (16, 16) = from + Σ a[r] ⊗ b[r] over `count` rows of 16 elements; from may be null. The
    // strides are between rows of from and of to.
    void (*tile_product)(const T *a, const T *b, int64_t count, const T *from, int64_t from_stride,
                         T *to, int64_t to_stride);
    void (*forward)(const ForwardSlice &);
    void (*backward)(const BackwardSlice &);
    void (*activate)(int kind, int64_t n, const T *x, T *y);
    // to (16, 16) = fromᵀ. stride: between the rows of from.
    void (*transpose)(const T *from, int64_t stride, T *to);
    void (*narrow)(const T *tile, void *to);  // float to a packed bfloat16 tile; null but for float
    void (*widen)(const void *tile, T *to);
    // A blocked vector to the nearest numbers of bfloat16, blocked alike; null but for float.
    void (*round)(const T *x, int64_t tiles, int64_t batch, int64_t stride, T *to);
    // y += the partial sums of one gate: the first `elements`, a multiple of 16, of each tile from
    // `first` to last-1.
    void (*add)(T *y, const PartialSums &sums, int64_t first, int64_t last, int64_t elements);
};

struct Int8Kernels {
    int offset;  // what is added to each byte of a vector
    void (*quantize)(const Quantization &);
    // Not transposed. x: bytes, of the k-th packed gate from k · x_gate on.  y: int32.
    void (*multiply)(const Multiplication &);
};

// Of processors that multiply bfloat16, for matrices and many vectors of it.
struct Bfloat16Kernels {
    // A blocked vector to bfloat16, with the offsets that it has, in elements.
    void (*round)(const float *x, int64_t tiles, int64_t batch, int64_t stride, void *to);
    void (*multiply)(const Multiplication &);  // x: bfloat16.  y: float
    void (*transpose)(const void *tile, void *to);  // a packed tile
};

struct Cpu {
    const char *name;
    const Kernels<float> *float32;
    const Kernels<double> *float64;
    const Int8Kernels *int8;
    const Bfloat16Kernels *bfloat16;  // or null
    float (*read)(const void *from, int64_t bytes);
    float (*largest)(int64_t n, const float *x);  // of n ≥ 1; NaN if one is
    // to[k] = exp((x[k] - highest) · scale)
    void (*weigh)(int64_t n, const float *x, double highest, double scale, double *to);
};

// Null where the build has none: on other processors, or with SYMRNN_WITHOUT_AVX512 or …_AVX2.
const Cpu *cpu_avx512(bool vnni, bool bf16);  // whether the processor has these extensions
const Cpu *cpu_avx2();
const Cpu *cpu_portable();

const Int8Kernels *int8_avx512vnni();
const Bfloat16Kernels *bfloat16_avx512();

}  // namespace symrnn

#endif
