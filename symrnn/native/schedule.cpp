// symrnn_fit_gpu: the rule of schedule.h in the C interface, which needs no GPU.

#include "schedule.h"

#include "symrnn.h"

using namespace symrnn;

int symrnn_fit_gpu(const symrnn_gpu *gpu, int mode, int dtype, int64_t side, int64_t batch,
                   int backward, symrnn_fit *fit) {
    if (!gpu || !fit) return SYMRNN_NULL;
    const int gates = gates_of(mode);
    if (!gates) return SYMRNN_MODE;
    const bool wide = dtype == SYMRNN_FLOAT;
    if (!wide && dtype != SYMRNN_BFLOAT16 && dtype != SYMRNN_HALF) return SYMRNN_DTYPE;
    if (side < 1 || batch < 1 || gpu->multiprocessors < 1 || gpu->shared_bytes < 0)
        return SYMRNN_SIZE;
    Fit found{};
    if (side > MAX_ROWS || batch > MAX_ROWS ||
        !find_fit(gpu->multiprocessors, gpu->shared_bytes, static_cast<int>(side), gates,
                  static_cast<int>(batch), wide ? 4 : 2, backward != 0, found))
        return SYMRNN_FIT;
    const Schedule &s = found.schedule;
    *fit = {s.blocks(),    s.squares,          s.together,
            found.columns, found.shared_bytes, workspace_bytes(s, backward != 0)};
    return SYMRNN_OK;
}
