// Whether the accesses of the emulated GPU's threads are ordered by what they wait for, in whatever
// order they happened to run: vector clocks, after FastTrack (Flanagan and Freund, PLDI 2009).
//
// The kernels are compiled with -fsanitize=thread, which calls a function at each load and store of
// memory; happens_before.cpp defines those functions, in place of the sanitizer's library. What orders
// accesses is told by emulated_gpu.h: barriers, flags, and the end of asynchronous copies.
//
// A wait for a flag to count to n orders what came before the first signal of n or more, and no more
// than that, even if the flag has gone on meanwhile. So a wait that is too short is found also where
// the numbers come out right. Instructions of a warp (ldmatrix, mma) order nothing.
//
// Without SYMRNN_HAPPENS_BEFORE all of this is empty.

#ifndef HAPPENS_BEFORE_H
#define HAPPENS_BEFORE_H

#include <stdint.h>

#include <string>
#include <vector>

#ifdef SYMRNN_HAPPENS_BEFORE
#define UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define UNSEEN
#endif

namespace happens_before {

#ifdef SYMRNN_HAPPENS_BEFORE

// In the next launch accesses to these bytes are followed, and to nothing else. element: the bytes of
// one, the smallest that two threads may write side by side. Null arrays are left out.
void watch(const std::string &name, const void *start, int64_t bytes, int element);

// A launch of so many blocks of threads, which are numbered block by block. Forgets those before.
void begin(int blocks, int threads);

// From here on this thread runs; -1 for none.
void run(int thread);

// A barrier for these threads, which all have come.
void meet(const std::vector<int> &threads);

// The thread that runs sets a flag; has seen it at `value` or more.
void signal(const void *flag, uint32_t value);
void wait(const void *flag, uint32_t value);

// The thread that runs begins an asynchronous copy; ends a group of them; has waited for all groups
// but the last `pending`.
void copy(const void *to, const void *from, int bytes);
void commit();
void wait_for_copies(int pending);

// What was not ordered: a line for each pair of places in the code; empty if all was.
const char *races();

#else

inline void watch(const std::string &, const void *, int64_t, int) {}
inline void begin(int, int) {}
inline void run(int) {}
inline void meet(const std::vector<int> &) {}
inline void signal(const void *, uint32_t) {}
inline void wait(const void *, uint32_t) {}
inline void copy(const void *, const void *, int) {}
inline void commit() {}
inline void wait_for_copies(int) {}
inline const char *races() { return ""; }

#endif

}  // namespace happens_before

#endif
