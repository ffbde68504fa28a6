// The kernels for GPUs on a CPU, thread by thread, for tests/native/test_cuda.py: the functions of
// symrnn_cuda.h for a GPU that is described, whose blocks and threads are scheduled in a chosen order.
// And the arithmetic of schedule.h, for tests/native/test_schedule.py.

#define SYMRNN_EMULATED

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "call.h"
#include "call_wavefront.h"

using namespace symrnn;

namespace {

constexpr size_t GUARD = 4096;  // bytes behind a block's shared memory, which must stay untouched
constexpr int DEADLOCK = 100, OVERRUN = 101, MISALIGNED = 102, RACE = 103, NOT_COMPILED = 104;

// What is compiled: all kernels, or, for tests that need no more, in a fraction of the time: those of
// layer.h in exact arithmetic with -DONLY_EXACT, and those for 8 N columns at most with -DMOST_EIGHTS=N.
#ifdef ONLY_EXACT
template <typename Kernel>
constexpr bool COMPILED = false;
template <int N>
constexpr bool COMPILED<Worker<Exact, N>> = true;
#else
template <typename Kernel>
constexpr bool COMPILED = true;
#endif
#ifdef MOST_EIGHTS
template <template <typename, int> class Kernel, typename Policy, int N>
constexpr bool COMPILED<Kernel<Policy, N>> = N <= MOST_EIGHTS;
#endif

// The arrays of a workspace, whose accesses happens_before.h follows: where each begins, and the end.
using Parts = std::vector<std::pair<const char *, int64_t>>;

void watch_workspace(const void *workspace, const Parts &parts, int element) {
    for (size_t k = 0; k + 1 < parts.size(); ++k)
        happens_before::watch(parts[k].first, static_cast<const char *>(workspace) + parts[k].second,
                              parts[k + 1].second - parts[k].second, element);
}

template <typename T>
void watch_workspace(const Job<T> &job) {
    const Schedule &s = job.schedule;
    watch_workspace(job.partial_sums_flags,
                    {{"flags", 0},
                     {"carry", carry_start(s)},
                     {"partial sums", partial_sums_start(s)},
                     {"exchange", exchange_start(s, job.backward)},
                     {"", workspace_bytes(s, job.backward, sizeof(T))}},
                    sizeof(T));
}

template <typename T>
void watch_workspace(const RowJob<T> &job) {
    const RowSchedule &s = job.schedule;
    watch_workspace(job.flags,
                    {{"flags", 0},
                     {"carry", row_carry_start(s)},
                     {"exchange", exchange_begin(s)},
                     {"", workspace_bytes(s, job.backward)}},
                    sizeof(T));
}

// workspace: whether to watch that too, which two layers have in common.
template <typename Job>
void watch(const Job &job, bool workspace = true) {
    const auto &s = job.schedule;
    const int64_t states = static_cast<int64_t>(s.batch) * s.units, all = job.steps * states,
                  tiles = tiles_of(s.units);
    const auto array = [](const char *name, const auto *start, int64_t elements) {
        happens_before::watch(name, start, elements * sizeof *start, sizeof *start);
    };
    array("packed weights", job.packed, panel_start(1, tiles, s.gates, tiles));
    array("bias_n", job.bias_n, s.units), array("state_mask", job.state_mask, states);
    array("gates", job.gates, all * s.gates);
    array("saved_cells", job.saved_cells, all);
    array("h0", job.h0, states), array("c0", job.c0, states);
    array("output", job.output, all);
    array("hn", job.hn, states), array("cn", job.cn, states);
    array("d_output", job.d_output, all);
    array("d_hn", job.d_hn, states), array("d_cn", job.d_cn, states);
    array("d_gates", job.d_gates, all * s.gates), array("d_hidden", job.d_hidden, all * s.gates);
    array("d_h0", job.d_h0, states), array("d_c0", job.d_c0, states);
    if (workspace) watch_workspace(job);
}

template <typename T>
void watch(const WavefrontJob<T> &job) {
    const RowSchedule &s = job.schedule;
    const int64_t weights = static_cast<int64_t>(s.gates) * s.units;
    for (const RowJob<T> &layer : job.layer) watch(layer, &layer == job.layer);
    happens_before::watch("w_ih", job.w_ih, weights * s.units * sizeof(T), sizeof(T));
    happens_before::watch("bias", job.bias, weights * sizeof(T), sizeof(T));
    happens_before::watch("between", job.between,
                          job.layer[0].steps * static_cast<int64_t>(s.batch) * s.units * sizeof(T),
                          sizeof(T));
}

template <template <typename> class Job, typename T>
constexpr int element_bytes(const Job<T> &) {
    return sizeof(T);
}

Stopped stopped;  // why the last launch was

// Runs a kernel's worker, `Worker(job, shared)`, in each block, if it is compiled.
template <typename Worker, typename Job>
int launch(const Job &job, int threads, int64_t shared_bytes, unsigned order) {
    // NaN in any of the types.
    std::vector<std::unique_ptr<char, void (*)(void *)>> shared;
    const size_t fit = (shared_bytes + GUARD + 127) / 128 * 128;
    for (int block = 0; block < job.schedule.blocks(); ++block) {
        shared.emplace_back(static_cast<char *>(aligned_alloc(128, fit)), free);
        memset(shared.back().get(), 0xff, fit);
        happens_before::watch("shared memory of block " + std::to_string(block),
                              shared.back().get(), shared_bytes, element_bytes(job));
    }
    watch(job);
    EmulatedGpu gpu;
    stopped = {};
    const bool ended = gpu.launch(job.schedule.blocks(), threads, order, [&](int block) {
        if constexpr (COMPILED<Worker>) Worker(job, shared[block].get()).run();
    });
    if (!COMPILED<Worker>) return NOT_COMPILED;
    if (*happens_before::races()) return RACE;
    if (!ended) return DEADLOCK;
    if (gpu.misaligned) return MISALIGNED;
    for (const auto &memory : shared)
        for (size_t k = shared_bytes; k < fit; ++k)
            if (memory.get()[k] != '\xff') return OVERRUN;
    return SYMRNN_OK;
}

template <typename Policy, typename T>
int start_job(const Job<T> &job, const Fit &fit, unsigned order) {
    memset(job.partial_sums_flags, 0, flag_bytes(job.schedule));
    const auto start = [&](auto eights) {
        return launch<Worker<Policy, eights>>(job, THREADS, fit.shared_bytes, order);
    };
    switch (fit.columns) {
    case 8: return start(std::integral_constant<int, 1>());
    case 16: return start(std::integral_constant<int, 2>());
    case 24: return start(std::integral_constant<int, 3>());
    default: return start(std::integral_constant<int, 4>());
    }
}

template <typename Policy, Held HELD, typename T>
int start_held(const RowJob<T> &job, const RowFit &fit, unsigned order) {
    constexpr int MOST = RowProduct<Policy>::HELD_EIGHTS;
    return fit.columns == 8
               ? launch<RowWorker<Policy, 1, 1, HELD>>(job, ROW_THREADS, fit.shared_bytes, order)
               : launch<RowWorker<Policy, MOST, 1, HELD>>(job, ROW_THREADS, fit.shared_bytes, order);
}

template <typename Policy, typename T>
int start_job(const RowJob<T> &job, const RowFit &fit, unsigned order) {
    memset(job.flags, 0, row_flag_bytes(job.schedule));
    if (fit.schedule.held > 0)
        return job.backward ? start_held<Policy, Held::BACKWARD>(job, fit, order)
                            : start_held<Policy, Held::FORWARD>(job, fit, order);
    const auto start = [&](auto eights) {
        return launch<RowWorker<Policy, eights>>(job, ROW_THREADS, fit.shared_bytes, order);
    };
    switch (fit.columns) {
    case 8: return start(std::integral_constant<int, 1>());
    case 16: return start(std::integral_constant<int, 2>());
    case 24: return start(std::integral_constant<int, 3>());
    default: return start(std::integral_constant<int, 4>());
    }
}

template <typename Policy, typename T>
int start_job(const WavefrontJob<T> &job, const RowFit &fit, unsigned order) {
    memset(job.layer[0].flags, 0, row_flag_bytes(job.schedule));
    const auto start = [&](auto eights) {
        return launch<WavefrontWorker<Policy, eights>>(job, ROW_THREADS, fit.shared_bytes, order);
    };
    switch (fit.columns) {
    case 8: return start(std::integral_constant<int, 1>());
    case 16: return start(std::integral_constant<int, 2>());
    default: return start(std::integral_constant<int, 3>());
    }
}

template <typename Call, typename Arrays>
int start(const Call &call, const Arrays &arrays, const symrnn_gpu &gpu, unsigned order) {
    return run(call, arrays, gpu, [&](auto policy, const auto &job, const auto &fit) {
        return start_job<decltype(policy)>(job, fit, order);
    });
}

}  // namespace

extern "C" {

int emulate_forward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps, int64_t batch,
                    int reverse, void *gates, float *saved_cells, const void *h0, const void *c0,
                    void *output, void *hn, void *cn, void *workspace, int64_t bytes,
                    const symrnn_gpu *gpu, unsigned order) {
    const Call call{layer, kernel, tf32, steps, batch, reverse != 0, false, workspace, bytes, &stopped};
    return start(call, ForwardArrays{gates, saved_cells, h0, c0, output, hn, cn}, *gpu, order);
}

int emulate_backward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps, int64_t batch,
                     int reverse, const void *gates, const float *saved_cells, const void *h0, const void *c0,
                     const void *output, const void *d_output, const void *d_hn, const void *d_cn,
                     void *d_gates, void *d_hidden, void *d_h0, void *d_c0, void *workspace,
                     int64_t bytes, const symrnn_gpu *gpu, unsigned order) {
    const Call call{layer, kernel, tf32, steps, batch, reverse != 0, true, workspace, bytes, &stopped};
    return start(call,
                 BackwardArrays{gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates,
                                d_hidden, d_h0, d_c0},
                 *gpu, order);
}

int emulate_forward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                              const void *w_ih, const void *between, void *gates, float *saved_cells,
                              const void *h0, const void *c0, void *output, void *hn, void *cn,
                              void *workspace, int64_t bytes, const symrnn_gpu *gpu, unsigned order) {
    const WavefrontCall call{layers, tf32,    steps,     batch, false,
                             w_ih,   between, workspace, bytes, &stopped};
    return start(call, ForwardArrays{gates, saved_cells, h0, c0, output, hn, cn}, *gpu, order);
}

int emulate_backward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                               const void *w_ih, const void *between, const void *gates,
                               const float *saved_cells, const void *h0, const void *c0,
                               const void *output, const void *d_output, const void *d_hn,
                               const void *d_cn, void *d_gates, void *d_hidden, void *d_h0, void *d_c0,
                               void *workspace, int64_t bytes, const symrnn_gpu *gpu, unsigned order) {
    const WavefrontCall call{layers, tf32,    steps,     batch, true,
                             w_ih,   between, workspace, bytes, &stopped};
    return start(call,
                 BackwardArrays{gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates,
                                d_hidden, d_h0, d_c0},
                 *gpu, order);
}

const Stopped *emulate_stopped() { return &stopped; }
// The accesses of the last launch that nothing orders, a line each; see happens_before.h.
const char *emulate_races() { return happens_before::races(); }

// ---- the arithmetic of schedule.h and products.h -------------------------------------------------

int schedule_blocks(const Schedule *s) { return s->blocks(); }
int schedule_first_tile(const Schedule *s, int square) { return s->first_tile(square); }
int schedule_square_of(const Schedule *s, int tile) { return s->square_of(tile); }
int schedule_rows(const Schedule *s) { return s->rows(); }
int schedule_first_row(const Schedule *s, int block) { return s->first_row(block); }
int schedule_block_of_row(const Schedule *s, int row) { return s->block_of_row(row); }
int schedule_part_block(const Schedule *s, int set, int to, int from) {
    return s->block_of_partial_sum(set, to, from);
}
int64_t schedule_part_start(const Schedule *s, int row, int from, int vector, int backward) {
    return s->partial_sum_start(row, from, vector, backward != 0);
}
int64_t schedule_part_numbers(const Schedule *s, int backward) {
    return s->partial_sum_elements(backward != 0);
}
int64_t schedule_carry_start(const Schedule *s) { return carry_start(*s); }
int64_t schedule_parts_start(const Schedule *s) { return partial_sums_start(*s); }
int64_t schedule_exchange_numbers(const Schedule *s, int backward) {
    return s->exchange_elements(backward != 0);
}
int64_t schedule_exchange_start(const Schedule *s, int backward) {
    return exchange_start(*s, backward != 0);
}
int64_t schedule_workspace_bytes(const Schedule *s, int backward, int weight_bytes) {
    return workspace_bytes(*s, backward != 0, weight_bytes);
}
int64_t schedule_packed_tile(int64_t tiles, int gates, int gate, int64_t row, int64_t column) {
    return packed_tile(tiles, gates, gate, row, column);
}

int share_gate(const Schedule *s, int block) { return Share(*s, block).gate; }
Span share_side(const Schedule *s, int block, int side) { return Share(*s, block).side(side); }
int share_square(const Schedule *s, int block, int side) { return Share(*s, block).square(side); }
int share_from(const Schedule *s, int block, int to) { return Share(*s, block).from(to); }
int share_tiles(const Schedule *s, int block) { return Share(*s, block).tiles(); }
int share_step(const Schedule *s, int block, int to, int a, int k) {
    return Share(*s, block).step(to, a, k);
}
StoredTile share_tile(const Schedule *s, int block, int to, int a, int k) {
    return Share(*s, block).tile(to, a, k);
}
Share::Position share_position(const Schedule *s, int block, int index) {
    return Share(*s, block).position(index);
}

// ---- the arithmetic of rows_schedule.h -----------------------------------------------------------

Span rows_units_of(const RowSchedule *s, int block) { return s->units_of(block); }
Span rows_chunks_of(const RowSchedule *s, int warp) { return s->chunks_of(warp); }
Span rows_producers(const RowSchedule *s, int warp) { return s->producers(s->chunks_of(warp)); }
int rows_exchange_offset(const RowSchedule *s, int vector, int sequence, int unit) {
    return s->exchange_offset(vector, sequence, unit);
}
int rows_shard_quad(int row, int quad) { return shard_quad(row, quad); }
int rows_first_stored(const RowSchedule *s, int warp) { return s->first_stored(warp); }
int rows_stored_chunks(const RowSchedule *s) { return s->stored_chunks(); }
int rows_chunk_of_stored(const RowSchedule *s, int index) { return s->chunk_of_stored(index); }
int rows_sum_index(int eights, int row, int column) { return sum_index(eights, row, column); }

int float_index(int row, int column) { return FloatLayout::index(row, column); }
int float_place(int b, int unit) { return FloatLayout::operand_index(b, unit); }
int index_of_16_bits(int row, int column) { return Bits16<half>::index(row, column); }
int place_of_16_bits(int b, int unit) { return Bits16<half>::operand_index(b, unit); }

}  // extern "C"
