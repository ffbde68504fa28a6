// Products of bfloat16 matrices and bfloat16 vectors, for x86-64 processors with AVX-512 BF16.
//
// A word of a packed tile holds two columns of a row, as BFloat16 of vectors.h says, and a word of a
// vector two of its elements. So one instruction adds a register of a tile times a splat word of a
// vector to 16 sums: two columns at once, where one of float does one.

// Shared headers come before the target is set: of a function in them that is not inlined the linker
// keeps one copy for the whole library.
#include "kernels.h"
#include "layout.h"
#include "symrnn.h"

#if defined(__x86_64__) && !defined(SYMRNN_WITHOUT_AVX512)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else  // until the end of the file, where templates are instantiated
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif

namespace symrnn {
namespace avx512bf16 {

#define SYMRNN_REGISTER_BYTES 64
#define SYMRNN_REGISTERS 32
#include "vectors.h"

#include "many.inc.h"

struct Pairs {
    typedef BFloat16 Tile, Vector;
    typedef float Sum;
    static constexpr int MOST = 24;

    static constexpr int COUNT = 8;  // pairs of columns in a tile, and words of a vector in it
    INLINE __m512i columns(const BFloat16 *tile, int pair) {
        return _mm512_loadu_si512(tile + 32 * pair);
    }

    template <int batch>
    INLINE void outer(const BFloat16 *tile, const BFloat16 *x, Block<float> (&sum)[batch]) {
        UNROLLED for (int k = 0; k < COUNT; ++k) {
            const __m512bh pair = (__m512bh)columns(tile, k);
            UNROLLED for (int b = 0; b < batch; ++b) {
                int32_t word;
                __builtin_memcpy(&word, x + 16 * b + 2 * k, sizeof word);
                sum[b].reg[0] = (Register<float>::type)_mm512_dpbf16_ps(
                    (__m512)sum[b].reg[0], pair, (__m512bh)_mm512_set1_epi32(word));
            }
        }
    }

    // The words of a tile are (pair of columns, row), of the transposed (pair of rows, column): blocks
    // of 2 × 2 numbers are transposed where they are, then moved as a whole.
    INLINE void transpose_tile(const BFloat16 *from, BFloat16 *to) {
        const __m512i within = _mm512_broadcast_i32x4(
            _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
        Register<double>::type block[COUNT];
        for (int k = 0; k < COUNT; ++k)
            block[k] = (Register<double>::type)_mm512_shuffle_epi8(columns(from, k), within);
        Exchange<double, 1>::transpose(block);
        for (int k = 0; k < COUNT; ++k) _mm512_storeu_si512(to + 32 * k, (__m512i)block[k]);
    }
};

static void transpose_tile(const void *from, void *to) {
    Pairs::transpose_tile(static_cast<const BFloat16 *>(from), static_cast<BFloat16 *>(to));
}

static void multiply(const Multiplication &m) {
    const BFloat16 *tile = static_cast<const BFloat16 *>(m.packed) +
                           panel_start(m.symmetric, m.columns, m.gates, m.first);
    for (int64_t index = m.first; index < m.last; ++index) {
        const Panel of(m.symmetric, m.columns, index);
        for (int g = 0; g < m.gates; ++g, tile += (of.last - of.first) * TILE)
            many_panel<Pairs>(m, tile, of,
                              static_cast<const BFloat16 *>(m.x) + m.gate[g] * m.x_gate,
                              static_cast<float *>(m.y) + m.gate[g] * m.y_gate);
    }
}

static void round(const float *x, int64_t tiles, int64_t batch, int64_t stride, void *to) {
    BFloat16 *const rounded = static_cast<BFloat16 *>(to);
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t k = tile * stride; k < tile * stride + 16 * batch; k += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(rounded + k),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k)));
}

static constexpr Bfloat16Kernels BFLOAT16 = {round, multiply, transpose_tile};

}  // namespace avx512bf16

const Bfloat16Kernels *bfloat16_avx512() { return &avx512bf16::BFLOAT16; }

}  // namespace symrnn

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace symrnn {
const Bfloat16Kernels *bfloat16_avx512() { return nullptr; }
}  // namespace symrnn

#endif
