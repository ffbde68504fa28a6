#include "rows_held_launch.inc.h"

namespace symrnn {
template cudaError_t launch_held<Tf32>(const RowJob<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows_held<Tf32>();
}  // namespace symrnn
