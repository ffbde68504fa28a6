// A layer's steps, forth and back through time, by a team.
//
// Small batches are run by all members together: each multiplies by its share of the weights, they
// meet, then each adds up the parts of its slice of the units, does the arithmetic of the step, and
// they meet again; the weights are divided among the members' caches. Where there are sequences
// enough for every member to have its own, each runs some of them from the first step to the last,
// and nobody waits for anybody.

#include <string.h>

#include <algorithm>
#include <atomic>

#include "jobs.h"

namespace symrnn {
namespace {

// So many sequences each make a product efficient enough to read all weights for them alone.
constexpr int64_t OWN_SEQUENCES = 5;

// Some of the sequences, and how many of them each step runs.
struct Steps {
    int64_t count;
    const int64_t *lengths;  // of all sequences; or null
    int64_t all;             // B
    int64_t first, batch;    // ours: first … first + batch - 1
    bool reverse;

    int64_t at(int64_t n) const { return reverse ? count - 1 - n : n; }  // the n-th that is run
    int64_t all_at(int64_t t) const { return lengths ? lengths[t] : all; }
    int64_t length(int64_t t) const {  // of ours
        return std::clamp(all_at(t) - first, int64_t(0), batch);
    }
    int64_t rows() const {
        if (!lengths) return count * batch;
        int64_t sum = 0;
        for (int64_t t = 0; t < count; ++t) sum += length(t);
        return sum;
    }
};

// The first row of step t, kept while t goes up or down by one: among all rows, and among ours.
class Place {
  public:
    Place(const Steps &steps, bool from_the_end) : steps_(steps), row_(steps.first) {
        while (from_the_end && t_ < steps.count) forth();
    }

    void go(int64_t t) {
        while (t_ < t) forth();
        while (t_ > t) back();
    }
    int64_t row() const { return row_; }
    int64_t own() const { return own_; }

  private:
    void forth() {
        row_ += steps_.all_at(t_);
        own_ += steps_.length(t_++);
    }
    void back() {
        row_ -= steps_.all_at(--t_);
        own_ -= steps_.length(t_);
    }

    const Steps &steps_;
    int64_t t_ = 0, row_, own_ = 0;
};

// The way back, from blocks to rows.
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

// The shares that a member runs, and of each the tiles of units that are its slice.
struct Slices {
    int shares, member, members;
    int64_t tiles;

    template <typename Work>
    void each(const Work &work) const {
        for (int share = member; share < shares; share += members)
            work(share, tiles * share / shares, tiles * (share + 1) / shares);
    }
};

// Leaves the product of the shares where `gather` finds it. All meet first, for all must be there.
template <typename T>
void finish(Product<T> &product, const Slices &slices, int64_t batch, Barrier &barrier) {
    barrier.wait();
    if (!product.folded()) return;
    slices.each([&](int share, int64_t, int64_t) { product.join(share); });
    barrier.wait();
    slices.each([&](int share, int64_t, int64_t) { product.unfold(share, batch); });
    barrier.wait();
}

template <typename T>
class Forward {
  public:
    using Arrays = ForwardArrays;

    Forward(const Call &call, const Arrays &arrays, const Spread<T> &spread, int64_t first,
            int64_t batch, int shares)
        : layer_(call.layer),
          a_(arrays),
          steps_{call.steps, call.lengths, call.batch, first, batch, call.reverse},
          rows_(steps_.rows()),
          side_(layer_.hh->rows),
          shares_(shares),
          hh_(spread.product(), false, batch, shares, spread.own_transpose()),
          ih_(layer_.ih ? *layer_.ih : *layer_.hh, false, rows_, shares) {}

    bool prepare() {
        Pieces pieces;
        const int64_t size = tiles_of(side_) * steps_.batch * SIDE;
        pieces.want(h_, size);
        pieces.want(c_, size);
        hh_.want(pieces);
        if (layer_.ih) {
            pieces.want(x_, tiles_of(layer_.ih->columns) * rows_ * SIDE);
            ih_.want(pieces);
        }
        return pieces.take();
    }

    void run(int member, int members, Barrier &barrier) {
        const Slices slices{shares_, member, members, tiles_of(side_)};
        const int64_t stride = steps_.batch * SIDE;
        slices.each([&](int share, int64_t first, int64_t last) {
            to_blocks(rows_of<T>(a_.h0, steps_.first, side_), steps_.batch, side_, stride, first,
                      last, h_);
            if (layer_.mode == SYMRNN_LSTM)
                to_blocks(rows_of<T>(a_.c0, steps_.first, side_), steps_.batch, side_, stride,
                          first, last, c_);
            if (layer_.ih) block_input(share);
        });
        barrier.wait();
        if (layer_.ih) {
            slices.each([&](int share, int64_t, int64_t) {
                ih_.multiply(share, member, x_, rows_);
            });
            if (ih_.folded()) finish(ih_, slices, rows_, barrier);
        }
        Place place(steps_, steps_.reverse);
        for (int64_t n = 0; n < steps_.count; ++n) {
            const int64_t t = steps_.at(n), length = steps_.length(t);
            if (length == 0) continue;  // of sequences apart, where nobody else is to be met
            slices.each([&](int share, int64_t, int64_t) {
                hh_.multiply(share, member, h_, length);
            });
            finish(hh_, slices, length, barrier);
            if (n + 1 < steps_.count) place.go(steps_.at(n + 1));
            const int64_t next = place.row();
            place.go(t);
            slices.each([&](int, int64_t first, int64_t last) {
                step(first, last, place, length, n + 1 < steps_.count ? next - place.row() : 0);
            });
            barrier.wait();
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
    void block_input(int share) {
        const int64_t inputs = layer_.ih->columns, tiles = tiles_of(inputs);
        Place place(steps_, false);
        for (int64_t t = 0; t < steps_.count; ++t) {
            place.go(t);
            to_blocks(rows_of<T>(a_.x, place.row(), inputs), steps_.length(t), inputs,
                      rows_ * SIDE, tiles * share / shares_, tiles * (share + 1) / shares_,
                      x_ + place.own() * SIDE);
        }
    }

    // The arithmetic of one step for a slice of the units.
    void step(int64_t first, int64_t last, const Place &place, int64_t length, int64_t ahead) {
        const int64_t width = layer_.hh->gates * side_, row = place.row();
        const Parts parts = hh_.gather(0);
        Parts input_parts;
        if (layer_.ih) input_parts = ih_.gather(place.own());
        ForwardSlice f;
        f.mode = layer_.mode;
        f.side = side_;
        f.first = first;
        f.last = last;
        f.batch = length;
        f.ahead = ahead;
        f.parts = &parts;
        f.input_parts = layer_.ih ? &input_parts : nullptr;
        f.bias = layer_.bias;
        f.bias_n = layer_.bias_n;
        f.gates = rows_of<T>(a_.gates, row, width);
        f.gates_given = !layer_.ih;
        f.cells = rows_of<T>(a_.cells, row, side_);
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
    Product<T> ih_;  // where there is none, never used
    T *h_ = nullptr, *c_ = nullptr, *x_ = nullptr;
};

template <typename T>
class Backward {
  public:
    using Arrays = BackwardArrays;

    Backward(const Call &call, const Arrays &arrays, const Spread<T> &spread, int64_t first,
             int64_t batch, int shares)
        : layer_(call.layer),
          a_(arrays),
          steps_{call.steps, call.lengths, call.batch, first, batch, call.reverse},
          side_(layer_.hh->rows),
          shares_(shares),
          hh_(spread.product(), true, batch, shares, spread.own_transpose()) {}

    bool prepare() {
        Pieces pieces;
        const int64_t size = tiles_of(side_) * steps_.batch * SIDE;
        pieces.want(d_h_, size);
        pieces.want(d_c_, size);
        pieces.want(d_hidden_, layer_.hh->gates * size);
        hh_.want(pieces);
        return pieces.take();
    }

    void run(int member, int members, Barrier &barrier) {
        const Slices slices{shares_, member, members, tiles_of(side_)};
        const int64_t stride = steps_.batch * SIDE, ours = steps_.first;
        slices.each([&](int, int64_t first, int64_t last) {
            to_blocks(rows_of<T>(a_.d_hn, ours, side_), steps_.batch, side_, stride, first, last,
                      d_h_);
            to_blocks(rows_of<T>(a_.d_cn, ours, side_), steps_.batch, side_, stride, first, last,
                      d_c_);
        });
        Place place(steps_, !steps_.reverse), before(steps_, !steps_.reverse);
        for (int64_t n = steps_.count - 1; n >= 0; --n) {
            const int64_t t = steps_.at(n), length = steps_.length(t);
            if (length == 0) continue;  // as on the way forth
            const int64_t running_before = n > 0 ? steps_.length(steps_.at(n - 1)) : 0;
            place.go(t);
            if (n > 0) before.go(steps_.at(n - 1));
            // A slice's gradients of the state were last written by the same share.
            slices.each([&](int, int64_t first, int64_t last) {
                step(first, last, place.row(), length, before.row(), running_before);
            });
            barrier.wait();
            slices.each([&](int share, int64_t, int64_t) {
                hh_.multiply(share, member, d_hidden_, length);
            });
            finish(hh_, slices, length, barrier);
            slices.each([&](int, int64_t first, int64_t last) {
                kernels<T>().add(d_h_, hh_.gather(0), first, last, length * SIDE);
            });
        }
        slices.each([&](int, int64_t first, int64_t last) {
            from_blocks(d_h_, steps_.batch, side_, stride, first, last,
                        rows_of<T>(a_.d_h0, ours, side_));
            if (layer_.mode == SYMRNN_LSTM)
                from_blocks(d_c_, steps_.batch, side_, stride, first, last,
                            rows_of<T>(a_.d_c0, ours, side_));
        });
    }

  private:
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
        f.cells = rows_of<T>(a_.cells, row, side_);
        f.h_before = rows_of<T>(a_.output, row_before, side_);
        f.c_before = rows_of<T>(a_.cells, row_before, side_);
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
};

// All sequences by all members together.
template <typename T, template <typename> class Way>
struct Together {
    Spread<T> &spread;
    Way<T> way;
    int shares;

    bool prepare() { return spread.prepare() && way.prepare(); }

    void run(int member, int members, Barrier &barrier) {
        for (int share = member; spread.any() && share < shares; share += members)
            spread.fill(share, shares);
        if (spread.any()) barrier.wait();
        way.run(member, members, barrier);
    }
};

// To each share some of the sequences.
template <typename T, template <typename> class Way>
struct Apart {
    const Call &call;
    const typename Way<T>::Arrays &arrays;
    Spread<T> &spread;
    int shares;
    std::atomic<bool> no_memory{false};

    bool prepare() { return spread.prepare(); }

    void run(int member, int members, Barrier &barrier) {
        for (int share = member; spread.any() && share < shares; share += members)
            spread.fill(share, shares);
        if (spread.any()) barrier.wait();
        for (int share = member; share < shares; share += members) {
            const int64_t first = first_sequence(share), last = first_sequence(share + 1);
            if (first == last) continue;
            Way<T> own(call, arrays, spread, first, last - first, 1);
            Barrier alone(1);
            if (own.prepare()) own.run(0, 1, alone);
            else no_memory = true;
            if (member > 0) scratch.done();  // the caller's own is seen to by the caller
        }
    }

    // Of share k, such that each has about as many rows.
    int64_t first_sequence(int k) const {
        if (!call.lengths) return call.batch * k / shares;
        int64_t all = 0;
        for (int64_t t = 0; t < call.steps; ++t) all += call.lengths[t];
        int64_t rows = 0, sequence = 0, steps = call.steps;
        while (sequence < call.batch && rows * shares < all * k) {
            while (call.lengths[steps - 1] <= sequence) --steps;  // those that it takes part in
            rows += steps;
            ++sequence;
        }
        return k == shares ? call.batch : sequence;
    }
};

template <typename T, template <typename> class Way>
int run(const Call &call, const typename Way<T>::Arrays &arrays) {
    const int shares = shares_for(call.threads);
    Spread<T> spread(*call.layer.hh, call.batch, call.steps);
    if (shares > 1 && call.batch >= OWN_SEQUENCES * shares) {
        Apart<T, Way> job{call, arrays, spread, shares};
        const int status = run_job(job, shares);
        return job.no_memory ? SYMRNN_MEMORY : status;
    }
    Together<T, Way> job{spread, Way<T>(call, arrays, spread, 0, call.batch, shares), shares};
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
