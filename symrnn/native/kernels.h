// What the kernels for each processor offer to the rest: a table of functions.

#ifndef SYMRNN_KERNELS_H
#define SYMRNN_KERNELS_H

#include <stdint.h>

namespace symrnn {

// Some panels of packed matrices times a blocked vector: y[gate] += M[gate] · x, or with the
// transposed matrices y += M[gate]ᵀ · x[gate].
// `gate` gives for each of the packed gates its place; x and y move by *_gate for each place (0
// where all gates share one vector). A tile of a blocked vector is `stride` numbers long, of which
// the first 16 · batch are used.
struct Multiplication {
    const void *packed;
    bool symmetric, transposed;
    bool far;  // whether tiles are better asked for in advance
    int gates;
    const int *gate;
    int64_t columns;      // in tiles
    int64_t first, last;  // panels
    int64_t batch, stride;
    const void *x;
    void *y;
    int64_t x_gate, y_gate;
};

// A sum of blocked vectors: what each share of the work has added up, for some of the tiles.
struct Parts {
    static constexpr int MOST = 64;
    int count;
    struct {
        const void *at;       // where tile 0 would be
        int64_t first, last;  // tiles
    } part[MOST];
    int64_t stride, gate;     // numbers between tiles, and between gates
};

// Some tiles of hidden units of one step of B_t sequences. Rows are taken one after another, tile by
// tile, as they lie in the dense arrays.
struct ForwardSlice {
    int mode;
    int64_t side;               // H
    int64_t first, last;        // tiles
    int64_t batch;              // B_t
    int64_t ahead;              // rows from this step to the next in the order of the run, or 0
    const Parts *parts;         // the hidden product
    const Parts *input_parts;   // the input's, beginning with the step's first row; or null
    const void *bias;           // (G·H) or null
    const void *bias_n;         // (H) or null
    void *gates;                // (B_t, G·H), in and out; or null
    bool gates_given;           // whether `gates` holds the input's part
    void *cells;                // (B_t, H) or null
    void *h, *c;                // the blocked state
    int64_t stride;             // numbers between its tiles
    void *output;               // (B_t, H)
};

struct BackwardSlice {
    int mode;
    int64_t side;
    int64_t first, last;
    int64_t batch, before;            // B_t, and of the step before in the order of the run, or 0
    const void *gates, *cells;        // (B_t, G·H), (B_t, H)
    const void *h_before, *c_before;  // (before, H), rows of that step; or null
    const void *h0, *c0;              // (B, H), or null
    const void *d_output;             // (B_t, H), or null
    void *d_gates;                    // (B_t, G·H)
    void *d_hidden;                   // likewise, or null
    void *d_h, *d_c;                  // the blocked gradients of the state
    int64_t stride;                   // numbers between their tiles
    void *blocked;                    // d_hidden, blocked, for the product
    int64_t gate;                     // numbers between its gates
};

template <typename T>
struct Kernels {
    void (*multiply)(const Multiplication &);
    void (*multiply_bfloat16)(const Multiplication &);  // null but for float
    // to (16, 16) = from + Σ a[r] ⊗ b[r], of `count` rows of 16 numbers each; from may be null. The
    // strides are of the rows of from and to.
    void (*tile_product)(const T *a, const T *b, int64_t count, const T *from, int64_t from_stride,
                         T *to, int64_t to_stride);
    void (*forward)(const ForwardSlice &);
    void (*backward)(const BackwardSlice &);
    void (*activate)(int kind, int64_t n, const T *x, T *y);
    // to (16, 16) = fromᵀ, for rows that are `stride` numbers apart.
    void (*transpose)(const T *from, int64_t stride, T *to);
    void (*narrow)(const T *tile, void *to);  // to a packed tile of bfloat16; null but for float
    void (*widen)(const void *tile, T *to);
    // y += the sum of the parts of one gate: `numbers`, a multiple of 16, of each tile first … last-1.
    void (*add)(T *y, const Parts &parts, int64_t first, int64_t last, int64_t numbers);
};

struct Cpu {
    const char *name;
    const Kernels<float> *single;
    const Kernels<double> *precise;
    float (*read)(const void *from, int64_t bytes);
};

const Cpu *cpu_avx512();  // null where the build has none
const Cpu *cpu_avx2();
const Cpu *cpu_portable();

}  // namespace symrnn

#endif
