// The kernels, in terms of vectors.h: products of packed tiles, and the pointwise part of each kind of
// layer. Included once for each processor, after vectors.h and many.inc.h and inside its namespace.

// ---- products: `fixed` and `moving` as many.inc.h has them ----------------------------------------

// -- few vectors: a tile's columns are loaded once and serve both directions.

// How many columns' sums fit in registers at once, for `batch` vectors.
template <typename T, int batch>
constexpr int columns_at_once() {
    const int to = SYMRNN_REGISTERS / 2 / batch;
    return to >= 16 ? 16 : to >= 8 ? 8 : to >= 4 ? 4 : 2;
}

// A tile of a free block: y[moving] += M · x[fixed].
template <typename T, typename S, int batch>
INLINE void few_free(const S *tile, const T *x, T *y) {
    Block<T> sum[batch];
    UNROLLED for (int b = 0; b < batch; ++b) sum[b] = load(y + 16 * b);
    UNROLLED for (int k = 0; k < 16; k += 2) {
        Block<T> v, w;
        load_columns(tile, k, v, w);
        UNROLLED for (int b = 0; b < batch; ++b) {
            accumulate(sum[b], v, x[16 * b + k]);
            accumulate(sum[b], w, x[16 * b + k + 1]);
        }
    }
    UNROLLED for (int b = 0; b < batch; ++b) store(y + 16 * b, sum[b]);
}

// The same, transposed: y[fixed] += Mᵀ · x[moving], or where their sums fit in registers those.
template <typename T, typename S, int batch>
INLINE void few_free_transposed(const S *tile, const T *x, T *y,
                                typename Register<T>::type (&sum)[batch][16]) {
    if constexpr (columns_at_once<T, batch>() == 16) {
        const Block<T> moving = load(x);
        UNROLLED for (int k = 0; k < 16; k += 2) {
            Block<T> v, w;
            load_columns(tile, k, v, w);
            UNROLLED for (int n = 0; n < Block<T>::REGISTERS; ++n) {
                sum[0][k] = v.reg[n] * moving.reg[n] + sum[0][k];
                sum[0][k + 1] = w.reg[n] * moving.reg[n] + sum[0][k + 1];
            }
        }
    } else {
        alignas(64) T widened_tile[sizeof(S) == sizeof(T) ? 1 : TILE];
        alignas(64) T tile_t[TILE];
        transpose(widened(tile, 1, widened_tile), 16, tile_t);
        few_free<T, T, batch>(tile_t, x, y);
    }
}

// x and y: of the panel's own tile.
template <typename T, typename S, int batch>
NOT_INLINE static void few_symmetric(const S *tile, const Panel &panel, bool transposed,
                                     int64_t ahead, int64_t stride, const T *x, T *y) {
    typedef typename Register<T>::type V;
    constexpr int REGISTERS = Block<T>::REGISTERS;
    constexpr int COLUMNS = columns_at_once<T, batch>();
    constexpr int CHUNK = COLUMNS == 16 ? 1 << 30 : 8;  // tiles that stay in L1

    tile += (panel.index - panel.first) * TILE;
    const int64_t free = panel.first - panel.index, mirrored = panel.mirrored - panel.index;
    const int64_t tiles = panel.last - panel.index;
    V sum[batch][16] = {};
    for (int64_t q = free; q < mirrored; ++q)
        if (transposed)
            few_free_transposed<T, S, batch>(tile + q * TILE, x + q * stride, y, sum);
        else few_free<T, S, batch>(tile + q * TILE, x, y + q * stride);
    for (int64_t first = mirrored; first < tiles; first += CHUNK) {
        const int64_t last = tiles - first < CHUNK ? tiles : first + CHUNK;
        for (int k0 = 0; k0 < 16; k0 += COLUMNS) {
            V own[batch][COLUMNS];
            UNROLLED for (int b = 0; b < batch; ++b)
                UNROLLED for (int k = 0; k < COLUMNS; ++k) own[b][k] = sum[b][k0 + k];
            for (int64_t q = first; q < last; ++q) {
                const S *const at = tile + q * TILE;
                if (k0 == 0) prefetch_ahead(at, ahead);
                Block<T> moving[batch], to[batch], to_second[batch];
                UNROLLED for (int b = 0; b < batch; ++b) {
                    moving[b] = load(x + q * stride + 16 * b);
                    to[b] = load(y + q * stride + 16 * b);
                    to_second[b] = splat<T>(0);  // two accumulators hide the FMA latency
                }
                UNROLLED for (int k = 0; k < COLUMNS; k += 2) {
                    Block<T> v, w;
                    load_columns(at, k0 + k, v, w);
                    keep_in_registers(v);
                    keep_in_registers(w);
                    UNROLLED for (int b = 0; b < batch; ++b) {
                        accumulate(to[b], v, x[16 * b + k0 + k]);
                        accumulate(to_second[b], w, x[16 * b + k0 + k + 1]);
                        UNROLLED for (int n = 0; n < REGISTERS; ++n) {
                            own[b][k] = v.reg[n] * moving[b].reg[n] + own[b][k];
                            own[b][k + 1] = w.reg[n] * moving[b].reg[n] + own[b][k + 1];
                        }
                    }
                }
                UNROLLED for (int b = 0; b < batch; ++b)
                    store(y + q * stride + 16 * b, to[b] + to_second[b]);
            }
            UNROLLED for (int b = 0; b < batch; ++b)
                UNROLLED for (int k = 0; k < COLUMNS; ++k) sum[b][k0 + k] = own[b][k];
        }
    }
    UNROLLED for (int b = 0; b < batch; ++b) store(y + 16 * b, load(y + 16 * b) + sums<T>(sum[b]));
}

template <typename T, typename S, int batch>
static void few_full(const S *tile, int64_t tiles, int64_t ahead, int64_t stride, const T *x, T *y) {
    constexpr int SUMS = 4;  // accumulators, to hide the FMA latency
    Block<T> sum[batch][SUMS];
    UNROLLED for (int b = 0; b < batch; ++b)
        UNROLLED for (int s = 0; s < SUMS; ++s) sum[b][s] = splat<T>(0);
    for (int64_t q = 0; q < tiles; ++q) {
        const T *const moving = x + q * stride;
        prefetch_ahead(tile + q * TILE, ahead);
        UNROLLED for (int k = 0; k < 16; k += 2) {
            Block<T> v, w;
            load_columns(tile + q * TILE, k, v, w);
            UNROLLED for (int b = 0; b < batch; ++b) {
                accumulate(sum[b][k % SUMS], v, moving[16 * b + k]);
                accumulate(sum[b][k % SUMS + 1], w, moving[16 * b + k + 1]);
            }
        }
    }
    UNROLLED for (int b = 0; b < batch; ++b)
        store(y + 16 * b,
              load(y + 16 * b) + ((sum[b][0] + sum[b][1]) + (sum[b][2] + sum[b][3])));
}

template <typename T, typename S, int batch>
static void few_full_transposed(const S *tile, int64_t tiles, int64_t stride, const T *x, T *y) {
    typedef typename Register<T>::type V;
    for (int64_t q = 0; q < tiles; ++q)
        UNROLLED for (int b = 0; b < batch; ++b) {
            const Block<T> fixed = load(x + 16 * b);
            V products[16];
            UNROLLED for (int k = 0; k < 16; k += 2) {
                Block<T> v, w;
                load_columns(tile + q * TILE, k, v, w);
                v = v * fixed;
                w = w * fixed;
                products[k] = v.reg[0];
                products[k + 1] = w.reg[0];
                UNROLLED for (int n = 1; n < Block<T>::REGISTERS; ++n) {
                    products[k] += v.reg[n];
                    products[k + 1] += w.reg[n];
                }
            }
            T *const to = y + q * stride + 16 * b;
            store(to, load(to) + sums<T>(products));
        }
}

// The same of one column of tiles, which are `step` apart: y[moving] += Σ Mᵀ · x[fixed].
template <typename T, typename S, int batch>
static void few_narrow_transposed(const S *tile, int64_t step, int64_t tiles, int64_t stride,
                                  const T *x, T *y) {
    typedef typename Register<T>::type V;
    constexpr int COLUMNS = columns_at_once<T, batch>();
    V sum[batch][16];
    for (int k0 = 0; k0 < 16; k0 += COLUMNS) {
        V own[batch][COLUMNS] = {};
        for (int64_t q = 0; q < tiles; ++q) {
            // Hardware prefetchers do not see that these tiles follow each other.
            if (k0 == 0) prefetch_ahead(tile + q * step, 4 * step / TILE);
            Block<T> fixed[batch];
            UNROLLED for (int b = 0; b < batch; ++b) fixed[b] = load(x + q * stride + 16 * b);
            UNROLLED for (int k = 0; k < COLUMNS; k += 2) {
                Block<T> v, w;
                load_columns(tile + q * step, k0 + k, v, w);
                UNROLLED for (int b = 0; b < batch; ++b)
                    UNROLLED for (int n = 0; n < Block<T>::REGISTERS; ++n) {
                        own[b][k] = v.reg[n] * fixed[b].reg[n] + own[b][k];
                        own[b][k + 1] = w.reg[n] * fixed[b].reg[n] + own[b][k + 1];
                    }
            }
        }
        UNROLLED for (int b = 0; b < batch; ++b)
            UNROLLED for (int k = 0; k < COLUMNS; ++k) sum[b][k0 + k] = own[b][k];
    }
    UNROLLED for (int b = 0; b < batch; ++b) store(y + 16 * b, load(y + 16 * b) + sums<T>(sum[b]));
}

// -- many vectors: a step of a sum is one column.

// The most vectors whose sums fit in registers.
template <typename T>
constexpr int max_vectors() {
    const int most = SYMRNN_REGISTERS * 3 / 4 / Block<T>::REGISTERS;
    return most < 1 ? 1 : most;
}

template <typename T>
struct Columns {
    typedef T Tile, Vector, Sum;
    static constexpr int MOST = max_vectors<T>();

    // sum[b] += tile · x[b]
    template <int batch>
    INLINE void outer(const T *tile, const T *x, Block<T> (&sum)[batch]) {
        for (int k = 0; k < 16; ++k) {
            const Block<T> v = load(tile + 16 * k);
            UNROLLED for (int b = 0; b < batch; ++b) accumulate(sum[b], v, x[16 * b + k]);
        }
    }
    INLINE void transpose_tile(const T *from, T *to) { transpose(from, 16, to); }
};

template <typename T, typename S, int batch>
INLINE void few_panel(const Multiplication &m, const S *tile, const Panel &panel, const T *x, T *y) {
    const int64_t home = panel.index * m.stride;
    if (m.symmetric)
        few_symmetric<T, S, batch>(tile, panel, m.transposed, m.ahead, m.stride, x + home, y + home);
    else if (m.transposed) few_full_transposed<T, S, batch>(tile, panel.last, m.stride, x + home, y);
    else few_full<T, S, batch>(tile, panel.last, m.ahead, m.stride, x, y + home);
}

template <typename T, typename S, int batch>
static void multiply_narrow(const Multiplication &m) {
    const int64_t step = m.columns * m.gates * TILE;
    for (int g = 0; g < m.gates; ++g)
        for (int64_t q = 0; q < m.columns; ++q)
            few_narrow_transposed<T, S, batch>(
                static_cast<const S *>(m.packed) + m.first * step + (g * m.columns + q) * TILE, step,
                m.last - m.first, m.stride,
                static_cast<const T *>(m.x) + m.gate[g] * m.x_gate + m.first * m.stride,
                static_cast<T *>(m.y) + m.gate[g] * m.y_gate + q * m.stride);
}

template <typename T, typename S>
static void multiply(const Multiplication &m) {
    if (m.narrow) switch (m.batch) {
        case 1: return multiply_narrow<T, S, 1>(m);
        case 2: return multiply_narrow<T, S, 2>(m);
        case 3: return multiply_narrow<T, S, 3>(m);
        case 4: return multiply_narrow<T, S, 4>(m);
        default: break;
        }
    const S *tile = static_cast<const S *>(m.packed) +
                    panel_start(m.symmetric, m.columns, m.gates, m.first);
    for (int64_t index = m.first; index < m.last; ++index) {
        const Panel panel(m.symmetric, m.columns, index);
        for (int g = 0; g < m.gates; ++g, tile += (panel.last - panel.first) * TILE) {
            const T *const x = static_cast<const T *>(m.x) + m.gate[g] * m.x_gate;
            T *const y = static_cast<T *>(m.y) + m.gate[g] * m.y_gate;
            switch (m.batch) {
            case 1:
                few_panel<T, S, 1>(m, tile, panel, x, y);
                break;
            case 2:
                few_panel<T, S, 2>(m, tile, panel, x, y);
                break;
            case 3:
                few_panel<T, S, 3>(m, tile, panel, x, y);
                break;
            case 4:
                few_panel<T, S, 4>(m, tile, panel, x, y);
                break;
            default:
                many_panel<Columns<T>>(m, tile, panel, x, y);
            }
        }
    }
}

// -- dense matrices: a tile of a GEMM as a sum of outer products.

// The most rows of a tile, a power of two, whose sums fit in registers.
template <typename T>
constexpr int rows_at_once() {
    int rows = 16;
    while (rows > 1 && rows > max_vectors<T>()) rows /= 2;
    return rows;
}

template <typename T>
static void tile_product(const T *a, const T *b, int64_t count, const T *from, int64_t from_stride,
                         T *to, int64_t to_stride) {
    constexpr int ROWS = rows_at_once<T>();
    for (int i = 0; i < 16; ++i) __builtin_prefetch(to + i * to_stride, 1);
    for (int first = 0; first < 16; first += ROWS) {
        Block<T> sum[ROWS];
        UNROLLED for (int i = 0; i < ROWS; ++i) sum[i] = splat<T>(0);
        for (int64_t r = 0; r < count; ++r) {
            const Block<T> v = load(b + 16 * r);
            UNROLLED for (int i = 0; i < ROWS; ++i) accumulate(sum[i], v, a[16 * r + first + i]);
        }
        UNROLLED for (int i = 0; i < ROWS; ++i) {
            const int64_t row = first + i;
            if (from) sum[i] = sum[i] + load(from + row * from_stride);
            store(to + row * to_stride, sum[i]);
        }
    }
}

// ---- pointwise ----------------------------------------------------------------------------------
//
// The reference backend is the specification.

// Of an int8 product, from integers.
INLINE Block<float> int8_sum_of(const PartialSums &sums, int gate, int64_t tile, int64_t b,
                                int64_t offset) {
    const PartialSums::Integers &of = sums.of[gate];
    Block<int32_t> x = splat<int32_t>(0);
    for (int s = 0; s < sums.count; ++s)
        if (tile >= sums.sum[s].first && tile < sums.sum[s].last)
            x = x + load(static_cast<const int32_t *>(sums.sum[s].at) + offset);
    const Block<int32_t> row_sum = load(of.row_sum + 16 * tile);
    const Block<float> scale = load(of.scale + 16 * tile);
    Block<float> y;
    for (int n = 0; n < Block<float>::REGISTERS; ++n)
        y.reg[n] = __builtin_convertvector(x.reg[n] - row_sum.reg[n] * sums.offset,
                                           Register<float>::type) *
                   (scale.reg[n] * of.step[b]);
    return y;
}

// With what is to be added to a sum.
template <typename T>
INLINE Block<T> with_skew(const PartialSums &sums, int64_t offset, const Block<T> &x) {
    return sums.skew ? x + load(static_cast<const T *>(sums.skew) + offset) : x;
}

// Row b of a tile, 16 elements: the sum of the partial sums that cover it.
template <typename T>
INLINE Block<T> sum_of(const PartialSums &sums, int gate, int64_t tile, int64_t b) {
    const int64_t offset = gate * sums.gate + tile * sums.stride + 16 * b;
    if constexpr (sizeof(T) == 4)
        if (sums.integers)
            return with_skew(sums, offset, int8_sum_of(sums, gate, tile, b, offset));
    Block<T> x = splat<T>(0);
    for (int s = 0; s < sums.count; ++s)
        if (tile >= sums.sum[s].first && tile < sums.sum[s].last)
            x = x + load(static_cast<const T *>(sums.sum[s].at) + offset);
    return with_skew(sums, offset, x);
}

template <typename T>
INLINE Block<T> some_of(const void *row, int64_t offset, int count) {
    return row ? load_some(static_cast<const T *>(row) + offset, count) : splat<T>(0);
}

INLINE int units_in(int64_t tile, int64_t side) {
    return side - 16 * tile < 16 ? static_cast<int>(side - 16 * tile) : 16;
}

// Row `b` of a dense array; null stays null.
template <typename T>
INLINE T *row_of(void *dense, int64_t b, int64_t length) {
    return dense ? static_cast<T *>(dense) + b * length : nullptr;
}

template <typename T>
INLINE const T *row_of(const void *dense, int64_t b, int64_t length) {
    return dense ? static_cast<const T *>(dense) + b * length : nullptr;
}

// Prefetches the next step's elements, `ahead` further on.
template <typename T>
INLINE void prefetch_next(const T *at, int64_t ahead) {
    for (int64_t k = 0; k < 16; k += 64 / sizeof(T)) __builtin_prefetch(at + ahead + k, 1);
}

// Several tiles of row b at once: their independent operations hide each other's latency.
template <typename T, int mode, int gates, int tiles>
INLINE void forward_tiles(const ForwardSlice &f, int64_t b, int64_t first) {
    T *const given = row_of<T>(f.gates, b, gates * f.side);
    T *const cells = row_of<T>(f.saved_cells, b, f.side);
    T *const output = row_of<T>(f.output, b, f.side);
    Block<T> x[gates][tiles], hidden[gates][tiles], new_h[tiles];
    int64_t unit[tiles], at[tiles];
    int count[tiles];
    UNROLLED for (int n = 0; n < tiles; ++n) {
        unit[n] = 16 * (first + n);
        at[n] = (first + n) * f.stride + 16 * b;
        count[n] = units_in(first + n, f.side);
        if (f.ahead) {
            if (given)
                for (int g = 0; g < gates; ++g)
                    prefetch_next(given + g * f.side + unit[n], f.ahead * gates * f.side);
            if (cells) prefetch_next(cells + unit[n], f.ahead * f.side);
            prefetch_next(output + unit[n], f.ahead * f.side);
        }
    }
    UNROLLED for (int g = 0; g < gates; ++g)
        UNROLLED for (int n = 0; n < tiles; ++n) {
            hidden[g][n] = sum_of<T>(*f.hidden_sums, g, first + n, b);
            x[g][n] = f.gates_given
                          ? load_some(given + g * f.side + unit[n], count[n])
                          : sum_of<T>(*f.input_sums, g, first + n, b) +
                                some_of<T>(f.bias, g * f.side + unit[n], count[n]);
        }
    if constexpr (mode == SYMRNN_LSTM) {
        Block<T> c[tiles];
        UNROLLED for (int g = 0; g < 4; ++g)
            UNROLLED for (int n = 0; n < tiles; ++n)
                x[g][n] = g == 2 ? tanh(x[g][n] + hidden[g][n]) : sigmoid(x[g][n] + hidden[g][n]);
        UNROLLED for (int n = 0; n < tiles; ++n)
            c[n] = x[1][n] * load(static_cast<T *>(f.c) + at[n]) + x[0][n] * x[2][n];
        UNROLLED for (int n = 0; n < tiles; ++n) new_h[n] = x[3][n] * tanh(c[n]);
        UNROLLED for (int n = 0; n < tiles; ++n) {
            store(static_cast<T *>(f.c) + at[n], c[n]);
            if (cells) store_some(cells + unit[n], c[n], count[n]);
        }
    } else if constexpr (mode == SYMRNN_GRU) {
        UNROLLED for (int n = 0; n < tiles; ++n)
            hidden[2][n] = hidden[2][n] + some_of<T>(f.bias_n, unit[n], count[n]);
        UNROLLED for (int g = 0; g < 2; ++g)
            UNROLLED for (int n = 0; n < tiles; ++n) x[g][n] = sigmoid(x[g][n] + hidden[g][n]);
        UNROLLED for (int n = 0; n < tiles; ++n)
            x[2][n] = tanh(x[2][n] + x[0][n] * hidden[2][n]);
        UNROLLED for (int n = 0; n < tiles; ++n) {
            new_h[n] = x[2][n] + x[1][n] * (load(static_cast<T *>(f.h) + at[n]) - x[2][n]);
            if (cells) store_some(cells + unit[n], hidden[2][n], count[n]);
        }
    } else {
        UNROLLED for (int n = 0; n < tiles; ++n) {
            const Block<T> sum = x[0][n] + hidden[0][n];
            x[0][n] = mode == SYMRNN_RNN_TANH ? tanh(sum) : relu(sum);
            new_h[n] = x[0][n];
        }
    }
    UNROLLED for (int n = 0; n < tiles; ++n) {
        if (given)
            for (int g = 0; g < gates; ++g)
                store_some(given + g * f.side + unit[n], x[g][n], count[n]);
        store_some(output + unit[n], new_h[n], count[n]);
        // The padding of the blocked state stays zero.
        store(static_cast<T *>(f.h) + at[n],
              count[n] == 16 ? new_h[n] : load_some(output + unit[n], count[n]));
    }
}

template <typename T, int mode, int gates>
static void forward_slice(const ForwardSlice &f) {
    for (int64_t b = 0; b < f.batch; ++b) {
        int64_t tile = f.first;
        for (; tile + 2 <= f.last; tile += 2) forward_tiles<T, mode, gates, 2>(f, b, tile);
        if (tile < f.last) forward_tiles<T, mode, gates, 1>(f, b, tile);
    }
}

template <typename T>
static void forward(const ForwardSlice &f) {
    switch (f.mode) {
    case SYMRNN_LSTM: return forward_slice<T, SYMRNN_LSTM, 4>(f);
    case SYMRNN_GRU: return forward_slice<T, SYMRNN_GRU, 3>(f);
    case SYMRNN_RNN_TANH: return forward_slice<T, SYMRNN_RNN_TANH, 1>(f);
    default: return forward_slice<T, SYMRNN_RNN_RELU, 1>(f);
    }
}

template <typename T, int mode, int gates>
static void backward_slice(const BackwardSlice &f) {
    const Block<T> one = splat<T>(1);
    for (int64_t b = 0; b < f.batch; ++b) {
        const T *const gate_row = row_of<T>(f.gates, b, gates * f.side);
        const T *const cells = row_of<T>(f.saved_cells, b, f.side);
        const T *const d_output = row_of<T>(f.d_output, b, f.side);
        // The row of the step before or, for a sequence that begins here, of the initial state.
        const bool begins = b >= f.before;
        const T *const c_before = row_of<T>(begins ? f.c0 : f.c_before, b, f.side);
        const T *const h_before = row_of<T>(begins ? f.h0 : f.h_before, b, f.side);
        T *const d_gates = row_of<T>(f.d_gates, b, gates * f.side);
        T *const d_hidden_row = row_of<T>(f.d_hidden, b, gates * f.side);
        for (int64_t tile = f.first; tile < f.last; ++tile) {
            const int64_t unit = 16 * tile, at = tile * f.stride + 16 * b;
            const int count = units_in(tile, f.side);
            Block<T> gate[gates], d_x[gates];
            for (int g = 0; g < gates; ++g)
                gate[g] = load_some(gate_row + g * f.side + unit, count);
            T *const stored_d_h = static_cast<T *>(f.d_h) + at;
            const Block<T> d_h = load(stored_d_h) + some_of<T>(d_output, unit, count);
            Block<T> direct = splat<T>(0);  // of the gradient of h: the part that bypasses W_hh
            if constexpr (mode == SYMRNN_LSTM) {
                T *const stored_d_c = static_cast<T *>(f.d_c) + at;
                const auto &in = gate[0], &forget = gate[1], &g = gate[2], &out = gate[3];
                const Block<T> tanh_c = tanh(load_some(cells + unit, count));
                const Block<T> d_c = load(stored_d_c) + d_h * out * (one - tanh_c * tanh_c);
                d_x[0] = d_c * g * in * (one - in);
                d_x[1] = d_c * some_of<T>(c_before, unit, count) * forget * (one - forget);
                d_x[2] = d_c * in * (one - g * g);
                d_x[3] = d_h * tanh_c * out * (one - out);
                store(stored_d_c, d_c * forget);
            } else if constexpr (mode == SYMRNN_GRU) {
                const auto &r = gate[0], &z = gate[1], &n = gate[2];
                const Block<T> hidden_n = load_some(cells + unit, count);
                const Block<T> h = some_of<T>(h_before, unit, count);
                direct = d_h * z;
                d_x[2] = (d_h - direct) * (one - n * n);
                d_x[1] = d_h * (h - n) * z * (one - z);
                d_x[0] = d_x[2] * hidden_n * r * (one - r);
            } else if constexpr (mode == SYMRNN_RNN_TANH) {
                d_x[0] = d_h * (one - gate[0] * gate[0]);
            } else {
                for (int n = 0; n < Block<T>::REGISTERS; ++n)
                    d_x[0].reg[n] = gate[0].reg[n] > T(0) ? d_h.reg[n]
                                                            : (typename Register<T>::type){};
            }
            store(stored_d_h, direct);
            for (int g = 0; g < gates; ++g) {
                Block<T> d_hidden = d_x[g];
                if constexpr (mode == SYMRNN_GRU)
                    if (g == 2) d_hidden = d_x[g] * gate[0];
                store_some(d_gates + g * f.side + unit, d_x[g], count);
                if (d_hidden_row) store_some(d_hidden_row + g * f.side + unit, d_hidden, count);
                store(static_cast<T *>(f.blocked) + g * f.gate + at, d_hidden);
            }
        }
    }
}

template <typename T>
static void backward(const BackwardSlice &f) {
    switch (f.mode) {
    case SYMRNN_LSTM: return backward_slice<T, SYMRNN_LSTM, 4>(f);
    case SYMRNN_GRU: return backward_slice<T, SYMRNN_GRU, 3>(f);
    case SYMRNN_RNN_TANH: return backward_slice<T, SYMRNN_RNN_TANH, 1>(f);
    default: return backward_slice<T, SYMRNN_RNN_RELU, 1>(f);
    }
}

// ---- other kernels ------------------------------------------------------------------------------

template <typename T>
static void activate(int kind, int64_t n, const T *x, T *y) {
    for (int64_t k = 0; k < n; k += 16) {
        const int count = n - k < 16 ? static_cast<int>(n - k) : 16;
        const Block<T> v = load_some(x + k, count);
        store_some(y + k, kind ? tanh(v) : sigmoid(v), count);
    }
}

template <typename T>
static void transpose_tile(const T *from, int64_t stride, T *to) {
    transpose(from, stride, to);
}

template <typename T>
static void add(T *y, const PartialSums &sums, int64_t first, int64_t last, int64_t elements) {
    for (int64_t tile = first; tile < last; ++tile)
        for (int64_t k = 0; k < elements; k += 16) {
            T *const to = y + tile * sums.stride + k;
            store(to, load(to) + sum_of<T>(sums, 0, tile, k / 16));
        }
}

static void narrow(const float *tile, void *to) {
    uint32_t *const words = static_cast<uint32_t *>(to);
    for (int k = 0; k < 16; k += 2)
        for (int r = 0; r < 16; ++r)
            words[8 * k + r] = rounded(tile[16 * k + r]) | rounded(tile[16 * k + 16 + r]) << 16;
}

static void widen(const void *tile, float *to) {
    widened(static_cast<const BFloat16 *>(tile), 1, to);
}

static void round(const float *x, int64_t tiles, int64_t batch, int64_t stride, float *to) {
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t k = tile * stride; k < tile * stride + 16 * batch; ++k) {
            const uint32_t bits = rounded(x[k]) << 16;
            __builtin_memcpy(to + k, &bits, sizeof bits);
        }
}

// Eight accumulators: loads alone are the limit.
static float read(const void *from, int64_t bytes) {
    typedef float Place __attribute__((vector_size(SYMRNN_REGISTER_BYTES), aligned(1), may_alias));
    Register<float>::type sum[8] = {};
    const char *at = static_cast<const char *>(from);
    constexpr int64_t STEP = 8 * SYMRNN_REGISTER_BYTES;
    int64_t done = 0;
    for (; done + STEP <= bytes; done += STEP, at += STEP)
        for (int n = 0; n < 8; ++n)
            sum[n] += *reinterpret_cast<const Place *>(at + n * SYMRNN_REGISTER_BYTES);
    float all = 0;
    for (; done < bytes; ++done, ++at) all += static_cast<float>(*at);
    for (int n = 0; n < 8; ++n)
        for (int k = 0; k < Register<float>::WIDTH; ++k) all += sum[n][k];
    return all;
}

static constexpr Kernels<float> FLOAT32 = {
    multiply<float, float>, multiply<float, BFloat16>, tile_product<float>, forward<float>,
    backward<float>,        activate<float>,           transpose_tile<float>,           narrow,
    widen,                  round,                     add<float>,
};

static constexpr Kernels<double> FLOAT64 = {
    multiply<double, double>, nullptr,          tile_product<double>, forward<double>,
    backward<double>,         activate<double>, transpose_tile<double>,           nullptr,
    nullptr,                  nullptr,                 add<double>,
};
