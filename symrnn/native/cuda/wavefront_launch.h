// Launches two layers as a wavefront on a stream.

#ifndef SYMRNN_CUDA_WAVEFRONT_LAUNCH_H
#define SYMRNN_CUDA_WAVEFRONT_LAUNCH_H

#include "launch.h"
#include "wavefront.h"

namespace symrnn {

// As in launch.h. columns: of the operand, one of ROW_COLUMNS, up to WAVEFRONT_COLUMNS.
template <typename Policy>
cudaError_t launch(const WavefrontJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream);

template <typename Policy>
cudaError_t load_wavefront();

}  // namespace symrnn

#endif
