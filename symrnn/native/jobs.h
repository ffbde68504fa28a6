// The jobs behind the functions of symrnn.h, whose arguments are already checked.

#ifndef SYMRNN_JOBS_H
#define SYMRNN_JOBS_H

#include "product.h"
#include "symrnn.h"
#include "threads.h"

namespace symrnn {

// The arguments of symrnn_forward and symrnn_backward, as symrnn.h has them.
struct Call {
    const symrnn_layer &layer;
    int64_t steps, batch;
    const int64_t *lengths;
    bool reverse;
    int threads;
};

struct ForwardArrays {
    const void *x;
    void *gates, *saved_cells;
    const void *h0, *c0;
    void *output, *hn, *cn;
};

struct BackwardArrays {
    const void *gates, *saved_cells, *h0, *c0, *output, *d_output, *d_hn, *d_cn;
    void *d_gates, *d_hidden, *d_h0, *d_c0;
};

template <typename T>
int forward(const Call &call, const ForwardArrays &arrays);

template <typename T>
int backward(const Call &call, const BackwardArrays &arrays);

template <typename T>
int multiply(const symrnn_product &w, bool transposed, int64_t batch, const void *x, void *y,
             int repeat, int threads);

// The arguments of symrnn_matmul.
struct DenseProduct {
    int64_t m, n, k;
    const void *a;
    bool a_transposed;
    const void *b;
    bool b_transposed;
    const void *bias;
    void *out;
};

template <typename T>
int matmul(const DenseProduct &of, int threads);

// Sizes that symrnn_pack and symrnn_unpack share.
struct Matrices {
    int symmetric;  // as symrnn.h has it
    int64_t rows, columns;
    int gates;
};

template <typename T>
int pack(const Matrices &shape, const void *from, int64_t gate_stride, int64_t row_stride,
         int to_dtype, void *to, int threads);

// Packed matrices of float to int8.
int round_to_int8(const Matrices &shape, const float *tiles, void *to, int threads);

template <typename T>
void unpack(const Matrices &shape, int from_dtype, const void *from, void *to);

// The matrices of symrnn_pack_triangles and symrnn_triangle_adjoint.
struct Triangles {
    int64_t side, block;
    int gates;

    int symmetric() const { return static_cast<int>(tiles_of(block)); }  // of the packed matrices
};

template <typename T>
int pack_triangles(const Triangles &shape, const void *from, int64_t gate_stride, double scale,
                   int to_dtype, void *to, int threads);

template <typename T>
int triangle_adjoint(const Triangles &shape, const void *from, double scale, void *to, int threads);

// Runs a job, `prepare` and then `run`, with a thread team. Returns a status.
template <typename Job>
int run_job(Job &job, int threads) {
    const bool prepared = job.prepare();
    if (prepared) {
        Team team(threads);
        job.run(team);
    }
    scratch.trim();
    shared_scratch.trim();
    return prepared ? SYMRNN_OK : SYMRNN_MEMORY;
}

// Packs to int8 what `pack_floats` packs to the float array that it is given. Returns a status.
template <typename Pack>
int pack_int8(const Matrices &shape, const Pack &pack_floats, void *to, int threads) {
    const auto [symmetric, rows, columns, gates] = shape;
    Scratch tiles;
    const int64_t bytes = packed_bytes(SYMRNN_FLOAT, symmetric, rows, columns, gates);
    float *const at = reinterpret_cast<float *>(tiles.get(bytes));
    if (!at) return SYMRNN_MEMORY;
    if (const int bad = pack_floats(at)) return bad;
    return round_to_int8(shape, at, to, threads);
}

}  // namespace symrnn

#endif
