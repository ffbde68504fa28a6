// Vectors of 16 elements, by the compiler's vector extensions.
//
// Included once for each processor, inside a namespace of its own, with SYMRNN_REGISTER_BYTES set to
// its register width. Nothing of the standard library is used: the linker could pick the copy of an
// inline function that was compiled here, for a newer processor, for the whole library.

template <typename T>
struct Register {
    static constexpr int WIDTH = SYMRNN_REGISTER_BYTES / sizeof(T);
    typedef T type __attribute__((vector_size(SYMRNN_REGISTER_BYTES)));
    typedef T unaligned __attribute__((vector_size(SYMRNN_REGISTER_BYTES), aligned(sizeof(T)), may_alias));
};

typedef int32_t Ints __attribute__((vector_size(SYMRNN_REGISTER_BYTES)));
typedef uint32_t Words __attribute__((vector_size(SYMRNN_REGISTER_BYTES)));

#define INLINE static inline __attribute__((always_inline))

// For a loop that is to have all registers for itself.
#define NOT_INLINE __attribute__((noinline))

// Turns arrays of sums into registers: by itself the compiler unrolls no loop of sixteen.
#define UNROLLED _Pragma("GCC unroll 32")

// Fetches the tile that comes `ahead` tiles later: hardware prefetchers stop at the end of a page,
// which is four tiles of float.
template <typename S>
INLINE void prefetch_ahead(const S *tile, int64_t ahead) {
    if (!ahead) return;
    const char *const at = reinterpret_cast<const char *>(tile + ahead * TILE);
    UNROLLED for (int64_t k = 0; k < TILE * static_cast<int64_t>(sizeof(S)); k += 64)
        __builtin_prefetch(at + k, 0, 3);
}

// 16 elements in as many registers as they need.
template <typename T>
struct Block {
    static constexpr int REGISTERS = 16 / Register<T>::WIDTH;
    typename Register<T>::type reg[REGISTERS];
};

template <typename T>
INLINE Block<T> load(const T *from) {
    Block<T> x;
    for (int n = 0; n < Block<T>::REGISTERS; ++n)
        x.reg[n] = *reinterpret_cast<const typename Register<T>::unaligned *>(
            from + n * Register<T>::WIDTH);
    return x;
}

template <typename T>
INLINE void store(T *to, const Block<T> &x) {
    for (int n = 0; n < Block<T>::REGISTERS; ++n)
        *reinterpret_cast<typename Register<T>::unaligned *>(to + n * Register<T>::WIDTH) =
            x.reg[n];
}

template <typename T>
INLINE Block<T> splat(T value) {
    Block<T> x;
    for (int n = 0; n < Block<T>::REGISTERS; ++n)
        x.reg[n] = value - (typename Register<T>::type){};
    return x;
}

// Keeps x in registers: the compiler may else load twice what is used twice, and loads are the limit.
template <typename T>
INLINE void keep_in_registers(Block<T> &x) {
#if defined(__x86_64__)
    for (int n = 0; n < Block<T>::REGISTERS; ++n) __asm__("" : "+v"(x.reg[n]));
#else
    (void)x;
#endif
}

// Loads the first `count` of 16 elements and pads with zeros; stores the first `count`.
template <typename T>
INLINE Block<T> load_some(const T *from, int count) {
    if (count == 16) return load(from);
    T all[16] = {};
    for (int k = 0; k < count; ++k) all[k] = from[k];
    return load(all);
}

template <typename T>
INLINE void store_some(T *to, const Block<T> &x, int count) {
    if (count == 16) return store(to, x);
    T all[16];
    store(all, x);
    for (int k = 0; k < count; ++k) to[k] = all[k];
}

#define FOR_REGISTERS(expression)                              \
    Block<T> result;                                       \
    for (int n = 0; n < Block<T>::REGISTERS; ++n) {            \
        result.reg[n] = expression;                       \
    }                                                      \
    return result

template <typename T>
INLINE Block<T> operator+(const Block<T> &a, const Block<T> &b) { FOR_REGISTERS(a.reg[n] + b.reg[n]); }
template <typename T>
INLINE Block<T> operator-(const Block<T> &a, const Block<T> &b) { FOR_REGISTERS(a.reg[n] - b.reg[n]); }
template <typename T>
INLINE Block<T> operator*(const Block<T> &a, const Block<T> &b) { FOR_REGISTERS(a.reg[n] * b.reg[n]); }
template <typename T>
INLINE Block<T> operator/(const Block<T> &a, const Block<T> &b) { FOR_REGISTERS(a.reg[n] / b.reg[n]); }

// to += a · b, as an FMA where the processor has one.
template <typename T>
INLINE void accumulate(Block<T> &to, const Block<T> &a, const Block<T> &b) {
    for (int n = 0; n < Block<T>::REGISTERS; ++n) to.reg[n] = a.reg[n] * b.reg[n] + to.reg[n];
}

template <typename T>
INLINE void accumulate(Block<T> &to, const Block<T> &a, T b) {
    for (int n = 0; n < Block<T>::REGISTERS; ++n) to.reg[n] = a.reg[n] * b + to.reg[n];
}

// ---- exchanging lanes ---------------------------------------------------------------------------
//
// Transposition and sums across lanes both exchange lanes at distances s = 1, 2, 4, …. Lane l of
// `take<s, 0>(a, b)` is lane l of a where bit s of l is clear, and lane l-s of b where it is set. Of
// `take<s, 1>` it is lane l+s of a, and lane l of b.

template <int... lane>
struct Lanes {};
template <int count, int... lane>
struct LanesTo : LanesTo<count - 1, count - 1, lane...> {};
template <int... lane>
struct LanesTo<0, lane...> {
    typedef Lanes<lane...> type;
};

template <typename V, int s, int high, int width, int... lane>
INLINE V take_lanes(V a, V b, Lanes<lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(
        a, b, ((lane & s) ? width + lane - (high ? 0 : s) : lane + (high ? s : 0))...);
#else
    typedef decltype(a < b) Mask;
    return __builtin_shuffle(
        a, b, Mask{((lane & s) ? width + lane - (high ? 0 : s) : lane + (high ? s : 0))...});
#endif
}

template <typename T, int s, int high>
INLINE typename Register<T>::type take(typename Register<T>::type a, typename Register<T>::type b) {
    constexpr int width = Register<T>::WIDTH;
    return take_lanes<typename Register<T>::type, s, high, width>(
        a, b, typename LanesTo<width>::type());
}

template <typename T, int s>
struct Exchange {
    typedef typename Register<T>::type V;
    static constexpr int WIDTH = Register<T>::WIDTH;

    // Transposes WIDTH × WIDTH elements, in as many registers.
    INLINE void transpose(V (&row)[WIDTH]) {
        if constexpr (s < WIDTH) {
            for (int k = 0; k < WIDTH; ++k)
                if (!(k & s)) {
                    const V a = row[k], b = row[k + s];
                    row[k] = take<T, s, 0>(a, b);
                    row[k + s] = take<T, s, 1>(a, b);
                }
            Exchange<T, 2 * s>::transpose(row);
        }
    }

    // Lane l of row[0] becomes the sum of the lanes of row[l]; from s = WIDTH / 2 down.
    INLINE void sum(V (&row)[WIDTH]) {
        if constexpr (s > 0) {
            for (int k = 0; k < s; ++k)
                row[k] = take<T, s, 0>(row[k], row[k + s]) + take<T, s, 1>(row[k], row[k + s]);
            Exchange<T, s / 2>::sum(row);
        }
    }
};

// 16 sums: element k is the sum of the lanes of row[k].
template <typename T>
INLINE Block<T> sums(typename Register<T>::type (&row)[16]) {
    constexpr int W = Register<T>::WIDTH;
    Block<T> x;
    for (int n = 0; n < Block<T>::REGISTERS; ++n) {
        typename Register<T>::type some[W];
        for (int k = 0; k < W; ++k) some[k] = row[n * W + k];
        Exchange<T, W / 2>::sum(some);
        x.reg[n] = some[0];
    }
    return x;
}

// to (16, 16) = fromᵀ. stride: between the rows of from.
template <typename T>
INLINE void transpose(const T *from, int64_t stride, T *to) {
    typedef typename Register<T>::unaligned Place;
    constexpr int W = Register<T>::WIDTH;
    for (int i = 0; i < 16; i += W)
        for (int j = 0; j < 16; j += W) {
            typename Register<T>::type row[W];
            for (int k = 0; k < W; ++k)
                row[k] = *reinterpret_cast<const Place *>(from + (i + k) * stride + j);
            Exchange<T, 1>::transpose(row);
            for (int k = 0; k < W; ++k) *reinterpret_cast<Place *>(to + (j + k) * 16 + i) = row[k];
        }
}

// ---- sigmoid and tanh ---------------------------------------------------------------------------
//
// In float by polynomials fitted for this file (near-minimax in relative error), within a few ulp; in
// double, which serves as an oracle, by the C library.

// exp(x) for x ≤ 0, not below 2⁻¹²⁶; NaN stays NaN.
INLINE Register<float>::type exp_of_negative(Register<float>::type x) {
    typedef Register<float>::type V;
    const V least = -87.33654f - V{};
    x = x < least ? least : x;
    const V magic = 12582912.0f - V{};  // 1.5 · 2²³: adding it rounds to an integer
    const V shifted = x * 1.44269504f + magic;
    const V n = shifted - magic;
    V r = x - n * 0.693359375f;  // ln 2 split in two, the first exact in few bits
    r = r + n * 2.12194440e-4f;
    V q = 0.0013814467f * r + 0.0083687808f;
    q = q * r + 0.0416683927f;
    q = q * r + 0.1666651964f;
    q = q * r + 0.4999999404f;
    const V p = (q * r) * r + r + 1.0f;
    // Unsigned: for a NaN the sum overflows, and is not used.
    const Words exponent = ((Words)shifted - (Words)magic) << 23;
    return (V)((Words)p + exponent);
}

INLINE Register<float>::type absolute(Register<float>::type x) {
    return (Register<float>::type)((Ints)x & 0x7fffffff);
}

INLINE Block<float> sigmoid(const Block<float> &x) {
    Block<float> y;
    for (int n = 0; n < Block<float>::REGISTERS; ++n) {
        const auto v = x.reg[n];
        const auto e = exp_of_negative(-absolute(v));
        y.reg[n] = (v < 0.0f ? e : 1.0f - (Register<float>::type){}) / (e + 1.0f);
    }
    return y;
}

INLINE Block<float> tanh(const Block<float> &x) {
    Block<float> y;
    for (int n = 0; n < Block<float>::REGISTERS; ++n) {
        const auto a = absolute(x.reg[n]);
        const auto e = exp_of_negative(a * -2.0f);
        const auto far = (1.0f - e) / (e + 1.0f);
        const auto z = a * a;
        auto q = -0.0057011829f * z + 0.0206358172f;
        q = q * z - 0.0537387580f;
        q = q * z + 0.1333143115f;
        q = q * z - 0.3333328068f;
        const auto near = (q * z) * a + a;
        const auto size = a < 0.625f ? near : far;
        const Ints sign = (Ints)x.reg[n] & (int32_t)0x80000000;
        y.reg[n] = (Register<float>::type)((Ints)size | sign);
    }
    return y;
}

// Lane by lane, not through an array: GCC 12 under ThreadSanitizer gave two arrays one address.
INLINE Block<double> sigmoid(const Block<double> &x) {
    Block<double> y;
    for (int n = 0; n < Block<double>::REGISTERS; ++n)
        for (int lane = 0; lane < Register<double>::WIDTH; ++lane)
            y.reg[n][lane] = 1.0 / (1.0 + __builtin_exp(-x.reg[n][lane]));
    return y;
}

INLINE Block<double> tanh(const Block<double> &x) {
    Block<double> y;
    for (int n = 0; n < Block<double>::REGISTERS; ++n)
        for (int lane = 0; lane < Register<double>::WIDTH; ++lane)
            y.reg[n][lane] = __builtin_tanh(x.reg[n][lane]);
    return y;
}

template <typename T>
INLINE Block<T> relu(const Block<T> &x) {
    Block<T> y;
    for (int n = 0; n < Block<T>::REGISTERS; ++n)  // NaN stays NaN
        y.reg[n] = x.reg[n] < T(0) ? (typename Register<T>::type){} : x.reg[n];
    return y;
}

// ---- bfloat16 -----------------------------------------------------------------------------------

// A bfloat16 is the upper half of a float. Two columns of a packed tile share a word per row, the
// first in its lower half: one operation extracts either.
struct BFloat16 {
    uint16_t bits;
};

INLINE uint32_t rounded(float value) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if (value != value) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Columns k and k + 1, k even, of a packed tile.
template <typename T>
INLINE void load_columns(const T *tile, int k, Block<T> &first, Block<T> &second) {
    first = load(tile + 16 * k);
    second = load(tile + 16 * k + 16);
}

INLINE void load_columns(const BFloat16 *tile, int k, Block<float> &first, Block<float> &second) {
    typedef uint32_t Place __attribute__((vector_size(SYMRNN_REGISTER_BYTES), aligned(4), may_alias));
    for (int n = 0; n < Block<float>::REGISTERS; ++n) {
        const Words both = *reinterpret_cast<const Place *>(
            reinterpret_cast<const char *>(tile + 16 * k) + n * SYMRNN_REGISTER_BYTES);
        first.reg[n] = (Register<float>::type)(both << 16);
        second.reg[n] = (Register<float>::type)(both & 0xffff0000u);
    }
}
// Tiles as T's columns, written there where they are of another type.
INLINE const float *widened(const BFloat16 *tile, int64_t tiles, float *to) {
    for (int64_t k = 0; k < tiles * 16; k += 2) {
        Block<float> v, w;
        load_columns(tile, k, v, w);
        store(to + 16 * k, v);
        store(to + 16 * k + 16, w);
    }
    return to;
}

template <typename T>
INLINE const T *widened(const T *tile, int64_t, T *) {
    return tile;
}
