// Small kernels whose accesses are ordered, or are not, for tests/native/test_cuda_races.py: what
// happens_before.cpp is to say of each way in which the threads of a GPU wait for one another.

#define SYMRNN_EMULATED

#include "device.h"

using namespace symrnn;

namespace {

constexpr int THREADS = 64;

// Two blocks of two warps each run `body` on these arrays, in every order the same.
struct Arrays {
    alignas(16) float global[THREADS * 2];
    alignas(16) float shared[2][THREADS * 2];
    uint32_t flags[2];
};

template <typename Body>
const char *races(unsigned order, const Body &body) {
    static Arrays a;
    a = {};
    happens_before::watch("global", a.global, sizeof a.global, sizeof(float));
    happens_before::watch("shared 0", a.shared[0], sizeof a.shared[0], sizeof(float));
    happens_before::watch("shared 1", a.shared[1], sizeof a.shared[1], sizeof(float));
    EmulatedGpu gpu;
    if (!gpu.launch(2, THREADS, order, [&](int block) { body(a, block, thread_index()); }))
        return "deadlock";
    return happens_before::races();
}

// Block 0 writes, and signals what `count` says; block 1 waits for `wanted`, and reads.
template <bool BARRIER_BEFORE, bool BARRIER_BEHIND>
const char *message(unsigned order, uint32_t wanted) {
    return races(order, [=](Arrays &a, int block, int t) {
        for (uint32_t step = 1; step <= 2; ++step) {
            if (block == 0) {
                a.global[(step - 1) * THREADS + t] = t;
                if (BARRIER_BEFORE) sync_block();
                if (t == 0) signal_flag(&a.flags[0], step);
            } else if (step == 2) {
                if (t == 0) wait_for_flag(&a.flags[0], wanted);
                if (BARRIER_BEHIND) sync_block();
                a.shared[1][t] = a.global[THREADS + (t + 1) % THREADS];
            }
        }
    });
}

template <bool BARRIER>
const char *neighbours(unsigned order) {
    return races(order, [](Arrays &a, int block, int t) {
        a.shared[block][t] = t;
        if (BARRIER) sync_block();
        a.shared[block][THREADS + t] = a.shared[block][(t + 1) % THREADS];
    });
}

// Copies to shared memory, of which a neighbour reads what it needs.
template <int PENDING, bool BARRIER>
const char *copies(unsigned order, int of) {
    return races(order, [=](Arrays &a, int block, int t) {
        for (int half = 0; half < 2; ++half) {
            if (t % 4 == 0)
                copy_async(a.shared[block] + half * THREADS + t, a.global + half * THREADS + t);
            commit_copies();
        }
        wait_for_copies<PENDING>();
        if (BARRIER) sync_block();
        volatile float read = a.shared[block][of * THREADS + (BARRIER ? (t + 4) % THREADS : t)];
        static_cast<void>(read);
    });
}

// What is copied asynchronously is overwritten by the block that owns it.
template <bool WAITS>
const char *source_overwritten(unsigned order) {
    return races(order, [](Arrays &a, int block, int t) {
        if (block == 0 && t == 0) {
            copy_async(a.shared[0], a.global);
            commit_copies();
            if (WAITS) wait_for_copies<0>();
            signal_flag(&a.flags[0], 1);
            if (!WAITS) wait_for_copies<0>();
        } else if (block == 1 && t == 0) {
            wait_for_flag(&a.flags[0], 1);
            a.global[2] = 1;
        }
    });
}

}  // namespace

extern "C" const char *litmus(int which, unsigned order) {
    switch (which) {
    case 0: return message<true, true>(order, 2);
    case 1: return message<false, true>(order, 2);
    case 2: return message<true, false>(order, 2);
    case 3: return message<true, true>(order, 1);
    case 4: return neighbours<true>(order);
    case 5: return neighbours<false>(order);
    case 6: return copies<0, true>(order, 1);
    case 7: return copies<1, true>(order, 0);
    case 8: return copies<1, true>(order, 1);
    case 9: return copies<1, false>(order, 1);
    case 10: return copies<0, false>(order, 1);
    case 11: return source_overwritten<true>(order);
    case 12: return source_overwritten<false>(order);
    // Each thread writes its own; all read the same.
    case 13: return races(order, [](Arrays &a, int block, int t) {
        a.shared[block][t] = a.global[0];
        a.shared[block][t] += 1;
    });
    // Two blocks write the same numbers.
    case 14: return races(order, [](Arrays &a, int, int t) { a.global[t] = 1; });
    // A read that is over before the write, by luck alone.
    case 15: return races(order, [](Arrays &a, int block, int t) {
        if (block == 0) a.shared[0][t] = a.global[t];
        sync_block();
        if (block == 1) a.global[t] = 1;
    });
    // Lanes of a warp, between which is an instruction of all of them.
    case 16: return races(order, [](Arrays &a, int block, int t) {
        a.shared[block][t] = 1;
        float c[4] = {}, left[4] = {}, right[2] = {};
        mma_tf32(c, left, right);
        a.shared[block][THREADS + t] = a.shared[block][t ^ 1];
    });
    default: return nullptr;
    }
}
