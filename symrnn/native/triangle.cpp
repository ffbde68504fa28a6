// Symmetric matrices given by their upper triangles: packed without ever being dense, and the
// adjoint of that for their gradients.

#include <algorithm>
#include <utility>

#include "jobs.h"

namespace symrnn {
namespace {

// Where row i of a triangle begins, less i: entry (i, j) of it is at row(i) + j for j ≥ i.
int64_t row_start(int64_t side, int64_t i) { return i * side - i * (i - 1) / 2 - i; }

// One panel of 16 rows after another, on all threads; each entry is computed alone, so no bit
// depends on how many threads there are.
template <typename Panel>
struct ByPanels {
    int64_t side;
    int shares;
    Panel panel;

    bool prepare() { return true; }

    void run(Team &team) {
        const int64_t tiles = tiles_of(side);
        team.each(shares, [&](int share) {
            const int64_t last = first_panel(true, tiles, tiles, share + 1, shares);
            for (int64_t p = first_panel(true, tiles, tiles, share, shares); p < last; ++p)
                panel(p);
        });
    }
};

template <typename T>
struct PackPanel {
    Triangles shape;
    const T *from;
    int64_t gate_stride;
    T scale;
    int to_dtype;
    char *to;

    void operator()(int64_t panel) const {
        const int64_t tiles = tiles_of(shape.side);
        int64_t at = panel_start(true, tiles, shape.gates, panel);
        for (int g = 0; g < shape.gates; ++g)
            for (int64_t q = panel; q < tiles; ++q, at += TILE)
                tile(from + g * gate_stride, panel, q, at);
    }

    void tile(const T *triangle, int64_t panel, int64_t q, int64_t at) const {
        alignas(64) T room[TILE];
        const int64_t side = shape.side, i = panel * SIDE, j = q * SIDE;
        T *const place = to_dtype == SYMRNN_BFLOAT16 ? room : reinterpret_cast<T *>(to) + at;
        if (panel == q || j + SIDE > side) {
            for (int64_t r = 0; r < SIDE; ++r)
                for (int64_t k = 0; k < SIDE; ++k) {
                    int64_t row = i + r, column = j + k;
                    if (row > column) std::swap(row, column);
                    place[r * SIDE + k] = column >= side  ? T(0)
                                          : row == column ? triangle[row_start(side, row) + row]
                                                          : scale * triangle[row_start(side, row) +
                                                                             column];
                }
        } else {
            // Row r of a symmetric matrix is its column r, which is what a tile stores.
            for (int64_t r = 0; r < SIDE; ++r) {
                const T *const source = triangle + row_start(side, i + r) + j;
                for (int64_t k = 0; k < SIDE; ++k) place[r * SIDE + k] = scale * source[k];
            }
        }
        if (to_dtype == SYMRNN_BFLOAT16) kernels<T>().narrow(room, to + at * 2);
    }
};

template <typename T>
struct AdjointPanel {
    Triangles shape;
    const T *from;
    T scale;
    T *to;

    void operator()(int64_t panel) const {
        const int64_t side = shape.side, numel = side * (side + 1) / 2;
        for (int g = 0; g < shape.gates; ++g)
            for (int64_t q = panel; q < tiles_of(side); ++q)
                tile(from + g * side * side, to + g * numel, panel * SIDE, q * SIDE);
    }

    // Entries (i + r, j + k) from the tile at (i, j) and the one mirrored in the diagonal.
    void tile(const T *w, T *triangle, int64_t i, int64_t j) const {
        const int64_t side = shape.side;
        if (i == j || j + SIDE > side) {
            for (int64_t row = i; row < i + SIDE && row < side; ++row) {
                T *const out = triangle + row_start(side, row);
                for (int64_t column = std::max(j, row); column < j + SIDE && column < side; ++column)
                    out[column] = row == column ? w[row * side + row]
                                                : scale * (w[row * side + column] +
                                                           w[column * side + row]);
            }
            return;
        }
        alignas(64) T mirrored[TILE];
        kernels<T>().transpose(w + j * side + i, side, mirrored);
        for (int64_t r = 0; r < SIDE; ++r) {
            const T *const source = w + (i + r) * side + j;
            T *const out = triangle + row_start(side, i + r) + j;
            for (int64_t k = 0; k < SIDE; ++k)
                out[k] = scale * (source[k] + mirrored[r * SIDE + k]);
        }
    }
};

}  // namespace

template <typename T>
int pack_triangles(const Triangles &shape, const void *from, int64_t gate_stride, double scale,
                   int to_dtype, void *to, int threads) {
    if (to_dtype == SYMRNN_INT8) {
        const auto pack_floats = [&](float *tiles) {
            return pack_triangles<T>(shape, from, gate_stride, scale, SYMRNN_FLOAT, tiles, threads);
        };
        return pack_int8({true, shape.side, shape.side, shape.gates}, pack_floats, to, threads);
    }
    const int shares = shares_for(threads);
    ByPanels<PackPanel<T>> job{
        shape.side, shares,
        {shape, static_cast<const T *>(from), gate_stride, T(scale), to_dtype,
         static_cast<char *>(to)}};
    return run_job(job, shares);
}

template <typename T>
int triangle_adjoint(const Triangles &shape, const void *from, double scale, void *to,
                     int threads) {
    const int shares = shares_for(threads);
    ByPanels<AdjointPanel<T>> job{
        shape.side, shares,
        {shape, static_cast<const T *>(from), T(scale), static_cast<T *>(to)}};
    return run_job(job, shares);
}

template int pack_triangles<float>(const Triangles &, const void *, int64_t, double, int, void *,
                                   int);
template int pack_triangles<double>(const Triangles &, const void *, int64_t, double, int, void *,
                                    int);
template int triangle_adjoint<float>(const Triangles &, const void *, double, void *, int);
template int triangle_adjoint<double>(const Triangles &, const void *, double, void *, int);

}  // namespace symrnn
