// Launches a layer on a stream.

#ifndef SYMRNN_CUDA_LAUNCH_H
#define SYMRNN_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "layer.h"

namespace symrnn {

// Zeros the flags, then launches the kernel cooperatively: its blocks wait for one another, so all
// must be resident at once.
//
// max_shared: the shared memory that a block can have on this GPU. The kernel's limit is always set to
// it, not to `shared_bytes`: the limit is the kernel's, and other threads may be launching a layer of
// another size.
template <typename Job>
cudaError_t launch_together(void (*kernel)(Job), const Job &job, int threads, int64_t shared_bytes,
                            int max_shared, void *flags, int64_t flag_bytes, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             max_shared);
    if (!error) error = cudaMemsetAsync(flags, 0, flag_bytes, stream);
    if (error) return error;
    cudaLaunchAttribute cooperative = {};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(job.schedule.blocks());
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &cooperative;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, job);
}

// columns: of the operand, one of COLUMNS.
template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream);

// Loads the kernels of a policy. CUDA would else do so at the first launch, which fails if that one is
// captured into a graph.
template <typename Policy>
cudaError_t load();

}  // namespace symrnn

#endif
