// Thread teams of the OpenMP runtime that the process already has.

#ifndef SYMRNN_THREADS_H
#define SYMRNN_THREADS_H

#include <stdint.h>

#include <atomic>

namespace symrnn {

// A barrier for the threads of a team. It spins for some microseconds, then yields.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait();

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

using Body = void (*)(void *work, int thread, int threads, Barrier &barrier);

// Runs `body` on a team of at most `threads` threads, and returns when all are done. The team is
// smaller where the runtime gives fewer: one thread without a runtime, after a fork, or inside
// another parallel region.
void run_team(int threads, Body body, void *work);

void use_openmp(void *parallel, void *thread_num, void *num_threads);

}  // namespace symrnn

#endif
