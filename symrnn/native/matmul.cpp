// symrnn_matmul: the GEMMs of a training step that are not recurrent.
//
// They are four of its six products. PyTorch's own GEMM is slower where the sum runs over the rows.

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
          k_blocks_((of.k + K_BLOCK - 1) / K_BLOCK) {}

    bool prepare() {
        Arena arena;
        arena.reserve(a_, m_tiles_ * of_.k * SIDE);
        arena.reserve(b_, n_tiles_ * of_.k * SIDE);
        return arena.allocate();
    }

    void run(Team &team) {
        team.each(shares_, [&](int share) {
            pack(of_.a, of_.a_transposed, of_.m, range(m_tiles_, share), a_);
            pack(of_.b, !of_.b_transposed, of_.n, range(n_tiles_, share), b_);
        });
        team.each(shares_, [&](int share) {
            if (m_tiles_ > n_tiles_) multiply(range(m_tiles_, share), {0, n_tiles_});
            else multiply({0, m_tiles_}, range(n_tiles_, share));
        });
    }

  private:
    // The sum over k is blocked: one block of a panel stays in L1, and short partial sums round less.
    static constexpr int64_t K_BLOCK = 256;
    static constexpr int64_t L2_TILES = 8;  // tiles of a whose k-blocks stay in L2

    struct Range {
        int64_t first, last;
    };

    Range range(int64_t tiles, int share) const {
        return {tiles * share / shares_, tiles * (share + 1) / shares_};
    }

    // Packs tiles of a matrix into [tile][k][16]. k_first: whether it is (k, side), else (side, k).
    void pack(const void *from, bool k_first, int64_t side, Range tiles, T *to) {
        const T *const matrix = static_cast<const T *>(from);
        if (k_first) {  // some rows at a time, so that writes are adjacent
            for (int64_t k = 0; k < of_.k; k += SIDE)
                to_blocks(matrix + k * side, std::min(SIDE, of_.k - k), side, of_.k * SIDE,
                          tiles.first, tiles.last, to + k * SIDE);
            return;
        }
        for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
            for (int64_t k = 0; k < of_.k; k += SIDE)
                pack_transposed(matrix + tile * SIDE * of_.k + k, std::min(SIDE, side - tile * SIDE),
                     std::min(SIDE, of_.k - k), to + (tile * of_.k + k) * SIDE);
    }

    // Packs some rows and columns of a (side, k) matrix into columns of 16.
    void pack_transposed(const T *from, int64_t rows, int64_t columns, T *to) {
        if (rows == SIDE && columns == SIDE) return kernels<T>().transpose(from, of_.k, to);
        alignas(64) T dense[TILE] = {}, transposed[TILE];
        for (int64_t i = 0; i < rows; ++i)
            memcpy(dense + i * SIDE, from + i * of_.k, columns * sizeof(T));
        kernels<T>().transpose(dense, SIDE, transposed);
        memcpy(to, transposed, columns * SIDE * sizeof(T));
    }

    void multiply(Range m_range, Range n_range) {
        for (int64_t some = m_range.first; some < m_range.last; some += L2_TILES)
            for (int64_t s = 0; s < std::max(k_blocks_, int64_t(1)); ++s)
                for (int64_t n = n_range.first; n < n_range.last; ++n)
                    for (int64_t m = some; m < std::min(some + L2_TILES, m_range.last); ++m)
                        tile(m, n, s);
    }

    // Adds one k-block to one tile of the result.
    void tile(int64_t m, int64_t n, int64_t s) {
        const int64_t first = k_blocks_ ? of_.k * s / k_blocks_ : 0;
        const int64_t last = k_blocks_ ? of_.k * (s + 1) / k_blocks_ : 0;
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
    const int64_t m_tiles_, n_tiles_, k_blocks_;
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
