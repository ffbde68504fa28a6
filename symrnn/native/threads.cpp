// Teams of threads, borrowed from the OpenMP runtime that the process has anyway.
//
// A second pool beside PyTorch's would fight it: its threads spin for milliseconds after each
// parallel region, on the very cores that ours would want. So nothing is linked here; the runtime's
// entry points are handed over when the library is loaded.

#include "threads.h"

#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace symrnn {
namespace {

using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
using Count = int (*)();

struct OpenMP {
    Parallel parallel;
    Count thread_num;
    Count num_threads;
};

OpenMP runtime{};
std::atomic<bool> usable{false};

// A child made by fork has one thread, and the runtime's picture of the others is stale: the next
// parallel region would wait for them for ever.
void forget_threads() { usable.store(false); }

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

void give_way() {
#if defined(__unix__) || defined(__APPLE__)
    sched_yield();
#endif
}

struct Region {
    OpenMP runtime;
    Body body;
    void *work;
    alignas(64) std::atomic<int> state;  // 0: nobody yet, 1: being set up, 2: ready
    alignas(Barrier) unsigned char room[sizeof(Barrier)];
};

// How many members a team has is known only inside it, so its barrier is made there.
void enter(void *argument) {
    auto &region = *static_cast<Region *>(argument);
    const int members = region.runtime.num_threads();
    int nobody = 0;
    if (region.state.compare_exchange_strong(nobody, 1)) {
        new (region.room) Barrier(members);
        region.state.store(2, std::memory_order_release);
    }
    while (region.state.load(std::memory_order_acquire) != 2) give_way();
    region.body(region.work, region.runtime.thread_num(), members,
                *reinterpret_cast<Barrier *>(region.room));
}

}  // namespace

void Barrier::wait() {
    if (members_ == 1) return;
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
        if (spins < 2000) relax();
        else give_way();
}

void run_team(int threads, Body body, void *work) {
    if (threads <= 1 || !usable.load(std::memory_order_acquire)) {
        Barrier alone(1);
        body(work, 0, 1, alone);
        return;
    }
    Region region{runtime, body, work, {0}, {}};
    region.runtime.parallel(enter, &region, static_cast<unsigned>(threads), 0);
}

void use_openmp(void *parallel, void *thread_num, void *num_threads) {
    static bool watching = false;
    usable.store(false);
    runtime = {reinterpret_cast<Parallel>(parallel), reinterpret_cast<Count>(thread_num),
               reinterpret_cast<Count>(num_threads)};
#if defined(__unix__) || defined(__APPLE__)
    if (!watching) watching = pthread_atfork(nullptr, nullptr, forget_threads) == 0;
    usable.store(watching && parallel && thread_num && num_threads, std::memory_order_release);
#else
    usable.store(parallel && thread_num && num_threads, std::memory_order_release);
#endif
}

}  // namespace symrnn
