// The kernels for x86-64 processors with AVX2.

// Shared headers come before the target is set: of a function in them that is not inlined the linker
// keeps one copy for the whole library.
#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

#if defined(__x86_64__) && !defined(SYMRNN_WITHOUT_AVX2)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else  // until the end of the file, where templates are instantiated
#pragma GCC target("avx2,fma")
#endif

namespace symrnn {
namespace avx2 {

#define SYMRNN_REGISTER_BYTES 32
#define SYMRNN_REGISTERS 16
#include "vectors.h"

#include "many.inc.h"

#include "kernels.inc.h"

#include "sampling.inc.h"

#define SYMRNN_DOT_AVX2
#include "dot.h"

#include "int8.inc.h"

static constexpr Cpu CPU = {"avx2", &FLOAT32, &FLOAT64, &INT8, nullptr, read, largest, weigh};

}  // namespace avx2

const Cpu *cpu_avx2() { return &avx2::CPU; }

}  // namespace symrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace symrnn {
const Cpu *cpu_avx2() { return nullptr; }
}  // namespace symrnn

#endif
