// The kernel by rows and its launch. Each rows_*.cu instantiates it for one policy, so that they can be
// compiled side by side.

#include "rows_launch.h"

namespace symrnn {

template <typename Policy, int N>
__global__ void __launch_bounds__(ROW_THREADS, 1)
    run_rows(const __grid_constant__ RowJob<typename Policy::Number> job) {
    extern __shared__ __align__(128) char shared[];
    RowWorker<Policy, N>(job, shared).run();
}

template <typename Policy>
auto rows_kernel_for(int columns) {
    return columns == ROW_COLUMNS[0]   ? run_rows<Policy, ROW_COLUMNS[0] / 8>
           : columns == ROW_COLUMNS[1] ? run_rows<Policy, ROW_COLUMNS[1] / 8>
           : columns == ROW_COLUMNS[2] ? run_rows<Policy, ROW_COLUMNS[2] / 8>
                                       : run_rows<Policy, ROW_COLUMNS[3] / 8>;
}

template <typename Policy>
cudaError_t load_rows() {
    for (const int columns : ROW_COLUMNS) {
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, rows_kernel_for<Policy>(columns)))
            return error;
    }
    return load_rows_held<Policy>();
}

template <typename Policy>
cudaError_t launch(const RowJob<typename Policy::Number> &job, int columns, int64_t shared_bytes,
                   int max_shared, cudaStream_t stream) {
    if (job.schedule.held > 0)
        return launch_held<Policy>(job, columns, shared_bytes, max_shared, stream);
    return launch_together(rows_kernel_for<Policy>(columns), job, ROW_THREADS, shared_bytes, max_shared,
                           job.flags, row_flag_bytes(job.schedule), stream);
}

}  // namespace symrnn
