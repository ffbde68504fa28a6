// The gradient of a matrix, dᵀ·x: a sum over rows of outer products.
//
// PyTorch's own product of these shapes reaches two thirds of what the processor can do, and it is a
// third of a training step.

#include "jobs.h"

namespace symrnn {
namespace {

template <typename T>
class Outer {
  public:
    Outer(int64_t rows, int64_t m, int64_t n, const T *d, const T *x, T *out, int shares)
        : rows_(rows), m_(m), n_(n), from_d_(d), from_x_(x), out_(out), shares_(shares) {}

    bool prepare() {
        Pieces pieces;
        pieces.want(d_, tiles_of(m_) * rows_ * SIDE);
        pieces.want(x_, tiles_of(n_) * rows_ * SIDE);
        return pieces.take();
    }

    void run(int member, int members, Barrier &barrier) {
        const int64_t m_tiles = tiles_of(m_), n_tiles = tiles_of(n_), stride = rows_ * SIDE;
        for (int share = member; share < shares_; share += members) {
            to_blocks(from_d_, rows_, m_, stride, m_tiles * share / shares_,
                      m_tiles * (share + 1) / shares_, d_);
            to_blocks(from_x_, rows_, n_, stride, n_tiles * share / shares_,
                      n_tiles * (share + 1) / shares_, x_);
        }
        barrier.wait();
        for (int share = member; share < shares_; share += members) {
            const int64_t first = m_tiles * share / shares_, last = m_tiles * (share + 1) / shares_;
            for (int64_t some = first; some < last; some += HELD)
                for (int64_t n = 0; n < n_tiles; ++n)
                    for (int64_t m = some; m < std::min(some + HELD, last); ++m) tile(m, n);
        }
    }

  private:
    static constexpr int64_t HELD = 8;  // tiles of d that stay in the second cache

    void tile(int64_t m, int64_t n) {
        alignas(64) T block[TILE];
        kernels<T>().outer_products(d_ + m * rows_ * SIDE, x_ + n * rows_ * SIDE, rows_, block);
        const int64_t m_count = std::min(SIDE, m_ - m * SIDE);
        const int64_t n_count = std::min(SIDE, n_ - n * SIDE);
        for (int64_t i = 0; i < m_count; ++i)
            memcpy(out_ + (m * SIDE + i) * n_ + n * SIDE, block + i * SIDE, n_count * sizeof(T));
    }

    const int64_t rows_, m_, n_;
    const T *const from_d_, *const from_x_;
    T *const out_;
    const int shares_;
    T *d_ = nullptr, *x_ = nullptr;
};

}  // namespace

template <typename T>
int outer(int64_t rows, int64_t m, int64_t n, const void *d, const void *x, void *out,
          int threads) {
    const int shares = shares_for(threads);
    Outer<T> job(rows, m, n, static_cast<const T *>(d), static_cast<const T *>(x),
                 static_cast<T *>(out), shares);
    return run_job(job, shares);
}

template int outer<float>(int64_t, int64_t, int64_t, const void *, const void *, void *, int);
template int outer<double>(int64_t, int64_t, int64_t, const void *, const void *, void *, int);

}  // namespace symrnn
