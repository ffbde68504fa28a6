#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Exact>(const Job<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load<Exact>();
}  // namespace symrnn
