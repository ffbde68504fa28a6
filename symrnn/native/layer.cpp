// symrnn_forward and symrnn_backward: the forward and the backward pass of a layer, by a thread team.
//
// Small batches are split by units. A step has two phases: a share multiplies by its part of the
// weights; then it adds up the partial sums of its slice of the units and computes the pointwise part.
// So the weights are divided among the threads' caches. Batches with enough sequences for every thread
// are split by sequences: one phase, in which each share runs its own from the first step to the last.

#include <string.h>

#include <algorithm>
#include <atomic>

#include "jobs.h"

namespace symrnn {
namespace {

// Sequences for each thread from which on a product is worth reading all weights for them alone.
constexpr int64_t OWN_SEQUENCES = 5;

// A range of the sequences, and how many of them run at each step.
struct Steps {
    int64_t count;
    const int64_t *lengths;  // of all sequences; or null
    int64_t all;             // B
    int64_t first, batch;    // the range: first … first + batch - 1
    bool reverse;

    int64_t at(int64_t n) const { return reverse ? count - 1 - n : n; }  // the n-th to run
    int64_t all_at(int64_t t) const { return lengths ? lengths[t] : all; }
    int64_t length(int64_t t) const {  // of the range
        return std::clamp(all_at(t) - first, int64_t(0), batch);
    }
    int64_t rows() const {
        if (!lengths) return count * batch;
        int64_t sum = 0;
        for (int64_t t = 0; t < count; ++t) sum += length(t);
        return sum;
    }
};

// The first row of step t, updated as t moves by one: `row` among all rows, `own` in the range's.
class RowCursor {
  public:
    RowCursor(const Steps &steps, bool from_the_end) : steps_(steps), row_(steps.first) {
        while (from_the_end && t_ < steps.count) next();
    }

    void move_to(int64_t t) {
        while (t_ < t) next();
        while (t_ > t) previous();
    }
    int64_t row() const { return row_; }
    int64_t own() const { return own_; }

  private:
    void next() {
        row_ += steps_.all_at(t_);
        own_ += steps_.length(t_++);
    }
    void previous() {
        row_ -= steps_.all_at(--t_);
        own_ -= steps_.length(t_);
    }

    const Steps &steps_;
    int64_t t_ = 0, row_, own_ = 0;
};

// to = from · mask of some tiles of the first `batch` sequences, all blocked alike.
template <typename T>
void masked(const T *from, const T *mask, int64_t stride, int64_t batch, int64_t first, int64_t last,
            T *to) {
    for (int64_t tile = first; tile < last; ++tile)
        for (int64_t k = tile * stride; k < tile * stride + batch * SIDE; ++k)
            to[k] = from[k] * mask[k];
}

// The inverse of to_blocks.
template <typename T>
void from_blocks(const T *from, int64_t rows, int64_t side, int64_t stride, int64_t first,
                 int64_t last, T *to) {
    for (int64_t b = 0; b < rows; ++b)
        for (int64_t tile = first; tile < last; ++tile) {
            const int64_t count = std::min(SIDE, side - tile * SIDE);
            memcpy(to + b * side + tile * SIDE, from + tile * stride + b * SIDE, count * sizeof(T));
        }
}

template <typename T>
const T *rows_of(const void *dense, int64_t row, int64_t width) {
    return dense ? static_cast<const T *>(dense) + row * width : nullptr;
}

template <typename T>
T *rows_of(void *dense, int64_t row, int64_t width) {
    return dense ? static_cast<T *>(dense) + row * width : nullptr;
}

// Elements of a vector from which on a phase of pointwise work is worth the signals between threads.
constexpr int64_t WORTH_A_PHASE = 4096;

// The units, cut into a slice of tiles for each share.
struct Slices {
    Team &team;
    int shares;
    int64_t tiles;
    bool small;  // whether the caller alone computes all slices

    // skew: whether skew parts are computed there too.
    Slices(Team &team, int shares, int64_t side, int64_t batch, bool skew = false)
        : team(team),
          shares(shares),
          tiles(tiles_of(side)),
          small(side * batch < WORTH_A_PHASE && !skew) {}

    template <typename Work>
    void each(const Work &work) const {
        const auto one = [&](int share) {
            work(share, tiles * share / shares, tiles * (share + 1) / shares);
        };
        if (!small) return team.each(shares, one);
        for (int share = 0; share < shares; ++share) one(share);
    }
};

template <typename T>
class Forward {
  public:
    using Arrays = ForwardArrays;
    static constexpr bool TRANSPOSED = false;  // the hidden weights, in the products of the steps

    Forward(const Call &call, const Arrays &arrays, const Expanded<T> &expanded, int64_t first,
            int64_t batch, int shares)
        : layer_(call.layer),
          a_(arrays),
          steps_{call.steps, call.lengths, call.batch, first, batch, call.reverse},
          rows_(steps_.rows()),
          side_(layer_.hh->rows),
          shares_(shares),
          hh_(expanded.product(), TRANSPOSED, batch, shares, expanded.expanded()),
          ih_(layer_.ih ? *layer_.ih : *layer_.hh, false, rows_, shares) {}

    bool prepare() {
        Arena arena;
        const int64_t size = tiles_of(side_) * steps_.batch * SIDE;
        arena.reserve(h_, size);
        arena.reserve(c_, size);
        if (layer_.state_mask) {
            arena.reserve(mask_, size);
            arena.reserve(masked_, size);
        }
        hh_.reserve(arena);
        if (layer_.ih) {
            arena.reserve(x_, tiles_of(layer_.ih->columns) * rows_ * SIDE);
            ih_.reserve(arena);
        }
        return arena.allocate();
    }

    void run(Team &team) {
        const Slices slices(team, shares_, side_, steps_.batch);
        const bool skew = layer_.hh->skew || (layer_.ih && layer_.ih->skew);
        const Slices of_steps(team, shares_, side_, steps_.batch, skew);
        const int64_t stride = steps_.batch * SIDE;
        slices.each([&](int, int64_t first, int64_t last) {
            to_blocks(rows_of<T>(a_.h0, steps_.first, side_), steps_.batch, side_, stride, first,
                      last, h_);
            if (layer_.state_mask)
                to_blocks(rows_of<T>(layer_.state_mask, steps_.first, side_), steps_.batch, side_,
                          stride, first, last, mask_);
            mask_state(first, last, steps_.batch);
            if (layer_.mode == SYMRNN_LSTM)
                to_blocks(rows_of<T>(a_.c0, steps_.first, side_), steps_.batch, side_, stride,
                          first, last, c_);
        });
        if (layer_.ih) {
            Slices(team, shares_, layer_.ih->columns, rows_)
                .each([&](int, int64_t first, int64_t last) { block_input(first, last); });
            if (steps_.count > 1) ih_.run(team, x_, rows_);
        }
        RowCursor cursor(steps_, steps_.reverse);
        for (int64_t n = 0; n < steps_.count; ++n) {
            const int64_t t = steps_.at(n), length = steps_.length(t);
            if (length == 0) continue;  // only when split by sequences
            const T *const h = layer_.state_mask ? masked_ : h_;
            if (layer_.ih && steps_.count == 1) Product<T>::run(team, ih_, x_, hh_, h, length);
            else hh_.run(team, h, length);
            if (n + 1 < steps_.count) cursor.move_to(steps_.at(n + 1));
            const int64_t next = cursor.row();
            cursor.move_to(t);
            const int64_t ahead = n + 1 < steps_.count ? next - cursor.row() : 0;
            of_steps.each([&](int share, int64_t first, int64_t last) {
                hh_.add_skew(share, first, last, 0, length);
                if (layer_.ih) ih_.add_skew(share, first, last, cursor.own(), length);
                step(first, last, cursor, length, ahead);
                mask_state(first, last, length);
            });
        }
        slices.each([&](int, int64_t first, int64_t last) {
            from_blocks(h_, steps_.batch, side_, stride, first, last,
                        rows_of<T>(a_.hn, steps_.first, side_));
            if (layer_.mode == SYMRNN_LSTM)
                from_blocks(c_, steps_.batch, side_, stride, first, last,
                            rows_of<T>(a_.cn, steps_.first, side_));
        });
    }

  private:
    // A slice of the operand of the next product.
    void mask_state(int64_t first, int64_t last, int64_t length) {
        if (layer_.state_mask)
            masked(h_, mask_, steps_.batch * SIDE, length, first, last, masked_);
    }

    void block_input(int64_t first, int64_t last) {
        const int64_t inputs = layer_.ih->columns;
        RowCursor cursor(steps_, false);
        for (int64_t t = 0; t < steps_.count; ++t) {
            cursor.move_to(t);
            to_blocks(rows_of<T>(a_.x, cursor.row(), inputs), steps_.length(t), inputs,
                      rows_ * SIDE, first, last, x_ + cursor.own() * SIDE);
        }
    }

    // The pointwise part of one step for a slice of the units.
    void step(int64_t first, int64_t last, const RowCursor &cursor, int64_t length, int64_t ahead) {
        const int64_t width = layer_.hh->gates * side_, row = cursor.row();
        const PartialSums hidden_sums = hh_.partial_sums(0);
        PartialSums input_sums;
        if (layer_.ih) input_sums = ih_.partial_sums(cursor.own());
        ForwardSlice f;
        f.mode = layer_.mode;
        f.side = side_;
        f.first = first;
        f.last = last;
        f.batch = length;
        f.ahead = ahead;
        f.hidden_sums = &hidden_sums;
        f.input_sums = layer_.ih ? &input_sums : nullptr;
        f.bias = layer_.bias;
        f.bias_n = layer_.bias_n;
        f.gates = rows_of<T>(a_.gates, row, width);
        f.gates_given = !layer_.ih;
        f.saved_cells = rows_of<T>(a_.saved_cells, row, side_);
        f.h = h_;
        f.c = c_;
        f.stride = steps_.batch * SIDE;
        f.output = rows_of<T>(a_.output, row, side_);
        kernels<T>().forward(f);
    }

    const symrnn_layer &layer_;
    const Arrays &a_;
    const Steps steps_;
    const int64_t rows_, side_;
    const int shares_;
    Product<T> hh_;
    Product<T> ih_;  // unused without input weights
    T *h_ = nullptr, *c_ = nullptr, *x_ = nullptr;
    T *mask_ = nullptr, *masked_ = nullptr;  // with a mask alone: it, and h times it
};

template <typename T>
class Backward {
  public:
    using Arrays = BackwardArrays;
    static constexpr bool TRANSPOSED = true;

    Backward(const Call &call, const Arrays &arrays, const Expanded<T> &expanded, int64_t first,
             int64_t batch, int shares)
        : layer_(call.layer),
          a_(arrays),
          steps_{call.steps, call.lengths, call.batch, first, batch, call.reverse},
          side_(layer_.hh->rows),
          shares_(shares),
          hh_(expanded.product(), TRANSPOSED, batch, shares, expanded.expanded()) {}

    bool prepare() {
        Arena arena;
        const int64_t size = tiles_of(side_) * steps_.batch * SIDE;
        arena.reserve(d_h_, size);
        arena.reserve(d_c_, size);
        arena.reserve(d_hidden_, layer_.hh->gates * size);
        if (layer_.state_mask) {
            arena.reserve(mask_, size);
            arena.reserve(d_masked_, size);
        }
        hh_.reserve(arena);
        return arena.allocate();
    }

    void run(Team &team) {
        const Slices slices(team, shares_, side_, steps_.batch, layer_.hh->skew);
        const int64_t stride = steps_.batch * SIDE, own = steps_.first;
        slices.each([&](int, int64_t first, int64_t last) {
            to_blocks(rows_of<T>(a_.d_hn, own, side_), steps_.batch, side_, stride, first, last,
                      d_h_);
            to_blocks(rows_of<T>(a_.d_cn, own, side_), steps_.batch, side_, stride, first, last,
                      d_c_);
            if (layer_.state_mask)
                to_blocks(rows_of<T>(layer_.state_mask, own, side_), steps_.batch, side_, stride,
                          first, last, mask_);
        });
        RowCursor cursor(steps_, !steps_.reverse), before(steps_, !steps_.reverse);
        int64_t added = 0;  // sequences whose last product is still to be added to d_h_
        const auto add = [&](int share, int64_t first, int64_t last) {
            if (!added) return;
            hh_.add_skew(share, first, last, 0, added);
            if (layer_.state_mask) return add_masked(first, last, added);
            kernels<T>().add(d_h_, hh_.partial_sums(0), first, last, added * SIDE);
        };
        for (int64_t n = steps_.count - 1; n >= 0; --n) {
            const int64_t t = steps_.at(n), length = steps_.length(t);
            if (length == 0) continue;  // as in the forward pass
            const int64_t running_before = n > 0 ? steps_.length(steps_.at(n - 1)) : 0;
            cursor.move_to(t);
            if (n > 0) before.move_to(steps_.at(n - 1));
            slices.each([&](int share, int64_t first, int64_t last) {
                add(share, first, last);
                step(first, last, cursor.row(), length, before.row(), running_before);
            });
            hh_.run(team, d_hidden_, length);
            added = length;
        }
        slices.each([&](int share, int64_t first, int64_t last) {
            add(share, first, last);
            from_blocks(d_h_, steps_.batch, side_, stride, first, last,
                        rows_of<T>(a_.d_h0, own, side_));
            if (layer_.mode == SYMRNN_LSTM)
                from_blocks(d_c_, steps_.batch, side_, stride, first, last,
                            rows_of<T>(a_.d_c0, own, side_));
        });
    }

  private:
    // As kernels' `add`, of the gradient of h times the mask.
    void add_masked(int64_t first, int64_t last, int64_t added) {
        const int64_t stride = steps_.batch * SIDE;
        for (int64_t tile = first; tile < last; ++tile)
            std::fill_n(d_masked_ + tile * stride, added * SIDE, T(0));
        kernels<T>().add(d_masked_, hh_.partial_sums(0), first, last, added * SIDE);
        for (int64_t tile = first; tile < last; ++tile)
            for (int64_t k = tile * stride; k < tile * stride + added * SIDE; ++k)
                d_h_[k] += d_masked_[k] * mask_[k];
    }

    void step(int64_t first, int64_t last, int64_t row, int64_t length, int64_t row_before,
              int64_t before) {
        const int64_t width = layer_.hh->gates * side_;
        BackwardSlice f;
        f.mode = layer_.mode;
        f.side = side_;
        f.first = first;
        f.last = last;
        f.batch = length;
        f.before = before;
        f.gates = rows_of<T>(a_.gates, row, width);
        f.saved_cells = rows_of<T>(a_.saved_cells, row, side_);
        f.h_before = rows_of<T>(a_.output, row_before, side_);
        f.c_before = rows_of<T>(a_.saved_cells, row_before, side_);
        f.h0 = rows_of<T>(a_.h0, steps_.first, side_);
        f.c0 = rows_of<T>(a_.c0, steps_.first, side_);
        f.d_output = rows_of<T>(a_.d_output, row, side_);
        f.d_gates = rows_of<T>(a_.d_gates, row, width);
        f.d_hidden = rows_of<T>(a_.d_hidden, row, width);
        f.d_h = d_h_;
        f.d_c = d_c_;
        f.stride = steps_.batch * SIDE;
        f.blocked = d_hidden_;
        f.gate = hh_.x_gate();
        kernels<T>().backward(f);
    }

    const symrnn_layer &layer_;
    const Arrays &a_;
    const Steps steps_;
    const int64_t side_;
    const int shares_;
    Product<T> hh_;
    T *d_h_ = nullptr, *d_c_ = nullptr, *d_hidden_ = nullptr;
    T *mask_ = nullptr, *d_masked_ = nullptr;  // with a mask alone: it, and the gradient of h times it
};

// Split by units: all threads run all sequences.
template <typename T, template <typename> class Pass>
struct ByUnits {
    Expanded<T> &expanded;
    Pass<T> pass;
    int shares;

    bool prepare() { return expanded.prepare() && pass.prepare(); }

    void run(Team &team) {
        if (expanded.any()) team.each(shares, [&](int share) { expanded.expand(share, shares); });
        pass.run(team);
    }
};

// Split by sequences: each share runs a range of them.
template <typename T, template <typename> class Pass>
struct BySequences {
    const Call &call;
    const typename Pass<T>::Arrays &arrays;
    Expanded<T> &expanded;
    int shares;
    std::atomic<bool> no_memory{false};

    bool prepare() { return expanded.prepare(); }

    void run(Team &team) {
        if (expanded.any()) team.each(shares, [&](int share) { expanded.expand(share, shares); });
        team.each(shares, [&](int share) {
            const int64_t first = first_sequence(share), last = first_sequence(share + 1);
            if (first == last) return;
            Pass<T> own(call, arrays, expanded, first, last - first, 1);
            Team alone(1);
            if (own.prepare()) own.run(alone);
            else no_memory = true;
            scratch.trim();
        });
    }

    // The first sequence of share k. All shares have about as many rows.
    int64_t first_sequence(int k) const {
        if (!call.lengths) return call.batch * k / shares;
        int64_t all = 0;
        for (int64_t t = 0; t < call.steps; ++t) all += call.lengths[t];
        int64_t rows = 0, sequence = 0, steps = call.steps;
        while (sequence < call.batch && rows * shares < all * k) {
            while (call.lengths[steps - 1] <= sequence) --steps;  // the steps at which it runs
            rows += steps;
            ++sequence;
        }
        return k == shares ? call.batch : sequence;
    }
};

template <typename T, template <typename> class Pass>
int run(const Call &call, const typename Pass<T>::Arrays &arrays) {
    const int shares = shares_for(call.threads);
    Expanded<T> expanded(*call.layer.hh, Pass<T>::TRANSPOSED, call.batch, call.steps);
    if (shares > 1 && call.batch >= OWN_SEQUENCES * shares) {
        BySequences<T, Pass> job{call, arrays, expanded, shares};
        const int status = run_job(job, shares);
        return job.no_memory ? SYMRNN_MEMORY : status;
    }
    ByUnits<T, Pass> job{expanded, Pass<T>(call, arrays, expanded, 0, call.batch, shares), shares};
    return run_job(job, shares);
}

}  // namespace

template <typename T>
int forward(const Call &call, const ForwardArrays &arrays) {
    return run<T, Forward>(call, arrays);
}

template <typename T>
int backward(const Call &call, const BackwardArrays &arrays) {
    return run<T, Backward>(call, arrays);
}

template int forward<float>(const Call &, const ForwardArrays &);
template int forward<double>(const Call &, const ForwardArrays &);
template int backward<float>(const Call &, const BackwardArrays &);
template int backward<double>(const Call &, const BackwardArrays &);

}  // namespace symrnn
