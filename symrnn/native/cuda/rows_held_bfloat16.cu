#include "rows_held_launch.inc.h"

namespace symrnn {
template cudaError_t launch_held<Bits16<bfloat16>>(const RowJob<bfloat16> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows_held<Bits16<bfloat16>>();
}  // namespace symrnn
