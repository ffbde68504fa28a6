#include "rows_held_launch.inc.h"

namespace symrnn {
template cudaError_t launch_held<Bits16<half>>(const RowJob<half> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_rows_held<Bits16<half>>();
}  // namespace symrnn
