// The kernel, and how it is started: for the .cu files, each of which has it for some kinds of
// arithmetic, so that they can be compiled side by side.

#include "launch.h"

namespace symrnn {

template <typename Policy, int N>
__global__ void __launch_bounds__(THREADS, 1)
    run_layer(const __grid_constant__ Job<typename Policy::Number> job) {
    extern __shared__ __align__(128) char shared[];
    Worker<Policy, N>(job, shared).run();
}

template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   cudaStream_t stream) {
    using Kernel = void (*)(Job<typename Policy::Number>);
    const Kernel kernel = columns == COLUMNS[0]   ? run_layer<Policy, COLUMNS[0] / 8>
                          : columns == COLUMNS[1] ? run_layer<Policy, COLUMNS[1] / 8>
                                                  : run_layer<Policy, COLUMNS[2] / 8>;
    cudaError_t bad = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shared_bytes));
    const int blocks = job.schedule.blocks();
    if (!bad) bad = cudaMemsetAsync(job.parts_flags, 0, flag_bytes(job.schedule), stream);
    if (bad) return bad;
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, job);
}

}  // namespace symrnn
