// Rounds packed float matrices to int8. symrnn.h says what the numbers mean.

#include <math.h>

#include "jobs.h"

namespace symrnn {
namespace {

// The larger of two sizes; NaN if one is.
float larger(float a, float b) { return b > a || b != b ? b : a; }

// The scale with which a row of such a size reaches 127, and 1 / scale; if `root` the scale is applied
// twice, by row and by column.
void scale_of(float size, bool root, float &scale, float &inverse) {
    if (!(size <= 3.4028234e38f)) scale = inverse = NAN;  // results of it will be NaN too
    else if (size < INT8_LEAST) scale = inverse = 0;
    else if (root) inverse = 1 / (scale = sqrtf(size / 127));
    else scale = size / 127, inverse = 127 / size;
}

struct Rounding {
    Matrices shape;
    const float *from;
    Int8Matrices to;

    float *inverse = nullptr, *size = nullptr;  // (gates, rows)

    bool prepare() {
        Arena arena;
        arena.reserve(inverse, shape.gates * rows());
        arena.reserve(size, shape.gates * rows());
        return arena.allocate();
    }

    void run(Team &team) {
        team.each(shape.gates, [&](int g) { round(g); });
    }

    int64_t rows() const { return tiles_of(shape.rows) * SIDE; }

    // work(row tile, column tile, whether it is mirrored, offset) for each tile of a gate.
    template <typename Work>
    void each_tile(int g, const Work &work) const {
        const int64_t columns = tiles_of(shape.columns);
        for (int64_t panel = 0; panel < tiles_of(shape.rows); ++panel) {
            const Panel of(shape.symmetric, columns, panel);
            int64_t at = panel_start(shape.symmetric, columns, shape.gates, panel) +
                         g * (of.last - of.first) * TILE;
            for (int64_t n = of.first; n < of.last; ++n, at += TILE)
                if (shape.symmetric) work(n, panel, n >= of.mirrored, at);
                else work(panel, n, false, at);
        }
    }

    // The largest size in each row, of entries times row and column; those may be null, for ones.
    void measure(int g, const float *row, const float *column, float *most) const {
        for (int64_t i = 0; i < rows(); ++i) most[i] = 0;
        each_tile(g, [&](int64_t row_tile, int64_t column_tile, bool, int64_t at) {
            float *const of_row = most + row_tile * SIDE, *const of_column = most + column_tile * SIDE;
            for (int64_t k = 0; k < SIDE; ++k) {
                const float by = column ? column[column_tile * SIDE + k] : 1;
                float largest = 0;
                for (int64_t r = 0; r < SIDE; ++r) {
                    const float factor = row ? row[row_tile * SIDE + r] * by : 1;
                    const float entry = fabsf(from[at + k * SIDE + r] * factor);
                    of_row[r] = larger(of_row[r], entry);
                    largest = larger(largest, entry);
                }
                if (shape.symmetric) of_column[k] = larger(of_column[k], largest);
            }
        });
    }

    void round(int g) const {
        float *const scale = to.scale + g * rows(), *const by = inverse + g * rows();
        float *const most = size + g * rows();
        measure(g, nullptr, nullptr, most);
        for (int64_t i = 0; i < rows(); ++i) scale_of(most[i], shape.symmetric, scale[i], by[i]);
        // Each row of a symmetric matrix is to reach 127 by scales that are its columns' too; of a free
        // block, whose rows are not its columns, the larger of the two is.
        constexpr int TIMES = 4;
        for (int n = 0; shape.symmetric && n <= TIMES; ++n) {
            measure(g, by, by, most);
            float all = 0;
            for (int64_t i = 0; i < rows(); ++i) all = larger(all, most[i]);
            for (int64_t i = 0; i < rows(); ++i) {
                const float reached = n < TIMES ? most[i] : all;  // at last, none is to exceed it
                if (reached == 0 || scale[i] == 0) continue;
                scale[i] *= sqrtf(reached / 127);
                by[i] = 1 / scale[i];
            }
        }
        int32_t *const sum = to.row_sum + g * rows();
        for (int64_t i = 0; i < rows(); ++i) sum[i] = 0;
        each_tile(g, [&](int64_t row_tile, int64_t column_tile, bool mirrored, int64_t at) {
            for (int64_t k = 0; k < SIDE; ++k)
                for (int64_t r = 0; r < SIDE; ++r) {
                    const int64_t i = row_tile * SIDE + r, j = column_tile * SIDE + k;
                    const float factor = shape.symmetric ? by[i] * by[j] : by[i];
                    const float entry = from[at + k * SIDE + r] * factor;
                    const bool finite = fabsf(entry) < 128;
                    const int q = finite ? static_cast<int>(nearbyintf(entry)) : 0;
                    to.tiles[at + k / 4 * 64 + r * 4 + k % 4] = static_cast<int8_t>(q);
                    sum[i] += q;
                    if (mirrored) sum[j] += q;
                }
        });
    }
};

}  // namespace

int round_to_int8(const Matrices &shape, const float *tiles, void *to, int threads) {
    const auto [symmetric, rows, columns, gates] = shape;
    Rounding job{shape, tiles, Int8Matrices(to, symmetric, rows, columns, gates)};
    return run_job(job, shares_for(threads));
}

}  // namespace symrnn
