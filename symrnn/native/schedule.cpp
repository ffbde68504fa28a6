// symrnn_fit_gpu: the rules of rows_schedule.h and schedule.h in the C interface, which needs no GPU.

#include "rows_schedule.h"

#include "symrnn.h"

using namespace symrnn;

int symrnn_fit_gpu(const symrnn_gpu *gpu, int kernel, int mode, int dtype, int64_t side,
                   int64_t batch, int backward, symrnn_fit *fit) {
    if (!gpu || !fit) return SYMRNN_NULL;
    const int gates = gates_of(mode);
    if (!gates) return SYMRNN_MODE;
    const bool wide = dtype == SYMRNN_FLOAT;
    if (!wide && dtype != SYMRNN_BFLOAT16 && dtype != SYMRNN_HALF) return SYMRNN_DTYPE;
    if (side < 1 || batch < 1 || gpu->multiprocessors < 1 || gpu->shared_bytes < 0 ||
        !is_kernel(kernel))
        return SYMRNN_SIZE;
    Distribution found{};
    if (side > MAX_ROWS || batch > MAX_ROWS ||
        !distribute(kernel, gpu->multiprocessors, gpu->shared_bytes, static_cast<int>(side), gates,
                    static_cast<int>(batch), wide ? 4 : 2, backward != 0, found))
        return SYMRNN_FIT;
    if (found.kernel != SYMRNN_KERNEL_PACKED) {
        const RowSchedule &s = found.rows.schedule;
        *fit = {found.kernel,       s.blocks(), s.own, 0, 0, found.rows.columns,
                found.rows.shared_bytes, workspace_bytes(s, backward != 0)};
    } else {
        const Schedule &s = found.packed.schedule;
        *fit = {found.kernel, s.blocks(),           0, s.squares, s.together, found.packed.columns,
                found.packed.shared_bytes, workspace_bytes(s, backward != 0, wide ? 4 : 2)};
    }
    return SYMRNN_OK;
}
