// Packs dense matrices into tiles, and unpacks them.

#include "jobs.h"

namespace symrnn {
namespace {

template <typename T>
struct Packing {
    Matrices shape;
    const T *from;
    int64_t gate_stride, row_stride;
    int to_dtype;
    char *to;
    int shares;

    bool prepare() { return true; }

    void run(Team &team) {
        const int64_t panels = tiles_of(shape.rows), tile_columns = tiles_of(shape.columns);
        team.each(shares, [&](int share) {
            const int64_t last =
                first_panel(shape.symmetric, panels, tile_columns, share + 1, shares);
            for (int64_t panel = first_panel(shape.symmetric, panels, tile_columns, share, shares);
                 panel < last; ++panel) {
                const Panel of(shape.symmetric, tile_columns, panel);
                int64_t at = panel_start(shape.symmetric, tile_columns, shape.gates, panel);
                for (int g = 0; g < shape.gates; ++g)
                    for (int64_t q = of.first; q < of.last; ++q, at += TILE)
                        tile(from + g * gate_stride, of, q, at);
            }
        });
    }

    void tile(const T *matrix, const Panel &panel, int64_t q, int64_t at) {
        const auto [symmetric, rows, columns, gates] = shape;
        alignas(64) T dense[TILE], columns_first[TILE];
        // What is mirrored is read above the diagonal: its row r is its column r, as a tile stores it.
        const bool free = symmetric && q < panel.mirrored, mirrored = symmetric && !free;
        const int64_t i = (free ? q : panel.index) * SIDE, j = (free ? panel.index : q) * SIDE;
        const T *source = matrix + i * row_stride + j;
        int64_t stride = row_stride;
        if (i + SIDE > rows || j + SIDE > columns) {
            for (int64_t r = 0; r < SIDE; ++r)
                for (int64_t k = 0; k < SIDE; ++k) {
                    const bool inside = i + r < rows && j + k < columns;
                    dense[r * SIDE + k] = inside ? source[r * row_stride + k] : T(0);
                }
            source = dense;
            stride = SIDE;
        }
        T *const place = to_dtype == SYMRNN_BFLOAT16 ? columns_first : reinterpret_cast<T *>(to) + at;
        if (mirrored)
            for (int64_t r = 0; r < SIDE; ++r)
                memcpy(place + r * SIDE, source + r * stride, SIDE * sizeof(T));
        else kernels<T>().transpose(source, stride, place);
        if (to_dtype == SYMRNN_BFLOAT16) kernels<T>().narrow(columns_first, to + at * 2);
    }
};

}  // namespace

template <typename T>
int pack(const Matrices &shape, const void *from, int64_t gate_stride, int64_t row_stride,
         int to_dtype, void *to, int threads) {
    if (to_dtype == SYMRNN_INT8) {
        const auto pack_floats = [&](float *tiles) {
            return pack<T>(shape, from, gate_stride, row_stride, SYMRNN_FLOAT, tiles, threads);
        };
        return pack_int8(shape, pack_floats, to, threads);
    }
    const int shares = shares_for(threads);
    Packing<T> job{shape,      static_cast<const T *>(from), gate_stride, row_stride,
                   to_dtype, static_cast<char *>(to),      shares};
    return run_job(job, shares);
}

template <typename T>
void unpack(const Matrices &shape, int from_dtype, const void *packed, void *dense) {
    const auto [symmetric, rows, columns, gates] = shape;
    const char *const from = static_cast<const char *>(packed);
    T *const to = static_cast<T *>(dense);
    const Int8Matrices int8(packed, symmetric, rows, columns, gates);
    alignas(64) T widened[TILE];
    int64_t at = 0;
    for (int64_t panel = 0; panel < tiles_of(rows); ++panel)
        for (int g = 0; g < gates; ++g) {
            const Panel of(symmetric, tiles_of(columns), panel);
            for (int64_t q = of.first; q < of.last; ++q, at += TILE) {
                const bool mirrored = symmetric && q >= of.mirrored;
                const T *tile = reinterpret_cast<const T *>(from) + at;
                if (from_dtype == SYMRNN_BFLOAT16) kernels<T>().widen(from + at * 2, widened);
                if (from_dtype == SYMRNN_INT8) {
                    const float *const scale = int8.scale + g * tiles_of(rows) * SIDE;
                    for (int64_t k = 0; k < SIDE; ++k)
                        for (int64_t r = 0; r < SIDE; ++r)
                            widened[k * SIDE + r] =
                                int8.tiles[at + k / 4 * 64 + r * 4 + k % 4] *
                                (symmetric ? scale[q * SIDE + r] * scale[panel * SIDE + k]
                                           : scale[panel * SIDE + r]);
                }
                if (from_dtype == SYMRNN_BFLOAT16 || from_dtype == SYMRNN_INT8) tile = widened;
                for (int64_t k = 0; k < SIDE; ++k)
                    for (int64_t r = 0; r < SIDE; ++r) {
                        const int64_t row = (symmetric ? q : panel) * SIDE + r;
                        const int64_t column = (symmetric ? panel : q) * SIDE + k;
                        if (row >= rows || column >= columns) continue;
                        T *const matrix = to + g * rows * columns;
                        matrix[row * columns + column] = tile[k * SIDE + r];
                        if (mirrored) matrix[column * columns + row] = tile[k * SIDE + r];
                    }
            }
        }
}

template int pack<float>(const Matrices &, const void *, int64_t, int64_t, int, void *, int);
template int pack<double>(const Matrices &, const void *, int64_t, int64_t, int, void *, int);
template void unpack<float>(const Matrices &, int, const void *, void *);
template void unpack<double>(const Matrices &, int, const void *, void *);

}  // namespace symrnn
