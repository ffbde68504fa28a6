// The int8 kernels for x86-64 processors with AVX-512 VNNI.

// Shared headers come before the target is set: of a function in them that is not inlined the linker
// keeps one copy for the whole library.
#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

#if defined(__x86_64__) && !defined(SYMRNN_WITHOUT_AVX512)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else  // until the end of the file, where templates are instantiated
#pragma GCC target("avx512vnni,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

namespace symrnn {
namespace avx512vnni {

#define SYMRNN_REGISTER_BYTES 64
#define SYMRNN_REGISTERS 32
#include "vectors.h"

#define SYMRNN_DOT_VNNI
#include "dot.h"

#include "int8.inc.h"

}  // namespace avx512vnni

const Int8Kernels *int8_avx512vnni() { return &avx512vnni::INT8; }

}  // namespace symrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace symrnn {
const Int8Kernels *int8_avx512vnni() { return nullptr; }
}  // namespace symrnn

#endif
