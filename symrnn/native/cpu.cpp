// Chooses the kernels: the best that the processor can run, unless told otherwise.

#include "cpu.h"

#include <string.h>

#include <atomic>

namespace symrnn {
namespace {

const Cpu *avx512() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("fma"))
        return cpu_avx512(__builtin_cpu_supports("avx512vnni"),
                          __builtin_cpu_supports("avx512bf16"));
#endif
    return nullptr;
}

const Cpu *avx2() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return cpu_avx2();
#endif
    return nullptr;
}

std::atomic<const Cpu *> chosen{nullptr};

}  // namespace

const Cpu &cpu() {
    const Cpu *found = chosen.load(std::memory_order_relaxed);
    if (!found) {
        const Cpu *const all[] = {avx512(), avx2(), cpu_portable()};
        for (const Cpu *best : all)
            if (best) {
                found = best;
                break;
            }
        const Cpu *none = nullptr;  // unless another thread has chosen meanwhile
        if (!chosen.compare_exchange_strong(none, found)) found = none;
    }
    return *found;
}

int tiles_ahead() {
#if defined(__x86_64__)
    // Intel's prefetchers leave room for it beyond L2: 8 tiles gain, 16 lose it again. On AMD (Zen 4)
    // 4 and 8 cost time in L3, where the product is bound by its FMAs, and gain nothing beyond it.
    static const int found = (__builtin_cpu_init(), __builtin_cpu_is("intel")) ? 8 : 0;
    return found;
#else
    return 0;
#endif
}

bool use_cpu(const char *name) {
    const Cpu *const all[] = {avx512(), avx2(), cpu_portable()};
    for (const Cpu *one : all)
        if (one && strcmp(one->name, name) == 0) {
            chosen.store(one);
            return true;
        }
    return false;
}

}  // namespace symrnn
