// The kernel of two layers and its launch. Each wavefront_*.cu instantiates it for one policy, so that they
// can be compiled side by side.

#include "wavefront_launch.h"

namespace symrnn {

template <typename Policy, int N>
__global__ void __launch_bounds__(ROW_THREADS, 1)
    run_rows_wavefront(const __grid_constant__ WavefrontJob<typename Policy::Number> job) {
    extern __shared__ __align__(128) char shared[];
    WavefrontWorker<Policy, N>(job, shared).run();
}

template <typename Policy>
auto wavefront_kernel_for(int columns) {
    return columns == ROW_COLUMNS[0]   ? run_rows_wavefront<Policy, ROW_COLUMNS[0] / 8>
           : columns == ROW_COLUMNS[1] ? run_rows_wavefront<Policy, ROW_COLUMNS[1] / 8>
                                       : run_rows_wavefront<Policy, WAVEFRONT_COLUMNS / 8>;
}

template <typename Policy>
cudaError_t load_wavefront() {
    for (const int columns : {ROW_COLUMNS[0], ROW_COLUMNS[1], WAVEFRONT_COLUMNS}) {
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, wavefront_kernel_for<Policy>(columns)))
            return error;
    }
    return cudaSuccess;
}

template <typename Policy>
cudaError_t launch(const WavefrontJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream) {
    return launch_together(wavefront_kernel_for<Policy>(columns), job, ROW_THREADS, shared_bytes, max_shared,
                           job.layer[0].flags, row_flag_bytes(job.schedule), stream);
}

}  // namespace symrnn
