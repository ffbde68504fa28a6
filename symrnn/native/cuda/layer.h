// A layer in one direction, all its steps in one launch: what each thread block does. schedule.h says
// which block computes what, products.h has the products.
//
// Forward, at each step:   multiply the state before → partial sums; add those, pointwise → the state
//                          after.
// Backward, at each step:  add the partial sums of the step after, pointwise → the gradients of the
//                          gates; multiply those → partial sums.
//
// Blocks exchange partial sums and states (forward: `output`; backward: the gradients of the gates).
// Each block has two flags, which count the steps whose partial sums and whose states it has written. A
// step overwrites the partial sums of the step before. That is safe: a block first waits for the states
// of all units of its squares, and those come from exactly the blocks that read its partial sums.

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
constexpr int UNITS = static_cast<int>(SIDE);  // in a row, and along a tile
constexpr int MAX_GATES = 4;
static_assert(MAX_BLOCKS <= THREADS, "each thread waits for one block");

// Why a launch was stopped: a block waited in vain for a flag of another.
struct Stopped {
    int32_t written;       // 1 when the rest is
    int32_t block, other;  // who waited for whom
    int32_t states;        // 1 for the other's states, 0 for its partial sums
    int32_t count, seen;   // how often they should have been written, and how often they were
};

// The arguments of symrnn_cuda_forward and symrnn_cuda_backward, as symrnn_cuda.h has them.
template <typename T>
struct Job {
    Schedule schedule;
    int partial_sum_width;  // the schedule's, computed on the host, for it takes a division
    int mode, steps;
    bool reverse, backward;
    const T *packed, *bias_n;
    T *gates;                             // backward: only read
    float *saved_cells;                   // backward: only read
    const T *h0, *c0;
    T *output;                            // backward: only read
    T *hn, *cn;                           // forward
    const T *d_output, *d_hn, *d_cn;      // backward
    T *d_gates, *d_hidden, *d_h0, *d_c0;  // backward
    uint32_t *partial_sums_flags;         // (blocks, FLAG), zeros at first
    uint32_t *state_flags;                // likewise
    uint32_t *stopping;                   // 0 at first; 1 once a thread writes `stopped`
    Stopped *stopped;                     // in memory of the host; null if nobody wants it
    float *carry;                         // (B, H)
    float *partial_sums;
};

// An element of an array; 0 where there is none.
template <typename T>
SYMRNN_DEVICE float or_zero(const T *from, int64_t at) {
    return from ? to_float(from[at]) : 0.0f;
}

// Stops the launch, and leaves word of why. Not inlined: what that takes of registers would spill.
template <typename Job>
SYMRNN_COLD void stop(const Job &job, const Stopped &why) {
    claim(job.stopping);
    if (job.stopped) *job.stopped = why;
    stop_launch();
}

// One thread block. N: the sequences that are multiplied at once, in eights.
template <typename Policy, int N>
class Worker {
    using T = typename Policy::Number;
    using Stored = typename Policy::Stored;
    static constexpr int COLUMNS_AT_ONCE = N * 8;
    static constexpr int OPERAND = COLUMNS_AT_ONCE * UNITS;  // elements of a tile of the operand

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
          states_producer_(producer_of_states(thread_index())),
          partial_sums_producer_(producer_of_partial_sums(thread_index())) {}

    SYMRNN_DEVICE void run() {
        load_weights();
        if (job_.backward) backward();
        else forward();
    }

  private:
    SYMRNN_DEVICE void forward() {
        for (int n = 0; n < job_.steps; ++n) {
            const T *before = n > 0 ? job_.output + row_of(n - 1) * s_.units : job_.h0;
            wait_for_states(n);
            multiply(before, s_.units);
            signal(job_.partial_sums_flags, n + 1);
            if (job_.mode == SYMRNN_LSTM) lstm_cells(n);
            else other_cells(n);
            signal(job_.state_flags, n + 1);
        }
    }

    SYMRNN_DEVICE void backward() {
        const int64_t width = static_cast<int64_t>(s_.gates) * s_.units;
        const T *gradients = job_.mode == SYMRNN_GRU ? job_.d_hidden : job_.d_gates;
        for (int done = 0; done < job_.steps; ++done) {
            const int n = job_.steps - 1 - done;
            if (job_.mode == SYMRNN_LSTM) lstm_gradients(n, done);
            else other_gradients(n, done);
            signal(job_.state_flags, done + 1);
            wait_for_states(done + 1);
            multiply(gradients + row_of(n) * width, width);
            signal(job_.partial_sums_flags, done + 1);
        }
        first_state_gradients();
    }

    // The first row, of all steps and sequences, of the n-th step of the forward pass.
    SYMRNN_DEVICE int64_t row_of(int n) const {
        return static_cast<int64_t>(job_.reverse ? job_.steps - 1 - n : n) * s_.batch;
    }

    // ---- signal and wait -------------------------------------------------------------------------

    SYMRNN_DEVICE void signal(uint32_t *flags, int count) {
        sync_block();
        if (thread_index() == 0) signal_flag(flags + block_ * FLAG, count);
    }

    // Waits until another block's flag has come to `count`. Stops the launch if it never does.
    SYMRNN_DEVICE void wait_for(const uint32_t *flags, int other, int count) {
        const uint32_t *const flag = flags + other * FLAG;
        if (wait_for_flag(flag, count)) return;
        stop(job_, {1, block_index(), other, flags == job_.state_flags, count,
                    static_cast<int32_t>(*flag)});
    }

    // Waits until the states of this block's units have been written `count` times. Each thread waits
    // for at most one block; which one is computed once, for it takes divisions.
    SYMRNN_DEVICE void wait_for_states(int count) {
        if (count > 0 && states_producer_ >= 0)
            wait_for(job_.state_flags, states_producer_, count);
        sync_block();
    }

    // Waits until all partial sums of this block's rows have been written `count` times.
    SYMRNN_DEVICE void wait_for_partial_sums(int count) {
        if (count > 0 && partial_sums_producer_ >= 0)
            wait_for(job_.partial_sums_flags, partial_sums_producer_, count);
        sync_block();
    }

    // The k-th block to wait for, for states; -1 beyond the last.
    SYMRNN_DEVICE int producer_of_states(int k) const {
        const Span first = blocks_of(share_.first), second = blocks_of(share_.second);
        if (k < first.count()) return first.first + k;
        k -= first.count();
        return k < second.count() ? second.first + k : -1;
    }

    // The blocks that compute the units of these tiles.
    SYMRNN_DEVICE Span blocks_of(Span tiles) const {
        const int first = tiles.first * s_.batch, last = tiles.last * s_.batch;
        if (first == last) return {0, 0};
        return {s_.block_of_row(first), s_.block_of_row(last - 1) + 1};
    }

    // The k-th block to wait for, for the partial sums of this block's rows; -1 beyond the last.
    SYMRNN_DEVICE int producer_of_partial_sums(int k) const {
        if (first_row_ == last_row_) return -1;
        const int square = s_.square_of(first_row_ / s_.batch) + k / (s_.sets() * s_.squares);
        if (square > s_.square_of((last_row_ - 1) / s_.batch)) return -1;
        return s_.partial_sum(k / s_.squares % s_.sets(), square, k % s_.squares).block;
    }

    // ---- multiplying -----------------------------------------------------------------------------

    SYMRNN_DEVICE void load_weights() {
        const int tiles = share_.tiles();
        for (int k = warp_index(); k < tiles * s_.together; k += WARPS) {
            const Share::Position at = share_.position(k % tiles);
            Policy::load_tile(weights_ + k * TILE,
                         job_.packed + packed_tile(s_.tiles, s_.gates, share_.gate + k / tiles,
                                                   at.row, at.column));
        }
    }

    // rows: (B, width); the vector of each gate begins at gate · H; null for zeros.
    SYMRNN_DEVICE void multiply(const T *rows, int64_t width) {
        for (int b = 0; b < s_.batch; b += COLUMNS_AT_ONCE) {
            load_operand(rows, width, b);
            sync_block();
            multiply_strips(b);
            if (b + COLUMNS_AT_ONCE < s_.batch) sync_block();  // before the operand is overwritten
        }
    }

    // The layout of the operand: [gate][tile of the first side, then of the second][b][unit].
    SYMRNN_DEVICE void load_operand(const T *rows, int64_t width, int first) {
        constexpr int IN_FLIGHT = 4;  // loads in flight
        const int tiles = share_.first.count() + share_.second.count(),
                  quads = operands() * tiles * COLUMNS_AT_ONCE * 4;
        // An initial state need not be aligned.
        const bool whole =
            s_.units % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % sizeof(Quad<T>) == 0;
        for (int base = thread_index(); base < quads; base += THREADS * IN_FLIGHT) {
            Quad<T> loaded[IN_FLIGHT];
            for (int j = 0; j < IN_FLIGHT; ++j) {
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
                    loaded[j] = load_past_l1(reinterpret_cast<const Quad<T> *>(from));
                else
                    for (int i = 0; i < 4; ++i)
                        if (unit + i < s_.units) loaded[j].at[i] = load_past_l1(from + i);
            }
            for (int j = 0; j < IN_FLIGHT; ++j) {
                const int k = base + j * THREADS;
                if (k >= quads) continue;
                Quad<Stored> quad;
                for (int i = 0; i < 4; ++i) quad.at[i] = Policy::rounded(loaded[j].at[i]);
                *reinterpret_cast<Quad<Stored> *>(
                    operand_ + k / (COLUMNS_AT_ONCE * 4) * OPERAND +
                    Policy::operand_index(k / 4 % COLUMNS_AT_ONCE, k % 4 * 4)) = quad;
            }
        }
    }

    // The vectors that are multiplied: in the backward pass one for each gate of the block.
    SYMRNN_DEVICE int operands() const { return job_.backward ? s_.together : 1; }

    // A strip is the result of one tile of a side, of one vector. A warp computes one strip or, where
    // there are more strips than warps, two or three of the same side at once, which share the reads of
    // the operand.
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
            const int vector = (strip + r) / length;  // forward: of which gate
            row[r] = strip + r - vector * length;
            start[r] = vector * of_gate + share_.tile(to, row[r], 0).index;
        }
#pragma unroll 1
        for (int gate = 0; gate < operands(); ++gate) {
            int index[R];
#pragma unroll
            for (int r = 0; r < R; ++r) index[r] = start[r] + gate * of_gate;
            const Stored *operand = operand_ + (gate * all + before) * OPERAND;
#pragma unroll 1
            for (int k = 0; k < tiles; ++k, operand += OPERAND) {
#pragma unroll 1
                for (int step = 0; step < Policy::STEPS; ++step) {
                    typename Policy::FragmentA a[R];
#pragma unroll
                    for (int r = 0; r < R; ++r)
                        a[r] = Policy::load_a(weights_ + index[r] * TILE,
                                            share_.diagonal ? k > row[r] : to == 1, step);
#pragma unroll
                    for (int j = 0; j < N; ++j) {
                        const typename Policy::FragmentB b = Policy::load_b(operand, j * 8, step);
#pragma unroll
                        for (int r = 0; r < R; ++r) Policy::multiply(sum[r][j], a[r], b);
                    }
                }
#pragma unroll
                for (int r = 0; r < R; ++r) index[r] += share_.step(to, row[r], k);
            }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int vector = (strip + r) / length;
            float *const to_sum = job_.partial_sums + partial_sum_offset({block_, to}, vector) +
                                row[r] * UNITS;
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int b = first + j * 8 + lane_index() % 4 * 2 + i;
                    if (b < s_.batch)
                        Policy::store(to_sum + b * job_.partial_sum_width, sum[r][j], i);
                }
        }
    }

    // Schedule::part_start of the first sequence, in 32 bits.
    SYMRNN_DEVICE int partial_sum_offset(PartialSum sum, int vector) const {
        return ((sum.block * 2 + sum.side) * s_.vectors(job_.backward) + vector) * s_.batch *
               job_.partial_sum_width;
    }

    // ---- pointwise -------------------------------------------------------------------------------

    // A unit of a sequence, which this thread computes.
    struct Cell {
        int unit, b;
        int square, within;  // where its partial sums are
        bool valid;          // whether the unit exists
        int at;              // in (B, H)
    };

    // 16 threads compute a row; this is this thread's first.
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

    // Calls `work` for each of the thread's cells, with what `read` loads for it. The first cell's loads
    // do not depend on the partial sums, and come before the wait for them.
    template <typename Read, typename Work>
    SYMRNN_DEVICE void each_cell(int count, const Read &read, const Work &work) {
        int row = own_row();
        Cell c = cell(row);
        auto in = read(c);
        wait_for_partial_sums(count);
        while (row < last_row_) {
            if (c.valid) work(c, in);
            row += THREADS / UNITS;
            if (row >= last_row_) break;
            c = cell(row);
            in = read(c);
        }
    }

    // Adds up a cell's partial sums: forward for each gate, backward all in one. All loads of a group
    // of squares are in flight before the first is added.
    template <bool BACKWARD>
    SYMRNN_DEVICE void add_partial_sums(const Cell &c, float (&sum)[MAX_GATES]) const {
        const int vectors = s_.vectors(BACKWARD), count = BACKWARD ? s_.sets() : s_.gates;
        const int of_vector = s_.batch * job_.partial_sum_width;  // elements, as the next two
        const int of_set = s_.blocks_of_gate() * 2 * vectors * of_vector;
        const float *const sums = job_.partial_sums + c.b * job_.partial_sum_width + c.within;
        for (int base = 0; base < s_.squares; base += LOADS_IN_FLIGHT) {
            float got[MAX_GATES][LOADS_IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < LOADS_IN_FLIGHT; ++k) {
                const PartialSum one = s_.partial_sum(0, c.square, base + k);
                const int offset = (one.block * 2 + one.side) * vectors * of_vector;
#pragma unroll
                for (int g = 0; g < MAX_GATES; ++g) {
                    const int q = s_.together;
                    const int set = BACKWARD ? g : (g >= q) + (g >= 2 * q) + (g >= 3 * q);
                    const int vector = BACKWARD ? 0 : g - set * q;
                    got[g][k] = g < count && base + k < s_.squares
                                    ? load_past_l1(sums + offset + set * of_set +
                                                       vector * of_vector)
                                    : 0.0f;
                }
            }
#pragma unroll
            for (int g = 0; g < MAX_GATES; ++g)
#pragma unroll
                for (int k = 0; k < LOADS_IN_FLIGHT; ++k) sum[BACKWARD ? 0 : g] += got[g][k];
        }
    }

    struct ForwardInput {
        float gate[MAX_GATES];
        float before;  // LSTM c, GRU h
    };

    SYMRNN_DEVICE int64_t gate_offset(const Cell &c, int64_t row, int gate) const {
        return ((row + c.b) * s_.gates + gate) * s_.units + c.unit;
    }

    SYMRNN_DEVICE ForwardInput read_forward(const Cell &c, int n) const {
        ForwardInput in = {};
        if (!c.valid) return in;
        const int64_t row = row_of(n);
#pragma unroll
        for (int gate = 0; gate < MAX_GATES; ++gate)
            if (gate < s_.gates) in.gate[gate] = to_float(job_.gates[gate_offset(c, row, gate)]);
        if (job_.mode == SYMRNN_LSTM) in.before = n > 0 ? job_.carry[c.at] : or_zero(job_.c0, c.at);
        if (job_.mode == SYMRNN_GRU)
            in.before = n > 0 ? to_float(job_.output[row_of(n - 1) * s_.units + c.at])
                              : or_zero(job_.h0, c.at);
        return in;
    }

    SYMRNN_DEVICE void write_forward(const Cell &c, int n, const float (&gate)[MAX_GATES], float h) {
        const int64_t row = row_of(n);
#pragma unroll
        for (int g = 0; g < MAX_GATES; ++g)
            if (g < s_.gates) job_.gates[gate_offset(c, row, g)] = from_float<T>(gate[g]);
        job_.output[row * s_.units + c.at] = from_float<T>(h);
        if (n == job_.steps - 1) job_.hn[c.at] = from_float<T>(h);
    }

    SYMRNN_DEVICE void lstm_cells(int n) {
        each_cell(
            n + 1, [&](const Cell &c) { return read_forward(c, n); },
            [&](const Cell &c, ForwardInput &in) {
                float sum[MAX_GATES] = {};
                add_partial_sums<false>(c, sum);
                for (int g = 0; g < MAX_GATES; ++g) sum[g] += in.gate[g];
                float state = in.before;
                const float h = lstm_forward(sum, state);
                job_.carry[c.at] = state;
                if (job_.saved_cells) job_.saved_cells[row_of(n) * s_.units + c.at] = state;
                if (n == job_.steps - 1) job_.cn[c.at] = from_float<T>(state);
                write_forward(c, n, sum, h);
            });
    }

    // GRU and plain RNN.
    SYMRNN_DEVICE void other_cells(int n) {
        each_cell(
            n + 1, [&](const Cell &c) { return read_forward(c, n); },
            [&](const Cell &c, ForwardInput &in) {
                float sum[MAX_GATES] = {};
                add_partial_sums<false>(c, sum);
                float h;
                if (job_.mode == SYMRNN_GRU) {
                    const float hidden = sum[2] + or_zero(job_.bias_n, c.unit);
                    sum[2] = 0;
                    for (int g = 0; g < MAX_GATES; ++g) sum[g] += in.gate[g];
                    h = gru_forward(sum, hidden, in.before);
                    if (job_.saved_cells) job_.saved_cells[row_of(n) * s_.units + c.at] = hidden;
                } else {
                    const float x = sum[0] + in.gate[0];
                    // Not fmaxf, which turns NaN into a number.
                    h = job_.mode == SYMRNN_RNN_TANH ? tanhf(x) : x < 0 ? 0.0f : x;
                    sum[0] = h;
                }
                write_forward(c, n, sum, h);
            });
    }

    struct BackwardInput {
        float gate[MAX_GATES];
        float cell, before;  // LSTM c after and before, GRU W_n h + b_n and h before
        float d_h;           // of the output
        float carried;
    };

    // done: the steps of the backward pass that are behind.
    SYMRNN_DEVICE BackwardInput read_backward(const Cell &c, int n, int done) const {
        BackwardInput in = {};
        if (!c.valid) return in;
        const int64_t row = row_of(n);
#pragma unroll
        for (int gate = 0; gate < MAX_GATES; ++gate)
            if (gate < s_.gates) in.gate[gate] = to_float(job_.gates[gate_offset(c, row, gate)]);
        const int64_t at = row * s_.units + c.at,
                      at_before = n > 0 ? row_of(n - 1) * s_.units + c.at : c.at;
        in.d_h = or_zero(job_.d_output, at);
        if (done == 0) in.d_h += or_zero(job_.d_hn, c.at);
        if (job_.mode == SYMRNN_LSTM) {
            in.cell = job_.saved_cells[at];
            in.before = n > 0 ? job_.saved_cells[at_before] : or_zero(job_.c0, c.at);
            in.carried = done > 0 ? job_.carry[c.at] : or_zero(job_.d_cn, c.at);
        } else if (job_.mode == SYMRNN_GRU) {
            in.cell = job_.saved_cells[at];
            in.before = n > 0 ? to_float(job_.output[at_before]) : or_zero(job_.h0, c.at);
            in.carried = done > 0 ? job_.carry[c.at] : 0.0f;
        }
        return in;
    }

    // The gradient of h: from the step after, and from the output.
    SYMRNN_DEVICE float gradient_of_h(const Cell &c, const BackwardInput &in, int done) const {
        float sum[MAX_GATES] = {};
        if (done > 0) add_partial_sums<true>(c, sum);
        return sum[0] + in.d_h;
    }

    SYMRNN_DEVICE void write_gradients(T *to, const Cell &c, int n, const float (&gate)[MAX_GATES]) {
#pragma unroll
        for (int g = 0; g < MAX_GATES; ++g)
            if (g < s_.gates) to[gate_offset(c, row_of(n), g)] = from_float<T>(gate[g]);
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
                float sum[MAX_GATES] = {};
                add_partial_sums<true>(c, sum);
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
    const int states_producer_, partial_sums_producer_;
};

}  // namespace symrnn

#endif
