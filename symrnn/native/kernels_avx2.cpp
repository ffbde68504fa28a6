// The kernels for x86-64 processors with AVX2.

// Headers that others include too come before the processor is named: of a function in them that
// is not inlined the linker keeps one copy for all.
#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else  // left on to the end of the file, where templates are made
#pragma GCC target("avx2,fma")
#endif

namespace symrnn {
namespace avx2 {

#define SYMRNN_REGISTER_BYTES 32
#define SYMRNN_REGISTERS 16
#include "vectors.h"

#include "kernels.inc.h"

static constexpr Cpu CPU = {"avx2", &SINGLE, &PRECISE, read};

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
