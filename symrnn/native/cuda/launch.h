// Puts a layer on a stream.

#ifndef SYMRNN_CUDA_LAUNCH_H
#define SYMRNN_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include "layer.h"

namespace symrnn {

// columns: of the operand, one of COLUMNS.  Zeros the flags, then starts the kernel, which starts
// only if all its blocks can run at once: they wait for one another.
template <typename Policy>
cudaError_t launch(const Job<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   cudaStream_t stream);

}  // namespace symrnn

#endif
