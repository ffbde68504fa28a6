// The kernels for x86-64 processors with AVX-512.

// Shared headers come before the target is set: of a function in them that is not inlined the linker
// keeps one copy for the whole library.
#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

#if defined(__x86_64__) && !defined(SYMRNN_WITHOUT_AVX512)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else  // until the end of the file, where templates are instantiated
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

namespace symrnn {
namespace avx512 {

#define SYMRNN_REGISTER_BYTES 64
#define SYMRNN_REGISTERS 32
#include "vectors.h"

#include "many.inc.h"

#include "kernels.inc.h"

#include "sampling.inc.h"

#define SYMRNN_DOT_AVX2
#include "dot.h"

#include "int8.inc.h"

static constexpr Cpu CPU = {"avx512", &FLOAT32, &FLOAT64, &INT8, nullptr, read, largest, weigh};  // the int8 kernels are AVX2's

}  // namespace avx512

static Cpu extended(bool vnni, bool bf16) {
    Cpu cpu = avx512::CPU;
    if (vnni) cpu.int8 = int8_avx512vnni();
    if (bf16) cpu.bfloat16 = bfloat16_avx512();
    return cpu;
}

const Cpu *cpu_avx512(bool vnni, bool bf16) {
    static const Cpu cpu = extended(vnni, bf16);  // which one processor does not change
    return &cpu;
}

}  // namespace symrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace symrnn {
const Cpu *cpu_avx512(bool, bool) { return nullptr; }
}  // namespace symrnn

#endif
