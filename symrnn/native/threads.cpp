// Thread teams of the OpenMP runtime that the process already has.
//
// A second thread pool beside PyTorch's would compete with it: its threads spin for milliseconds
// after each parallel region, on the cores that ours need. So no runtime is linked; the caller
// passes the entry points of the one in use.

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

// A child made by fork has one thread, but the runtime still counts on the others: the next parallel
// region would wait for them for ever.
void forget_threads() { usable.store(false); }

void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

void yield_thread() {
#if defined(__unix__) || defined(__APPLE__)
    sched_yield();
#endif
}

struct Region {
    OpenMP runtime;
    Body body;
    void *work;
    alignas(64) std::atomic<int> state;  // of the barrier. 0: none, 1: being made, 2: ready
    alignas(Barrier) unsigned char barrier[sizeof(Barrier)];
};

// The size of a team is known only inside the parallel region, so its barrier is made there.
void enter(void *argument) {
    auto &region = *static_cast<Region *>(argument);
    const int threads = region.runtime.num_threads();
    int none = 0;
    if (region.state.compare_exchange_strong(none, 1)) {
        new (region.barrier) Barrier(threads);
        region.state.store(2, std::memory_order_release);
    }
    while (region.state.load(std::memory_order_acquire) != 2) yield_thread();
    region.body(region.work, region.runtime.thread_num(), threads,
                *reinterpret_cast<Barrier *>(region.barrier));
}

}  // namespace

void Barrier::wait() {
    if (threads_ == 1) return;
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
        if (spins < 2000) spin_pause();
        else yield_thread();
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
    static bool hooked = false;
    usable.store(false);
    runtime = {reinterpret_cast<Parallel>(parallel), reinterpret_cast<Count>(thread_num),
               reinterpret_cast<Count>(num_threads)};
#if defined(__unix__) || defined(__APPLE__)
    if (!hooked) hooked = pthread_atfork(nullptr, nullptr, forget_threads) == 0;
    usable.store(hooked && parallel && thread_num && num_threads, std::memory_order_release);
#else
    usable.store(parallel && thread_num && num_threads, std::memory_order_release);
#endif
}

}  // namespace symrnn
