// The kernels of int8 products, in terms of vectors.h and dot.h. Included once for each processor,
// after both and inside its namespace. symrnn.h says what they compute; here are its integers.
//
// A tile of weights is [column / 4][row][column % 4]. So four bytes are four columns of a row, for
// M · x. With each 4 × 4 block transposed, in registers, they are four rows of a column, for Mᵀ · x.

static constexpr int LANES = sizeof(Dwords) / 4;
static constexpr int PARTS = 16 / LANES;  // registers for 16 lanes

INLINE Dwords load_dwords(const void *from) {
    typedef int32_t Place __attribute__((vector_size(sizeof(Dwords)), aligned(1), may_alias));
    return *static_cast<const Place *>(from);
}

INLINE void store_dwords(void *to, Dwords x) {
    typedef int32_t Place __attribute__((vector_size(sizeof(Dwords)), aligned(4), may_alias));
    *static_cast<Place *>(to) = x;
}

// Four bytes in every lane.
INLINE Dwords splat_bytes(const uint8_t *from) {
    int32_t bytes;
    __builtin_memcpy(&bytes, from, 4);
    return bytes - Dwords{};
}

// One tile of a symmetric panel: y[moving] += M · x[fixed] and, but for a tile of a free block,
// own += Mᵀ · x[moving].
template <int batch, bool free>
INLINE void int8_tile(const int8_t *tile, const Dwords (&fixed)[batch][4], const uint8_t *moving,
                      int32_t *y, Dwords (&own)[batch][4]) {
    UNROLLED for (int part = 0; part < PARTS; ++part) {
        Dwords w[4], w_t[4];
        UNROLLED for (int q = 0; q < 4; ++q) {
            w[q] = load_dwords(tile + 64 * q + 4 * LANES * part);
            if (!free) w_t[q] = transposed_blocks(w[q]);
        }
        UNROLLED for (int b = 0; b < batch; ++b) {
            int32_t *const to = y + 16 * b + LANES * part;
            Dwords sum = load_dwords(to);
            UNROLLED for (int q = 0; q < 4; ++q) sum = dot(sum, fixed[b][q], w[q]);
            store_dwords(to, sum);
            if (free) continue;
            const Dwords x = by_group(moving + 16 * b + LANES * part);
            UNROLLED for (int q = 0; q < 4; ++q) own[b][q] = dot(own[b][q], x, w_t[q]);
        }
    }
}

// A symmetric panel, as few_symmetric has it, for `batch` vectors.
template <int batch>
NOT_INLINE static void int8_symmetric(const int8_t *tile, const Panel &panel, int64_t ahead,
                                      int64_t stride, const uint8_t *x, int32_t *y) {
    Dwords fixed[batch][4], own[batch][4] = {};
    UNROLLED for (int b = 0; b < batch; ++b)
        UNROLLED for (int q = 0; q < 4; ++q) fixed[b][q] = splat_bytes(x + 16 * b + 4 * q);
    int64_t n = panel.first - panel.index;
    for (; n < panel.mirrored - panel.index; ++n, tile += TILE)
        int8_tile<batch, true>(tile, fixed, x, y + n * stride, own);
    for (; n < panel.last - panel.index; ++n, tile += TILE) {
        prefetch_ahead(tile, ahead);
        int8_tile<batch, false>(tile, fixed, x + n * stride, y + n * stride, own);
    }
    UNROLLED for (int b = 0; b < batch; ++b) add_groups(own[b], y + 16 * b);
}

// A full panel, for `batch` vectors.
template <int batch>
static void int8_full(const int8_t *tile, int64_t tiles, int64_t ahead, int64_t stride,
                      const uint8_t *x, int32_t *y) {
    constexpr int SUMS = batch == 1 ? 2 : 1;  // two accumulators hide the latency
    Dwords sum[batch][PARTS][SUMS] = {};
    for (int64_t n = 0; n < tiles; ++n, tile += TILE) {
        prefetch_ahead(tile, ahead);
        UNROLLED for (int q = 0; q < 4; ++q)
            UNROLLED for (int part = 0; part < PARTS; ++part) {
                const Dwords w = load_dwords(tile + 64 * q + 4 * LANES * part);
                UNROLLED for (int b = 0; b < batch; ++b)
                    sum[b][part][q % SUMS] = dot(sum[b][part][q % SUMS],
                                                 splat_bytes(x + n * stride + 16 * b + 4 * q), w);
            }
    }
    UNROLLED for (int b = 0; b < batch; ++b)
        UNROLLED for (int part = 0; part < PARTS; ++part) {
            int32_t *const to = y + 16 * b + LANES * part;
            Dwords all = load_dwords(to);
            for (int s = 0; s < SUMS; ++s) all += sum[b][part][s];
            store_dwords(to, all);
        }
}

template <int batch>
INLINE void int8_panel(const Multiplication &m, const int8_t *tile, const Panel &panel,
                       const uint8_t *x, int32_t *y) {
    const int64_t home = panel.index * m.stride;
    if (m.symmetric) int8_symmetric<batch>(tile, panel, m.ahead, m.stride, x + home, y + home);
    else int8_full<batch>(tile, panel.last, m.ahead, m.stride, x, y + home);
}

static void int8_multiply(const Multiplication &m) {
    const int8_t *tile = static_cast<const int8_t *>(m.packed) +
                         panel_start(m.symmetric, m.columns, m.gates, m.first);
    for (int64_t index = m.first; index < m.last; ++index) {
        const Panel panel(m.symmetric, m.columns, index);
        for (int g = 0; g < m.gates; ++g, tile += (panel.last - panel.first) * TILE) {
            const uint8_t *x = static_cast<const uint8_t *>(m.x) + g * m.x_gate;
            int32_t *y = static_cast<int32_t *>(m.y) + m.gate[g] * m.y_gate;
            int64_t left = m.batch;
            // Four vectors at a time; meanwhile the panel stays in L1.
            for (; left >= 4; left -= 4, x += 64, y += 64)
                int8_panel<4>(m, tile, panel, x, y);
            if (left == 3) int8_panel<3>(m, tile, panel, x, y);
            if (left == 2) int8_panel<2>(m, tile, panel, x, y);
            if (left == 1) int8_panel<1>(m, tile, panel, x, y);
        }
    }
}

// A product rounded by itself: the compiler may else fuse it with an addition, where there is an FMA.
INLINE Block<float> rounded_product(const Block<float> &a, float b) {
    Block<float> x;
    for (int n = 0; n < Block<float>::REGISTERS; ++n) {
        x.reg[n] = a.reg[n] * b;
#if defined(__x86_64__)
        __asm__("" : "+v"(x.reg[n]));
#else
        __asm__("" : "+m"(x.reg[n]));
#endif
    }
    return x;
}

INLINE Block<float> scaled_block(const Quantization &z, int64_t tile, int64_t b) {
    const Block<float> x = load(z.x + tile * z.stride + 16 * b);
    return z.scale ? x * load(z.scale + 16 * tile) : x;
}

static void int8_quantize(const Quantization &z) {
    typedef uint8_t Bytes
        __attribute__((vector_size(SYMRNN_REGISTER_BYTES / 4), aligned(1), may_alias));
    for (int64_t b = 0; b < z.batch; ++b) {
        Words largest = {};  // as bits, which have the order of the numbers; NaN is above all
        for (int64_t tile = 0; tile < z.tiles; ++tile) {
            const Block<float> x = scaled_block(z, tile, b);
            for (int n = 0; n < Block<float>::REGISTERS; ++n) {
                const Words size = (Words)absolute(x.reg[n]);
                largest = size > largest ? size : largest;
            }
        }
        uint32_t bits = 0;
        for (int k = 0; k < Register<float>::WIDTH; ++k) bits = largest[k] > bits ? largest[k] : bits;
        float most;
        __builtin_memcpy(&most, &bits, 4);
        const bool finite = bits < 0x7f800000u;
        const float inverse = finite && most >= INT8_LEAST ? 127.0f / most : 0.0f;
        z.step[b] = finite ? most / 127.0f : __builtin_nanf("");
        for (int64_t tile = 0; tile < z.tiles; ++tile) {
            const float magic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
            const Block<float> x = rounded_product(scaled_block(z, tile, b), inverse);
            uint8_t *const to = z.to + tile * z.stride + 16 * b;
            for (int n = 0; n < Block<float>::REGISTERS; ++n) {
                const Words u = finite ? (Words)(x.reg[n] + magic) + OFFSET : OFFSET - Words{};
                *reinterpret_cast<Bytes *>(to + n * Register<float>::WIDTH) =
                    __builtin_convertvector(u & 0xffu, Bytes);
            }
        }
    }
}

static constexpr Int8Kernels INT8 = {OFFSET, int8_quantize, int8_multiply};
