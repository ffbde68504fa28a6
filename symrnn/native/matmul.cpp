// A product of dense matrices: those of a training step that are not recurrent.
//
// They are four of its six products, and PyTorch's own is slower where the sum is over the rows.

#include "jobs.h"

namespace symrnn {
namespace {

template <typename T>
class Matmul {
  public:
    Matmul(const DenseProduct &of, int shares)
        : of_(of),
          shares_(shares),
          m_tiles_(tiles_of(of.m)),
          n_tiles_(tiles_of(of.n)),
          stretches_((of.k + STRETCH - 1) / STRETCH) {}

    bool prepare() {
        Pieces pieces;
        pieces.want(a_, m_tiles_ * of_.k * SIDE);
        pieces.want(b_, n_tiles_ * of_.k * SIDE);
        return pieces.take();
    }

    void run(int member, int members, Barrier &barrier) {
        for (int share = member; share < shares_; share += members) {
            block(of_.a, of_.a_turned, of_.m, part(m_tiles_, share), a_);
            block(of_.b, !of_.b_turned, of_.n, part(n_tiles_, share), b_);
        }
        barrier.wait();
        for (int share = member; share < shares_; share += members)
            if (m_tiles_ > n_tiles_) multiply(part(m_tiles_, share), {0, n_tiles_});
            else multiply({0, m_tiles_}, part(n_tiles_, share));
    }

  private:
    // Of a panel so much is added up at once: it stays in the nearest cache, and short sums of their
    // own keep the rounding small.
    static constexpr int64_t STRETCH = 256;
    static constexpr int64_t HELD = 8;  // tiles of a whose stretches stay in the second cache

    struct Range {
        int64_t first, last;
    };

    Range part(int64_t tiles, int share) const {
        return {tiles * share / shares_, tiles * (share + 1) / shares_};
    }

    // Tiles of a (k, side) matrix, or of a (side, k) one that does not `lie` so, to [tile][k][16].
    void block(const void *from, bool lies, int64_t side, Range tiles, T *to) {
        const T *const matrix = static_cast<const T *>(from);
        if (lies) {  // some rows at a time, so that what is written stands together
            for (int64_t k = 0; k < of_.k; k += SIDE)
                to_blocks(matrix + k * side, std::min(SIDE, of_.k - k), side, of_.k * SIDE,
                          tiles.first, tiles.last, to + k * SIDE);
            return;
        }
        for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
            for (int64_t k = 0; k < of_.k; k += SIDE)
                turn(matrix + tile * SIDE * of_.k + k, std::min(SIDE, side - tile * SIDE),
                     std::min(SIDE, of_.k - k), to + (tile * of_.k + k) * SIDE);
    }

    // Some rows and columns of a (…, k) matrix to columns of 16.
    void turn(const T *from, int64_t rows, int64_t columns, T *to) {
        if (rows == SIDE && columns == SIDE) return kernels<T>().transpose(from, of_.k, to);
        alignas(64) T dense[TILE] = {}, turned[TILE];
        for (int64_t i = 0; i < rows; ++i)
            memcpy(dense + i * SIDE, from + i * of_.k, columns * sizeof(T));
        kernels<T>().transpose(dense, SIDE, turned);
        memcpy(to, turned, columns * SIDE * sizeof(T));
    }

    void multiply(Range m_range, Range n_range) {
        for (int64_t some = m_range.first; some < m_range.last; some += HELD)
            for (int64_t s = 0; s < std::max(stretches_, int64_t(1)); ++s)
                for (int64_t n = n_range.first; n < n_range.last; ++n)
                    for (int64_t m = some; m < std::min(some + HELD, m_range.last); ++m)
                        tile(m, n, s);
    }

    // Adds one stretch to one tile of the result.
    void tile(int64_t m, int64_t n, int64_t s) {
        const int64_t first = stretches_ ? of_.k * s / stretches_ : 0;
        const int64_t last = stretches_ ? of_.k * (s + 1) / stretches_ : 0;
        const T *const a = a_ + (m * of_.k + first) * SIDE, *const b = b_ + (n * of_.k + first) * SIDE;
        T *const to = static_cast<T *>(of_.out) + m * SIDE * of_.n + n * SIDE;
        const T *const bias = static_cast<const T *>(of_.bias);
        const T *from = s ? to : bias ? bias + n * SIDE : nullptr;
        const int64_t from_stride = s ? of_.n : 0;
        const int64_t rows = std::min(SIDE, of_.m - m * SIDE);
        const int64_t columns = std::min(SIDE, of_.n - n * SIDE);
        if (rows == SIDE && columns == SIDE)
            return kernels<T>().tile_product(a, b, last - first, from, from_stride, to, of_.n);
        alignas(64) T block[TILE] = {};
        for (int64_t i = 0; from && i < rows; ++i)
            memcpy(block + i * SIDE, from + i * from_stride, columns * sizeof(T));
        kernels<T>().tile_product(a, b, last - first, block, SIDE, block, SIDE);
        for (int64_t i = 0; i < rows; ++i)
            memcpy(to + i * of_.n, block + i * SIDE, columns * sizeof(T));
    }

    const DenseProduct &of_;
    const int shares_;
    const int64_t m_tiles_, n_tiles_, stretches_;
    T *a_ = nullptr, *b_ = nullptr;
};

}  // namespace

template <typename T>
int matmul(const DenseProduct &of, int threads) {
    Matmul<T> job(of, shares_for(threads));
    return run_job(job, shares_for(threads));
}

template int matmul<float>(const DenseProduct &, int);
template int matmul<double>(const DenseProduct &, int);

}  // namespace symrnn
