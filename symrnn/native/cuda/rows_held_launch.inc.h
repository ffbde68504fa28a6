// The kernels by rows that hold a part of them in registers, and their launch. Each rows_held_*.cu
// instantiates them for one policy, so that they can be compiled side by side.

#include "rows_launch.h"

namespace symrnn {

template <typename Policy, int N, Held HELD>
__global__ void __launch_bounds__(ROW_THREADS, 1)
    run_rows_held(const __grid_constant__ RowJob<typename Policy::Number> job) {
    extern __shared__ __align__(128) char shared[];
    RowWorker<Policy, N, 1, HELD>(job, shared).run();
}

// One that multiplies fewer sequences at once takes more passes, and less shared memory.
template <typename Policy>
auto held_kernel_for(bool backward, int columns) {
    constexpr int MOST = RowProduct<Policy>::HELD_EIGHTS;
    const bool few = columns == HELD_COLUMNS[0];
    return backward ? few ? run_rows_held<Policy, 1, Held::BACKWARD>
                          : run_rows_held<Policy, MOST, Held::BACKWARD>
           : few    ? run_rows_held<Policy, 1, Held::FORWARD>
                    : run_rows_held<Policy, MOST, Held::FORWARD>;
}

template <typename Policy>
cudaError_t load_rows_held() {
    for (const bool backward : {false, true})
        for (const int columns : HELD_COLUMNS) {
            cudaFuncAttributes attributes;
            if (cudaError_t error =
                    cudaFuncGetAttributes(&attributes, held_kernel_for<Policy>(backward, columns)))
                return error;
        }
    return cudaSuccess;
}

template <typename Policy>
cudaError_t launch_held(const RowJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                        int max_shared, cudaStream_t stream) {
    return launch_together(held_kernel_for<Policy>(job.backward, columns), job, ROW_THREADS, shared_bytes,
                           max_shared, job.flags, row_flag_bytes(job.schedule), stream);
}

}  // namespace symrnn
