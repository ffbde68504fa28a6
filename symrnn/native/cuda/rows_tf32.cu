#include "rows_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Tf32>(const RowJob<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows<Tf32>();
}  // namespace symrnn
