// Launches a layer on a stream.

#ifndef SYMRNN_CUDA_LAUNCH_H
#define SYMRNN_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "layer.h"

namespace symrnn {

// Zeros the flags, then launches the kernel cooperatively: its blocks wait for one another, so all
// must be resident at once.
//
// columns: of the operand, one of COLUMNS.  max_shared: the shared memory that a block can have on this
// GPU. The kernel's limit is always set to it, not to `shared_bytes`: the limit is the kernel's, and
// other threads may be launching a layer of another size.
template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream);

// Loads the kernels of a policy. CUDA would else do so at the first launch, which fails if that one is
// captured into a graph.
template <typename Policy>
cudaError_t load();

}  // namespace symrnn

#endif
