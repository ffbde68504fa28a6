// symrnn_multiply: one product by itself, of dense arrays: linear layers, tests and measurements.

#include "jobs.h"

namespace symrnn {
namespace {

template <typename T>
struct Multiply {
    const symrnn_product &w;
    bool transposed;
    int64_t batch;
    const T *x;
    T *y;
    int repeat, shares;
    Product<T> product;

    const Passes passes{batch};
    T *blocked = nullptr;

    int x_gates() const { return transposed ? w.gates : 1; }
    int y_gates() const { return transposed ? 1 : w.gates; }
    int64_t x_side() const { return transposed ? w.rows : w.columns; }
    int64_t y_side() const { return transposed ? w.columns : w.rows; }

    bool prepare() {
        Arena arena;
        arena.reserve(blocked, x_gates() * product.x_gate());
        product.reserve(arena);
        return arena.allocate();
    }

    void run(Team &team) {
        for (int64_t n = 0; n < passes.count; ++n) {
            const int64_t first = passes.first(n), last = passes.first(n + 1);
            run_pass(team, last - first, x + first * x_gates() * x_side(),
                     y + first * y_gates() * y_side());
        }
    }

    void run_pass(Team &team, int64_t vectors, const T *from, T *to) {
        const int64_t stride = passes.largest() * SIDE, y_tiles = tiles_of(y_side());
        for (int g = 0; g < x_gates(); ++g)
            for (int64_t b = 0; b < vectors; ++b)  // the gates of a row are adjacent
                for (int64_t i = 0; i < tiles_of(x_side()) * SIDE; ++i)
                    blocked[g * product.x_gate() + i / SIDE * stride + b * SIDE + i % SIDE] =
                        i < x_side() ? from[(b * x_gates() + g) * x_side() + i] : T(0);
        const auto first = [&](int share) { return y_tiles * share / shares; };
        for (int n = 0; n < repeat; ++n) {
            product.run(team, blocked, vectors);
            if (w.skew) team.each(shares, [&](int share) {
                product.add_skew(share, first(share), first(share + 1), 0, vectors);
            });
        }
        team.each(shares, [&](int share) {
            const PartialSums sums = product.partial_sums(0);
            for (int64_t tile = first(share); tile < first(share + 1); ++tile) {
                const int64_t count = std::min(SIDE, y_side() - tile * SIDE);
                for (int g = 0; g < y_gates(); ++g)
                    for (int64_t b = 0; b < vectors; ++b)
                        for (int64_t i = 0; i < count; ++i)
                            to[(b * y_gates() + g) * y_side() + tile * SIDE + i] =
                                element<T>(sums, g, tile, b, i);
            }
        });
    }
};

}  // namespace

template <typename T>
int multiply(const symrnn_product &w, bool transposed, int64_t batch, const void *x, void *y,
             int repeat, int threads) {
    const int shares = shares_for(threads);
    Multiply<T> job{w,
                    transposed,
                    batch,
                    static_cast<const T *>(x),
                    static_cast<T *>(y),
                    repeat,
                    shares,
                    Product<T>(w, transposed, Passes(batch).largest(), shares)};
    return run_job(job, shares);
}

template int multiply<float>(const symrnn_product &, bool, int64_t, const void *, void *, int, int);
template int multiply<double>(const symrnn_product &, bool, int64_t, const void *, void *, int,
                              int);

}  // namespace symrnn
