// A layer in one direction, all its steps in one launch: what each block of threads does. See
// schedule.h for who does what, products.h for the products.
//
// Forth, at each step:   multiply the state before it → parts; add parts, cells → the state after it.
// Back, at each step:    add parts of the step after it, cells → gradients of the gates; multiply
//                        those → parts.
//
// What blocks hand one another are the parts and the states (forth: `output`; back: the gradients of
// the gates). Each block has two flags that count the steps of which it has handed over its parts and
// its states. Parts of one step are overwritten by the next: a block does so only after the states of
// all units of its squares have come, and those come from just the blocks that read its parts.

#ifndef SYMRNN_CUDA_LAYER_H
#define SYMRNN_CUDA_LAYER_H

#include "../schedule.h"
#include "../symrnn.h"
#include "device.h"
#include "pointwise.h"
#include "products.h"

namespace symrnn {

constexpr int THREADS = 384;
constexpr int WARPS = THREADS / WARP;
constexpr int UNITS = static_cast<int>(SIDE);  // of a row, and of a tile
constexpr int MOST_GATES = 4;
static_assert(MOST_BLOCKS <= THREADS, "each thread waits for one block");

// The arguments of symrnn_cuda_forward and symrnn_cuda_backward, as symrnn_cuda.h has them.
template <typename T>
struct Job {
    Schedule schedule;
    int part_width;  // the schedule's: known beforehand, for it takes a division
    int mode, steps;
    bool reverse, backward;
    const T *packed, *bias_n;
    T *gates;                             // back: only read
    float *cells;                         // back: only read
    const T *h0, *c0;
    T *output;                            // back: only read
    T *hn, *cn;                           // forth
    const T *d_output, *d_hn, *d_cn;      // back
    T *d_gates, *d_hidden, *d_h0, *d_c0;  // back
    uint32_t *parts_flags, *state_flags;  // (blocks, FLAG), zeros at first
    float *carry;                         // (B, H)
    float *parts;
};

// One block. N: the sequences that are multiplied at once, in eights.
template <typename Policy, int N>
class Worker {
    using T = typename Policy::Number;
    using Stored = typename Policy::Stored;
    static constexpr int COLUMNS_AT_ONCE = N * 8;
    static constexpr int OPERAND = COLUMNS_AT_ONCE * UNITS;  // numbers of a tile of the operand

  public:
    SYMRNN_DEVICE Worker(const Job<T> &job, char *shared)
        : job_(job),
          s_(job.schedule),
          block_(block_index()),
          share_(s_, block_),
          weights_(reinterpret_cast<Stored *>(shared)),
          operand_(weights_ + s_.together * share_.tiles() * TILE),
          first_row_(s_.first_row(block_)),
          last_row_(s_.first_row(block_ + 1)),
          states_of_(giver_of_states(thread_index())),
          parts_of_(giver_of_parts(thread_index())) {}

    SYMRNN_DEVICE void run() {
        hold_weights();
        if (job_.backward) back();
        else forth();
    }

  private:
    SYMRNN_DEVICE void forth() {
        for (int n = 0; n < job_.steps; ++n) {
            const T *before = n > 0 ? job_.output + row_of(n - 1) * s_.units : job_.h0;
            await_states(n);
            multiply(before, s_.units);
            hand_over(job_.parts_flags, n + 1);
            if (job_.mode == SYMRNN_LSTM) lstm_cells(n);
            else other_cells(n);
            hand_over(job_.state_flags, n + 1);
        }
    }

    SYMRNN_DEVICE void back() {
        const int64_t width = static_cast<int64_t>(s_.gates) * s_.units;
        const T *gradients = job_.mode == SYMRNN_GRU ? job_.d_hidden : job_.d_gates;
        for (int done = 0; done < job_.steps; ++done) {
            const int n = job_.steps - 1 - done;
            if (job_.mode == SYMRNN_LSTM) lstm_gradients(n, done);
            else other_gradients(n, done);
            hand_over(job_.state_flags, done + 1);
            await_states(done + 1);
            multiply(gradients + row_of(n) * width, width);
            hand_over(job_.parts_flags, done + 1);
        }
        first_state_gradients();
    }

    // The first row, of all steps and sequences, of the n-th step that is done on the way forth.
    SYMRNN_DEVICE int64_t row_of(int n) const {
        return static_cast<int64_t>(job_.reverse ? job_.steps - 1 - n : n) * s_.batch;
    }

    // ---- handing over ----------------------------------------------------------------------------

    SYMRNN_DEVICE void hand_over(uint32_t *flags, int count) {
        meet();
        if (thread_index() == 0) raise(flags + block_ * FLAG, count);
    }

    // Until whoever hands over the states of this block's units has done so `count` times. Each thread
    // waits for one block at most; which one it knows from the beginning, for that takes divisions.
    SYMRNN_DEVICE void await_states(int count) {
        if (count > 0 && states_of_ >= 0) wait_for(job_.state_flags + states_of_ * FLAG, count);
        meet();
    }

    // Until all parts of this block's rows have been handed over `count` times.
    SYMRNN_DEVICE void await_parts(int count) {
        if (count > 0 && parts_of_ >= 0) wait_for(job_.parts_flags + parts_of_ * FLAG, count);
        meet();
    }

    // The k-th block whose states are waited for; -1 if there are not so many.
    SYMRNN_DEVICE int giver_of_states(int k) const {
        const Span first = blocks_of(share_.first), second = blocks_of(share_.second);
        if (k < first.count()) return first.first + k;
        k -= first.count();
        return k < second.count() ? second.first + k : -1;
    }

    // Those that do the cells of these tiles.
    SYMRNN_DEVICE Span blocks_of(Span tiles) const {
        const int first = tiles.first * s_.batch, last = tiles.last * s_.batch;
        if (first == last) return {0, 0};
        return {s_.block_of_row(first), s_.block_of_row(last - 1) + 1};
    }

    // Likewise of the parts of this block's rows.
    SYMRNN_DEVICE int giver_of_parts(int k) const {
        if (first_row_ == last_row_) return -1;
        const int square = s_.square_of(first_row_ / s_.batch) + k / (s_.sets() * s_.squares);
        if (square > s_.square_of((last_row_ - 1) / s_.batch)) return -1;
        return s_.part(k / s_.squares % s_.sets(), square, k % s_.squares).block;
    }

    // ---- multiplying -----------------------------------------------------------------------------

    SYMRNN_DEVICE void hold_weights() {
        const int tiles = share_.tiles();
        for (int k = warp_index(); k < tiles * s_.together; k += WARPS) {
            const Share::Position at = share_.position(k % tiles);
            Policy::hold(weights_ + k * TILE,
                         job_.packed + packed_tile(s_.tiles, s_.gates, share_.gate + k / tiles,
                                                   at.row, at.column));
        }
    }

    // rows: (B, width), at which each vector, of H units, begins at gate · H; null for zeros.
    SYMRNN_DEVICE void multiply(const T *rows, int64_t width) {
        for (int b = 0; b < s_.batch; b += COLUMNS_AT_ONCE) {
            load_operand(rows, width, b);
            meet();
            multiply_strips(b);
            if (b + COLUMNS_AT_ONCE < s_.batch) meet();  // before the operand is overwritten
        }
    }

    // The operand lies as [gate][tile of the first side, then of the second][b][unit].
    SYMRNN_DEVICE void load_operand(const T *rows, int64_t width, int first) {
        constexpr int AT_ONCE = 4;  // loads on their way
        const int tiles = share_.first.count() + share_.second.count(),
                  quads = operands() * tiles * COLUMNS_AT_ONCE * 4;
        // An initial state may lie anywhere.
        const bool whole =
            s_.units % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % sizeof(Quad<T>) == 0;
        for (int base = thread_index(); base < quads; base += THREADS * AT_ONCE) {
            Quad<T> loaded[AT_ONCE];
            for (int j = 0; j < AT_ONCE; ++j) {
                const int k = base + j * THREADS;
                for (T &x : loaded[j].at) x = from_float<T>(0);
                if (k >= quads || !rows) continue;
                const int b = first + k / 4 % COLUMNS_AT_ONCE, tile = k / (COLUMNS_AT_ONCE * 4);
                const int gate = operands() > 1 ? tile / tiles : 0,
                          local = tile - gate * tiles - share_.first.count();
                const int unit = (local < 0 ? share_.first.last + local
                                            : share_.second.first + local) * UNITS + k % 4 * 4;
                if (b >= s_.batch) continue;
                const T *from = rows + b * width + unit +
                                (job_.backward ? static_cast<int64_t>(share_.gate + gate) * s_.units
                                               : 0);
                if (whole && unit < s_.units)
                    loaded[j] = load_shared_work(reinterpret_cast<const Quad<T> *>(from));
                else
                    for (int i = 0; i < 4; ++i)
                        if (unit + i < s_.units) loaded[j].at[i] = load_shared_work(from + i);
            }
            for (int j = 0; j < AT_ONCE; ++j) {
                const int k = base + j * THREADS;
                if (k >= quads) continue;
                Quad<Stored> quad;
                for (int i = 0; i < 4; ++i) quad.at[i] = Policy::rounded(loaded[j].at[i]);
                *reinterpret_cast<Quad<Stored> *>(
                    operand_ + k / (COLUMNS_AT_ONCE * 4) * OPERAND +
                    Policy::place(k / 4 % COLUMNS_AT_ONCE, k % 4 * 4)) = quad;
            }
        }
    }

    // The vectors that are multiplied: on the way back one of each gate of the block.
    SYMRNN_DEVICE int operands() const { return job_.backward ? s_.together : 1; }

    // A strip is what one tile of a side gets, of one vector of the result. Warps take them one by one
    // or, where there are more than warps, in twos or threes of the same side: the operand is read
    // once for all of them.
    SYMRNN_DEVICE void multiply_strips(int first) {
        const int vectors = s_.vectors(job_.backward);
        const int of_first = share_.first.count() * vectors,
                  of_second = share_.second.count() * vectors;
        const int wanted = (of_first + of_second + WARPS - 1) / WARPS,
                  size = wanted < Policy::STRIPS ? wanted : Policy::STRIPS;
        const int groups = (of_first + size - 1) / size;
        for (int k = warp_index(); k < groups + (of_second + size - 1) / size; k += WARPS) {
            const int to = k < groups ? 0 : 1, strip = (k - to * groups) * size;
            const int left = (to == 0 ? of_first : of_second) - strip;
            const int now = left < size ? left : size;
            if (now == Policy::STRIPS) strips<Policy::STRIPS>(to, strip, first);
            else if (now == 2) strips<2>(to, strip, first);
            else strips<1>(to, strip, first);
        }
    }

    template <int R>
    SYMRNN_DEVICE void strips(int to, int strip, int first) {
        float sum[R][N][4] = {};
        const int side = share_.from(to), tiles = share_.side(side).count(),
                  length = share_.side(to).count(), of_gate = share_.tiles();
        const int all = share_.first.count() + share_.second.count(),
                  before = side == 0 ? 0 : share_.first.count();
        int row[R], start[R];  // which tile of the side; its first tile among all weights
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int vector = (strip + r) / length;  // forth: of which gate
            row[r] = strip + r - vector * length;
            start[r] = vector * of_gate + share_.tile(to, row[r], 0).index;
        }
#pragma unroll 1
        for (int gate = 0; gate < operands(); ++gate) {
            int held[R];
#pragma unroll
            for (int r = 0; r < R; ++r) held[r] = start[r] + gate * of_gate;
            const Stored *operand = operand_ + (gate * all + before) * OPERAND;
#pragma unroll 1
            for (int k = 0; k < tiles; ++k, operand += OPERAND) {
#pragma unroll 1
                for (int step = 0; step < Policy::STEPS; ++step) {
                    typename Policy::Left a[R];
#pragma unroll
                    for (int r = 0; r < R; ++r)
                        a[r] = Policy::left(weights_ + held[r] * TILE,
                                            share_.diagonal ? k > row[r] : to == 1, step);
#pragma unroll
                    for (int j = 0; j < N; ++j) {
                        const typename Policy::Right b = Policy::right(operand, j * 8, step);
#pragma unroll
                        for (int r = 0; r < R; ++r) Policy::multiply(sum[r][j], a[r], b);
                    }
                }
#pragma unroll
                for (int r = 0; r < R; ++r) held[r] += share_.step(to, row[r], k);
            }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int vector = (strip + r) / length;
            float *const part = job_.parts + part_place({block_, to}, vector) +
                                row[r] * UNITS;
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int b = first + j * 8 + lane_index() % 4 * 2 + i;
                    if (b < s_.batch) Policy::store(part + b * job_.part_width, sum[r][j], i);
                }
        }
    }

    // Schedule::part_start of the first sequence, in 32 bits.
    SYMRNN_DEVICE int part_place(Part part, int vector) const {
        return ((part.block * 2 + part.side) * s_.vectors(job_.backward) + vector) * s_.batch *
               job_.part_width;
    }

    // ---- the cells -------------------------------------------------------------------------------

    // A unit of a sequence, of which this thread does the arithmetic.
    struct Cell {
        int unit, b;
        int square, within;  // where its parts are
        bool valid;          // a unit that there is
        int at;              // in (B, H)
    };

    // Rows are taken by 16 threads each; this is the first of this thread.
    SYMRNN_DEVICE int own_row() const { return first_row_ + thread_index() / UNITS; }

    SYMRNN_DEVICE Cell cell(int row) const {
        Cell c;
        const int tile = row / s_.batch;
        c.b = row - tile * s_.batch;
        c.unit = tile * UNITS + thread_index() % UNITS;
        c.square = s_.square_of(tile);
        c.within = (tile - s_.first_tile(c.square)) * UNITS + thread_index() % UNITS;
        c.valid = row < last_row_ && c.unit < s_.units;
        c.at = c.b * s_.units + c.unit;
        return c;
    }

    // Calls `work` for the thread's cells, with `read` of each before. What does not depend on the
    // parts is done for the first cell before they are waited for.
    template <typename Read, typename Work>
    SYMRNN_DEVICE void each_cell(int count, const Read &read, const Work &work) {
        int row = own_row();
        Cell c = cell(row);
        auto in = read(c);
        await_parts(count);
        while (row < last_row_) {
            if (c.valid) work(c, in);
            row += THREADS / UNITS;
            if (row >= last_row_) break;
            c = cell(row);
            in = read(c);
        }
    }

    // The parts of a cell's sums: forth of each gate, back all in one. All loads of some squares
    // are on their way before the first is added.
    template <bool BACK>
    SYMRNN_DEVICE void add_parts(const Cell &c, float (&sum)[MOST_GATES]) const {
        const int vectors = s_.vectors(BACK), count = BACK ? s_.sets() : s_.gates;
        const int of_vector = s_.batch * job_.part_width;  // numbers, as the next two
        const int of_set = s_.blocks_of_gate() * 2 * vectors * of_vector;
        const float *const parts = job_.parts + c.b * job_.part_width + c.within;
        for (int base = 0; base < s_.squares; base += LOADS_AT_ONCE) {
            float got[MOST_GATES][LOADS_AT_ONCE];
#pragma unroll
            for (int k = 0; k < LOADS_AT_ONCE; ++k) {
                const Part part = s_.part(0, c.square, base + k);
                const int place = (part.block * 2 + part.side) * vectors * of_vector;
#pragma unroll
                for (int g = 0; g < MOST_GATES; ++g) {
                    const int q = s_.together;
                    const int set = BACK ? g : (g >= q) + (g >= 2 * q) + (g >= 3 * q);
                    const int vector = BACK ? 0 : g - set * q;
                    got[g][k] = g < count && base + k < s_.squares
                                    ? load_shared_work(parts + place + set * of_set +
                                                       vector * of_vector)
                                    : 0.0f;
                }
            }
#pragma unroll
            for (int g = 0; g < MOST_GATES; ++g)
#pragma unroll
                for (int k = 0; k < LOADS_AT_ONCE; ++k) sum[BACK ? 0 : g] += got[g][k];
        }
    }

    struct ForwardInput {
        float gate[MOST_GATES];
        float before;  // LSTM c, GRU h
    };

    SYMRNN_DEVICE int64_t gate_place(const Cell &c, int64_t row, int gate) const {
        return ((row + c.b) * s_.gates + gate) * s_.units + c.unit;
    }

    SYMRNN_DEVICE static float or_zero(const T *from, int64_t at) {
        return from ? to_float(from[at]) : 0.0f;
    }

    SYMRNN_DEVICE ForwardInput read_forward(const Cell &c, int n) const {
        ForwardInput in = {};
        if (!c.valid) return in;
        const int64_t row = row_of(n);
#pragma unroll
        for (int gate = 0; gate < MOST_GATES; ++gate)
            if (gate < s_.gates) in.gate[gate] = to_float(job_.gates[gate_place(c, row, gate)]);
        if (job_.mode == SYMRNN_LSTM) in.before = n > 0 ? job_.carry[c.at] : or_zero(job_.c0, c.at);
        if (job_.mode == SYMRNN_GRU)
            in.before = n > 0 ? to_float(job_.output[row_of(n - 1) * s_.units + c.at])
                              : or_zero(job_.h0, c.at);
        return in;
    }

    SYMRNN_DEVICE void write_forward(const Cell &c, int n, const float (&gate)[MOST_GATES], float h) {
        const int64_t row = row_of(n);
#pragma unroll
        for (int g = 0; g < MOST_GATES; ++g)
            if (g < s_.gates) job_.gates[gate_place(c, row, g)] = from_float<T>(gate[g]);
        job_.output[row * s_.units + c.at] = from_float<T>(h);
        if (n == job_.steps - 1) job_.hn[c.at] = from_float<T>(h);
    }

    SYMRNN_DEVICE void lstm_cells(int n) {
        each_cell(
            n + 1, [&](const Cell &c) { return read_forward(c, n); },
            [&](const Cell &c, ForwardInput &in) {
                float sum[MOST_GATES] = {};
                add_parts<false>(c, sum);
                for (int g = 0; g < MOST_GATES; ++g) sum[g] += in.gate[g];
                float state = in.before;
                const float h = lstm_forward(sum, state);
                job_.carry[c.at] = state;
                if (job_.cells) job_.cells[row_of(n) * s_.units + c.at] = state;
                if (n == job_.steps - 1) job_.cn[c.at] = from_float<T>(state);
                write_forward(c, n, sum, h);
            });
    }

    // GRU and plain RNN.
    SYMRNN_DEVICE void other_cells(int n) {
        each_cell(
            n + 1, [&](const Cell &c) { return read_forward(c, n); },
            [&](const Cell &c, ForwardInput &in) {
                float sum[MOST_GATES] = {};
                add_parts<false>(c, sum);
                float h;
                if (job_.mode == SYMRNN_GRU) {
                    const float hidden = sum[2] + or_zero(job_.bias_n, c.unit);
                    sum[2] = 0;
                    for (int g = 0; g < MOST_GATES; ++g) sum[g] += in.gate[g];
                    h = gru_forward(sum, hidden, in.before);
                    if (job_.cells) job_.cells[row_of(n) * s_.units + c.at] = hidden;
                } else {
                    const float x = sum[0] + in.gate[0];
                    // Not fmaxf, which makes a number of what is none.
                    h = job_.mode == SYMRNN_RNN_TANH ? tanhf(x) : x < 0 ? 0.0f : x;
                    sum[0] = h;
                }
                write_forward(c, n, sum, h);
            });
    }

    struct BackwardInput {
        float gate[MOST_GATES];
        float cell, before;  // LSTM c after and before, GRU W_n h + b_n and h before
        float d_h;           // of the output
        float carried;
    };

    // done: the steps that are behind, on the way back.
    SYMRNN_DEVICE BackwardInput read_backward(const Cell &c, int n, int done) const {
        BackwardInput in = {};
        if (!c.valid) return in;
        const int64_t row = row_of(n);
#pragma unroll
        for (int gate = 0; gate < MOST_GATES; ++gate)
            if (gate < s_.gates) in.gate[gate] = to_float(job_.gates[gate_place(c, row, gate)]);
        const int64_t at = row * s_.units + c.at,
                      at_before = n > 0 ? row_of(n - 1) * s_.units + c.at : c.at;
        in.d_h = or_zero(job_.d_output, at);
        if (done == 0) in.d_h += or_zero(job_.d_hn, c.at);
        if (job_.mode == SYMRNN_LSTM) {
            in.cell = job_.cells[at];
            in.before = n > 0 ? job_.cells[at_before] : or_zero(job_.c0, c.at);
            in.carried = done > 0 ? job_.carry[c.at] : or_zero(job_.d_cn, c.at);
        } else if (job_.mode == SYMRNN_GRU) {
            in.cell = job_.cells[at];
            in.before = n > 0 ? to_float(job_.output[at_before]) : or_zero(job_.h0, c.at);
            in.carried = done > 0 ? job_.carry[c.at] : 0.0f;
        }
        return in;
    }

    // What comes back to h from the step after, and from the output.
    SYMRNN_DEVICE float gradient_of_h(const Cell &c, const BackwardInput &in, int done) const {
        float sum[MOST_GATES] = {};
        if (done > 0) add_parts<true>(c, sum);
        return sum[0] + in.d_h;
    }

    SYMRNN_DEVICE void write_gradients(T *to, const Cell &c, int n, const float (&gate)[MOST_GATES]) {
#pragma unroll
        for (int g = 0; g < MOST_GATES; ++g)
            if (g < s_.gates) to[gate_place(c, row_of(n), g)] = from_float<T>(gate[g]);
    }

    SYMRNN_DEVICE void lstm_gradients(int n, int done) {
        each_cell(
            done, [&](const Cell &c) { return read_backward(c, n, done); },
            [&](const Cell &c, BackwardInput &in) {
                const float d_h = gradient_of_h(c, in, done);
                lstm_backward(in.gate, in.before, in.cell, d_h, in.carried);
                job_.carry[c.at] = in.carried;
                write_gradients(job_.d_gates, c, n, in.gate);
            });
    }

    SYMRNN_DEVICE void other_gradients(int n, int done) {
        each_cell(
            done, [&](const Cell &c) { return read_backward(c, n, done); },
            [&](const Cell &c, BackwardInput &in) {
                float d_h = gradient_of_h(c, in, done) + in.carried;
                if (job_.mode == SYMRNN_GRU) {
                    float d_hidden;
                    gru_backward(in.gate, in.cell, in.before, d_h, d_hidden);
                    job_.carry[c.at] = d_h;
                    write_gradients(job_.d_gates, c, n, in.gate);
                    in.gate[2] = d_hidden;
                    write_gradients(job_.d_hidden, c, n, in.gate);
                } else {
                    const float h = in.gate[0];
                    in.gate[0] = job_.mode == SYMRNN_RNN_TANH ? d_h * (1 - h * h)
                                 : h > 0                      ? d_h
                                                              : 0.0f;
                    write_gradients(job_.d_gates, c, n, in.gate);
                }
            });
    }

    SYMRNN_DEVICE void first_state_gradients() {
        each_cell(
            job_.steps,
            [&](const Cell &c) {
                return c.valid && job_.mode != SYMRNN_RNN_TANH && job_.mode != SYMRNN_RNN_RELU
                           ? job_.carry[c.at]
                           : 0.0f;
            },
            [&](const Cell &c, float carried) {
                float sum[MOST_GATES] = {};
                add_parts<true>(c, sum);
                if (job_.mode == SYMRNN_LSTM) job_.d_c0[c.at] = from_float<T>(carried);
                else sum[0] += carried;
                job_.d_h0[c.at] = from_float<T>(sum[0]);
            });
    }

    const Job<T> &job_;
    const Schedule &s_;
    const int block_;
    const Share share_;
    Stored *const weights_, *const operand_;
    const int first_row_, last_row_;
    const int states_of_, parts_of_;
};

}  // namespace symrnn

#endif
