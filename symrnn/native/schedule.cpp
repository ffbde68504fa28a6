// The rule of schedule.h as a function of the C interface, for whoever plans without a GPU at hand.

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
    Room room{};
    if (side > MOST_ROWS || batch > MOST_ROWS ||
        !find_room(gpu->multiprocessors, gpu->shared_bytes, static_cast<int>(side), gates,
                   static_cast<int>(batch), wide ? 4 : 2, backward != 0, room))
        return SYMRNN_FIT;
    const Schedule &s = room.schedule;
    *fit = {s.blocks(),   s.squares,         s.together,
            room.columns, room.shared_bytes, workspace_bytes(s, backward != 0)};
    return SYMRNN_OK;
}
