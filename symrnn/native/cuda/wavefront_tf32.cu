#include "wavefront_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Tf32>(const WavefrontJob<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_wavefront<Tf32>();
}  // namespace symrnn
