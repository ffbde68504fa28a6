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

constexpr int PAIRS = 8;         // of columns in a tile, and words of a vector in it
constexpr int MOST = 24;         // vectors whose sums fit in registers, beside a pair of columns
constexpr int64_t L1_TILES = 16;  // tiles

INLINE __m512i pair_of(const BFloat16 *tile, int pair) {
    return _mm512_loadu_si512(tile + 32 * pair);
}

// The words of a tile are (pair of columns, row), of the transposed (pair of rows, column): blocks of
// 2 × 2 numbers are transposed where they are, then moved as a whole.
static void transpose(const void *from, void *to) {
    const BFloat16 *const tile = static_cast<const BFloat16 *>(from);
    const __m512i within = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    Register<double>::type block[PAIRS];
    for (int k = 0; k < PAIRS; ++k)
        block[k] = (Register<double>::type)_mm512_shuffle_epi8(pair_of(tile, k), within);
    Exchange<double, 1>::transpose(block);
    for (int k = 0; k < PAIRS; ++k)
        _mm512_storeu_si512(static_cast<BFloat16 *>(to) + 32 * k, (__m512i)block[k]);
}

// sum[b] += tile · x[b].
template <int batch>
INLINE void outer(const BFloat16 *tile, const BFloat16 *x, __m512 (&sum)[batch]) {
    UNROLLED for (int k = 0; k < PAIRS; ++k) {
        const __m512i columns = pair_of(tile, k);
        UNROLLED for (int b = 0; b < batch; ++b) {
            int32_t pair;
            __builtin_memcpy(&pair, x + 16 * b + 2 * k, sizeof pair);
            sum[b] = _mm512_dpbf16_ps(sum[b], (__m512bh)columns, (__m512bh)_mm512_set1_epi32(pair));
        }
    }
}

// y[fixed] += Σ tile · x[moving] over the tiles.
template <int batch>
static void to_fixed(const BFloat16 *tile, int64_t tiles, int64_t stride, const BFloat16 *x, float *y) {
    __m512 sum[batch];
    UNROLLED for (int b = 0; b < batch; ++b) sum[b] = _mm512_loadu_ps(y + 16 * b);
    for (int64_t q = 0; q < tiles; ++q, tile += TILE, x += stride) outer<batch>(tile, x, sum);
    UNROLLED for (int b = 0; b < batch; ++b) _mm512_storeu_ps(y + 16 * b, sum[b]);
}

// y[moving] += tile · x[fixed] for each tile.
template <int batch>
static void to_moving(const BFloat16 *tile, int64_t tiles, int64_t stride, const BFloat16 *x, float *y) {
    for (int64_t q = 0; q < tiles; ++q, tile += TILE, y += stride) {
        __m512 sum[batch];
        UNROLLED for (int b = 0; b < batch; ++b) sum[b] = _mm512_loadu_ps(y + 16 * b);
        outer<batch>(tile, x, sum);
        UNROLLED for (int b = 0; b < batch; ++b) _mm512_storeu_ps(y + 16 * b, sum[b]);
    }
}

using Way = void (*)(const BFloat16 *tile, int64_t tiles, int64_t stride, const BFloat16 *x, float *y);

struct Table {
    Way fixed[MOST + 1], moving[MOST + 1];

    template <int batch>
    constexpr void fill() {
        fixed[batch] = to_fixed<batch>;
        moving[batch] = to_moving<batch>;
        if constexpr (batch > 1) fill<batch - 1>();
    }
    constexpr Table() : fixed(), moving() { fill<MOST>(); }
};

static constexpr Table WAYS{};

// All vectors in passes of about equal size.
INLINE void in_passes(const Way *ways, const BFloat16 *tile, int64_t tiles, int64_t batch,
                      int64_t stride, const BFloat16 *x, float *y) {
    const int64_t times = (batch + MOST - 1) / MOST;
    for (int64_t n = 0; n < times; ++n) {
        const int64_t first = batch * n / times, last = batch * (n + 1) / times;
        ways[last - first](tile, tiles, stride, x + 16 * first, y + 16 * first);
    }
}

// `fixed` and `moving` as in kernels.inc.h.
static void panel(const Multiplication &m, const BFloat16 *tile, const Panel &panel,
                  const BFloat16 *x, float *y) {
    alignas(64) BFloat16 tiles_t[L1_TILES * TILE];
    const int64_t home = panel.index * m.stride;
    int64_t q = panel.first;  // the index of `moving`
    while (q < panel.last) {
        // The tiles of a free block by themselves: they serve one direction.
        const bool free = m.symmetric && q < panel.mirrored, both = m.symmetric && !free;
        const int64_t end = free ? panel.mirrored : panel.last;
        const int64_t some = end - q < L1_TILES ? end - q : L1_TILES;
        // These reads come in bursts too short for the hardware prefetcher.
        for (int64_t k = 0; m.prefetch && k < L1_TILES * TILE; k += 32)
            __builtin_prefetch(tile + some * TILE + k, 0, 2);
        if (m.transposed || both)
            for (int64_t k = 0; k < some; ++k) transpose(tile + k * TILE, tiles_t + k * TILE);
        const int64_t there = q * m.stride;
        const BFloat16 *const straight = m.transposed && !both ? tiles_t : tile;
        // Of a full matrix a panel is a row of tiles, of a symmetric one a column.
        const bool row = !m.symmetric, into_fixed = row != m.transposed;
        if (both) {
            in_passes(WAYS.moving, tile, some, m.batch, m.stride, x + home, y + there);
            in_passes(WAYS.fixed, tiles_t, some, m.batch, m.stride, x + there, y + home);
        } else if (into_fixed) {
            in_passes(WAYS.fixed, straight, some, m.batch, m.stride, x + there, y + home);
        } else {
            in_passes(WAYS.moving, straight, some, m.batch, m.stride, x + home, y + there);
        }
        tile += some * TILE;
        q += some;
    }
}

static void multiply(const Multiplication &m) {
    const BFloat16 *tile = static_cast<const BFloat16 *>(m.packed) +
                           panel_start(m.symmetric, m.columns, m.gates, m.first);
    for (int64_t index = m.first; index < m.last; ++index) {
        const Panel of(m.symmetric, m.columns, index);
        for (int g = 0; g < m.gates; ++g, tile += (of.last - of.first) * TILE)
            panel(m, tile, of, static_cast<const BFloat16 *>(m.x) + m.gate[g] * m.x_gate,
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

static constexpr Bfloat16Kernels BFLOAT16 = {round, multiply, transpose};

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
