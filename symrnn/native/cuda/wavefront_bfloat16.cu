#include "wavefront_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<bfloat16>>(const WavefrontJob<bfloat16> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_wavefront<Bits16<bfloat16>>();
}  // namespace symrnn
