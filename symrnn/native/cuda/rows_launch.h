// Launches a layer by rows on a stream.

#ifndef SYMRNN_CUDA_ROWS_LAUNCH_H
#define SYMRNN_CUDA_ROWS_LAUNCH_H

#include "launch.h"
#include "rows.h"

namespace symrnn {

// As in launch.h. columns: of the operand, one of ROW_COLUMNS or HELD_COLUMNS.
template <typename Policy>
cudaError_t launch(const RowJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream);

template <typename Policy>
cudaError_t load_rows();

// The same where registers hold a part of the rows; `launch` and `load_rows` call them.
template <typename Policy>
cudaError_t launch_held(const RowJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                        int max_shared, cudaStream_t stream);

template <typename Policy>
cudaError_t load_rows_held();

}  // namespace symrnn

#endif
