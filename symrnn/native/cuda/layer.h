// A layer in one direction, all its steps in one launch: what each thread block does. schedule.h says
// which block computes what, products.h has the products.
//
// Forward, at each step:   multiply the state before → partial sums; add those, pointwise → the state
//                          after.
// Backward, at each step:  add the partial sums of the step after, pointwise → the gradients of the
//                          gates; multiply those → partial sums.
//
// What a step is multiplied by goes through one exchange buffer in global memory, already masked and
// rounded, in the layout of the operand in shared memory. So does the initial state: it need not be
// aligned, and null is zeros like any others. Blocks exchange that, called states here in the backward
// pass too, and partial sums. Each block has two flags, which count how often it has written its states
// and its partial sums; they are raised before anything else is stored that no other block reads.
//
// A step overwrites the states and the partial sums of the step before. That is safe, for the blocks that
// read a block's states are those whose partial sums it adds up:
// - a block that writes a unit's state has first waited for the partial sums of all blocks that have the
//   unit in a square, and these had by then copied the state before to their shared memory;
// - a block that writes partial sums has first waited for the states of all units of its squares, and the
//   blocks that computed these had by then added up the partial sums before.

#ifndef SYMRNN_CUDA_LAYER_H
#define SYMRNN_CUDA_LAYER_H

#include "../schedule.h"
#include "../symrnn.h"
#include "cells.h"
#include "device.h"
#include "products.h"

namespace symrnn {

constexpr int THREADS = 384;
constexpr int WARPS = THREADS / WARP;
constexpr int UNITS = static_cast<int>(SIDE);  // in a row, and along a tile
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
    int mode, steps;
    bool reverse, backward;
    const T *packed, *bias_n, *state_mask;
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
    void *exchange;
};

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
    using FragmentA = typename Policy::FragmentA;
    using FragmentB = typename Policy::FragmentB;
    static constexpr int COLUMNS_AT_ONCE = N * 8;
    static constexpr int OPERAND = COLUMNS_AT_ONCE * UNITS;  // elements of a tile of the operand
    static constexpr int ROWS_AT_ONCE = THREADS / UNITS;
    static constexpr int STRIPS =  // multiplied at once
        MOST_SUMS / N < Policy::STRIPS ? MOST_SUMS / N : Policy::STRIPS;

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
          partial_sums_producer_(producer_of_partial_sums(thread_index())),
          own_cell_(cell(own_row())) {}

    // done: the steps that are behind.
    SYMRNN_DEVICE void run() {
        load_weights();
        publish_initial_state();
        for (int done = 0;; ++done) {
            if (job_.backward) backward_cells(done);
            else if (done > 0) forward_cells(done);
            else signal(job_.state_flags, 1);
            if (done == job_.steps) break;
            wait_for_states(done + 1);
            multiply();
            signal(job_.partial_sums_flags, done + 1);
        }
    }

  private:
    // A unit of a sequence, which this thread computes.
    struct Cell {
        int unit, b;
        int partial_sums;  // where the first of them is
        int exchanged;     // where its state is, in a vector of the exchange
        int at;            // in (B, H)
        bool valid;        // whether the unit exists
    };

    // Of the step that has just been multiplied.
    SYMRNN_DEVICE void forward_cells(int done) {
        const int n = done - 1;
        each_cell(
            done, [&](const Cell &c) { return read_forward(job_, c, n); },
            [&](const Cell &c, const ForwardInput &in) {
                float hidden[MAX_GATES] = {};
                add_partial_sums(c, hidden);
                const ForwardResult result = step_forward(job_, in, hidden);
                publish(c, 0, result.h * in.mask);
                return result;
            },
            [&](const Cell &c, const ForwardResult &result) { store_forward(job_, c, n, result); });
    }

    // Of the step before those that are behind; in the end of the initial state.
    SYMRNN_DEVICE void backward_cells(int done) {
        const int n = job_.steps - 1 - done;
        each_cell(
            done, [&](const Cell &c) { return read_backward(job_, c, n, done); },
            [&](const Cell &c, const BackwardInput &in) {
                float sum[MAX_GATES] = {};
                if (done > 0) add_partial_sums(c, sum);
                const float d_h = in.d_h + in.mask * (sum[0] + sum[1] + sum[2] + sum[3]);
                const BackwardResult result = step_backward(job_, n, in, d_h);
                if (n >= 0)
                    for (int g = 0; g < MAX_GATES; ++g)
                        if (g < s_.gates) publish(c, g, gradient_of_product(job_, result, g));
                return result;
            },
            [&](const Cell &c, const BackwardResult &result) { store_backward(job_, c, n, result); });
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
        return s_.block_of_partial_sum(k / s_.squares % s_.sets(), square, k % s_.squares);
    }

    // ---- the exchange ----------------------------------------------------------------------------

    // A vector: the state or, in the backward pass, the gradients of a gate.
    SYMRNN_DEVICE Stored *exchange(int vector) const {
        return static_cast<Stored *>(job_.exchange) + vector * s_.vector_elements();
    }

    // Also zeros for the units that fill the last tile, which nobody computes: zeros of the weights do
    // not make zeros of what is left in memory.
    SYMRNN_DEVICE void publish_initial_state() {
        for (int row = own_row(); row < last_row_; row += ROWS_AT_ONCE) {
            const Cell c = cell(row);
            const bool state = c.valid && !job_.backward;
            const float h = state ? or_zero(job_.h0, c.at) * or_one(job_.state_mask, c.at) : 0.0f;
            for (int vector = 0; vector < s_.exchanged_vectors(job_.backward); ++vector)
                publish(c, vector, h);
        }
    }

    SYMRNN_DEVICE void publish(const Cell &c, int vector, float x) {
        exchange(vector)[c.exchanged] = Policy::rounded(from_float<T>(x));
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

    SYMRNN_DEVICE void multiply() {
        for (int b = 0; b < s_.batch; b += COLUMNS_AT_ONCE) {
            load_operand(b);
            sync_block();
            multiply_strips(b);
            if (b + COLUMNS_AT_ONCE < s_.batch) sync_block();  // before the operand is overwritten
        }
    }

    // The layout of the operand: [gate][tile of the first side, then of the second][b][unit]. A thread
    // copies the same 16 bytes of every few tiles, of sequences that exist: what the operand has in the
    // place of others is multiplied into sums that nobody stores.
    SYMRNN_DEVICE void load_operand(int first) {
        constexpr int IN_QUAD = 16 / sizeof(Stored), OF_ROW = UNITS / IN_QUAD,
                      OF_TILE = COLUMNS_AT_ONCE * OF_ROW, AT_ONCE = THREADS / OF_TILE;
        static_assert(THREADS % OF_TILE == 0, "each thread has the same part of each of its tiles");
        const int within = thread_index() % OF_TILE * IN_QUAD,
                  tiles = share_.first.count() + share_.second.count();
        if (first + within / UNITS < s_.batch)
            for (int gate = 0; gate < operands(); ++gate) {
                const Stored *const from =
                    exchange(job_.backward ? share_.gate + gate : 0) + first * UNITS + within;
                Stored *const to = operand_ + gate * tiles * OPERAND + within;
                for (int k = thread_index() / OF_TILE; k < tiles; k += AT_ONCE) {
                    const int local = k - share_.first.count();
                    const int tile = local < 0 ? share_.first.last + local : share_.second.first + local;
                    copy_async(to + k * OPERAND, from + tile * s_.batch * UNITS);
                }
            }
        commit_copies();
        wait_for_copies<0>();
    }

    // The vectors that are multiplied: in the backward pass one for each gate of the block.
    SYMRNN_DEVICE int operands() const { return job_.backward ? s_.together : 1; }

    // A strip is the result of one tile of a side, of one vector. A warp computes one strip or, where
    // there are more strips than warps, two or three of the same side at once, which share the reads of
    // the operand.
    SYMRNN_DEVICE void multiply_strips(int first) {
        const int vectors = job_.backward ? 1 : s_.together;
        const int of_first = share_.first.count() * vectors,
                  of_second = share_.second.count() * vectors;
        const int wanted = (of_first + of_second + WARPS - 1) / WARPS,
                  size = wanted < STRIPS ? wanted : STRIPS;
        const int groups = (of_first + size - 1) / size;
        for (int k = warp_index(); k < groups + (of_second + size - 1) / size; k += WARPS) {
            const int to = k < groups ? 0 : 1, strip = (k - to * groups) * size;
            const int left = (to == 0 ? of_first : of_second) - strip;
            const int now = left < size ? left : size;
            if (now == STRIPS) strips<STRIPS>(to, strip, first);
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
        int row[R], start[R];  // which tile of the side; where its vector's weights begin
        int least = tiles, most = 0;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int vector = (strip + r) / length;  // forward: of which gate
            row[r] = strip + r - vector * length;
            start[r] = vector * of_gate;
            least = row[r] < least ? row[r] : least;
            most = row[r] > most ? row[r] : most;
        }
        // Of a square on the diagonal the tiles before column `least` lie below the diagonal in all
        // strips, those behind `most` above it: transposed.
        if (!share_.diagonal) least = to == 0 ? tiles : 0, most = least - 1;
#pragma unroll 1
        for (int gate = 0; gate < operands(); ++gate) {
            const Stored *const operand = operand_ + (gate * all + before) * OPERAND;
            multiply_tiles<R, false>(sum, to, row, start, operand, {0, least});
#pragma unroll 1
            for (int k = least; k <= most; ++k)
#pragma unroll 1
                for (int step = 0; step < Policy::STEPS; ++step) {
                    FragmentB b[N];
                    load_operand_fragments(b, operand + k * OPERAND, step);
#pragma unroll
                    for (int r = 0; r < R; ++r) {
                        const StoredTile tile = share_.tile(to, row[r], k);
                        const FragmentA a = Policy::load_a(weights_ + (start[r] + tile.index) * TILE,
                                                           tile.transposed, step);
#pragma unroll
                        for (int j = 0; j < N; ++j) Policy::multiply(sum[r][j], a, b[j]);
                    }
                }
            multiply_tiles<R, true>(sum, to, row, start, operand, {most + 1, tiles});
#pragma unroll
            for (int r = 0; r < R; ++r) start[r] += of_gate;
        }
        store_strips(sum, to, strip, row, first);
    }

    // Multiplies the tiles of these columns of R strips, all transposed or none.
    template <int R, bool TRANSPOSED>
    SYMRNN_DEVICE void multiply_tiles(float (&sum)[R][N][4], int to, const int (&row)[R],
                                      const int (&start)[R], const Stored *operand, Span columns) {
        if (columns.first >= columns.last) return;
        // Of so many tiles the loads come first, where registers allow it.
        constexpr int AHEAD = R * N < MOST_SUMS - 1 && Policy::STEPS == 1 ? 2 : 1;
        int at[R];  // of the tile, among all weights
#pragma unroll
        for (int r = 0; r < R; ++r)
            at[r] = (start[r] + share_.tile(to, row[r], columns.first).index) * static_cast<int>(TILE);
        // From a tile to the next, the same in all strips. Of a square on the diagonal each transposed one is
        // further on by one more.
        int far = share_.step(to, row[0], columns.first) * static_cast<int>(TILE);
        const int growth = TRANSPOSED && share_.diagonal ? static_cast<int>(TILE) : 0;
        operand += columns.first * OPERAND;
#pragma unroll AHEAD
        for (int k = columns.first; k < columns.last; ++k) {
#pragma unroll 1
            for (int step = 0; step < Policy::STEPS; ++step) {
                FragmentB b[N];
                load_operand_fragments(b, operand, step);
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    const FragmentA a = Policy::load_a(weights_ + at[r], TRANSPOSED, step);
#pragma unroll
                    for (int j = 0; j < N; ++j) Policy::multiply(sum[r][j], a, b[j]);
                }
            }
#pragma unroll
            for (int r = 0; r < R; ++r) at[r] += far;
            far += growth;
            operand += OPERAND;
        }
    }

    SYMRNN_DEVICE static void load_operand_fragments(FragmentB (&b)[N], const Stored *operand, int step) {
#pragma unroll
        for (int j = 0; j < N; ++j) b[j] = Policy::load_b(operand, j * 8, step);
    }

    template <int R>
    SYMRNN_DEVICE void store_strips(const float (&sum)[R][N][4], int to, int strip,
                                    const int (&row)[R], int first) {
        const int side = share_.from(to), length = share_.side(to).count();
        // Of the rows of this side; which matrices gave them.
        const int vectors = s_.vectors(job_.backward), row_stride = s_.squares * vectors * UNITS,
                  own = job_.backward ? share_.gate / s_.together : share_.gate;
        const int from = share_.square(side) * vectors + own;
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int vector = (strip + r) / length, tile = share_.side(to).first + row[r];
            float *const to_sum = job_.partial_sums + (from + vector) * UNITS;
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int b = first + j * 8 + lane_index() % 4 * 2 + i;
                    if (b < s_.batch)
                        Policy::store(to_sum + (tile * s_.batch + b) * row_stride, sum[r][j], i);
                }
        }
    }

    // ---- pointwise -------------------------------------------------------------------------------

    // 16 threads compute a row; this is this thread's first.
    SYMRNN_DEVICE int own_row() const { return first_row_ + thread_index() / UNITS; }

    SYMRNN_DEVICE Cell cell(int row) const {
        Cell c;
        const int tile = row / s_.batch, unit = thread_index() % UNITS;
        c.b = row - tile * s_.batch;
        c.unit = tile * UNITS + unit;
        c.valid = row < last_row_ && c.unit < s_.units;
        c.at = c.b * s_.units + c.unit;
        c.partial_sums = static_cast<int>(s_.partial_sum_start(row, 0, 0, job_.backward)) + unit;
        c.exchanged = row * UNITS + Policy::operand_unit(c.b, unit);
        return c;
    }

    // Calls `compute` for each of the thread's cells, with what `read` loads for it, once their partial
    // sums have been written `count` times; then `store`. The first cell's loads come before the wait.
    // All states are signalled as soon as they are computed; only a thread that has several cells stores
    // all but the last before that.
    template <typename Read, typename Compute, typename Store>
    SYMRNN_DEVICE void each_cell(int count, const Read &read, const Compute &compute,
                                 const Store &store) {
        Cell c = own_cell_;
        decltype(read(c)) in = {};
        decltype(compute(c, in)) result = {};
        if (c.valid) in = read(c);
        wait_for_partial_sums(count);
        if (c.valid) result = compute(c, in);
        for (int row = own_row() + ROWS_AT_ONCE; row < last_row_; row += ROWS_AT_ONCE) {
            if (c.valid) store(c, result);
            c = cell(row);
            if (c.valid) result = compute(c, read(c));
        }
        signal(job_.state_flags, count + 1);
        if (c.valid) store(c, result);
    }

    // Adds up a cell's partial sums, of each vector. In the order of the squares that they come from.
    SYMRNN_DEVICE void add_partial_sums(const Cell &c, float (&sum)[MAX_GATES]) const {
        const float *const from = job_.partial_sums + c.partial_sums;
        switch (s_.vectors(job_.backward)) {
        case 1: return add_partial_sums<1>(from, sum);
        case 2: return add_partial_sums<2>(from, sum);
        case 3: return add_partial_sums<3>(from, sum);
        default: return add_partial_sums<4>(from, sum);
        }
    }

    // All loads of a group of squares are in flight before the first is added.
    template <int VECTORS>
    SYMRNN_DEVICE void add_partial_sums(const float *from, float (&sum)[MAX_GATES]) const {
        int left = s_.squares;
#pragma unroll 1
        for (; left >= LOADS_IN_FLIGHT; left -= LOADS_IN_FLIGHT) {
            float got[LOADS_IN_FLIGHT][VECTORS];
#pragma unroll
            for (int k = 0; k < LOADS_IN_FLIGHT; ++k)
#pragma unroll
                for (int g = 0; g < VECTORS; ++g)
                    got[k][g] = load_past_l1(from + (k * VECTORS + g) * UNITS);
#pragma unroll
            for (int k = 0; k < LOADS_IN_FLIGHT; ++k)
#pragma unroll
                for (int g = 0; g < VECTORS; ++g) sum[g] += got[k][g];
            from += LOADS_IN_FLIGHT * VECTORS * UNITS;
        }
        float got[LOADS_IN_FLIGHT][VECTORS];
#pragma unroll
        for (int k = 0; k < LOADS_IN_FLIGHT - 1; ++k)
#pragma unroll
            for (int g = 0; g < VECTORS; ++g)
                got[k][g] = k < left ? load_past_l1(from + (k * VECTORS + g) * UNITS) : 0.0f;
#pragma unroll
        for (int k = 0; k < LOADS_IN_FLIGHT - 1; ++k)
#pragma unroll
            for (int g = 0; g < VECTORS; ++g) sum[g] += got[k][g];
    }

    const Job<T> &job_;
    const Schedule &s_;
    const int block_;
    const Share share_;
    Stored *const weights_, *const operand_;
    const int first_row_, last_row_;
    const int states_producer_, partial_sums_producer_;
    const Cell own_cell_;  // the first
};

}  // namespace symrnn

#endif
