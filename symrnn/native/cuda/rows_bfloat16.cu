#include "rows_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<bfloat16>>(const RowJob<bfloat16> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows<Bits16<bfloat16>>();
}  // namespace symrnn
