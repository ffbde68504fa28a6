#include "launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<half>>(const Job<half> &, int, int64_t, cudaStream_t);
}
