// Thread teams whose caller never waits for a thread that has not come.
//
// Each share of a phase has a word that says which phase it belongs to and how far it is: open,
// claimed, done. The caller opens the words, claims what it can, and waits for the others; helper i
// waits for a change of word i. A claim is a compare-and-swap from "open in phase p", so a helper that
// slept through phases cannot claim by what it saw before: words only grow. What a phase runs is read
// after a claim alone, when the caller cannot have left the phase. All words live as long as the
// process, so a helper may look at them at any time.

#include "threads.h"

#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace symrnn {
namespace {

enum : uint64_t { OPEN = 0, CLAIMED = 1, DONE = 2 };

constexpr uint64_t word_of(uint64_t phase, uint64_t state) { return phase << 2 | state; }
constexpr uint64_t phase_of(uint64_t word) { return word >> 2; }

// How long a helper spins after a phase. Steps of a stream come faster than this; what spins longer
// takes the core from torch's own threads, and, on a busy machine, spends the time slice that the next
// phase needs.
constexpr std::chrono::microseconds SPIN{60};
constexpr int PAUSES_BETWEEN_LOOKS = 32;  // at the clock, and at who runs where

void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int current_cpu() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

int current_thread() {
#if defined(__linux__)
    return static_cast<int>(syscall(SYS_gettid));
#else
    return 0;
#endif
}

// Keeps a thread off a core, if it may run on others.
void keep_off(int thread, int cpu) {
#if defined(__linux__)
    cpu_set_t others;
    if (sched_getaffinity(getpid(), sizeof others, &others) != 0) return;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others)) sched_setaffinity(thread, sizeof others, &others);
#else
    (void)thread, (void)cpu;
#endif
}

int usable_cpus() {
#if defined(__linux__)
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
#endif
    return MAX_THREADS;
}

// One share, and the sleep of the helper that begins with it. All that a helper needs is on one cache
// line, as the signals between cores are what a phase costs.
struct alignas(64) Share {
    std::atomic<uint64_t> word{word_of(0, DONE)};
    std::atomic<uint32_t> asleep{0};
    std::atomic<int> shares{0};  // of the phase
    std::atomic<int> bound{0};  // the helper, once it has been kept off the caller's core
    void (*function)(const void *, int) = nullptr;
    const void *work = nullptr;

    bool claim(uint64_t phase) {
        uint64_t open = word_of(phase, OPEN);
        return word.load(std::memory_order_relaxed) == open &&
               word.compare_exchange_strong(open, word_of(phase, CLAIMED), std::memory_order_acquire,
                                            std::memory_order_relaxed);
    }

#if defined(__linux__)
    // Until a phase after `seen` is open. Either the caller sees that the helper sleeps, or the helper
    // sees the caller's word.
    void sleep(uint64_t seen) {
        asleep.store(1, std::memory_order_seq_cst);
        while (phase_of(word.load(std::memory_order_seq_cst)) == seen && asleep.load() == 1)
            syscall(SYS_futex, &asleep, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
        asleep.store(0, std::memory_order_relaxed);
    }
    void wake() {
        if (asleep.load(std::memory_order_seq_cst) == 0) return;
        asleep.store(0, std::memory_order_seq_cst);
        syscall(SYS_futex, &asleep, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    }
#else
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

    void sleep(uint64_t seen) {
        pthread_mutex_lock(&mutex);
        asleep.store(1, std::memory_order_seq_cst);
        while (phase_of(word.load(std::memory_order_seq_cst)) == seen && asleep.load() == 1)
            pthread_cond_wait(&changed, &mutex);
        asleep.store(0, std::memory_order_relaxed);
        pthread_mutex_unlock(&mutex);
    }
    void wake() {
        if (asleep.load(std::memory_order_seq_cst) == 0) return;
        pthread_mutex_lock(&mutex);
        asleep.store(0, std::memory_order_seq_cst);
        pthread_cond_signal(&changed);
        pthread_mutex_unlock(&mutex);
    }
#endif
};

}  // namespace

struct Crew {
    std::atomic<bool> taken{false};
    std::atomic<int> caller_cpu{-1};
    uint64_t phase = 0;
    int helpers = 0;  // started so far; helper i is the i-th thread of a team, from 1 on
    Share share[MAX_THREADS];
    struct Helper {
        Crew *crew;
        int own;
    } helper[MAX_THREADS];

    void start_helpers(int count);
    void follow_caller(int cpu);
    void help(int own);
    uint64_t next_phase(int own, uint64_t seen);
    void work_on(uint64_t phase, int first, int shares);
};

namespace {

// As many teams can have helpers at once.
constexpr int MAX_CREWS = 16;
Crew crews[MAX_CREWS];

void *run_helper(void *argument) {
    const auto &helper = *static_cast<Crew::Helper *>(argument);
    helper.crew->help(helper.own);
    return nullptr;
}

// A child made by fork has one thread: helpers are started anew when a team wants them.
void forget_helpers() {
    for (Crew &crew : crews) {
        crew.helpers = 0;
        crew.taken.store(false);
        for (Share &share : crew.share) {
            share.asleep.store(0);
            share.bound.store(0);
            // The caller of a phase that was open is not here: nobody may claim of it.
            share.word.store(word_of(phase_of(share.word.load()), DONE));
        }
    }
}

bool forks_are_seen() {
    static const bool hooked = pthread_atfork(nullptr, nullptr, forget_helpers) == 0;
    return hooked;
}

thread_local int last_crew = 0;  // whose helpers' caches have what this thread's last team read

}  // namespace

void Crew::work_on(uint64_t phase, int first, int shares) {
    for (int n = 0; n < shares; ++n) {
        const int k = (first + n) % shares;
        if (!share[k].claim(phase)) continue;
        share[k].function(share[k].work, k);
        share[k].word.store(word_of(phase, DONE), std::memory_order_release);
    }
}

// The life of a helper.
void Crew::help(int own) {
    uint64_t seen = 0;  // the last phase that it looked at
    for (;;) {
        const uint64_t phase = next_phase(own, seen);
        work_on(phase, own, share[own].shares.load(std::memory_order_relaxed));
        seen = phase;
    }
}

uint64_t Crew::next_phase(int own, uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int pauses = 1;; ++pauses) {
        const uint64_t phase = phase_of(share[own].word.load(std::memory_order_acquire));
        if (phase != seen) return phase;
        spin_pause();
        if (pauses % PAUSES_BETWEEN_LOOKS) continue;
        // Where the system put this thread on the caller's core, each keeps the other from running.
        const int cpu = current_cpu();
        if (cpu >= 0 && cpu == caller_cpu.load(std::memory_order_relaxed)) {
            const int thread = current_thread();
            keep_off(thread, cpu);
            share[own].bound.store(thread, std::memory_order_relaxed);
        }
        if (std::chrono::steady_clock::now() - start > SPIN) share[own].sleep(seen);
    }
}

// A caller that comes to another core may find a helper bound to that one, which cannot run and so
// cannot leave.
void Crew::follow_caller(int cpu) {
    if (cpu == caller_cpu.load(std::memory_order_relaxed)) return;
    caller_cpu.store(cpu, std::memory_order_relaxed);
    if (cpu < 0) return;
    for (int own = 1; own <= helpers; ++own)
        if (const int thread = share[own].bound.load(std::memory_order_relaxed)) keep_off(thread, cpu);
}

void Crew::start_helpers(int count) {
    if (count <= helpers) return;
    // Signals are for the threads of the program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; helpers < count; ++helpers) {
        const int own = helpers + 1;
        helper[own] = {this, own};
        if (pthread_create(&thread, &detached, run_helper, &helper[own]) != 0) break;
    }
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Team::Team(int threads) : threads_(std::min(threads, MAX_THREADS)) {
    if (threads_ <= 1 || !forks_are_seen()) return;
    for (int n = 0; n < MAX_CREWS && !crew_; ++n) {
        Crew &crew = crews[(last_crew + n) % MAX_CREWS];
        if (crew.taken.exchange(true, std::memory_order_acquire)) continue;
        last_crew = (last_crew + n) % MAX_CREWS;
        crew_ = &crew;
    }
    if (!crew_) return;
    if (crew_->helpers < threads_ - 1)  // more threads than cores would wait for each other
        crew_->start_helpers(std::min(threads_, usable_cpus()) - 1);
}

Team::~Team() {
    if (crew_) crew_->taken.store(false, std::memory_order_release);
}

void Team::run(int shares, Function function, const void *work) {
    Crew &crew = *crew_;
    crew.follow_caller(current_cpu());
    const uint64_t phase = ++crew.phase;
    for (int k = shares - 1; k >= 0; --k) {
        Share &share = crew.share[k];
        share.function = function;
        share.work = work;
        share.shares.store(shares, std::memory_order_relaxed);
        share.word.store(word_of(phase, OPEN), std::memory_order_seq_cst);
    }
    for (int k = 1; k < std::min(shares, crew.helpers + 1); ++k) crew.share[k].wake();
    crew.work_on(phase, 0, shares);
    for (int k = 0; k < shares; ++k)
        for (int pauses = 0; crew.share[k].word.load(std::memory_order_acquire) != word_of(phase, DONE);
             ++pauses)
            if (pauses < 2000) spin_pause();
            else sched_yield();
}

}  // namespace symrnn
