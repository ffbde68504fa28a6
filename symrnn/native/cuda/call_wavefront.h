// From the arguments of symrnn_cuda_forward_wavefront to a job that can be launched, as in call.h.

#ifndef SYMRNN_CUDA_CALL_WAVEFRONT_H
#define SYMRNN_CUDA_CALL_WAVEFRONT_H

#include "call.h"
#include "wavefront.h"

namespace symrnn {

struct WavefrontCall {
    const symrnn_layer *layers;  // (2)
    int tf32;
    int64_t steps, batch;
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
                    static_cast<int>(call.batch), weight_bytes(hh.dtype), false, found))
        return SYMRNN_FIT;
    fit = found.rows;
    // What a flag counts, with the initial state and the second layer's last step, has 32 bits.
    if ((call.steps + 2) * passes(fit) > UINT32_MAX) return SYMRNN_SIZE;
    if (!call.workspace) return SYMRNN_NULL;
    if (!aligned(call.workspace, 64) || call.bytes < workspace_bytes(fit.schedule, false))
        return SYMRNN_SIZE;
    return SYMRNN_OK;
}

// Calls `start` as in call.h. arrays: each of the first layer, then of the second, adjacent.
template <typename Start>
int run(const WavefrontCall &call, const ForwardArrays &arrays, const symrnn_gpu &gpu,
        const Start &start) {
    RowFit fit{};
    if (int bad = prepare(call, gpu, fit)) return bad;
    const symrnn_product &hh = *call.layers[0].hh;
    if (int bad = check(arrays, call.layers[0].mode == SYMRNN_LSTM, false)) return bad;
    return with_policy(hh.dtype, call.tf32, [&](auto policy) {
        using T = typename decltype(policy)::Number;
        const int64_t states = call.batch * hh.rows, all = call.steps * states;
        WavefrontJob<T> job{};
        job.schedule = fit.schedule;
        set(job.w_ih, call.w_ih), set(job.bias, call.layers[1].bias), set(job.between, call.between);
        for (int k = 0; k < 2; ++k) {
            RowJob<T> &layer = job.layer[k];
            const Call one{call.layers + k, 0,    call.tf32, call.steps, call.batch,
                           false,           false, nullptr,  0,          call.stopped};
            set_call(layer, one, arrays);
            set_fit(layer, fit, static_cast<char *>(call.workspace));
            if (k == 0) continue;
            const auto skip = [](auto *&array, int64_t elements) {
                if (array) array += elements;
            };
            skip(layer.gates, all * hh.gates), skip(layer.saved_cells, all), skip(layer.output, all);
            skip(layer.h0, states), skip(layer.c0, states), skip(layer.carry, states);
            skip(layer.hn, states), skip(layer.cn, states);
        }
        return start(policy, job, fit);
    });
}

}  // namespace symrnn

#endif
