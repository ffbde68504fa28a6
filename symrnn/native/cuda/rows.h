// A layer in one direction, all its steps in one launch, by rows of the full matrices: what each thread
// block does. rows_schedule.h says which block has which rows, rows_products.h has the products.
//
// Forward, at each step:   multiply the state before by this block's rows; pointwise → the state after, of
//                          this block's units.
// Backward, at each step:  multiply the gates' gradients of the step after; pointwise → those of this
//                          step. A last product gives the gradient of h0.
//
// What a step is multiplied by goes through one exchange buffer in global memory, already masked, rounded
// and in the order in which it is read. The initial state too: so it need not be aligned, and null is
// zeros like any others. A step takes the sequences in passes of as many as are multiplied at once. A
// block has one flag, which counts the passes that it has written; it is raised before anything else is
// stored that no other block reads. While a pass is on its way, the block is busy with the next.
//
// Each warp multiplies its own stretch of the rows, and waits for the blocks that compute these units and
// for no others. It does not wait for them one after the other: all blocks do the same work, so their
// flags come up together, and what can be had is a first load that starts early, not a later one.
//
// The buffer is double: a step writes where the step before the last did. That is safe. A block writes
// step n after its warps have seen step n - 1 from all blocks; each of these wrote that after it had
// multiplied step n - 2, for the last time.

#ifndef SYMRNN_CUDA_ROWS_H
#define SYMRNN_CUDA_ROWS_H

#include "../rows_schedule.h"
#include "../symrnn.h"
#include "cells.h"
#include "device.h"
#include "layer.h"
#include "rows_products.h"

namespace symrnn {

constexpr int ROW_THREADS = ROW_WARPS * WARP;
static_assert(ROW_WARPS == 2 * PARTIAL_SUMS, "of two warps one adds its sums to the other's");

// The arguments of symrnn_cuda_forward and symrnn_cuda_backward, as symrnn_cuda.h has them.
template <typename T>
struct RowJob {
    RowSchedule schedule;
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
    uint32_t *flags;                      // (blocks), zeros at first
    uint32_t *stopping;                   // 0 at first; 1 once a thread writes `stopped`
    Stopped *stopped;                     // in memory of the host; null if nobody wants it
    float *carry;                         // (B, H)
    void *exchange;
};

// What of its rows a warp holds in registers: a part, as in rows_schedule.h, in one of the two passes.
enum class Held { NOTHING, FORWARD, BACKWARD };

// One thread block. N: the sequences that are multiplied at once, in eights.  MATRICES: those of a gate,
// as in rows_schedule.h.
template <typename Policy, int N, int MATRICES = 1, Held HELD = Held::NOTHING>
class RowWorker {
  protected:
    using T = typename Policy::Number;
    using Stored = typename Policy::Stored;
    using Product = RowProduct<Policy>;
    static constexpr int COLUMNS_AT_ONCE = N * 8;
    static constexpr int FORWARD_TILES = Product::TILES, BACKWARD_TILES = 2;  // multiplied at once
    static constexpr int LAYERS = MATRICES == 1 ? 1 : 2;

    static constexpr bool HOLDS = HELD != Held::NOTHING, HOLDS_BACKWARD = HELD == Held::BACKWARD;
    static constexpr int HELD_AT_ONCE = held_at_once(sizeof(Stored), HOLDS_BACKWARD);
    // In the backward pass there is one tile of each chunk and gate: as many for any number of gates.
    static constexpr int HELD_TILES =
        HOLDS ? HELD_AT_ONCE * held_chunks(sizeof(Stored), HOLDS_BACKWARD, 1) : 0;
    // Chunks on their way from L2. Two of them from each of eight warps, of 20 sequences, are 20 KB.
    static constexpr int AHEAD = HOLDS && N > 1 ? Product::HELD_AHEAD : 4 / Product::STEPS;

  public:
    SYMRNN_DEVICE RowWorker(const RowJob<T> &job, char *shared)
        : job_(job),
          s_(job.schedule),
          units_(s_.units_of(block_index())),
          chunks_(s_.chunks_of(warp_index())),
          producers_(s_.producers(chunks_)),
          passes_((s_.batch + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE),
          shard_(reinterpret_cast<Words *>(shared)),
          sums_(reinterpret_cast<float *>(shared + shard_bytes(s_, stored_chunks()))) {}

    SYMRNN_DEVICE void run() {
        load_shard([&](int gate, int unit, int first) {
            return symmetric_entries(job_.packed, gate, unit, first);
        });
        clear_padding();
        if constexpr (HOLDS) hold();
        if (HOLDS ? HOLDS_BACKWARD : job_.backward) backward();
        else forward();
    }

  protected:
    // The sequences of a pass.
    SYMRNN_DEVICE Span sequences(int pass) const {
        const int first = pass * COLUMNS_AT_ONCE, last = first + COLUMNS_AT_ONCE;
        return {first, last < s_.batch ? last : s_.batch};
    }

    SYMRNN_DEVICE void forward() {
        publish_initial_state(job_, exchange(0), 0);
        signal(1, passes_ - 1);
        for (int n = 0; n < job_.steps; ++n)
            for (int pass = 0; pass < passes_; ++pass) {
                Stored *const next = exchange((n + 1) % 2);
                each_cell(
                    pass, n + 1, [&](Span of) { multiply<false>(exchange(n % 2), of); },
                    [&](const Cell &c) { return read_forward(job_, c, n); },
                    [&](const Cell &c, const ForwardInput &in) {
                        float hidden[MAX_GATES] = {};
                        add_sums(c, 0, hidden);
                        const ForwardResult result = step_forward(job_, in, hidden);
                        publish(next, 0, c, result.h * in.mask);
                        return result;
                    },
                    [&](const Cell &c, const ForwardResult &result) {
                        store_forward(job_, c, n, result);
                    });
            }
    }

    SYMRNN_DEVICE void backward() {
        for (int done = 0; done <= job_.steps; ++done)  // steps of the backward pass that are behind
            for (int pass = 0; pass < passes_; ++pass) {
                const int n = job_.steps - 1 - done;
                Stored *const next = exchange(done % 2);
                each_cell(
                    pass, done, [&](Span of) { multiply<true>(exchange((done + 1) % 2), of); },
                    [&](const Cell &c) { return read_backward(job_, c, n, done); },
                    [&](const Cell &c, const BackwardInput &in) {
                        float d_h = in.d_h;
                        if (done > 0) d_h += in.mask * sum(c.own, c.column);
                        const BackwardResult result = step_backward(job_, n, in, d_h);
                        if (n >= 0)
                            for (int g = 0; g < MAX_GATES; ++g)
                                if (g < s_.gates)
                                    publish(next, g, c, gradient_of_product(job_, result, g));
                        return result;
                    },
                    [&](const Cell &c, const BackwardResult &result) {
                        store_backward(job_, c, n, result);
                    });
            }
    }

    // ---- the rows --------------------------------------------------------------------------------

    SYMRNN_DEVICE int stored_chunks() const { return HOLDS ? s_.stored_chunks() : s_.chunks(); }

    // Adjacent entries of a row of a matrix.
    struct Entries {
        const T *start;
        int stride;
    };

    // Loads this block's rows into shared memory.
    // entries: (gate, unit, first) → those from column `first` on, of the gates of all matrices.
    template <typename Source>
    SYMRNN_DEVICE void load_shard(const Source &entries) {
        const int rows = s_.rows(), quads = stored_chunks() * rows * CHUNK_QUADS;
#pragma unroll 4
        for (int k = thread_index(); k < quads; k += ROW_THREADS) {
            const int at = k / CHUNK_QUADS, chunk = at / rows, row = at - chunk * rows;
            *reinterpret_cast<RowQuad *>(shard_ + chunk * rows * CHUNK_QUADS +
                                         shard_quad(row, k % CHUNK_QUADS)) =
                quad_of_row(entries, row, HOLDS ? s_.chunk_of_stored(chunk) : chunk, k % CHUNK_QUADS);
        }
    }

    static constexpr int WIDTH = sizeof(Words) / sizeof(Stored);  // elements of a quad
    struct alignas(16) RowQuad {
        Stored at[WIDTH];
    };

    // Rows and units that do not exist are zeros.
    template <typename Source>
    SYMRNN_DEVICE RowQuad quad_of_row(const Source &entries, int row, int chunk, int index) const {
        const int gate = row / s_.own, unit = units_.first + row - gate * s_.own,
                  first = chunk * s_.chunk + index * WIDTH;
        const bool exists = gate < MATRICES * s_.gates && unit < units_.last;
        RowQuad quad;
        const Entries of = entries(gate, unit, first);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            quad.at[j] = Policy::rounded(
                exists && first + j < s_.units ? of.start[j * of.stride] : from_float<T>(0));
        return quad;
    }

    // Loads what this warp holds, of the first chunks that it multiplies: forward of each chunk all rows; in
    // the backward pass gate by gate. Chunks that do not exist are zeros too.
    SYMRNN_DEVICE void hold() {
#pragma unroll
        for (int k = 0; k < HELD_TILES; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int step = k / HELD_AT_ONCE, gate = HOLDS_BACKWARD ? step / s_.held : 0,
                          chunk = step - gate * s_.held;
                const int row = k % HELD_AT_ONCE * 16 + lane_index() / 4 * 2 + i;
                RowQuad quad = {};
                if (chunk < chunks_.count())
                    quad = quad_of_row(
                        [&](int of, int unit, int first) {
                            return symmetric_entries(job_.packed, of, unit, first);
                        },
                        gate * s_.own + row, chunks_.first + chunk, lane_index() % CHUNK_QUADS);
                memcpy(&held_[k].row[i], &quad, sizeof quad);
            }
    }

    // Those of a symmetric packed matrix are all of one tile: as they are, or below the diagonal in its
    // mirror image.
    SYMRNN_DEVICE Entries symmetric_entries(const T *packed, int gate, int row, int first) const {
        constexpr int SIDE_ = static_cast<int>(SIDE);
        const int i = row / SIDE_, j = first / SIDE_, r = row % SIDE_, c = first % SIDE_;
        const bool below = i >= j;
        const int64_t tile = packed_tile(tiles_of(s_.units), s_.gates, gate, below ? i : j, below ? j : i);
        return {packed + tile + (below ? c * SIDE_ + r : r * SIDE_ + c), below ? SIDE_ : 1};
    }

    // ---- the exchange ----------------------------------------------------------------------------

    SYMRNN_DEVICE Stored *exchange(int parity) const {
        return static_cast<Stored *>(job_.exchange) + s_.exchange_start(parity, job_.backward);
    }

    // Zeros for the units that fill the last chunk, which nobody computes: zeros of the weights do not
    // make zeros of what is left in memory. By the block that has the last units.
    SYMRNN_DEVICE void clear_padding() {
        const int padding = s_.chunks() * s_.chunk - s_.units;
        if (units_.last < s_.units || padding == 0) return;
        for (int parity = 0; parity < 2; ++parity)
            for (int vector = 0; vector < s_.vectors(job_.backward); ++vector)
                for (int k = thread_index(); k < s_.batch * padding; k += ROW_THREADS)
                    exchange(parity)[s_.exchange_offset(vector, k / padding,
                                                        s_.units + k % padding)] = from_float<T>(0);
    }

    SYMRNN_DEVICE void publish_initial_state(const RowJob<T> &job, Stored *to, int vector) {
        const int own = units_.count();
        for (int k = thread_index(); k < s_.batch * own; k += ROW_THREADS) {
            const int b = k / own, unit = units_.first + k - b * own, at = b * s_.units + unit;
            to[s_.exchange_offset(vector, b, unit)] =
                rounded(or_zero(job.h0, at) * or_one(job.state_mask, at));
        }
    }

    SYMRNN_DEVICE static Stored rounded(float x) { return Policy::rounded(from_float<T>(x)); }

    // A flag's value once this pass has been written `count` times.
    SYMRNN_DEVICE uint32_t value(int count, int pass) const {
        return static_cast<uint32_t>(count - 1) * passes_ + pass + 1;
    }

    SYMRNN_DEVICE void signal(int count, int pass) {
        sync_block();
        if (thread_index() == 0) signal_flag(job_.flags + block_index(), value(count, pass));
    }

    // Waits, in each warp by itself, until the units of its chunks have been written `count` times. Stops
    // the launch if they never are.
    SYMRNN_DEVICE void wait(int count, int pass) {
        const uint32_t wanted = value(count, pass);
        for (int k = producers_.first + lane_index(); k < producers_.last; k += WARP)
            if (!wait_for_flag(job_.flags + k, wanted))
                stop(job_, {1, block_index(), k, 1, static_cast<int32_t>(wanted),
                            static_cast<int32_t>(job_.flags[k])});
        sync_warp();
    }

    // ---- multiplying -----------------------------------------------------------------------------

    // The sums of all rows of a matrix: forward of each gate, backward over all gates.
    template <bool BACKWARD>
    SYMRNN_DEVICE void multiply(const Stored *operand, Span of) {
        if constexpr (HOLDS) product<BACKWARD, HELD_AT_ONCE>(0, operand, of);
        else multiply_tiles<BACKWARD>({0, s_.tiles(BACKWARD)}, operand, of);
        sync_block();
    }

    // Of these tiles, counted through all matrices.
    template <bool BACKWARD>
    SYMRNN_DEVICE void multiply_tiles(Span tiles, const Stored *operand, Span of) {
        constexpr int MOST = BACKWARD ? BACKWARD_TILES : FORWARD_TILES;
        for (int tile = tiles.first; tile < tiles.last; tile += MOST) {
            const int left = tiles.last - tile;
            if (MOST > 3 && left > 3) product<BACKWARD, (MOST > 3 ? 4 : 1)>(tile, operand, of);
            else if (MOST > 2 && left >= 3) product<BACKWARD, (MOST > 2 ? 3 : 1)>(tile, operand, of);
            else if (left >= 2) product<BACKWARD, 2>(tile, operand, of);
            else product<BACKWARD, 1>(tile, operand, of);
        }
    }

    // Of R tiles of 16 rows from this one on, by all warps, each over its own chunks. The loads of states
    // run ahead of the products, in the backward pass also from one gate to the next. First come the chunks
    // that are held, of each gate, then those in shared memory.
    template <bool BACKWARD, int R>
    SYMRNN_DEVICE void product(int tile, const Stored *operand, Span of) {
        constexpr int STEPS = Product::STEPS;
        constexpr int HELD_STEPS = HELD_TILES / R;
        float sum[R][N][4] = {};
        typename Product::B b[AHEAD][STEPS][N];
        RowPair rows[R];
        const int length = chunks_.count(), held = HOLDS ? s_.held : 0,
                  stored = HOLDS && length < held ? 0 : length - held;
        const int all = HELD_STEPS + (BACKWARD ? s_.gates * stored : stored);
        const int chunk_of_states = s_.batch * CHUNK_QUADS, chunk_of_rows = s_.rows() * CHUNK_QUADS;

        const Words *from = reinterpret_cast<const Words *>(operand) +
                            chunks_.first * chunk_of_states +
                            (of.first + Product::first_sequence()) * CHUNK_QUADS +
                            Product::first_quad();
        const int there = of.count() - Product::first_sequence();
        const auto after_gate = [&](int chunks) { return (s_.chunks() - chunks + 1) * chunk_of_states; };
        const int to_next_gate = after_gate(length);
        int fetched = 0, fetched_of_gate = 0, of_gate = HOLDS ? held : length;
        // number: of the fetch, as far as that is known when this is compiled.
        const auto fetch = [&](typename Product::B(&to)[STEPS][N], int number) {
            if (HOLDS && BACKWARD && number == HELD_STEPS) {
                from -= (s_.gates * s_.chunks() - held) * chunk_of_states;
                of_gate = stored;
            }
            const bool exists = BACKWARD ? fetched < all &&
                                               (number >= HELD_STEPS || fetched_of_gate < length)
                                         : fetched < length;
            const int left = exists ? there : 0;
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int n = 0; n < N; ++n)
                    to[step][n] = Product::load_b(from + n * 8 * CHUNK_QUADS, left - n * 8, step);
            ++fetched;
            const bool last = BACKWARD && ++fetched_of_gate == of_gate;
            if (last) fetched_of_gate = 0;
            from += last ? (HOLDS ? after_gate(of_gate) : to_next_gate) : chunk_of_states;
        };

        const Words *const first_chunk =
            shard_ + (HOLDS ? s_.first_stored(warp_index()) : chunks_.first) * chunk_of_rows;
        const Words *chunk = first_chunk;
        const int gate_rows = rows_of_gate(tile);
        int gate = 0, multiplied_of_gate = 0;
        set_rows(rows, 0, tile);
        const auto multiply_chunk = [&](const typename Product::B(&states)[STEPS][N]) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                typename Product::A a[R];
#pragma unroll
                for (int r = 0; r < R; ++r) a[r] = Product::load_a(chunk, rows[r], step);
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int r = 0; r < R; ++r) Product::multiply(sum[r][n], a[r], states[step][n]);
            }
            chunk += chunk_of_rows;
            if (BACKWARD && ++multiplied_of_gate == stored) {
                multiplied_of_gate = 0;
                chunk = first_chunk;
                set_rows(rows, ++gate * gate_rows, tile);
            }
        };
        const auto multiply_held = [&](int first, const typename Product::B(&states)[STEPS][N]) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    const typename Product::A a = Product::part(held_[first + r], step);
#pragma unroll
                    for (int n = 0; n < N; ++n) Product::multiply(sum[r][n], a, states[step][n]);
                }
        };

#pragma unroll
        for (int j = 0; j < AHEAD; ++j) fetch(b[j], j);
#pragma unroll
        for (int k = 0; k < HELD_STEPS; ++k) {
            multiply_held(k * R, b[k % AHEAD]);
            fetch(b[k % AHEAD], k + AHEAD);
        }
        int done = HELD_STEPS;
#pragma unroll 1
        for (; done + AHEAD <= all; done += AHEAD) {
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                multiply_chunk(b[(HELD_STEPS + j) % AHEAD]);
                fetch(b[(HELD_STEPS + j) % AHEAD], HELD_STEPS + AHEAD);
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j)
            if (done + j < all) multiply_chunk(b[(HELD_STEPS + j) % AHEAD]);
        add_up(sum, tile);
    }

    // Where this thread's rows of R tiles are, of a matrix from row `first` on. A last tile may end beyond
    // the matrix's last row: what is there, or the last row of all, stands in for sums that nobody reads.
    template <int R>
    SYMRNN_DEVICE void set_rows(RowPair (&rows)[R], int first, int tile) const {
        const int last = s_.rows() - 1;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = first + first_row_of(tile + r) + lane_index() / 4 * 2 + i;
                rows[r].at[i] = shard_quad(row < last ? row : last, Product::first_quad());
            }
    }

    SYMRNN_DEVICE int first_row_of(int tile) const {
        const int of_matrix = s_.tiles(job_.backward);
        int row = tile * 16;
#pragma unroll
        for (int matrix = 1; matrix < MATRICES; ++matrix)
            if (tile >= matrix * of_matrix && (matrix == 1 || !paired()))
                row += s_.gates * s_.own - of_matrix * 16;
        return row;
    }

    // In the backward pass: of this tile's matrix, or matrices.
    SYMRNN_DEVICE int rows_of_gate(int tile) const {
        return paired() && tile >= s_.tiles(true) ? 2 * s_.own : s_.own;
    }

    SYMRNN_DEVICE bool paired() const { return MATRICES > 1 && s_.paired(job_.backward); }

    // Leaves the warps' sums in shared memory, those of two warps added.
    template <int R>
    SYMRNN_DEVICE void add_up(float (&sum)[R][N][4], int tile) {
        float *const to = sums_ + warp_index() % PARTIAL_SUMS * sums_of_warps() + tile * N * WARP * 4 +
                          lane_index() * 4;
        const bool second = warp_index() >= PARTIAL_SUMS;
        if (second) store_sums(to, sum);
        sync_block();
        if (second) return;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const Quad<float> other = load_quad(to + (r * N + n) * WARP * 4);
#pragma unroll
                for (int k = 0; k < 4; ++k) sum[r][n][k] += other.at[k];
            }
        store_sums(to, sum);
    }

    template <int R>
    SYMRNN_DEVICE static void store_sums(float *to, const float (&sum)[R][N][4]) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float(&of)[4] = sum[r][n];
                *reinterpret_cast<Quad<float> *>(to + (r * N + n) * WARP * 4) = {
                    {of[0], of[1], of[2], of[3]}};
            }
    }

    SYMRNN_DEVICE int sums_of_warps() const {
        if (HOLDS) return HELD_AT_ONCE * N * WARP * 4;
        return (MATRICES > 1 ? s_.all_tiles(job_.backward) : s_.tiles(job_.backward)) * N * WARP * 4;
    }

    // The first row of a matrix, among the rows of all sums.
    SYMRNN_DEVICE int sums_of(int matrix) const {
        const int of_matrix = s_.tiles(job_.backward) * 16;
        return matrix == 2 && paired() ? of_matrix + s_.own : matrix * of_matrix;
    }

    // The sum of one row and sequence, always in the same order.
    SYMRNN_DEVICE float sum(int row, int column) const {
        const int of_warps = sums_of_warps();
        const float *const from = sums_ + sum_index(N, row, column);
        float all = 0;
#pragma unroll
        for (int k = 0; k < PARTIAL_SUMS; ++k) all += from[k * of_warps];
        return all;
    }

    // ---- pointwise -------------------------------------------------------------------------------

    // A unit of a sequence, which this thread computes.
    struct Cell {
        int layer;
        int own, column;  // among the block's units and the pass's sequences
        int unit, b;
        int at;           // in (B, H)
    };

    // The k-th of a pass, layer after layer. Eights of sequences come one after the other, each with all
    // units: eight sequences of four units have their sums in different banks.
    SYMRNN_DEVICE Cell cell(int k, Span of) const {
        Cell c;
        const int own = units_.count();
        c.layer = LAYERS > 1 && k >= of.count() * own;
        k -= c.layer * of.count() * own;
        const int eight = k / (8 * own), within = k - eight * 8 * own;
        const int left = of.count() - eight * 8, width = left < 8 ? left : 8;
        c.own = within / width;
        c.column = eight * 8 + within - c.own * width;
        c.unit = units_.first + c.own;
        c.b = of.first + c.column;
        c.at = c.b * s_.units + c.unit;
        return c;
    }

    // Calls `multiply` for a pass once it has been written `count` times, and `compute` for each of the
    // thread's cells, with what `read` loads for it, then `store`. The first cell's loads come before
    // the wait. All of the pass is signalled as soon as it is computed; only a thread that has several
    // cells stores all but the last before that.
    template <typename Multiply, typename Read, typename Compute, typename Store>
    SYMRNN_DEVICE void each_cell(int pass, int count, const Multiply &multiply, const Read &read,
                                 const Compute &compute, const Store &store) {
        const Span of = sequences(pass);
        const int cells = LAYERS * of.count() * units_.count();
        int k = thread_index();
        Cell c = {};
        decltype(read(c)) in = {};
        decltype(compute(c, in)) result = {};
        if (k < cells) {
            c = cell(k, of);
            in = read(c);
        }
        if (count > 0) {
            wait(count, pass);
            multiply(of);
        }
        if (k < cells) result = compute(c, in);
        while ((k += ROW_THREADS) < cells) {
            store(c, result);
            c = cell(k, of);
            result = compute(c, read(c));
        }
        signal(count + 1, pass);
        if (thread_index() < cells) store(c, result);
    }

    SYMRNN_DEVICE void publish(Stored *to, int vector, const Cell &c, float x) const {
        constexpr int CHUNK = CHUNK_BYTES / sizeof(Stored);
        to[vector * s_.vector_elements() + s_.within_vector(CHUNK, c.b, c.unit)] = rounded(x);
    }

    // Adds a cell's sums of each gate.  first: of the sums of these gates.
    SYMRNN_DEVICE void add_sums(const Cell &c, int first, float (&to)[MAX_GATES]) const {
#pragma unroll
        for (int g = 0; g < MAX_GATES; ++g)
            if (g < s_.gates) to[g] += sum(first + g * s_.own + c.own, c.column);
    }

    const RowJob<T> &job_;
    const RowSchedule &s_;
    const Span units_;      // of this block
    const Span chunks_;     // of this warp
    const Span producers_;  // of their units
    const int passes_;
    Words *const shard_;
    float *const sums_;
    typename Product::HeldA held_[HOLDS ? HELD_TILES : 1];
};

}  // namespace symrnn

#endif
