// Products of packed matrices and blocked vectors, by a thread team.
//
// The work is divided into shares, one for each thread asked for, and each share computes a partial
// sum. Which thread runs a share does not matter: every bit of a result depends on the number of
// shares alone.

#ifndef SYMRNN_PRODUCT_H
#define SYMRNN_PRODUCT_H

#include <string.h>

#include <algorithm>

#include "cpu.h"
#include "layout.h"
#include "scratch.h"
#include "symrnn.h"
#include "threads.h"

namespace symrnn {

constexpr int MAX_SHARES = PartialSums::MAX;  // and of threads
constexpr int MAX_TERMS = 8;

inline int shares_for(int threads) { return std::clamp(threads, 1, MAX_SHARES); }

template <typename T>
const Kernels<T> &kernels();
template <>
inline const Kernels<float> &kernels<float>() { return *cpu().float32; }
template <>
inline const Kernels<double> &kernels<double>() { return *cpu().float64; }

// to[i] (+)= Σ scale · from[index], elements first … last-1 of blocked vectors.
template <typename T>
void apply(const symrnn_map &map, int64_t first, int64_t last, int64_t batch, int64_t stride,
           const T *from, T *to, bool adding) {
    for (int64_t i = first; i < last; ++i) {
        T *const y = to + i / SIDE * stride + i % SIDE;
        if (!adding)
            for (int64_t b = 0; b < batch; ++b) y[b * SIDE] = 0;
        for (int32_t k = map.start[i]; k < map.start[i + 1]; ++k) {
            const T scale = static_cast<T>(map.scale[k]);
            const T *const x = from + map.index[k] / SIDE * stride + map.index[k] % SIDE;
            for (int64_t b = 0; b < batch; ++b) y[b * SIDE] += scale * x[b * SIDE];
        }
    }
}

// One element of a blocked vector.
template <typename T>
T element(const PartialSums &sums, int gate, int64_t tile, int64_t b, int64_t i) {
    const int64_t at = gate * sums.gate + tile * sums.stride + b * SIDE + i;
    T number = 0;
    int32_t integer = 0;
    for (int s = 0; s < sums.count; ++s) {
        const auto &one = sums.sum[s];
        if (tile < one.first || tile >= one.last) continue;
        if (!sums.integers) {
            number += static_cast<const T *>(one.at)[at];
            continue;
        }
        int32_t part;  // it lies among numbers
        memcpy(&part, static_cast<const char *>(one.at) + at * sizeof part, sizeof part);
        integer += part;
    }
    if (sums.integers) {
        const PartialSums::Integers &of = sums.of[gate];
        const int64_t row = tile * SIDE + i;
        integer -= sums.offset * of.row_sum[row];
        number = static_cast<T>(static_cast<float>(integer) * (of.scale[row] * of.step[b]));
    }
    return sums.skew ? number + static_cast<const T *>(sums.skew)[at] : number;
}

// So many vectors have kernels of their own, which read a symmetric tile once for both directions.
constexpr int64_t FEW = 4;

// Whether the kernels for many vectors of bfloat16 run a product.
inline bool multiplies_bfloat16(const symrnn_product &w, int64_t batch) {
    return w.dtype == SYMRNN_BFLOAT16_BOTH && cpu().bfloat16 && batch > FEW;
}

// A product by a thread team: y (G, H) = W · x (C), or transposed y (C) = Σ W[g]ᵀ · x (G, H).
//
// Each share computes a partial sum. Without maps the result is the partial sums of all shares. With
// maps the product is folded: the partial sums are added, then the output maps are applied.
// `partial_sums` says where the result is.
//
// A skew part takes no phase of its own. While a share multiplies it computes [U V]ᵀ · x over its
// range of x. Whoever reads a range of the result calls `add_skew` before, which adds these up and
// makes of them the skew part of that range.
template <typename T>
class Product {
  public:
    // capacity: the most vectors at once.  already: for each term, whether its matrices are stored
    // transposed if the product is; or null.
    Product(const symrnn_product &w, bool transposed, int64_t capacity, int shares,
            const bool *already = nullptr)
        : w_(w), transposed_(transposed), shares_(shares), stride_(capacity * SIDE) {
        folded_ = w.term[0].inputs || w.term[0].outputs;
        x_gates_ = transposed ? w.gates : 1;
        y_gates_ = transposed ? 1 : w.gates;
        y_side_ = transposed ? w.columns : w.rows;
        y_gate_ = tiles_of(y_side_) * stride_;
        int64_t size = 0;
        for (int n = 0; n < w.terms; ++n) {
            const symrnn_term &t = w.term[n];
            term_[n].in = tiles_of(transposed ? t.rows : t.columns) * stride_;
            term_[n].out = tiles_of(transposed ? t.columns : t.rows) * stride_;
            term_[n].transposed = transposed && !(already && already[n]);
            term_[n].count = 0;
            for (int g = 0; g < w.gates; ++g)
                if (t.gates >> g & 1) term_[n].gate[term_[n].count++] = g;
            if (rounds()) rounded_size_ = std::max(rounded_size_, x_gates_ * term_[n].in);
            term_[n].at = folded_ ? size : 0;
            if (folded_) size += y_gates_ * term_[n].out;
        }
        sum_size_ = folded_ ? size : y_gates_ * y_gate_;
        if (folded_)
            for (int n = 0; n < w.terms; ++n) folded_in_ += x_gates_ * term_[n].in;
        for (int n = 0; int8() && n < w.terms; ++n) {
            term_[n].bytes = bytes_;
            term_[n].steps = steps_;
            bytes_ += operands(n) * term_[n].in;
            steps_ += operands(n) * capacity;
        }
        if (w.skew) {
            for (int g = 0; g < w.gates; ++g)
                if (w.skew->gates >> g & 1) skew_gate_[skew_gates_++] = g;
            skew_gate_size_ = skew_tiles() * stride_;
        }
        for (int share = 0; share < shares; ++share) {
            for (int n = 0; n < w.terms; ++n) panels_[n][share] = panels_of(n, share);
            touched_[share] = touched_by(share);
        }
    }

    void reserve(Arena &arena) {
        arena.reserve(sums_, sum_size_ * shares_);
        if (folded_) {
            arena.reserve(inputs_, folded_in_ * shares_);  // one for each share
            arena.reserve(result_, y_gates_ * y_gate_);
        }
        if (rounds()) arena.reserve(rounded_, rounded_size_ * shares_);
        if (int8()) {
            arena.reserve(bytes_at_, bytes_ * shares_);
            arena.reserve(steps_at_, steps_ * shares_);
        }
        if (w_.skew) {
            arena.reserve(on_factors_, w_.gates * skew_gate_size_ * shares_);
            arena.reserve(swapped_, w_.gates * skew_gate_size_ * shares_);
            arena.reserve(skew_, y_gates_ * y_gate_);
        }
    }

    bool folded() const { return folded_; }
    int64_t x_gate() const { return tiles_of(transposed_ ? w_.rows : w_.columns) * stride_; }

    // The whole product with `batch` vectors; x as [gate][tile][b][16].
    void run(Team &team, const T *x, int64_t batch) {
        team.each(shares_, [&](int share) { multiply(share, x, batch); });
        complete(team, batch);
    }

    // The same of two products at once.
    static void run(Team &team, Product &a, const T *x_of_a, Product &b, const T *x_of_b,
                    int64_t batch) {
        team.each(a.shares_, [&](int share) {
            a.multiply(share, x_of_a, batch);
            b.multiply(share, x_of_b, batch);
        });
        a.complete(team, batch);
        b.complete(team, batch);
    }

    // Computes the skew part in tiles first … last-1 of the result, rows b … b + batch - 1. Called by a
    // share of the phase that reads them.
    void add_skew(int share, int64_t first, int64_t last, int64_t b, int64_t batch) {
        if (!w_.skew || first == last) return;
        for (int g = 0; g < y_gates_; ++g)
            for (int64_t tile = first; tile < last; ++tile)
                memset(skew_ + g * y_gate_ + tile * stride_ + b * SIDE, 0, batch * SIDE * sizeof(T));
        T *const z = swapped_ + share * w_.gates * skew_gate_size_;
        for (int k = 0; k < skew_gates_; ++k) swap_factors(skew_gate_[k], b, batch, z);
        Multiplication m = by_factors(first, last, batch);
        m.transposed = m.narrow = false;
        m.x = z + b * SIDE;
        m.x_gate = skew_gate_size_;
        m.y = skew_ + b * SIDE;
        m.y_gate = transposed_ ? 0 : y_gate_;
        call_kernel(m);
    }

    // The result, from row `b` on.
    PartialSums partial_sums(int64_t b) const {
        PartialSums found;
        if (w_.skew) found.skew = skew_ + b * SIDE;
        found.stride = stride_;
        found.gate = y_gate_;
        found.count = folded_ ? 1 : shares_;
        if (folded_) found.sum[0] = {result_ + b * SIDE, 0, tiles_of(y_side_)};
        else
            for (int s = 0; s < shares_; ++s)
                found.sum[s] = {sums_ + s * sum_size_ + b * SIDE, touched_[s].first,
                                 touched_[s].last};
        if (int8() && !folded_) {
            found.integers = true;
            found.offset = cpu().int8->offset;
            for (int n = 0; n < w_.terms; ++n)
                for (int k = 0; k < term_[n].count; ++k)
                    found.of[term_[n].gate[k]] = integers(n, k, b);
        }
        return found;
    }

  private:
    void complete(Team &team, int64_t batch) {
        if (!folded_) return;
        team.each(shares_, [&](int share) {
            if (int8()) reduce_int8(share, batch);
            else reduce(share);
        });
        team.each(shares_, [&](int share) { unfold(share, batch); });
    }

    // The share's partial sum of the product.
    void multiply(int share, const T *x, int64_t batch) {
        T *const sum = sums_ + share * sum_size_;
        const bool pairs = multiplies_bfloat16(w_, batch);
        const T *operand = x;
        if (folded_) {
            operand = inputs_ + share * folded_in_;
            fold(x, batch, inputs_ + share * folded_in_);
            memset(sum, 0, sum_size_ * sizeof(T));
        } else {
            if (rounds()) operand = rounded(share, x, x_gates_ * x_gate(), batch);
            const Range hull = touched_[share];
            for (int g = 0; g < y_gates_; ++g)
                memset(sum + g * y_gate_ + hull.first * stride_, 0,
                       (hull.last - hull.first) * stride_ * sizeof(T));
        }
        for (int n = 0; n < w_.terms; ++n) {
            const symrnn_term &t = w_.term[n];
            const Range panels = panels_[n][share];
            const T *term_x = operand;
            if (folded_) operand += x_gates_ * term_[n].in;
            if (int8()) {
                multiply_int8(n, share, term_x, batch, sum + term_[n].at);
                continue;
            }
            if (panels.first == panels.last) continue;
            if (rounds() && folded_) term_x = rounded(share, term_x, x_gates_ * term_[n].in, batch);
            Multiplication m;
            m.packed = t.packed;
            m.symmetric = t.symmetric;
            m.transposed = term_[n].transposed;
            m.narrow = false;
            m.prefetch = bytes_of(t) > (pairs ? PAIRS_PREFETCH : MANY_PREFETCH);
            m.ahead = bytes_of(t) > FEW_PREFETCH ? tiles_ahead() : 0;
            m.gates = term_[n].count;
            m.gate = term_[n].gate;
            m.columns = tiles_of(t.columns);
            m.first = panels.first;
            m.last = panels.last;
            m.batch = batch;
            m.stride = stride_;
            m.x = term_x;
            m.y = sum + term_[n].at;
            m.x_gate = transposed_ ? (folded_ ? term_[n].in : x_gate()) : 0;
            m.y_gate = transposed_ ? 0 : (folded_ ? term_[n].out : y_gate_);
            if (pairs) cpu().bfloat16->multiply(m);
            else call_kernel(m);
        }
        if (w_.skew) multiply_factors(share, x, batch);
    }

    // ---- vectors of bfloat16: each share rounds them by itself, which takes less time than waiting.

    bool rounds() const { return w_.dtype == SYMRNN_BFLOAT16_BOTH; }

    // So many elements of a blocked vector, for the kernel that takes them: as bfloat16 or as T.
    const T *rounded(int share, const T *x, int64_t elements, int64_t batch) {
        T *const to = rounded_ + share * rounded_size_;
        const int64_t tiles = elements / stride_;
        if (multiplies_bfloat16(w_, batch))
            cpu().bfloat16->round(reinterpret_cast<const float *>(x), tiles, batch, stride_, to);
        else kernels<T>().round(x, tiles, batch, stride_, to);
        return to;
    }

    // ---- the skew part. Its second product finds the factors in L2, as its range is that of the first.

    int64_t skew_tiles() const { return tiles_of(2 * static_cast<int64_t>(w_.skew->rank)); }

    Multiplication by_factors(int64_t first, int64_t last, int64_t batch) const {
        Multiplication m;
        m.packed = w_.skew->packed;
        m.symmetric = 0;
        m.prefetch = false;
        m.ahead = 0;
        m.gates = skew_gates_;
        m.gate = skew_gate_;
        m.columns = skew_tiles();
        m.first = first;
        m.last = last;
        m.batch = batch;
        m.stride = stride_;
        return m;
    }

    // The share's partial sum of z = [U V]ᵀ · x of each gate.
    void multiply_factors(int share, const T *x, int64_t batch) {
        const int64_t tiles = tiles_of(w_.rows), size = w_.gates * skew_gate_size_;
        T *const z = on_factors_ + share * size;
        memset(z, 0, size * sizeof(T));
        Multiplication m = by_factors(tiles * share / shares_, tiles * (share + 1) / shares_, batch);
        m.transposed = m.narrow = true;
        m.x = x;
        m.x_gate = transposed_ ? x_gate() : 0;
        m.y = z;
        m.y_gate = skew_gate_size_;
        call_kernel(m);
    }

    // From Uᵀ·x and Vᵀ·x to Vᵀ·x and -Uᵀ·x, of which [U V] makes the skew part. Transposed, that has the
    // other sign.
    void swap_factors(int gate, int64_t b, int64_t batch, T *to) {
        const int64_t rank = w_.skew->rank, at = gate * skew_gate_size_;
        for (int64_t i = 0; i < skew_tiles() * SIDE; ++i) {
            const int64_t from = i < rank ? i + rank : i - rank;
            const T sign = (i < rank) == transposed_ ? T(-1) : T(1);
            for (int64_t row = b; row < b + batch; ++row) {
                T sum = 0;
                for (int s = 0; s < shares_ && i < 2 * rank; ++s)
                    sum += on_factors_[s * w_.gates * skew_gate_size_ + at + from / SIDE * stride_ +
                                       row * SIDE + from % SIDE];
                to[at + i / SIDE * stride_ + row * SIDE + i % SIDE] = sign * sum;
            }
        }
    }

    // ---- int8: each share rounds the vectors by itself, which takes less time than waiting.

    bool int8() const { return w_.dtype == SYMRNN_INT8; }

    // How many vectors an operand becomes: the scales of a symmetric matrix are on both sides, and each
    // gate has its own.
    int operands(int n) const { return w_.term[n].symmetric ? term_[n].count : 1; }

    Int8Matrices matrices(int n) const {
        const symrnn_term &t = w_.term[n];
        return Int8Matrices(t.packed, t.symmetric, t.rows, t.columns, term_[n].count);
    }

    // What the sums of the k-th gate of a term mean, from vector `b` on.
    PartialSums::Integers integers(int n, int k, int64_t b) const {
        const Int8Matrices m = matrices(n);
        const int64_t rows = tiles_of(w_.term[n].rows) * SIDE, capacity = stride_ / SIDE;
        const int64_t operand = w_.term[n].symmetric ? k : 0;
        return {m.scale + k * rows, steps_at_ + term_[n].steps + operand * capacity + b,
                m.row_sum + k * rows};
    }

    void multiply_int8(int n, int share, const T *x, int64_t batch, T *sum) {
        const symrnn_term &t = w_.term[n];
        const Term &term = term_[n];
        const Range panels = panels_[n][share];
        if (panels.first == panels.last && share > 0) return;  // the steps of share 0 are read
        const Int8Kernels &kernels = *cpu().int8;
        uint8_t *const bytes = bytes_at_ + share * bytes_ + term.bytes;
        float *const steps = steps_at_ + share * steps_ + term.steps;
        const int64_t tiles = tiles_of(t.columns), capacity = stride_ / SIDE;
        for (int k = 0; k < operands(n); ++k) {
            Quantization z;
            z.x = reinterpret_cast<const float *>(x);
            z.scale = t.symmetric ? matrices(n).scale + k * tiles * SIDE : nullptr;
            z.tiles = tiles;
            z.batch = batch;
            z.stride = stride_;
            z.to = bytes + k * term.in;
            z.step = steps + k * capacity;
            kernels.quantize(z);
        }
        Multiplication m;
        m.packed = t.packed;
        m.symmetric = t.symmetric;
        m.transposed = m.narrow = false;
        m.prefetch = false;
        // As many bytes as of bfloat16. Measured on Zen 4 alone, where 0 is best as it is there.
        m.ahead = bytes_of(t) > FEW_PREFETCH ? 2 * tiles_ahead() : 0;
        m.gates = term.count;
        m.gate = term.gate;
        m.columns = tiles;
        m.first = panels.first;
        m.last = panels.last;
        m.batch = batch;
        m.stride = stride_;
        m.x = bytes;
        m.y = sum;
        m.x_gate = t.symmetric ? term.in : 0;
        m.y_gate = folded_ ? term.out : y_gate_;
        kernels.multiply(m);
    }

    // Of a folded product: adds up this share's range of each gate's tiles, from integers to numbers.
    void reduce_int8(int share, int64_t batch) {
        for (int n = 0; n < w_.terms; ++n)
            for (int k = 0; k < term_[n].count; ++k) {
                PartialSums all;
                all.count = shares_;
                all.stride = stride_;
                all.gate = 0;
                all.integers = true;
                all.offset = cpu().int8->offset;
                all.of[0] = integers(n, k, 0);
                const int64_t tiles = tiles_of(w_.term[n].rows);
                T *const to = sums_ + term_[n].at + term_[n].gate[k] * term_[n].out;
                for (int s = 0; s < shares_; ++s) all.sum[s] = {to + s * sum_size_, 0, tiles};
                const int64_t last = tiles * (share + 1) / shares_;
                for (int64_t tile = tiles * share / shares_; tile < last; ++tile)
                    for (int64_t b = 0; b < batch; ++b)
                        for (int64_t i = 0; i < SIDE; ++i)
                            to[tile * stride_ + b * SIDE + i] = element<T>(all, 0, tile, b, i);
            }
    }

    // Of a folded product: adds up this share's range of tiles, over all partial sums. A phase of its
    // own.
    void reduce(int share) {
        const int64_t tiles = sum_size_ / stride_;
        const int64_t first = tiles * share / shares_, last = tiles * (share + 1) / shares_;
        PartialSums others;
        others.count = shares_ - 1;
        others.stride = stride_;
        others.gate = 0;
        for (int s = 1; s < shares_; ++s) others.sum[s - 1] = {sums_ + s * sum_size_, 0, tiles};
        kernels<T>().add(sums_, others, first, last, stride_);
    }

    // Applies the output maps to this share's range of the result.
    void unfold(int share, int64_t batch) {
        const int64_t first = y_side_ * share / shares_, last = y_side_ * (share + 1) / shares_;
        for (int g = 0; g < y_gates_; ++g) {
            if (share == shares_ - 1)  // the padding of the last tile is read too
                for (int64_t i = y_side_; i < tiles_of(y_side_) * SIDE; ++i)
                    for (int64_t b = 0; b < batch; ++b)
                        result_[g * y_gate_ + i / SIDE * stride_ + i % SIDE + b * SIDE] = 0;
            bool adding = false;
            for (int n = 0; n < w_.terms; ++n) {
                const symrnn_term &t = w_.term[n];
                const symrnn_map *map = transposed_ ? t.inputs_adjoint : t.outputs;
                const T *const from = sums_ + term_[n].at + g * term_[n].out;
                T *const to = result_ + g * y_gate_;
                if (map) apply(*map, first, last, batch, stride_, from, to, adding);
                else copy(first, last, batch, from, to, adding);
                adding = true;
            }
        }
    }

    struct Range {
        int64_t first, last;
    };
    struct Term {
        int64_t in, out, at;
        int64_t bytes, steps;  // where its quantized vectors begin
        int gate[4];
        int count;
        bool transposed;
    };

    // The panels of one term that a share multiplies.
    Range panels_of(int n, int share) const {
        const symrnn_term &t = w_.term[n];
        const int64_t panels = tiles_of(t.rows), columns = tiles_of(t.columns);
        return {first_panel(t.symmetric, panels, columns, share, shares_),
                first_panel(t.symmetric, panels, columns, share + 1, shares_)};
    }

    // Sizes of packed matrices from which on prefetching their tiles pays. Measured: with many vectors
    // it costs more than it saves at half of this; with few it pays beyond a core's L2.
    static constexpr int64_t MANY_PREFETCH = int64_t(16) << 20, FEW_PREFETCH = int64_t(2) << 20;
    // Many vectors of bfloat16 take less time for a tile: at 11 MiB it pays, at 3 it costs (Zen 5).
    static constexpr int64_t PAIRS_PREFETCH = int64_t(4) << 20;

    int64_t bytes_of(const symrnn_term &t) const {
        return packed_bytes(w_.dtype, t.symmetric, t.rows, t.columns, __builtin_popcount(t.gates));
    }

    // The tiles of the result that a share adds to.
    Range touched_by(int share) const {
        Range hull = {INT64_MAX, 0};
        for (int n = 0; n < w_.terms; ++n) {
            const Range panels = panels_[n][share];
            if (panels.first == panels.last) continue;
            const int64_t all = tiles_of(y_side_);
            Range touched = panels;
            const int symmetric = w_.term[n].symmetric;
            if (symmetric) touched = {block_start(symmetric, panels.first), all};
            else if (term_[n].transposed) touched = {0, all};
            hull.first = std::min(hull.first, touched.first);
            hull.last = std::max(hull.last, touched.last);
        }
        if (hull.first > hull.last) hull.first = hull.last;
        return hull;
    }

    // Applies the input maps: x to the operand of each term.
    void fold(const T *x, int64_t batch, T *to) {
        for (int n = 0; n < w_.terms; ++n) {
            const symrnn_term &t = w_.term[n];
            const symrnn_map *map = transposed_ ? t.outputs_adjoint : t.inputs;
            const int64_t side = transposed_ ? t.rows : t.columns;
            for (int g = 0; g < x_gates_; ++g, to += term_[n].in) {
                T *const last = to + (tiles_of(side) - 1) * stride_;
                for (int64_t k = 0; k < batch * SIDE; ++k) last[k] = 0;  // the padding
                if (map) apply(*map, 0, side, batch, stride_, x + g * x_gate(), to, false);
                else copy(0, side, batch, x + g * x_gate(), to, false);
            }
        }
    }

    void copy(int64_t first, int64_t last, int64_t batch, const T *from, T *to, bool adding) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t at = i / SIDE * stride_ + i % SIDE;
            for (int64_t b = 0; b < batch; ++b)
                to[at + b * SIDE] = (adding ? to[at + b * SIDE] : 0) + from[at + b * SIDE];
        }
    }

    void call_kernel(const Multiplication &m) {
        if (is_bfloat16(w_.dtype)) kernels<T>().multiply_bfloat16(m);
        else kernels<T>().multiply(m);
    }

    const symrnn_product &w_;
    const bool transposed_;
    const int shares_;
    const int64_t stride_;
    bool folded_ = false;
    int x_gates_, y_gates_;
    int64_t y_side_, y_gate_, sum_size_;
    int64_t folded_in_ = 0;
    Term term_[MAX_TERMS];
    Range panels_[MAX_TERMS][MAX_SHARES], touched_[MAX_SHARES];
    T *sums_ = nullptr, *inputs_ = nullptr, *result_ = nullptr;
    int64_t rounded_size_ = 0;  // of one share
    T *rounded_ = nullptr;
    int64_t bytes_ = 0, steps_ = 0;  // of one share
    uint8_t *bytes_at_ = nullptr;
    float *steps_at_ = nullptr;
    int skew_gate_[4], skew_gates_ = 0;
    int64_t skew_gate_size_ = 0;
    T *on_factors_ = nullptr, *swapped_ = nullptr, *skew_ = nullptr;
};

// Many vectors, multiplied some at a time: a product has partial sums of all its vectors for every
// share, so its scratch memory would else be a multiple of what it computes.
//
// The passes are of about equal size. Of more than one none is so small that the kernels for few
// vectors run it, which sum in another order: no bit of a result depends on the passes.
struct Passes {
    static constexpr int64_t MOST = 64;  // vectors of a pass

    explicit Passes(int64_t vectors)
        : count(std::max(int64_t(1), (vectors + MOST - 1) / MOST)),
          size_(vectors / count),
          larger_(vectors % count) {}

    int64_t largest() const { return size_ + (larger_ > 0); }
    int64_t first(int64_t n) const { return n * size_ + std::min(n, larger_); }  // of pass n

    const int64_t count;

  private:
    const int64_t size_, larger_;
};

// Rows of a dense (rows, side) array to tiles first … last-1 of a blocked vector; null gives zeros.
template <typename T>
void to_blocks(const T *from, int64_t rows, int64_t side, int64_t stride, int64_t first,
               int64_t last, T *to) {
    for (int64_t tile = first; tile < last; ++tile) {
        const int64_t count = from ? std::min(SIDE, side - tile * SIDE) : 0;
        for (int64_t b = 0; b < rows; ++b) {
            T *const block = to + tile * stride + b * SIDE;
            const T *const row = from ? from + b * side + tile * SIDE : nullptr;
            if (count == SIDE) memcpy(block, row, SIDE * sizeof(T));  // a few moves, and no call
            else {
                if (count) memcpy(block, row, count * sizeof(T));
                memset(block + count, 0, (SIDE - count) * sizeof(T));
            }
        }
    }
}

// A product whose symmetric matrices are expanded to full ones, where that pays.
//
// A product with many vectors reads a symmetric tile twice, once transposed on the fly. If it is
// computed often, and the full matrix is likely to fit the last-level cache, it is expanded once a
// call; if the product is transposed, to the transposed matrix. Of bfloat16 full matrices are so
// transposed too: there transposing is dear beside multiplying.
template <typename T>
class Expanded {
  public:
    // times: how often the product is computed, with `batch` vectors each time.
    Expanded(const symrnn_product &w, bool transposed, int64_t batch, int64_t times)
        : w_(w), transposed_(transposed), product_(w) {
        // Of bfloat16 expanding gained nothing from 17 MiB on, measured on Zen 5.
        constexpr int64_t MAX_BYTES = int64_t(8) << 20, MAX_BYTES_PAIRS = int64_t(16) << 20;
        const bool pairs = multiplies_bfloat16(w, batch);
        const bool whole = w.dtype == SYMRNN_FLOAT || w.dtype == SYMRNN_DOUBLE;
        const bool often = batch > FEW && times >= 8 && (pairs || whole);
        size_ = pairs ? 2 : sizeof(T);
        for (int n = 0; n < w.terms; ++n) {
            const symrnn_term &t = term_[n] = w.term[n];
            const bool fits = length(t) * size_ <= (pairs ? MAX_BYTES_PAIRS : MAX_BYTES);
            const bool square = t.rows == t.columns;  // hidden weights are
            const bool gains = t.symmetric || (pairs && transposed && square);
            expanded_[n] = gains && fits && often && !t.inputs && !t.outputs;
            any_ |= expanded_[n];
            if (expanded_[n]) term_[n].symmetric = 0;
        }
        product_.term = term_;
    }
    Expanded(const Expanded &) = delete;

    bool prepare() {
        if (!any_) return true;
        Arena arena;
        for (int n = 0; n < w_.terms; ++n)
            if (expanded_[n]) arena.reserve(full_[n], length(term_[n]) * size_);
        if (!arena.allocate(shared_scratch)) return false;
        for (int n = 0; n < w_.terms; ++n)
            if (expanded_[n]) term_[n].packed = full_[n];
        return true;
    }

    bool any() const { return any_; }
    const symrnn_product &product() const { return product_; }
    const bool *expanded() const { return expanded_; }  // of each term

    // Expands one of so many shares. A phase of its own.
    void expand(int share, int shares) {
        for (int n = 0; n < w_.terms; ++n) {
            if (!expanded_[n]) continue;
            const int symmetric = w_.term[n].symmetric;
            const int64_t tiles = tiles_of(term_[n].rows);
            const int gates = __builtin_popcount(term_[n].gates);
            const char *const packed = static_cast<const char *>(w_.term[n].packed);
            const auto stored = [&](int64_t row, int64_t column, int g) {
                const int64_t panel = symmetric ? column : row, moving = symmetric ? row : column;
                const Panel of(symmetric, tiles, panel);
                return packed + (panel_start(symmetric, tiles, gates, panel) +
                                 (g * (of.last - of.first) + moving - of.first) * TILE) * size_;
            };
            const int64_t first = first_panel(0, tiles, tiles, share, shares);
            const int64_t last = first_panel(0, tiles, tiles, share + 1, shares);
            char *to = full_[n] + panel_start(0, tiles, gates, first) * size_;
            for (int64_t row = first; row < last; ++row) {
                const Panel of(symmetric, tiles, row);
                for (int g = 0; g < gates; ++g)
                    for (int64_t column = 0; column < tiles; ++column, to += TILE * size_) {
                        const bool free = column >= of.first && column < of.mirrored;
                        if (!symmetric || free ? transposed_ : column > row)
                            transpose(stored(column, row, g), to);
                        else memcpy(to, stored(row, column, g), TILE * size_);
                    }
            }
        }
    }

  private:
    static int64_t length(const symrnn_term &t) {
        return packed_length(0, t.rows, t.columns, __builtin_popcount(t.gates));
    }

    void transpose(const char *tile, char *to) const {
        if (size_ == 2) return cpu().bfloat16->transpose(tile, to);
        kernels<T>().transpose(reinterpret_cast<const T *>(tile), SIDE, reinterpret_cast<T *>(to));
    }

    const symrnn_product &w_;
    const bool transposed_;
    symrnn_product product_;
    symrnn_term term_[MAX_TERMS];
    bool expanded_[MAX_TERMS];
    char *full_[MAX_TERMS];
    int64_t size_;  // of an element
    bool any_ = false;
};

}  // namespace symrnn

#endif
