// What drawing a token does with every logit, in terms of vectors.h. Included once for each
// processor, after it and inside its namespace.

// The largest of n ≥ 1 numbers; NaN if one is.
static float largest(int64_t n, const float *x) {
    const float lowest = -__builtin_inff();
    Block<float> most = splat(lowest);
    Block<float> odd = splat(0.0f);  // NaN in each lane where one was
    for (int64_t k = 0; k < n; k += 16) {
        const int count = n - k < 16 ? static_cast<int>(n - k) : 16;
        Block<float> v = splat(x[k]);
        if (count == 16) v = load(x + k);
        else
            for (int i = 0; i < count; ++i)
                v.reg[i / Register<float>::WIDTH][i % Register<float>::WIDTH] = x[k + i];
        for (int r = 0; r < Block<float>::REGISTERS; ++r) {
            most.reg[r] = v.reg[r] > most.reg[r] ? v.reg[r] : most.reg[r];
            odd.reg[r] = v.reg[r] == v.reg[r] ? odd.reg[r] : v.reg[r];
        }
    }
    float all = lowest, none = 0;
    for (int r = 0; r < Block<float>::REGISTERS; ++r)
        for (int lane = 0; lane < Register<float>::WIDTH; ++lane) {
            all = most.reg[r][lane] > all ? most.reg[r][lane] : all;
            none = odd.reg[r][lane] == 0 ? none : odd.reg[r][lane];
        }
    return none == 0 ? all : none;
}

// exp(x) for x ≤ 0 in double, within 2 ulp; 0 below -708, and of -inf.
INLINE Register<double>::type exp_of_negative(Register<double>::type x) {
    typedef Register<double>::type V;
    typedef uint64_t Longs __attribute__((vector_size(SYMRNN_REGISTER_BYTES)));
    const V least = -708.0 - V{};
    const auto tiny = x < least;
    x = tiny ? least : x;
    const V magic = 6755399441055744.0 - V{};  // 1.5 · 2⁵²: adding it rounds to an integer
    const V shifted = x * 1.4426950408889634 + magic;
    const V n = shifted - magic;
    V r = x - n * 0.693147180369123816490;  // ln 2 split in two, the first exact in few bits
    r = r - n * 1.90821492927058770002e-10;
    V p = r * (1.0 / 6227020800) + 1.0 / 479001600;  // Taylor's series: |r| ≤ ln 2 / 2
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = (p * r) * r + r + 1.0;
    const Longs exponent = ((Longs)shifted - (Longs)magic) << 52;
    return tiny ? V{} : (V)((Longs)p + exponent);
}

// to[k] = exp((x[k] - highest) · scale), of numbers up to `highest`.
static void weigh(int64_t n, const float *x, double highest, double scale, double *to) {
    typedef Register<double>::type V;
    constexpr int WIDTH = Register<double>::WIDTH;
    typedef float Some
        __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));
    typedef Register<double>::unaligned Place;
    int64_t k = 0;
    for (; k + WIDTH <= n; k += WIDTH) {
        const V v = __builtin_convertvector(*reinterpret_cast<const Some *>(x + k), V);
        *reinterpret_cast<Place *>(to + k) = exp_of_negative((v - highest) * scale);
    }
    for (; k < n; ++k) to[k] = exp_of_negative((x[k] - highest) * scale - V{})[0];
}
