// Teams of threads, borrowed from the OpenMP runtime that the process has anyway.

#ifndef SYMRNN_THREADS_H
#define SYMRNN_THREADS_H

#include <stdint.h>

#include <atomic>

namespace symrnn {

// Meets all members of a team; spins for some microseconds, then gives way to other threads.
class Barrier {
  public:
    explicit Barrier(int members) : members_(members) {}
    void wait();

  private:
    const int members_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

using Body = void (*)(void *work, int member, int members, Barrier &barrier);

// Runs `body` on at most `threads` threads at once, and returns when all are done. There may be
// fewer: one without an OpenMP runtime, after a fork, or inside another parallel region.
void run_team(int threads, Body body, void *work);

void use_openmp(void *parallel, void *thread_num, void *num_threads);

}  // namespace symrnn

#endif
