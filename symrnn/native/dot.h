// Dot products of bytes, four at a time, in 32-bit lanes.
//
// Included once for each processor, inside a namespace of its own, with SYMRNN_DOT_VNNI or
// SYMRNN_DOT_AVX2 defined, or neither for any processor. All give the same integers: bytes of a vector
// are -127 … 127, so nothing saturates. With VNNI they are stored with OFFSET added, as it multiplies
// unsigned by signed bytes; the sums then contain OFFSET times the sum of the weights.
//
// Four lanes are a "group". A register of weights has a 4 × 4 block in each group: lane r of it holds
// four columns of row r.

#if defined(SYMRNN_DOT_VNNI)

typedef int32_t Dwords __attribute__((vector_size(64)));
static constexpr int OFFSET = 128;

// sum + Σ u · w of each lane's four bytes.
INLINE Dwords dot(Dwords sum, Dwords u, Dwords w) {
    return (Dwords)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)w);
}

// Transposes the block in each group.
INLINE Dwords transposed_blocks(Dwords w) {
    const __m512i order = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return (Dwords)_mm512_shuffle_epi8((__m512i)w, order);
}

// From 16 bytes: the k-th four of them in each lane of group k.
INLINE Dwords by_group(const uint8_t *u) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(u));
    return (Dwords)_mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(bytes));
}

// y[4q + l] += the sum of lane l of all groups of sum[q].
INLINE void add_groups(Dwords (&sum)[4], int32_t *y) {
    const __m512i a = (__m512i)sum[0], b = (__m512i)sum[1], c = (__m512i)sum[2], d = (__m512i)sum[3];
    const __m512i ab =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    const __m512i cd =
        _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee));
    const __m512i all =
        _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
    _mm512_storeu_si512(y, _mm512_add_epi32(_mm512_loadu_si512(y), all));
}

#elif defined(SYMRNN_DOT_AVX2)

typedef int32_t Dwords __attribute__((vector_size(32)));
static constexpr int OFFSET = 0;

INLINE Dwords dot(Dwords sum, Dwords u, Dwords w) {
    // |u| · (±w): two products of at most 127² fit in 16 bits.
    const __m256i signed_w = _mm256_sign_epi8((__m256i)w, (__m256i)u);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)u), signed_w);
    return sum + (Dwords)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE Dwords transposed_blocks(Dwords w) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return (Dwords)_mm256_shuffle_epi8((__m256i)w, order);
}

INLINE Dwords by_group(const uint8_t *u) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(u));
    return (Dwords)_mm256_permutevar8x32_epi32(_mm256_castsi128_si256(bytes),
                                               _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

INLINE void add_groups(Dwords (&sum)[4], int32_t *y) {
    for (int k = 0; k < 4; k += 2) {
        const __m256i a = (__m256i)sum[k], b = (__m256i)sum[k + 1];
        const __m256i low = _mm256_permute2x128_si256(a, b, 0x20);
        const __m256i both = _mm256_add_epi32(low, _mm256_permute2x128_si256(a, b, 0x31));
        __m256i *const to = reinterpret_cast<__m256i *>(y + 4 * k);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), both));
    }
}

#else

typedef int32_t Dwords __attribute__((vector_size(16)));
typedef int16_t Halves __attribute__((vector_size(16)));
static constexpr int OFFSET = 0;

INLINE Dwords dot(Dwords sum, Dwords u, Dwords w) {
    // Odd and even bytes by themselves; two products of at most 127² fit in 16 bits.
    const Halves v = (Halves)u, x = (Halves)w;
    const Dwords pairs = (Dwords)((v >> 8) * (x >> 8) + ((v << 8) >> 8) * ((x << 8) >> 8));
    return sum + (pairs >> 16) + ((pairs << 16) >> 16);
}

INLINE Dwords transposed_blocks(Dwords w) {
    // Exchanges bytes at a distance of one row and column, then of two.
    Dwords x = {w[1], w[0], w[3], w[2]};
    const Dwords odd = {0, -1, 0, -1}, low = Dwords{} + 0x00ff00ff;
    w = (odd & (((x >> 8) & low) | (w & ~low))) | (~odd & (((x & low) << 8) | (w & low)));
    x = Dwords{w[2], w[3], w[0], w[1]};
    const Dwords lower = {0, 0, -1, -1}, half = Dwords{} + 0xffff;
    return (lower & (((x >> 16) & half) | (w & ~half))) | (~lower & (((x & half) << 16) | (w & half)));
}

INLINE Dwords by_group(const uint8_t *u) {
    int32_t bytes;
    __builtin_memcpy(&bytes, u, 4);
    return Dwords{} + bytes;
}

INLINE void add_groups(Dwords (&sum)[4], int32_t *y) {
    typedef int32_t Place __attribute__((vector_size(16), aligned(4), may_alias));
    for (int k = 0; k < 4; ++k) *reinterpret_cast<Place *>(y + 4 * k) += sum[k];
}

#endif
