#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<bfloat16>>(const Job<bfloat16> &, int, int64_t, cudaStream_t);
}
