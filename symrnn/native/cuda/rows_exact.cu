#include "rows_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Exact>(const RowJob<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows<Exact>();
}  // namespace symrnn
