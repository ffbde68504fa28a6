#include "wavefront_launch.inc.h"

namespace symrnn {
template cudaError_t launch<Exact>(const WavefrontJob<float> &, int, int64_t, int, cudaStream_t);
template cudaError_t load_wavefront<Exact>();
}  // namespace symrnn
