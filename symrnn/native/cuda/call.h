// From the arguments of symrnn_cuda_forward and symrnn_cuda_backward to a job that can be launched.
// Arguments are checked here, and nowhere after.

#ifndef SYMRNN_CUDA_CALL_H
#define SYMRNN_CUDA_CALL_H

#include <stdint.h>

#include "../rows_schedule.h"
#include "../symrnn.h"
#include "layer.h"
#include "rows.h"

namespace symrnn {

// The arguments that both passes share.
struct Call {
    const symrnn_layer *layer;
    int kernel, tf32;
    int64_t steps, batch;
    bool reverse, backward;
    void *workspace;
    int64_t bytes;
    Stopped *stopped;
};

struct ForwardArrays {
    void *gates;
    float *saved_cells;
    const void *h0, *c0;
    void *output, *hn, *cn;
};

struct BackwardArrays {
    const void *gates;
    const float *saved_cells;
    const void *h0, *c0, *output, *d_output, *d_hn, *d_cn;
    void *d_gates, *d_hidden, *d_h0, *d_c0;
};

inline int weight_bytes(int dtype) {
    switch (dtype) {
    case SYMRNN_FLOAT: return 4;
    case SYMRNN_BFLOAT16:
    case SYMRNN_HALF: return 2;
    default: return 0;
    }
}

inline bool aligned(const void *address, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

inline int check(const ForwardArrays &a, bool lstm, bool) {
    return !a.gates || !a.output || !a.hn || (lstm && !a.cn) ? SYMRNN_NULL : SYMRNN_OK;
}

inline int check(const BackwardArrays &a, bool lstm, bool gru) {
    if (!a.gates || !a.output || !a.d_gates || !a.d_h0) return SYMRNN_NULL;
    if (((lstm || gru) && !a.saved_cells) || (lstm && !a.d_c0) || (gru && !a.d_hidden)) return SYMRNN_NULL;
    return SYMRNN_OK;
}

// Checks a layer by itself.
inline int check(const symrnn_layer *layer) {
    if (!layer || !layer->hh || !layer->hh->term || !layer->hh->term->packed) return SYMRNN_NULL;
    const symrnn_product &hh = *layer->hh;
    const symrnn_term &term = *hh.term;
    const int gates = gates_of(layer->mode);
    if (!gates) return SYMRNN_MODE;
    if (!weight_bytes(hh.dtype)) return SYMRNN_DTYPE;
    if (hh.terms != 1 || hh.skew || term.symmetric != 1 || term.inputs || term.outputs || layer->ih)
        return SYMRNN_FIT;
    if (hh.gates != gates || term.gates != (1 << gates) - 1 || hh.rows < 1 ||
        hh.rows != hh.columns || term.rows != hh.rows || term.columns != hh.rows ||
        !aligned(term.packed, 16))
        return SYMRNN_SIZE;
    return SYMRNN_OK;
}

// Checks a call but for its arrays, and distributes the layer over a GPU.
inline int prepare(const Call &call, const symrnn_gpu &gpu, Distribution &found) {
    const symrnn_layer *const layer = call.layer;
    if (int bad = check(layer)) return bad;
    const symrnn_product &hh = *layer->hh;
    const int gates = gates_of(layer->mode);
    if (call.steps < 1 || call.steps >= INT32_MAX || call.batch < 1 || !is_kernel(call.kernel) ||
        call.kernel == SYMRNN_KERNEL_WAVEFRONT)
        return SYMRNN_SIZE;
    if (hh.rows > MAX_ROWS || call.batch > MAX_ROWS ||
        !distribute(call.kernel, gpu.multiprocessors, gpu.shared_bytes, hh.rows, gates,
                    static_cast<int>(call.batch), weight_bytes(hh.dtype), call.backward, found))
        return SYMRNN_FIT;
    const bool rows = found.kernel == SYMRNN_KERNEL_ROWS;
    // What a flag counts, with the initial state and the last product, has 32 bits.
    if (rows && (call.steps + 2) * passes(found.rows) > UINT32_MAX) return SYMRNN_SIZE;
    if (!call.workspace) return SYMRNN_NULL;
    if (!aligned(call.workspace, 64) ||
        call.bytes < (rows ? workspace_bytes(found.rows.schedule, call.backward)
                           : workspace_bytes(found.packed.schedule, call.backward,
                                             weight_bytes(hh.dtype))))
        return SYMRNN_SIZE;
    return SYMRNN_OK;
}

template <typename T>
void set(T *&to, const void *from) {
    to = static_cast<T *>(const_cast<void *>(from));
}

template <typename Job>
void set_arrays(Job &job, const ForwardArrays &a) {
    set(job.gates, a.gates), set(job.saved_cells, a.saved_cells), set(job.h0, a.h0), set(job.c0, a.c0);
    set(job.output, a.output), set(job.hn, a.hn), set(job.cn, a.cn);
}

template <typename Job>
void set_arrays(Job &job, const BackwardArrays &a) {
    set(job.gates, a.gates), set(job.saved_cells, a.saved_cells), set(job.h0, a.h0), set(job.c0, a.c0);
    set(job.output, a.output), set(job.d_output, a.d_output), set(job.d_hn, a.d_hn);
    set(job.d_cn, a.d_cn), set(job.d_gates, a.d_gates), set(job.d_hidden, a.d_hidden);
    set(job.d_h0, a.d_h0), set(job.d_c0, a.d_c0);
}

// The part of a job that both kernels share.
template <typename Job, typename Arrays>
void set_call(Job &job, const Call &call, const Arrays &arrays) {
    job.mode = call.layer->mode;
    job.steps = static_cast<int>(call.steps);
    job.reverse = call.reverse;
    job.backward = call.backward;
    job.stopped = call.stopped;
    set(job.packed, call.layer->hh->term->packed);
    set(job.bias_n, call.layer->bias_n);
    set(job.state_mask, call.layer->state_mask);
    set_arrays(job, arrays);
}

template <typename T>
void set_fit(Job<T> &job, const Fit &fit, char *workspace) {
    job.schedule = fit.schedule;
    set(job.partial_sums_flags, workspace);
    job.state_flags = job.partial_sums_flags + fit.schedule.blocks() * FLAG;
    job.stopping = job.state_flags + fit.schedule.blocks() * FLAG;
    set(job.carry, workspace + carry_start(fit.schedule));
    set(job.partial_sums, workspace + partial_sums_start(fit.schedule));
    job.exchange = workspace + exchange_start(fit.schedule, job.backward);
}

template <typename T>
void set_fit(RowJob<T> &job, const RowFit &fit, char *workspace) {
    job.schedule = fit.schedule;
    set(job.flags, workspace);
    job.stopping = job.flags + fit.schedule.blocks();
    set(job.carry, workspace + row_carry_start(fit.schedule));
    job.exchange = workspace + exchange_begin(fit.schedule);
}

// Calls `start` with the arithmetic policy.
template <typename Start>
int with_policy(int dtype, int tf32, const Start &start) {
    switch (dtype) {
    case SYMRNN_BFLOAT16: return start(Bits16<bfloat16>());
    case SYMRNN_HALF: return start(Bits16<half>());
    default: return tf32 ? start(Tf32()) : start(Exact());
    }
}

// Calls `start` with the arithmetic policy, the job of one of the two kernels, and how it fits the GPU.
// Returns its status, or that of the argument that is wrong.
template <typename Arrays, typename Start>
int run(const Call &call, const Arrays &arrays, const symrnn_gpu &gpu, const Start &start) {
    Distribution found{};
    if (int bad = prepare(call, gpu, found)) return bad;
    const int mode = call.layer->mode;
    if (int bad = check(arrays, mode == SYMRNN_LSTM, mode == SYMRNN_GRU)) return bad;
    const auto start_job = [&](auto policy, auto job, const auto &fit) {
        set_call(job, call, arrays);
        set_fit(job, fit, static_cast<char *>(call.workspace));
        return start(policy, job, fit);
    };
    return with_policy(call.layer->hh->dtype, call.tf32, [&](auto policy) {
        using T = typename decltype(policy)::Number;
        return found.kernel == SYMRNN_KERNEL_ROWS ? start_job(policy, RowJob<T>{}, found.rows)
                                                  : start_job(policy, Job<T>{}, found.packed);
    });
}

}  // namespace symrnn

#endif
