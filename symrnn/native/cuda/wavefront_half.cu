#include "wavefront_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Bits16<half>>(const WavefrontJob<half> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_wavefront<Bits16<half>>();
}  // namespace symrnn
