// See happens_before.h. Compiled without -fsanitize=thread, beside emulate.cpp, which is compiled with
// it.
//
// Of each thread is known: its time, which counts what it has signalled and passed; and its clock, the
// latest times of all others before which it knows everything. An access happened before now, as a
// thread sees it, if its clock has reached the time of the access. Asynchronous copies of a thread are
// accesses of a second thread, whose time counts groups and which the first waits for.

#include "happens_before.h"

#include <dlfcn.h>
#include <stdio.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

namespace happens_before {
namespace {

using Clock = std::vector<uint32_t>;
using Shared = std::shared_ptr<const Clock>;  // after a barrier all threads of a block have the same

constexpr uint32_t NOBODY = ~0u;

struct Access {
    uint32_t thread = NOBODY, time = 0;
    const void *code = nullptr;
};

struct Cell {
    Access write;
    std::vector<Access> reads;  // since then, one of each thread
};

struct Array {
    std::string name;
    uintptr_t start, end;
    int element;
    std::vector<Cell> cells;
};

struct Thread {
    Shared clock;
    uint32_t time = 1;
    std::vector<uint32_t> flags = {0, 0};  // by time: what its block's flags had counted to
    uint32_t copied = 1, waited = 0;       // groups of copies: begun, waited for
};

struct Signalled {
    uint32_t value;
    Shared clock;
};

struct Launch {
    int threads = 0;  // of a block
    std::vector<Thread> of;
    std::vector<uint32_t> counted;  // by block: the highest value signalled or seen
    std::vector<Array> arrays;      // by address
    std::map<const void *, std::vector<Signalled>> flags;
    uint32_t now = NOBODY;
    std::set<std::pair<const void *, const void *>> seen;
    std::string races;
} gpu;

std::vector<Array> next;  // of the next launch, by address

bool starts_later(uintptr_t address, const Array &array) { return address < array.start; }

Thread &current() { return gpu.of[gpu.now]; }
uint32_t copies_of(uint32_t thread) { return thread + static_cast<uint32_t>(gpu.of.size()); }

void join(Clock &into, const Clock &other) {
    for (size_t k = 0; k < into.size(); ++k) into[k] = std::max(into[k], other[k]);
}

void pass(Thread &t, uint32_t thread) {
    ++t.time;
    t.flags.push_back(gpu.counted[thread / gpu.threads]);
}

// Whether an access is in the past of the thread that runs.
bool past(const Access &a) {
    if (a.thread == NOBODY || a.thread == gpu.now) return true;
    if (a.thread == copies_of(gpu.now)) return a.time <= current().waited;
    return a.time <= (*current().clock)[a.thread];
}

std::string words(const char *what, const Access &a) {
    const bool copy = a.thread >= gpu.of.size();
    const uint32_t thread = copy ? a.thread - static_cast<uint32_t>(gpu.of.size()) : a.thread;
    const Thread &t = gpu.of[thread];
    Dl_info info = {};
    dladdr(a.code, &info);
    char line[200];
    snprintf(line, sizeof line, "%s%s by block %u thread %u, flags at %u, code 0x%zx",
             copy ? "asynchronous " : "", what, thread / gpu.threads, thread % gpu.threads,
             copy ? t.flags.back() : t.flags[a.time],
             static_cast<size_t>(static_cast<const char *>(a.code) -
                                 static_cast<const char *>(info.dli_fbase)) - 1);  // in the call
    return line;
}

void report(const Array &array, size_t element, const char *earlier, const Access &before,
            const char *later, const Access &after) {
    if (!gpu.seen.insert({before.code, after.code}).second || gpu.seen.size() > 20) return;
    gpu.races += array.name + "[" + std::to_string(element) + "]: " +
                 words(later, after) + ", not ordered after the " + words(earlier, before) + "\n";
}

void access(const void *address, size_t bytes, bool writes, const void *code, bool copy = false) {
    if (gpu.now == NOBODY) return;
    const uintptr_t start = reinterpret_cast<uintptr_t>(address);
    auto at = std::upper_bound(gpu.arrays.begin(), gpu.arrays.end(), start, starts_later);
    if (at == gpu.arrays.begin() || start >= (--at)->end) return;
    Array &array = *at;
    const Access mine = copy ? Access{copies_of(gpu.now), current().copied, code}
                             : Access{gpu.now, current().time, code};
    const size_t last = (std::min(start + bytes, array.end) - 1 - array.start) / array.element;
    for (size_t k = (start - array.start) / array.element; k <= last; ++k) {
        Cell &cell = array.cells[k];
        if (!past(cell.write))
            report(array, k, "write", cell.write, writes ? "write" : "read", mine);
        if (writes) {
            for (const Access &read : cell.reads)
                if (!past(read)) report(array, k, "read", read, "write", mine);
            cell.reads.clear();
            cell.write = mine;
        } else {
            size_t kept = 0;  // what is past now is past for whoever comes after this
            for (const Access &read : cell.reads)
                if (!past(read)) cell.reads[kept++] = read;
            cell.reads.resize(kept);
            cell.reads.push_back(mine);
        }
    }
}

}  // namespace

void watch(const std::string &name, const void *start, int64_t bytes, int element) {
    if (!start || bytes <= 0) return;
    const uintptr_t from = reinterpret_cast<uintptr_t>(start);
    Array array{name, from, from + bytes, element,
                std::vector<Cell>((bytes + element - 1) / element)};
    next.insert(std::upper_bound(next.begin(), next.end(), from, starts_later), std::move(array));
}

void begin(int blocks, int threads) {
    gpu = Launch();
    gpu.arrays.swap(next);
    gpu.threads = threads;
    gpu.of.resize(static_cast<size_t>(blocks) * threads);
    gpu.counted.resize(blocks);
    const Shared nothing = std::make_shared<const Clock>(2 * gpu.of.size());
    for (Thread &t : gpu.of) t.clock = nothing;
}

void run(int thread) { gpu.now = thread; }

void meet(const std::vector<int> &threads) {
    Clock all = *gpu.of[threads[0]].clock;
    std::set<const Clock *> joined = {gpu.of[threads[0]].clock.get()};
    for (const int one : threads)
        if (joined.insert(gpu.of[one].clock.get()).second) join(all, *gpu.of[one].clock);
    for (const int one : threads) {
        all[one] = gpu.of[one].time;
        all[copies_of(one)] = gpu.of[one].waited;
    }
    const Shared clock = std::make_shared<const Clock>(std::move(all));
    for (const int one : threads) {
        gpu.of[one].clock = clock;
        pass(gpu.of[one], one);
    }
}

void signal(const void *flag, uint32_t value) {
    Thread &t = current();
    Clock clock = *t.clock;
    clock[gpu.now] = t.time;
    clock[copies_of(gpu.now)] = t.waited;
    gpu.flags[flag].push_back({value, std::make_shared<const Clock>(std::move(clock))});
    uint32_t &counted = gpu.counted[gpu.now / gpu.threads];
    counted = std::max(counted, value);
    pass(t, gpu.now);
}

void wait(const void *flag, uint32_t value) {
    Thread &t = current();
    for (const Signalled &one : gpu.flags[flag])
        if (one.value >= value) {
            Clock clock = *t.clock;
            join(clock, *one.clock);
            t.clock = std::make_shared<const Clock>(std::move(clock));
            break;
        }
    uint32_t &counted = gpu.counted[gpu.now / gpu.threads];
    counted = std::max(counted, value);
    pass(t, gpu.now);
}

__attribute__((noinline)) void copy(const void *to, const void *from, int bytes) {
    const void *const code = __builtin_return_address(0);
    access(from, bytes, false, code, true);
    access(to, bytes, true, code, true);
}

void commit() { ++current().copied; }

void wait_for_copies(int pending) {
    Thread &t = current();
    // Groups are numbered from 1; the one that is not committed yet is `copied`.
    if (t.copied - 1 > static_cast<uint32_t>(pending))
        t.waited = std::max(t.waited, t.copied - 1 - pending);
}

const char *races() { return gpu.races.c_str(); }

}  // namespace happens_before

// ---- what compilers call ---------------------------------------------------------------------------

#define EACH_SIZE(of) of(1) of(2) of(4) of(8) of(16)
#define CALLED(size)                                                                      \
    void __tsan_read##size(void *a) {                                                     \
        happens_before::access(a, size, false, __builtin_return_address(0));              \
    }                                                                                     \
    void __tsan_write##size(void *a) {                                                    \
        happens_before::access(a, size, true, __builtin_return_address(0));               \
    }                                                                                     \
    void __tsan_unaligned_read##size(void *a) {                                           \
        happens_before::access(a, size, false, __builtin_return_address(0));              \
    }                                                                                     \
    void __tsan_unaligned_write##size(void *a) {                                          \
        happens_before::access(a, size, true, __builtin_return_address(0));               \
    }

extern "C" {

EACH_SIZE(CALLED)

void __tsan_read_range(void *a, unsigned long size) {
    happens_before::access(a, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void *a, unsigned long size) {
    happens_before::access(a, size, true, __builtin_return_address(0));
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_init(void) {}

}  // extern "C"
