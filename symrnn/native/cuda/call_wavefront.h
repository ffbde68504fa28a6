// From the arguments of symrnn_cuda_forward_wavefront and symrnn_cuda_backward_wavefront to a job that can
// be launched, as in call.h.

#ifndef SYMRNN_CUDA_CALL_WAVEFRONT_H
#define SYMRNN_CUDA_CALL_WAVEFRONT_H

#include "call.h"
#include "wavefront.h"

namespace symrnn {

struct WavefrontCall {
    const symrnn_layer *layers;  // (2)
    int tf32;
    int64_t steps, batch;
    bool backward;
    const void *w_ih, *between;
    void *workspace;
    int64_t bytes;
    Stopped *stopped;
};

// Checks a call but for its arrays, and distributes the layers over a GPU.
inline int prepare(const WavefrontCall &call, const symrnn_gpu &gpu, RowFit &fit) {
    if (!call.layers || !call.w_ih) return SYMRNN_NULL;
    const symrnn_layer &lower = call.layers[0], &upper = call.layers[1];
    for (const symrnn_layer *one : {&lower, &upper})
        if (int bad = check(one)) return bad;
    const symrnn_product &hh = *lower.hh;
    if (upper.mode != lower.mode || upper.hh->dtype != hh.dtype || upper.hh->rows != hh.rows)
        return SYMRNN_SIZE;
    if (call.steps < 1 || call.steps >= INT32_MAX || call.batch < 1) return SYMRNN_SIZE;
    Distribution found{};
    if (hh.rows > MAX_ROWS || call.batch > MAX_ROWS ||
        !distribute(SYMRNN_KERNEL_WAVEFRONT, gpu.multiprocessors, gpu.shared_bytes, hh.rows, hh.gates,
                    static_cast<int>(call.batch), weight_bytes(hh.dtype), call.backward, found))
        return SYMRNN_FIT;
    fit = found.rows;
    // What a flag counts, with two more ticks than steps (forward, one and the initial state), has 32 bits.
    if ((call.steps + 2) * passes(fit) > UINT32_MAX) return SYMRNN_SIZE;
    if (!call.workspace) return SYMRNN_NULL;
    if (!aligned(call.workspace, 64) || call.bytes < workspace_bytes(fit.schedule, call.backward))
        return SYMRNN_SIZE;
    return SYMRNN_OK;
}

// Calls `start` as in call.h. arrays: each of the first layer, then of the second, adjacent.
template <typename Arrays, typename Start>
int run(const WavefrontCall &call, const Arrays &arrays, const symrnn_gpu &gpu, const Start &start) {
    RowFit fit{};
    if (int bad = prepare(call, gpu, fit)) return bad;
    const symrnn_product &hh = *call.layers[0].hh;
    const int mode = call.layers[0].mode;
    if (int bad = check(arrays, mode == SYMRNN_LSTM, mode == SYMRNN_GRU)) return bad;
    return with_policy(hh.dtype, call.tf32, [&](auto policy) {
        using T = typename decltype(policy)::Number;
        const int64_t states = call.batch * hh.rows, all = call.steps * states, gates = all * hh.gates;
        WavefrontJob<T> job{};
        job.schedule = fit.schedule;
        set(job.w_ih, call.w_ih), set(job.bias, call.layers[1].bias), set(job.between, call.between);
        for (int k = 0; k < 2; ++k) {
            RowJob<T> &layer = job.layer[k];
            const Call one{call.layers + k, 0,             call.tf32, call.steps, call.batch,
                           false,           call.backward, nullptr,   0,          call.stopped};
            set_call(layer, one, arrays);
            set_fit(layer, fit, static_cast<char *>(call.workspace));
            if (k == 0) continue;
            const auto skip = [](auto *&array, int64_t elements) {
                if (array) array += elements;
            };
            skip(layer.gates, gates), skip(layer.saved_cells, all), skip(layer.output, all);
            skip(layer.h0, states), skip(layer.c0, states), skip(layer.carry, states);
            skip(layer.hn, states), skip(layer.cn, states);
            skip(layer.d_output, all), skip(layer.d_hn, states), skip(layer.d_cn, states);
            skip(layer.d_gates, gates), skip(layer.d_hidden, gates);
            skip(layer.d_h0, states), skip(layer.d_c0, states);
        }
        return start(policy, job, fit);
    });
}

}  // namespace symrnn

#endif
