// Puts a layer on a stream.

#ifndef SYMRNN_CUDA_LAUNCH_H
#define SYMRNN_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "layer.h"

namespace symrnn {

// columns: of the operand, one of COLUMNS.  Zeros the flags, then starts the kernel, which starts
// only if all its blocks can run at once: they wait for one another.
//
// most_shared: the shared memory that a block can have on this GPU. It is asked for once and for all
// sizes: it belongs to the kernel, and other threads may be about to start another layer.
template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int most_shared, cudaStream_t stream);

// Loads the kernels of this kind, which is otherwise done at the first launch: too late for one that
// is captured into a graph.
template <typename Policy>
cudaError_t load();

}  // namespace symrnn

#endif
