// The kernel and its launch. Each layer_*.cu instantiates it for one policy, so that they can be
// compiled side by side.

#include "launch.h"

namespace symrnn {

template <typename Policy, int N>
__global__ void __launch_bounds__(THREADS, 1)
    run_layer(const __grid_constant__ Job<typename Policy::Number> job) {
    extern __shared__ __align__(128) char shared[];
    Worker<Policy, N>(job, shared).run();
}

template <typename Policy>
using Kernel = void (*)(Job<typename Policy::Number>);

template <typename Policy>
Kernel<Policy> kernel_for(int columns) {
    return columns == COLUMNS[0]   ? run_layer<Policy, COLUMNS[0] / 8>
           : columns == COLUMNS[1] ? run_layer<Policy, COLUMNS[1] / 8>
           : columns == COLUMNS[2] ? run_layer<Policy, COLUMNS[2] / 8>
                                   : run_layer<Policy, COLUMNS[3] / 8>;
}

template <typename Policy>
cudaError_t load() {
    for (const int columns : COLUMNS) {
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, kernel_for<Policy>(columns)))
            return error;
    }
    return cudaSuccess;
}

template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream) {
    return launch_together(kernel_for<Policy>(columns), job, THREADS, shared_bytes, max_shared,
                           job.partial_sums_flags, flag_bytes(job.schedule), stream);
}

}  // namespace symrnn
