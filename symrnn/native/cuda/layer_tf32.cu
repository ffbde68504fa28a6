#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Tf32>(const Job<float> &, int, int64_t, cudaStream_t);
}
