#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Tf32>(const Job<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load<Tf32>();
}  // namespace symrnn
