// Symmetric matrices given by their upper triangles, which free blocks make staircases: packed without
// ever being dense, and the adjoint of that for their gradients.

#include <algorithm>

#include "jobs.h"

namespace symrnn {
namespace {

// Where row i of a triangle begins, less its first column, where i's block begins: entry (i, j) of it
// is at row_start + j.
int64_t row_start(const Triangles &of, int64_t i) {
    return staircase(of.block, of.side, i) - block_start(of.block, i);
}

// Whether all of a tile is in a free block, if any is: where blocks are whole tiles.
bool whole_tiles(const Triangles &of) { return of.block % SIDE == 0; }

// One panel of 16 rows after another, on all threads; each entry is computed alone, so no bit
// depends on how many threads there are.
template <typename OfPanel>
struct ByPanels {
    Triangles shape;
    int shares;
    OfPanel work;

    bool prepare() { return true; }

    void run(Team &team) {
        const int64_t tiles = tiles_of(shape.side);
        const int symmetric = shape.symmetric();
        team.each(shares, [&](int share) {
            const int64_t last = first_panel(symmetric, tiles, tiles, share + 1, shares);
            for (int64_t p = first_panel(symmetric, tiles, tiles, share, shares); p < last; ++p)
                work(Panel(symmetric, tiles, p));
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

    void operator()(const Panel &panel) const {
        int64_t at = panel_start(shape.symmetric(), panel.last, shape.gates, panel.index);
        for (int g = 0; g < shape.gates; ++g)
            for (int64_t q = panel.first; q < panel.last; ++q, at += TILE)
                tile(from + g * gate_stride, panel, q, at);
    }

    // The tile of the rows of q and the columns of the panel.
    void tile(const T *triangle, const Panel &panel, int64_t q, int64_t at) const {
        alignas(64) T room[TILE];
        const int64_t side = shape.side, i = panel.index * SIDE, j = q * SIDE;
        T *const place = to_dtype == SYMRNN_BFLOAT16 ? room : reinterpret_cast<T *>(to) + at;
        const bool free = q < panel.mirrored;
        if (std::max(i, j) + SIDE > side || (free && !whole_tiles(shape))) {
            by_entries(triangle, j, i, place);
        } else if (free) {
            // The rows of a block are as long as each other.
            const T *const source = triangle + row_start(shape, j) + i;
            kernels<T>().transpose(source, side - block_start(shape.block, j), place);
        } else {
            // Row r of a symmetric matrix is its column r, which is what a tile stores.
            for (int64_t r = 0; r < SIDE; ++r) {
                const T *const source = triangle + row_start(shape, i + r) + j;
                for (int64_t k = 0; k < SIDE; ++k) place[r * SIDE + k] = scale * source[k];
            }
        }
        if (to_dtype == SYMRNN_BFLOAT16) kernels<T>().narrow(room, to + at * 2);
    }

    void by_entries(const T *triangle, int64_t first_row, int64_t first_column, T *place) const {
        int64_t start_of_column[SIDE];
        for (int64_t k = 0; k < SIDE; ++k)
            start_of_column[k] = row_start(shape, std::min(first_column + k, shape.side));
        for (int64_t r = 0; r < SIDE; ++r) {
            const int64_t row = std::min(first_row + r, shape.side), start = row_start(shape, row);
            const int64_t block = block_start(shape.block, row);
            for (int64_t k = 0; k < SIDE; ++k) {
                const int64_t column = first_column + k;
                const bool free = column >= block && column - block < shape.block;
                place[k * SIDE + r] = row >= shape.side || column >= shape.side ? T(0)
                                      : free            ? triangle[start + column]
                                      : column > row    ? scale * triangle[start + column]
                                                        : scale * triangle[start_of_column[k] + row];
            }
        }
    }
};

template <typename T>
struct AdjointPanel {
    Triangles shape;
    const T *from;
    T scale;
    T *to;

    void operator()(const Panel &panel) const {
        const int64_t side = shape.side, numel = staircase(shape.block, side, side);
        for (int g = 0; g < shape.gates; ++g)
            for (int64_t q = panel.first; q < panel.last; ++q)
                tile(from + g * side * side, to + g * numel, panel, q);
    }

    // Entries (i + r, j + k) from the tile at (i, j) and the one mirrored in the diagonal.
    void tile(const T *w, T *triangle, const Panel &panel, int64_t q) const {
        const int64_t side = shape.side, i = panel.index * SIDE, j = q * SIDE;
        const bool free = q < panel.mirrored;
        if (free || j + SIDE > side) {
            for (int64_t row = i; row < i + SIDE && row < side; ++row) {
                T *const out = triangle + row_start(shape, row);
                const int64_t block = block_start(shape.block, row), end = std::min(j + SIDE, side);
                int64_t column = std::max(j, block);
                for (; column < end && column - block < shape.block; ++column)
                    out[column] = w[row * side + column];
                for (; column < end; ++column)
                    out[column] = scale * (w[row * side + column] + w[column * side + row]);
            }
            return;
        }
        alignas(64) T mirrored[TILE];
        kernels<T>().transpose(w + j * side + i, side, mirrored);
        for (int64_t r = 0; r < SIDE; ++r) {
            const T *const source = w + (i + r) * side + j;
            T *const out = triangle + row_start(shape, i + r) + j;
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
        return pack_int8({shape.symmetric(), shape.side, shape.side, shape.gates}, pack_floats, to,
                         threads);
    }
    const int shares = shares_for(threads);
    ByPanels<PackPanel<T>> job{
        shape, shares,
        {shape, static_cast<const T *>(from), gate_stride, T(scale), to_dtype,
         static_cast<char *>(to)}};
    return run_job(job, shares);
}

template <typename T>
int triangle_adjoint(const Triangles &shape, const void *from, double scale, void *to,
                     int threads) {
    const int shares = shares_for(threads);
    ByPanels<AdjointPanel<T>> job{
        shape, shares,
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
