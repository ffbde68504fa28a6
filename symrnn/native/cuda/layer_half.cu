#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<half>>(const Job<half> &, int, int64_t, int, cudaStream_t);
template cudaError_t load<Bits16<half>>();
}  // namespace symrnn
