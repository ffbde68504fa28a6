// Calls every function of symrnn.h over odd sizes and compares with plain loops in double: a program
// by itself, so that sanitizers and valgrind see nothing but the kernels. See scripts/check_native.
//
//     exercise [--small] [--serial] [--if-any] NAME ...    with the kernels of these names
//
// --small is for tools that slow it down many times; --serial for those that let one thread run at a time,
// as valgrind does: layers have their thread teams all the same, but there is one caller on a machine at
// rest. --if-any skips kernels that do not run here. Exits with 1 if anything was wrong.

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "symrnn.h"

namespace {

std::atomic<int> failures{0};
std::string where;  // what is being tried

__attribute__((format(printf, 1, 2))) void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", where.c_str());
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    if (++failures == 20) {
        fprintf(stderr, "and so on\n");
        exit(1);
    }
}

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LINE " (line " TEXT(__LINE__) ")"
#define EXPECT(status, call)                                                                  \
    do {                                                                                      \
        const int got_ = static_cast<int>(call);                                              \
        if (got_ != (status)) fail("%s is %d, not %s" LINE, #call, got_, #status);            \
    } while (0)
#define REFUSED(call)                                                                         \
    do {                                                                                      \
        if ((call) == SYMRNN_OK) fail("%s is taken" LINE, #call);                             \
    } while (0)

// The same numbers on every machine.
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2 + 1) {}
    uint64_t next() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state * 0x2545f4914f6cdd1dull >> 11;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
    bool chance() { return next() >> 20 & 1; }
    double number() { return ldexp(static_cast<double>(next()), -52) - 1; }  // -1 … 1
};

// Memory that ends where the array ends. It begins where the interface promises no more than it
// must: at any multiple of a number's size, behind a guard; packed matrices at one of 64 bytes.
template <typename T>
class Array {
  public:
    Array() = default;
    explicit Array(int64_t n, bool packed = false) : n_(n), guard_(packed ? 0 : 1) {
        const size_t bytes = static_cast<size_t>(n + guard_) * sizeof(T);
        void *memory = nullptr;
        if (!packed) memory = malloc(bytes);
        else if (posix_memalign(&memory, 64, bytes)) memory = nullptr;
        if (!memory) abort();
        start_ = static_cast<T *>(memory);
        memset(memory, 0xff, bytes);  // NaNs: what is read before it is written shows
    }
    Array(Array &&other) noexcept { *this = std::move(other); }
    Array &operator=(Array &&other) noexcept {
        std::swap(start_, other.start_), std::swap(n_, other.n_), std::swap(guard_, other.guard_);
        return *this;
    }
    ~Array() {
        if (start_ && guard_) {
            T before;
            memset(&before, 0xff, sizeof before);
            if (memcmp(start_, &before, sizeof before)) fail("written before an array");
        }
        free(start_);
    }
    T *get() const { return start_ ? start_ + guard_ : nullptr; }
    T &operator[](int64_t i) const { return start_[guard_ + i]; }
    int64_t size() const { return n_; }
    Array copy() const {
        Array other(n_);
        if (n_) memcpy(other.get(), get(), static_cast<size_t>(n_) * sizeof(T));
        return other;
    }

  private:
    T *start_ = nullptr;
    int64_t n_ = 0, guard_ = 0;
};

template <typename T>
Array<T> random_array(Random &random, int64_t n, double scale = 1) {
    Array<T> array(n);
    for (int64_t i = 0; i < n; ++i) array[i] = static_cast<T>(scale * random.number());
    return array;
}

template <typename T>
bool same_bits(const Array<T> &a, const Array<T> &b) {
    return a.size() == b.size() &&
           (!a.size() || !memcmp(a.get(), b.get(), static_cast<size_t>(a.size()) * sizeof(T)));
}

// A matrix in double, for the plain loops.
struct Matrix {
    int64_t rows = 0, columns = 0;
    std::vector<double> at;
    Matrix() = default;
    Matrix(int64_t r, int64_t c) : rows(r), columns(c), at(static_cast<size_t>(r * c), 0.0) {}
    double &operator()(int64_t i, int64_t j) { return at[static_cast<size_t>(i * columns + j)]; }
    double operator()(int64_t i, int64_t j) const {
        return at[static_cast<size_t>(i * columns + j)];
    }
    Matrix transposed() const {
        Matrix t(columns, rows);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) t(j, i) = (*this)(i, j);
        return t;
    }
};

Matrix product_of(const Matrix &a, const Matrix &b) {
    Matrix c(a.rows, b.columns);
    for (int64_t i = 0; i < a.rows; ++i)
        for (int64_t k = 0; k < a.columns; ++k) {
            const double factor = a(i, k);
            if (factor == 0) continue;
            const double *row = &b.at[static_cast<size_t>(k * b.columns)];
            double *sum = &c.at[static_cast<size_t>(i * c.columns)];
            for (int64_t j = 0; j < b.columns; ++j) sum[j] += factor * row[j];
        }
    return c;
}

// The folds, as matrices (to, from).

Matrix even_half(int64_t n) {  // x[i] + x[n-1-i]
    Matrix m((n + 1) / 2, n);
    for (int64_t i = 0; i < m.rows; ++i) m(i, i) = m(i, n - 1 - i) = n == 2 * i + 1 ? 1 : 0.75;
    return m;
}

Matrix odd_half(int64_t n) {  // x[i] - x[n-1-i]
    Matrix m(n / 2, n);
    for (int64_t i = 0; i < m.rows; ++i) m(i, i) = 0.75, m(i, n - 1 - i) = -0.75;
    return m;
}

Matrix chunks(int64_t n) {  // x[i] + x[i+k] + x[i+2k]
    Matrix m((n + 2) / 3, n);
    for (int64_t j = 0; j < n; ++j) m(j % m.rows, j) = 1;
    return m;
}

Matrix identity(int64_t n) {
    Matrix m(n, n);
    for (int64_t i = 0; i < n; ++i) m(i, i) = 1;
    return m;
}

struct Map {
    Array<int32_t> start, index;
    Array<float> scale;
    symrnn_map c{};
    explicit Map(const Matrix &m) : start(m.rows + 1) {
        int32_t entries = 0;
        for (const double one : m.at) entries += one != 0;
        index = Array<int32_t>(entries), scale = Array<float>(entries);
        int32_t k = 0;
        for (int64_t i = 0; i < m.rows; ++i) {
            start[i] = k;
            for (int64_t j = 0; j < m.columns; ++j)
                if (m(i, j) != 0) {
                    index[k] = static_cast<int32_t>(j);
                    scale[k++] = static_cast<float>(m(i, j));
                }
        }
        start[m.rows] = k;
        c.from = static_cast<int32_t>(m.columns), c.to = static_cast<int32_t>(m.rows);
        c.start = start.get(), c.index = index.get(), c.scale = scale.get();
    }
};

enum Kind { SYMMETRIC, FULL, PARTLY, HALVES, MIRROR, CHUNK_COLUMNS, CHUNK_ROWS, HALVES_PARTLY, SKEW };
constexpr int KINDS = 9;

template <typename T>
constexpr int dtype_of() { return sizeof(T) == 8 ? SYMRNN_DOUBLE : SYMRNN_FLOAT; }

// G matrices H × C as terms, and the same in double. T is the type of the arithmetic.
template <typename T>
class Product {
  public:
    symrnn_product c{};
    std::vector<Matrix> w;  // of each gate

    Product(Random &random, int kind, int dtype, int gates, int64_t rows, int64_t columns)
        : random_(random) {
        c.dtype = dtype, c.gates = gates;
        c.rows = static_cast<int32_t>(rows), c.columns = static_cast<int32_t>(columns);
        w.assign(static_cast<size_t>(gates), Matrix(rows, columns));
        const int all = (1 << gates) - 1;
        const int some = gates == 1 ? 1 : static_cast<int>(1 + random.below(all - 1));
        if (rows != columns && kind != MIRROR && kind < CHUNK_COLUMNS) kind = FULL;
        if (rows != columns && kind == HALVES_PARTLY) kind = MIRROR;
        if (rows != columns && kind == SKEW) kind = FULL;
        const Matrix none;
        switch (kind) {
            case SYMMETRIC: add(free_side(), all, none, none); break;
            case FULL: add(0, all, none, none); break;
            case PARTLY:
                add(free_side(), some, none, none);
                if (some != all) add(0, all & ~some, none, none);
                break;
            case HALVES: add_halves(rows, all); break;
            case MIRROR: add(0, all, even_half(columns), even_half(rows).transposed()); break;
            case CHUNK_COLUMNS: add(0, all, chunks(columns), none); break;
            case CHUNK_ROWS: add(0, all, none, chunks(rows).transposed()); break;
            case HALVES_PARTLY:
                add_halves(rows, some);
                if (some != all) add(0, all & ~some, identity(rows), identity(rows));
                break;
            case SKEW:
                add(free_side(), some, none, none);
                if (some != all) add(0, all & ~some, none, none);
                add_skew(random.chance() ? some : all);
                break;
        }
        c.terms = static_cast<int32_t>(terms_.size());
        c.term = terms_.data();
    }

    symrnn_term &term(size_t i) { return terms_[i]; }
    symrnn_skew &skew() { return skew_; }
    symrnn_map &map(size_t i) { return maps_[i]->c; }
    size_t maps() const { return maps_.size(); }

  private:
    Random &random_;
    std::vector<symrnn_term> terms_;
    symrnn_skew skew_{};
    std::vector<std::unique_ptr<Map>> maps_;
    std::vector<Array<uint16_t>> packed_;  // in units of two bytes, whatever the type

    int packed_dtype() const {
        return c.dtype == SYMRNN_BFLOAT16_BOTH ? int(SYMRNN_BFLOAT16) : c.dtype;
    }

    // Of the free blocks of a symmetric matrix, in tiles.
    int free_side() { return random_.chance() ? 1 : static_cast<int>(2 + random_.below(2)); }

    void add_halves(int64_t n, int gates) {
        add(free_side(), gates, even_half(n), even_half(n).transposed());
        if (n > 1) add(free_side(), gates, odd_half(n), odd_half(n).transposed());
    }

    const symrnn_map *keep(const Matrix &m) {
        maps_.push_back(std::make_unique<Map>(m));
        return &maps_.back()->c;
    }

    void add(int symmetric, int gates, const Matrix &inputs, const Matrix &outputs) {
        symrnn_term term{};
        term.symmetric = symmetric, term.gates = gates;
        term.rows = outputs.rows ? static_cast<int32_t>(outputs.columns) : c.rows;
        term.columns = inputs.rows ? static_cast<int32_t>(inputs.rows) : c.columns;
        if (inputs.rows) term.inputs = keep(inputs), term.inputs_adjoint = keep(inputs.transposed());
        if (outputs.rows)
            term.outputs = keep(outputs), term.outputs_adjoint = keep(outputs.transposed());
        const std::vector<Matrix> matrices = pack(term);
        size_t next = 0;
        for (int g = 0; g < c.gates; ++g) {
            if (!(gates >> g & 1)) continue;
            Matrix m = matrices[next++];
            if (inputs.rows) m = product_of(m, inputs);
            if (outputs.rows) m = product_of(outputs, m);
            Matrix &sum = w[static_cast<size_t>(g)];
            for (size_t i = 0; i < m.at.size(); ++i) sum.at[i] += m.at[i];
        }
        terms_.push_back(term);
    }

    // U Vᵀ - V Uᵀ, of more columns than rows too.
    void add_skew(int gates) {
        const int64_t ranks[] = {1, 2, 8, 16, 17}, rank = ranks[random_.below(5)], n = c.rows;
        symrnn_term factors{};  // as a term's matrices, which are packed alike
        factors.gates = gates, factors.rows = c.rows;
        factors.columns = static_cast<int32_t>(2 * rank);
        const int dtype = c.dtype;
        if (dtype == SYMRNN_INT8) c.dtype = SYMRNN_FLOAT;
        const std::vector<Matrix> matrices = pack(factors);
        c.dtype = dtype;
        skew_ = {static_cast<int32_t>(rank), gates, factors.packed};
        c.skew = &skew_;
        size_t next = 0;
        for (int g = 0; g < c.gates; ++g) {
            if (!(gates >> g & 1)) continue;
            const Matrix &p = matrices[next++];
            for (int64_t i = 0; i < n; ++i)
                for (int64_t j = 0; j < n; ++j)
                    for (int64_t k = 0; k < rank; ++k)
                        w[static_cast<size_t>(g)](i, j) +=
                            p(i, k) * p(j, rank + k) - p(i, rank + k) * p(j, k);
        }
    }

    // Draws the matrices of a term, packs them, and returns what was packed.
    std::vector<Matrix> pack(symrnn_term &term) {
        const int gates = __builtin_popcount(static_cast<unsigned>(term.gates));
        const int64_t rows = term.rows, columns = term.columns;
        const int64_t length = symrnn_packed_length(term.symmetric, rows, columns, gates, packed_dtype());
        if (length <= 0) fail("a packed length of %lld", static_cast<long long>(length));
        const int64_t row_stride = columns + random_.below(3);
        const int64_t gate_stride = rows * row_stride + random_.below(5);
        const double scale = 1.5 / sqrt(static_cast<double>(columns));
        Array<T> from((gates - 1) * gate_stride + (rows - 1) * row_stride + columns);
        const auto mirrored = [&](int64_t i, int64_t j) {  // whether (j, i) is read in its place
            return term.symmetric && i / (16 * term.symmetric) > j / (16 * term.symmetric);
        };
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < columns; ++j)  // below the free blocks stay NaNs
                    if (!mirrored(i, j))
                        from[g * gate_stride + i * row_stride + j] =
                            static_cast<T>(scale * random_.number());
        const int dtype = packed_dtype();
        const int64_t size = dtype == SYMRNN_BFLOAT16 ? 2
                             : dtype == SYMRNN_INT8   ? 1
                                                      : static_cast<int64_t>(sizeof(T));
        packed_.emplace_back(length * size / 2, true);
        term.packed = packed_.back().get();
        EXPECT(SYMRNN_OK, symrnn_pack(term.symmetric, rows, columns, gates, dtype_of<T>(),
                                      from.get(), gate_stride, row_stride, dtype,
                                      packed_.back().get(), 1 + static_cast<int>(random_.below(3))));
        Array<T> back(gates * rows * columns);
        EXPECT(SYMRNN_OK, symrnn_unpack(term.symmetric, rows, columns, gates, dtype, term.packed,
                                        back.get()));
        std::vector<Matrix> matrices(static_cast<size_t>(gates), Matrix(rows, columns));
        const double rounding = dtype == SYMRNN_BFLOAT16 ? 1.0 / 256 : 0;
        const double step = dtype == SYMRNN_INT8 ? scale / 100 : 0;  // half of one is 1 / 254 and more
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < columns; ++j) {
                    const bool flip = mirrored(i, j);
                    const double given = from[g * gate_stride + (flip ? j : i) * row_stride +
                                              (flip ? i : j)];
                    const double got = back[(g * rows + i) * columns + j];
                    if (!(fabs(got - given) <= rounding * fabs(given) + step))
                        fail("packed %g, unpacked %g at (%d, %d, %d)", given, got,
                             static_cast<int>(g), static_cast<int>(i), static_cast<int>(j));
                    matrices[static_cast<size_t>(g)](i, j) = got;
                }
        return matrices;
    }
};

// Compares with numbers in double; what is null was not asked for.
template <typename T>
void compare(const char *what, const Array<T> &got, const std::vector<double> &wanted, int dtype) {
    if (!got.get()) return;
    double largest = 1;
    for (const double one : wanted) largest = fmax(largest, fabs(one));
    // int8 rounds vectors too; tests/native/test_int8.py has its products bit for bit.
    const double tolerance = largest * (sizeof(T) == 8                  ? 1e-13
                                        : dtype == SYMRNN_INT8          ? 0.05
                                        : dtype == SYMRNN_BFLOAT16_BOTH ? 0.02
                                                                        : 2e-5);
    if (got.size() != static_cast<int64_t>(wanted.size())) return fail("%s: sizes differ", what);
    for (int64_t i = 0; i < got.size(); ++i) {
        const double right = wanted[static_cast<size_t>(i)], is = static_cast<double>(got[i]);
        if (!(fabs(is - right) <= tolerance))
            return fail("%s[%d] is %.9g, not %.9g", what, static_cast<int>(i), is, right);
    }
}

template <typename T>
std::vector<double> doubles(const Array<T> &array, int64_t size) {
    std::vector<double> all(static_cast<size_t>(size), 0.0);
    for (int64_t i = 0; i < array.size(); ++i) all[static_cast<size_t>(i)] = array[i];
    return all;
}

// The nearest number of bfloat16, ties to even.
double rounded_to_bfloat16(double x) {
    int exponent;
    frexp(x, &exponent);
    return ldexp(nearbyint(ldexp(x, 8 - exponent)), exponent - 8);
}

template <typename T>
void try_multiply(Random &random, const Product<T> &w, int64_t batch, int threads) {
    const int64_t rows = w.c.rows * w.c.gates, columns = w.c.columns;
    for (int transposed = 0; transposed < (w.c.dtype == SYMRNN_INT8 ? 1 : 2); ++transposed) {
        const int64_t from = transposed ? rows : columns, to = transposed ? columns : rows;
        const Array<T> x = random_array<T>(random, batch * from);
        Array<T> y(batch * to), again(batch * to);
        EXPECT(SYMRNN_OK, symrnn_multiply(&w.c, transposed, batch, x.get(), y.get(), 1, threads));
        EXPECT(SYMRNN_OK, symrnn_multiply(&w.c, transposed, batch, x.get(), again.get(), 2, threads));
        if (!same_bits(y, again)) fail("multiply is not the same again");
        // What is rounded is known where x itself is multiplied, and nothing else.
        const bool known = w.c.dtype == SYMRNN_BFLOAT16_BOTH && !w.c.skew && !w.c.term->inputs &&
                           !w.c.term->outputs;
        std::vector<double> wanted(static_cast<size_t>(batch * to), 0.0);
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t row = 0; row < rows; ++row) {
                const Matrix &m = w.w[static_cast<size_t>(row / w.c.rows)];
                for (int64_t j = 0; j < columns; ++j) {
                    const double entry = m(row % w.c.rows, j);
                    double given = x[b * from + (transposed ? row : j)];
                    if (known) given = rounded_to_bfloat16(given);
                    wanted[static_cast<size_t>(b * to + (transposed ? j : row))] += entry * given;
                }
            }
        compare(transposed ? "multiply, transposed" : "multiply", y, wanted,
                known ? int(SYMRNN_FLOAT) : w.c.dtype);
    }
}

// The shape of a run, and the order of its steps.
struct Run {
    int64_t steps, batch;
    Array<int64_t> lengths;  // none: all are `batch`
    bool reverse;
    int64_t size(int64_t t) const { return lengths.get() ? lengths[t] : batch; }
    int64_t first_row(int64_t t) const {
        int64_t row = 0;
        for (int64_t s = 0; s < t; ++s) row += size(s);
        return row;
    }
    int64_t rows() const { return first_row(steps); }
    int64_t step(int64_t k) const { return reverse ? steps - 1 - k : k; }  // the k-th that is run
    // The row of sequence b at the step run before the k-th; -1 where that is the state before.
    int64_t row_before(int64_t k, int64_t b) const {
        return k && b < size(step(k - 1)) ? first_row(step(k - 1)) + b : -1;
    }
};

int gates_of(int mode) { return mode == SYMRNN_LSTM ? 4 : mode == SYMRNN_GRU ? 3 : 1; }

// Everything that a layer's two functions take and give.
template <typename T>
struct Case {
    int mode;
    int64_t hidden, inputs;
    int threads;
    Run run;
    std::unique_ptr<Product<T>> hh, ih;
    Array<T> bias, bias_n, state_mask, x, given, gates, cells, h0, c0, output, hn, cn;
    Array<T> d_output, d_hn, d_cn, d_gates, d_hidden, d_h0, d_c0;
    symrnn_layer layer{};

    Case(Random &random, int kind, int dtype, int mode_, int64_t hidden_, int64_t batch,
         int threads_)
        : mode(mode_), hidden(hidden_), threads(threads_) {
        const int64_t G = gates_of(mode), H = hidden, B = batch;
        run.steps = random.below(5) ? 1 + random.below(3) : 9, run.batch = B, run.reverse = random.chance();
        if (random.chance()) {
            run.lengths = Array<int64_t>(run.steps);
            run.lengths[0] = B;
            for (int64_t t = 1; t < run.steps; ++t)
                run.lengths[t] = 1 + random.below(run.lengths[t - 1]);
        }
        const int64_t R = run.rows();
        hh = std::make_unique<Product<T>>(random, kind, dtype, static_cast<int>(G), H, H);
        if (mode == SYMRNN_GRU && random.chance()) bias_n = random_array<T>(random, H);
        if (random.chance()) state_mask = random_array<T>(random, B * H);
        const bool with_inputs = random.chance(), keep = random.chance();
        if (with_inputs) {
            const int64_t sizes[] = {1, 7, 16, 35, H};
            inputs = sizes[random.below(5)];
            ih = std::make_unique<Product<T>>(random, static_cast<int>(random.below(KINDS)), dtype,
                                              static_cast<int>(G), H, inputs);
            x = random_array<T>(random, R * inputs);
            if (random.chance()) bias = random_array<T>(random, G * H);
        } else {
            given = random_array<T>(random, R * G * H);
        }
        if (!with_inputs || keep) gates = Array<T>(R * G * H);
        if (keep && (mode == SYMRNN_LSTM || mode == SYMRNN_GRU)) cells = Array<T>(R * H);
        if (random.chance()) h0 = random_array<T>(random, B * H);
        if (mode == SYMRNN_LSTM && random.chance()) c0 = random_array<T>(random, B * H);
        output = Array<T>(R * H), hn = Array<T>(B * H);
        if (mode == SYMRNN_LSTM) cn = Array<T>(B * H);

        if (random.chance()) d_output = random_array<T>(random, R * H);
        if (random.chance()) d_hn = random_array<T>(random, B * H);
        if (mode == SYMRNN_LSTM && random.chance()) d_cn = random_array<T>(random, B * H);
        d_gates = Array<T>(R * G * H), d_h0 = Array<T>(B * H);
        if (mode == SYMRNN_GRU) d_hidden = Array<T>(R * G * H);
        if (mode == SYMRNN_LSTM) d_c0 = Array<T>(B * H);

        layer.mode = mode, layer.hh = &hh->c, layer.ih = ih ? &ih->c : nullptr;
        layer.bias = bias.get(), layer.bias_n = bias_n.get();
        layer.state_mask = state_mask.get();
    }

    // What h is multiplied by before the hidden weights.
    double mask(int64_t b, int64_t j) const {
        return state_mask.get() ? state_mask[b * hidden + j] : 1;
    }

    bool saved() const { return gates.get() && (cells.get() || gates_of(mode) == 1); }

    int forward() {
        if (given.get()) gates = given.copy();
        return symrnn_forward(&layer, run.steps, run.batch, run.lengths.get(), run.reverse, x.get(),
                              gates.get(), cells.get(), h0.get(), c0.get(), output.get(), hn.get(),
                              cn.get(), threads);
    }

    int backward() {
        return symrnn_backward(&layer, run.steps, run.batch, run.lengths.get(), run.reverse,
                               gates.get(), cells.get(), h0.get(), c0.get(), output.get(),
                               d_output.get(), d_hn.get(), d_cn.get(), d_gates.get(),
                               d_hidden.get(), d_h0.get(), d_c0.get(), threads);
    }
};

double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// The readable loop, forward.
template <typename T>
void check_forward(const Case<T> &c) {
    const int64_t G = gates_of(c.mode), H = c.hidden, I = c.inputs, B = c.run.batch,
                  R = c.run.rows();
    std::vector<double> gates = doubles(c.given, R * G * H), cells(static_cast<size_t>(R * H)),
                        output(static_cast<size_t>(R * H)), h = doubles(c.h0, B * H),
                        cell = doubles(c.c0, B * H);
    for (int64_t k = 0; k < c.run.steps; ++k) {
        const int64_t t = c.run.step(k), first = c.run.first_row(t);
        for (int64_t b = 0; b < c.run.size(t); ++b) {
            double *gate = &gates[static_cast<size_t>((first + b) * G * H)];
            double *state = &h[static_cast<size_t>(b * H)], *c_state = &cell[static_cast<size_t>(b * H)];
            std::vector<double> hidden(static_cast<size_t>(G * H), 0.0), next(static_cast<size_t>(H));
            for (int64_t g = 0; g < G; ++g)
                for (int64_t i = 0; i < H; ++i) {
                    double sum = 0, input = 0;
                    for (int64_t j = 0; j < H; ++j)
                        sum += c.hh->w[static_cast<size_t>(g)](i, j) * state[j] * c.mask(b, j);
                    hidden[static_cast<size_t>(g * H + i)] = sum;
                    if (!c.ih) continue;
                    for (int64_t j = 0; j < I; ++j)
                        input += c.ih->w[static_cast<size_t>(g)](i, j) * c.x[(first + b) * I + j];
                    gate[g * H + i] = input + (c.bias.get() ? c.bias[g * H + i] : 0);
                }
            for (int64_t i = 0; i < H; ++i) {
                const double *own = &hidden[static_cast<size_t>(i)];
                double *a = gate + i;
                const size_t at = static_cast<size_t>((first + b) * H + i);
                double y;
                if (c.mode == SYMRNN_LSTM) {
                    a[0] = sigmoid(a[0] + own[0]), a[H] = sigmoid(a[H] + own[H]);
                    a[2 * H] = tanh(a[2 * H] + own[2 * H]);
                    a[3 * H] = sigmoid(a[3 * H] + own[3 * H]);
                    cells[at] = c_state[i] = a[H] * c_state[i] + a[0] * a[2 * H];
                    y = a[3 * H] * tanh(c_state[i]);
                } else if (c.mode == SYMRNN_GRU) {
                    a[0] = sigmoid(a[0] + own[0]), a[H] = sigmoid(a[H] + own[H]);
                    cells[at] = own[2 * H] + (c.bias_n.get() ? c.bias_n[i] : 0);
                    a[2 * H] = tanh(a[2 * H] + a[0] * cells[at]);
                    y = (1 - a[H]) * a[2 * H] + a[H] * state[i];
                } else {
                    const double sum = a[0] + own[0];
                    a[0] = y = c.mode == SYMRNN_RNN_TANH ? tanh(sum) : fmax(sum, 0);
                }
                output[at] = y;
                // Rounded to int8, a state that differs little may give one that differs more.
                const bool given = c.hh->c.dtype == SYMRNN_INT8;
                next[static_cast<size_t>(i)] = given ? c.output[static_cast<int64_t>(at)] : y;
            }
            std::copy(next.begin(), next.end(), state);
        }
    }
    compare("gates", c.gates, gates, c.hh->c.dtype);
    compare("cells", c.cells, cells, c.hh->c.dtype);
    compare("output", c.output, output, c.hh->c.dtype);
    compare("hn", c.hn, h, c.hh->c.dtype);
    compare("cn", c.cn, cell, c.hh->c.dtype);
}

// The readable loop, backward, from what the forward pass saved.
template <typename T>
void check_backward(const Case<T> &c) {
    const int64_t G = gates_of(c.mode), H = c.hidden, B = c.run.batch, R = c.run.rows();
    std::vector<double> d_gates(static_cast<size_t>(R * G * H)), d_hidden = d_gates,
        d_h = doubles(c.d_hn, B * H), d_c = doubles(c.d_cn, B * H);
    for (int64_t k = c.run.steps - 1; k >= 0; --k) {
        const int64_t t = c.run.step(k), first = c.run.first_row(t);
        for (int64_t b = 0; b < c.run.size(t); ++b) {
            const int64_t row = first + b, before = c.run.row_before(k, b);
            double *dh = &d_h[static_cast<size_t>(b * H)], *dc = &d_c[static_cast<size_t>(b * H)];
            double *to = &d_gates[static_cast<size_t>(row * G * H)];
            double *to_hidden = &d_hidden[static_cast<size_t>(row * G * H)];
            std::vector<double> next(static_cast<size_t>(H), 0.0);
            for (int64_t i = 0; i < H; ++i) {
                const T *a = c.gates.get() + row * G * H + i;
                const double d = dh[i] + (c.d_output.get() ? c.d_output[row * H + i] : 0);
                if (c.mode == SYMRNN_LSTM) {
                    const double in = a[0], f = a[H], g = a[2 * H], o = a[3 * H];
                    const double past = before >= 0    ? c.cells[before * H + i]
                                        : c.c0.get() ? c.c0[b * H + i]
                                                       : 0;
                    const double y = tanh(static_cast<double>(c.cells[row * H + i]));
                    const double d_cell = dc[i] + d * o * (1 - y * y);
                    to[i] = d_cell * g * in * (1 - in), to[H + i] = d_cell * past * f * (1 - f);
                    to[2 * H + i] = d_cell * in * (1 - g * g), to[3 * H + i] = d * y * o * (1 - o);
                    dc[i] = d_cell * f;
                } else if (c.mode == SYMRNN_GRU) {
                    const double r = a[0], z = a[H], n = a[2 * H], saved = c.cells[row * H + i];
                    const double past = before >= 0    ? c.output[before * H + i]
                                        : c.h0.get() ? c.h0[b * H + i]
                                                       : 0;
                    const double d_n = d * (1 - z) * (1 - n * n);
                    to[i] = d_n * saved * r * (1 - r), to[H + i] = d * (past - n) * z * (1 - z);
                    to[2 * H + i] = d_n;
                    next[static_cast<size_t>(i)] = d * z;
                    to_hidden[2 * H + i] = d_n * r;
                } else {
                    const double y = a[0];
                    to[i] = c.mode == SYMRNN_RNN_TANH ? d * (1 - y * y) : y > 0 ? d : 0;
                }
            }
            std::copy(to, to + (c.mode == SYMRNN_GRU ? 2 : G) * H, to_hidden);
            for (int64_t g = 0; g < G; ++g)
                for (int64_t i = 0; i < H; ++i)
                    for (int64_t j = 0; j < H; ++j)
                        next[static_cast<size_t>(j)] +=
                            c.hh->w[static_cast<size_t>(g)](i, j) * to_hidden[g * H + i] * c.mask(b, j);
            std::copy(next.begin(), next.end(), dh);
        }
    }
    compare("d_gates", c.d_gates, d_gates, c.hh->c.dtype);
    compare("d_hidden", c.d_hidden, d_hidden, c.hh->c.dtype);
    compare("d_h0", c.d_h0, d_h, c.hh->c.dtype);
    compare("d_c0", c.d_c0, d_c, c.hh->c.dtype);
}

template <typename T>
void try_layer(Random &random, int kind, int dtype, int mode, int64_t hidden, int64_t batch) {
    const int threads = 1 + static_cast<int>(random.below(3));
    Case<T> c(random, kind, dtype, mode, hidden, batch, threads);
    char words[200];
    snprintf(words, sizeof words,
             "%s, mode %d, dtype %d, kind %d, H %d, T %d, B %d%s%s, I %d, %d threads", symrnn_cpu(),
             mode, dtype, kind, static_cast<int>(hidden), static_cast<int>(c.run.steps),
             static_cast<int>(batch), c.run.lengths.get() ? " with lengths" : "",
             c.run.reverse ? " in reverse" : "", c.ih ? static_cast<int>(c.inputs) : 0, threads);
    where = words;
    try_multiply(random, *c.hh, batch, threads);
    if (c.ih) try_multiply(random, *c.ih, batch, threads);
    if (batch == 33) try_multiply(random, *c.hh, 65, threads);  // in two passes
    EXPECT(SYMRNN_OK, c.forward());
    check_forward(c);
    if (!c.saved()) return;
    if (dtype == SYMRNN_INT8) {
        EXPECT(SYMRNN_DTYPE, c.backward());
        return;
    }
    EXPECT(SYMRNN_OK, c.backward());
    check_backward(c);
}

template <typename T>
void try_activations() {
    where = std::string(symrnn_cpu()) + ", activate";
    const double special[] = {0., -0., 1e-30, -1e-30, 1e-4, -0.3, 0.6, 1, 9, -9, 17, -17,
                              40, -40, 87, -87, 89, -104, 1e30, -1e30, INFINITY, -INFINITY, NAN};
    const int64_t specials = sizeof special / sizeof *special;
    Random random(5);
    for (int kind = 0; kind < 2; ++kind)
        for (int64_t n = 0; n < 70; ++n) {
            Array<T> x(n), y(n);
            for (int64_t i = 0; i < n; ++i)
                x[i] = static_cast<T>(i + n < 2 * specials ? special[(i + n) % specials]
                                                           : 12 * random.number());
            EXPECT(SYMRNN_OK, symrnn_activate(kind, dtype_of<T>(), n, x.get(), y.get()));
            for (int64_t i = 0; i < n; ++i) {
                const double of = x[i], right = kind ? tanh(of) : sigmoid(of), got = y[i];
                const double near = fabs(right) * (sizeof(T) == 8 ? 4e-15 : 1e-6) + 1e-37;
                if (isnan(of) ? !isnan(got) : !(fabs(got - right) <= near))
                    fail("%s(%.9g) is %.9g, not %.9g", kind ? "tanh" : "sigmoid", of, got, right);
            }
        }
}

template <typename T>
void try_matmul(Random &random) {
    int turn = 0;
    for (const int64_t k : {0, 1, 5, 16, 300})
        for (const int64_t m : {1, 35, 150})
            for (const int64_t n : {1, 16, 33}) {
                const bool a_transposed = turn & 1, b_transposed = turn & 2, biased = turn & 4;
                ++turn;
                const int threads = 1 + static_cast<int>(random.below(3));
                char words[100];
                snprintf(words, sizeof words, "%s, matmul %d × %d × %d, %d threads", symrnn_cpu(),
                         static_cast<int>(m), static_cast<int>(k), static_cast<int>(n), threads);
                where = words;
                const Array<T> a = random_array<T>(random, m * k);
                const Array<T> b = random_array<T>(random, k * n);
                const Array<T> bias = random_array<T>(random, n);
                Array<T> out(m * n);
                EXPECT(SYMRNN_OK,
                       symrnn_matmul(dtype_of<T>(), m, n, k, a.get(), a_transposed, b.get(), b_transposed,
                                     biased ? bias.get() : nullptr, out.get(), threads));
                for (int64_t i = 0; i < m; ++i)
                    for (int64_t j = 0; j < n; ++j) {
                        double sum = biased ? static_cast<double>(bias[j]) : 0;
                        for (int64_t r = 0; r < k; ++r)
                            sum += static_cast<double>(a[a_transposed ? r * m + i : i * k + r]) *
                                   b[b_transposed ? j * k + r : r * n + j];
                        if (!(fabs(out[i * n + j] - sum) <= (sizeof(T) == 8 ? 1e-11 : 1e-3)))
                            fail("(%d, %d) is %.9g, not %.9g", static_cast<int>(i),
                                 static_cast<int>(j), static_cast<double>(out[i * n + j]), sum);
                    }
            }
    Array<T> one(1);
    const auto wrong = [&](int dtype, int64_t m, int64_t n, int64_t k, const void *a, void *out) {
        return symrnn_matmul(dtype, m, n, k, a, 0, one.get(), 0, nullptr, out, 1);
    };
    const int dtype = dtype_of<T>();
    EXPECT(SYMRNN_SIZE, wrong(dtype, 1, 1, -1, one.get(), one.get()));
    EXPECT(SYMRNN_SIZE, wrong(dtype, 1, 1, INT64_MAX, one.get(), one.get()));
    EXPECT(SYMRNN_SIZE, wrong(dtype, 0, 1, 1, one.get(), one.get()));
    EXPECT(SYMRNN_SIZE, wrong(dtype, INT64_MAX, INT64_MAX, 1, one.get(), one.get()));
    EXPECT(SYMRNN_NULL, wrong(dtype, 1, 1, 1, nullptr, one.get()));
    EXPECT(SYMRNN_NULL, wrong(dtype, 1, 1, 1, one.get(), nullptr));
    EXPECT(SYMRNN_DTYPE, wrong(SYMRNN_BFLOAT16, 1, 1, 1, one.get(), one.get()));
}

// Triangles are packed as the matrices that they are of; and the adjoint, entry by entry.
template <typename T>
void try_triangles(Random &random, int64_t side, int64_t block) {
    char words[100];
    snprintf(words, sizeof words, "%s, triangles of side %d, free blocks of %d", symrnn_cpu(),
             static_cast<int>(side), static_cast<int>(block));
    where = words;
    const int gates = 2, symmetric = static_cast<int>((std::min(block, side) + 15) / 16), dtype = dtype_of<T>();
    const double scale = 0.75;
    const auto begins = [&](int64_t i) { return i / block * block; };  // column of the row's block
    int64_t numel = 0;
    for (int64_t i = 0; i < side; ++i) numel += side - begins(i);
    const int64_t stride = numel + random.below(3);
    const Array<T> from = random_array<T>(random, stride + numel);
    Array<T> dense(gates * side * side);
    const auto entry = [&](const Array<T> &all, int64_t g, int64_t i, int64_t j) -> T & {
        return all[(g * side + i) * side + j];
    };
    for (int64_t g = 0; g < gates; ++g)
        for (int64_t i = 0, k = g * stride; i < side; ++i)
            for (int64_t j = begins(i); j < side; ++j, ++k) {
                const bool free = j - begins(i) < block;
                entry(dense, g, i, j) = free ? from[k] : static_cast<T>(scale) * from[k];
                if (!free) entry(dense, g, j, i) = entry(dense, g, i, j);
            }
    for (const int to : {dtype, static_cast<int>(SYMRNN_BFLOAT16), static_cast<int>(SYMRNN_INT8)}) {
        if (to != dtype && dtype == SYMRNN_DOUBLE) continue;
        const int64_t length = symrnn_packed_length(symmetric, side, side, gates, to);
        const int64_t bytes = length * (to == SYMRNN_INT8 ? 1 : to == SYMRNN_BFLOAT16 ? 2 : sizeof(T));
        Array<uint8_t> packed(bytes, true), again(bytes, true);
        EXPECT(SYMRNN_OK, symrnn_pack(symmetric, side, side, gates, dtype, dense.get(), side * side, side,
                                      to, packed.get(), 2));
        EXPECT(SYMRNN_OK, symrnn_pack_triangles(side, block, gates, dtype, from.get(), stride, scale, to,
                                                again.get(), 1 + static_cast<int>(random.below(3))));
        if (memcmp(packed.get(), again.get(), static_cast<size_t>(bytes))) fail("packed otherwise");
    }
    const Array<T> d = random_array<T>(random, gates * side * side);
    Array<T> adjoint(gates * numel);
    EXPECT(SYMRNN_OK, symrnn_triangle_adjoint(side, block, gates, dtype, d.get(), scale, adjoint.get(),
                                              1 + static_cast<int>(random.below(3))));
    std::vector<double> wanted;
    for (int64_t g = 0; g < gates; ++g)
        for (int64_t i = 0; i < side; ++i)
            for (int64_t j = begins(i); j < side; ++j)
                wanted.push_back(j - begins(i) < block
                                     ? static_cast<double>(entry(d, g, i, j))
                                     : scale * (static_cast<double>(entry(d, g, i, j)) + entry(d, g, j, i)));
    compare("the adjoint", adjoint, wanted, dtype);
}

void try_reading() {
    where = std::string(symrnn_cpu()) + ", read";
    for (const int64_t bytes : {0, 1, 3, 63, 64, 65, 127, 1000, 5001})
        for (int threads = 1; threads <= 3; ++threads) {
            Array<uint8_t> from(bytes);
            for (int64_t i = 0; i < bytes; ++i) from[i] = static_cast<uint8_t>(i);
            float sum = 0;
            EXPECT(SYMRNN_OK, symrnn_read(from.get(), bytes, 2, threads, &sum));
        }
}

// What must be refused. The case is a sound one, of an LSTM or a GRU with input weights.
template <typename T>
void try_wrong_layers(Case<T> &c) {
    where = "wrong layers";
    const bool lstm = c.mode == SYMRNN_LSTM;
    EXPECT(SYMRNN_OK, c.forward());
    EXPECT(SYMRNN_OK, c.backward());
    const symrnn_layer sound = c.layer;
    const auto both = [&](int status) {
        EXPECT(status, c.forward());
        EXPECT(status, c.backward());
        c.layer = sound;
    };
    c.layer.mode = 17, both(SYMRNN_MODE);
    c.layer.mode = -1, both(SYMRNN_MODE);
    c.layer.mode = lstm ? SYMRNN_GRU : SYMRNN_LSTM, both(SYMRNN_SIZE);
    c.layer.hh = nullptr, both(SYMRNN_NULL);
    const int64_t steps = c.run.steps, batch = c.run.batch;
    c.run.steps = -1;
    both(SYMRNN_SIZE);
    c.run.steps = steps, c.run.batch = -1;
    both(SYMRNN_SIZE);
    c.run.batch = batch;
    // Through the interface itself: our own sums of rows would overflow, as theirs must not.
    for (const int64_t huge : {INT64_MAX, INT64_MAX / 4, INT64_MAX / 512})
        for (const bool many_steps : {false, true}) {
            const int64_t t = many_steps ? huge : 2, b = many_steps ? batch : huge;
            REFUSED(symrnn_forward(&c.layer, t, b, nullptr, 0, c.x.get(), c.gates.get(),
                                   c.cells.get(), nullptr, nullptr, c.output.get(), c.hn.get(),
                                   c.cn.get(), 1));
            REFUSED(symrnn_backward(&c.layer, t, b, nullptr, 0, c.gates.get(), c.cells.get(),
                                    nullptr, nullptr, c.output.get(), nullptr, nullptr, nullptr,
                                    c.d_gates.get(), c.d_hidden.get(), c.d_h0.get(),
                                    c.d_c0.get(), 1));
        }

    // One pointer after the other. The array lives on, so that only the null is new.
    const auto without = [&](Array<T> &array, bool forward, bool backward) {
        if (!array.get()) return;
        Array<T> aside = std::move(array);
        array = Array<T>();
        if (forward) EXPECT(SYMRNN_NULL, c.forward());
        if (backward) EXPECT(SYMRNN_NULL, c.backward());
        array = std::move(aside);
    };
    without(c.x, true, false);
    without(c.output, true, !lstm);
    without(c.hn, true, false);
    without(c.cn, true, false);
    without(c.gates, false, true);
    without(c.cells, false, true);
    without(c.d_gates, false, true);
    without(c.d_hidden, false, true);
    without(c.d_h0, false, true);
    without(c.d_c0, false, true);

    const std::vector<int64_t> wrong[] = {{batch, batch + 1}, {batch, 0}, {batch, -5},
                                          {batch - 1, 1},     {batch + 1, 1}, {0, 0}};
    Array<int64_t> right = std::move(c.run.lengths);
    for (const std::vector<int64_t> &lengths : wrong) {
        EXPECT(SYMRNN_LENGTHS,
               symrnn_forward(&c.layer, 2, batch, lengths.data(), 0, c.x.get(), c.gates.get(),
                              c.cells.get(), nullptr, nullptr, c.output.get(), c.hn.get(),
                              c.cn.get(), 1));
        EXPECT(SYMRNN_LENGTHS,
               symrnn_backward(&c.layer, 2, batch, lengths.data(), 0, c.gates.get(), c.cells.get(),
                               nullptr, nullptr, c.output.get(), nullptr, nullptr, nullptr,
                               c.d_gates.get(), c.d_hidden.get(), c.d_h0.get(), c.d_c0.get(), 1));
    }
    c.run.lengths = std::move(right);

    const symrnn_product product = c.ih->c;
    c.ih->c.rows += 1;
    REFUSED(c.forward());
    c.ih->c = product;
    c.ih->c.dtype = product.dtype == SYMRNN_DOUBLE ? SYMRNN_FLOAT : SYMRNN_DOUBLE;
    EXPECT(SYMRNN_DTYPE, c.forward());
    c.ih->c = product;
    EXPECT(SYMRNN_NULL, symrnn_forward(nullptr, 1, 1, nullptr, 0, nullptr, nullptr, nullptr, nullptr,
                                       nullptr, nullptr, nullptr, nullptr, 1));
    EXPECT(SYMRNN_NULL, symrnn_backward(nullptr, 1, 1, nullptr, 0, nullptr, nullptr, nullptr,
                                        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                                        nullptr, nullptr, nullptr, 1));
}

void try_wrong_products(Random &random) {
    where = "wrong products";
    const int64_t B = 2, H = 17, G = 4;
    const Array<float> x = random_array<float>(random, B * H * G);
    Array<float> y(B * H * G);
    const auto multiply = [&](const Product<float> &w, int transposed) {
        return symrnn_multiply(&w.c, transposed, B, x.get(), y.get(), 1, 1);
    };
    Product<float> w(random, HALVES, SYMRNN_FLOAT, G, H, H);
    EXPECT(SYMRNN_OK, multiply(w, 0));
    EXPECT(SYMRNN_OK, multiply(w, 1));
    EXPECT(SYMRNN_NULL, symrnn_multiply(nullptr, 0, B, x.get(), y.get(), 1, 1));
    EXPECT(SYMRNN_NULL, symrnn_multiply(&w.c, 0, B, nullptr, y.get(), 1, 1));
    EXPECT(SYMRNN_NULL, symrnn_multiply(&w.c, 0, B, x.get(), nullptr, 1, 1));
    EXPECT(SYMRNN_SIZE, symrnn_multiply(&w.c, 0, -1, x.get(), y.get(), 1, 1));
    for (const int64_t batch : {INT64_MAX, INT64_MAX / 4, INT64_MAX / 64, INT64_MAX / 1024})
        REFUSED(symrnn_multiply(&w.c, 0, batch, x.get(), y.get(), 1, 1));
    EXPECT(SYMRNN_SIZE, symrnn_multiply(&w.c, 0, B, x.get(), y.get(), -1, 1));

    const auto wrong_product = [&](auto change, int status) {
        const symrnn_product sound = w.c;
        change(w.c);
        for (int transposed = 0; transposed < 2; ++transposed) {
            if (status) EXPECT(status, multiply(w, transposed));
            else REFUSED(multiply(w, transposed));
        }
        w.c = sound;
    };
    wrong_product([](symrnn_product &p) { p.dtype = 3; }, SYMRNN_DTYPE);
    wrong_product([](symrnn_product &p) { p.dtype = -1; }, SYMRNN_DTYPE);
    wrong_product([](symrnn_product &p) { p.gates = 0; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.gates = 5; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.rows = 0; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.columns = -3; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.rows += 1; }, 0);
    wrong_product([](symrnn_product &p) { p.columns -= 1; }, 0);
    wrong_product([](symrnn_product &p) { p.terms = 0; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.terms = -1; }, SYMRNN_SIZE);
    wrong_product([](symrnn_product &p) { p.term = nullptr; }, SYMRNN_NULL);

    const auto wrong_term = [&](auto change, int status) {
        const symrnn_term sound = w.term(0);
        change(w.term(0));
        if (status) EXPECT(status, multiply(w, 0));
        else REFUSED(multiply(w, 0));
        w.term(0) = sound;
    };
    wrong_term([](symrnn_term &t) { t.packed = nullptr; }, SYMRNN_NULL);
    wrong_term([](symrnn_term &t) { t.packed = static_cast<const char *>(t.packed) + 4; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.gates = 0; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.gates = 1 << 4; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.gates = -1; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.rows = 0; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.symmetric = -1; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.columns = -1; }, SYMRNN_SIZE);
    wrong_term([](symrnn_term &t) { t.rows += 1; }, 0);     // symmetric, and no longer square
    wrong_term([](symrnn_term &t) { t.rows = ++t.columns; }, 0);
    wrong_term([](symrnn_term &t) { t.inputs = nullptr; }, 0);
    wrong_term([](symrnn_term &t) { t.outputs = nullptr; }, 0);
    {
        const symrnn_term sound = w.term(0);
        w.term(0).inputs_adjoint = w.term(0).outputs_adjoint = nullptr;
        EXPECT(SYMRNN_OK, multiply(w, 0));
        EXPECT(SYMRNN_NULL, multiply(w, 1));
        w.term(0) = sound;
    }

    where = "a wrong skew part";
    Product<float> skew(random, SKEW, SYMRNN_FLOAT, G, H, H);
    const auto wrong_skew = [&](auto change, int status) {
        const symrnn_skew sound = skew.skew();
        change(skew.skew());
        EXPECT(status, multiply(skew, 0));
        EXPECT(status, multiply(skew, 1));
        skew.skew() = sound;
    };
    wrong_skew([](symrnn_skew &) {}, SYMRNN_OK);
    wrong_skew([](symrnn_skew &s) { s.packed = nullptr; }, SYMRNN_NULL);
    wrong_skew([](symrnn_skew &s) { s.packed = static_cast<const char *>(s.packed) + 4; }, SYMRNN_SIZE);
    wrong_skew([](symrnn_skew &s) { s.rank = 0; }, SYMRNN_SIZE);
    wrong_skew([](symrnn_skew &s) { s.rank = -1; }, SYMRNN_SIZE);
    wrong_skew([](symrnn_skew &s) { s.gates = 0; }, SYMRNN_SIZE);
    wrong_skew([](symrnn_skew &s) { s.gates = 1 << 4; }, SYMRNN_SIZE);
    w.c.skew = &skew.skew();  // beside maps
    EXPECT(SYMRNN_MAP, multiply(w, 0));
    w.c.skew = nullptr;
    Product<float> wide(random, FULL, SYMRNN_FLOAT, G, H, H + 1);
    wide.c.skew = &skew.skew();
    EXPECT(SYMRNN_SIZE, multiply(wide, 0));

    where = "wrong maps";
    const auto wrong_map = [&](auto change, int status) {
        for (size_t i = 0; i < w.maps(); ++i) {  // of both terms, with W and with Wᵀ
            const symrnn_map sound = w.map(i);
            change(w.map(i));
            const int forward = multiply(w, 0), transposed = multiply(w, 1);
            const int got = forward ? forward : transposed;
            if (got == SYMRNN_OK || (status && got != status)) fail("map %d: %d", int(i), got);
            w.map(i) = sound;
        }
    };
    wrong_map([](symrnn_map &m) { m.start = nullptr; }, SYMRNN_NULL);
    wrong_map([](symrnn_map &m) { m.index = nullptr; }, SYMRNN_NULL);
    wrong_map([](symrnn_map &m) { m.scale = nullptr; }, SYMRNN_NULL);
    for (const int change : {1, -1, -100, 1 << 28}) {
        wrong_map([=](symrnn_map &m) { m.from += change; }, 0);
        wrong_map([=](symrnn_map &m) { m.to += change; }, 0);
    }
    const auto wrong_entry = [&](bool of_start, int64_t at, int32_t number) {
        for (size_t i = 0; i < w.maps(); ++i) {
            const int32_t *array = of_start ? w.map(i).start : w.map(i).index;
            int32_t &entry = const_cast<int32_t &>(array[at < 0 ? w.map(i).to + 1 + at : at]);
            const int32_t sound = entry;
            entry = number;
            const int forward = multiply(w, 0), transposed = multiply(w, 1);
            if ((forward ? forward : transposed) != SYMRNN_MAP)
                fail("map %d, number %d: %d, %d", int(i), number, forward, transposed);
            entry = sound;
        }
    };
    wrong_entry(false, 0, -1);
    wrong_entry(false, 1, 1000);
    wrong_entry(false, 1, INT32_MAX);
    wrong_entry(true, 0, 1);
    wrong_entry(true, 0, -1);
    wrong_entry(true, 1, 1000);
    wrong_entry(true, 2, -7);
    wrong_entry(true, -1, 0);  // the last: fewer entries than the one before

    where = "terms that do not fit together";
    Product<float> partly(random, PARTLY, SYMRNN_FLOAT, G, H, H);
    EXPECT(SYMRNN_OK, multiply(partly, 0));
    partly.c.terms = 1;  // some gates have none
    REFUSED(multiply(partly, 0));
    partly.c.terms = 2;
    const int32_t gates = partly.term(1).gates;
    partly.term(1).gates = partly.term(0).gates;  // some have two, if not more packed than there is
    if (__builtin_popcount(static_cast<unsigned>(gates)) >=
        __builtin_popcount(static_cast<unsigned>(partly.term(0).gates)))
        REFUSED(multiply(partly, 0));
    partly.term(1).gates = gates;
    partly.term(1).inputs = partly.term(1).inputs_adjoint = &w.map(0);  // a map beside none
    REFUSED(multiply(partly, 0));
}

void try_wrong_packing() {
    where = "wrong packing";
    const auto size = [](int symmetric, int64_t rows, int64_t columns, int gates) {
        return symrnn_packed_length(symmetric, rows, columns, gates, SYMRNN_FLOAT);
    };
    EXPECT(-SYMRNN_DTYPE, symrnn_packed_length(0, 3, 3, 1, 5));
    EXPECT(-SYMRNN_SIZE, symrnn_packed_length(0, 1, 65537, 1, SYMRNN_INT8));
    EXPECT(256 + 2 * 16 * 8 + 256, symrnn_packed_length(0, 3, 4, 2, SYMRNN_INT8));
    EXPECT(-SYMRNN_SIZE, size(0, 0, 3, 1));
    EXPECT(-SYMRNN_SIZE, size(0, 3, 0, 1));
    EXPECT(-SYMRNN_SIZE, size(0, -3, 3, 1));
    EXPECT(-SYMRNN_SIZE, size(0, 3, 3, 0));
    EXPECT(-SYMRNN_SIZE, size(0, 3, 3, 5));
    EXPECT(-SYMRNN_SIZE, size(1, 3, 4, 1));
    EXPECT(-SYMRNN_SIZE, size(-1, 3, 3, 1));
    EXPECT(-SYMRNN_SIZE, size(0, INT64_MAX, INT64_MAX, 4));
    EXPECT(-SYMRNN_SIZE, size(1, INT64_MAX - 3, INT64_MAX - 3, 4));

    const int64_t n = 5, length = size(0, n, n, 1);
    Array<float> from(n * n), back(n * n), packed(length, true);
    for (int64_t i = 0; i < n * n; ++i) from[i] = 1;
    const auto pack = [&](int from_dtype, const void *a, int64_t row_stride, int to_dtype, void *to) {
        return symrnn_pack(0, n, n, 1, from_dtype, a, n * n, row_stride, to_dtype, to, 1);
    };
    EXPECT(SYMRNN_OK, pack(SYMRNN_FLOAT, from.get(), n, SYMRNN_FLOAT, packed.get()));
    EXPECT(SYMRNN_NULL, pack(SYMRNN_FLOAT, nullptr, n, SYMRNN_FLOAT, packed.get()));
    EXPECT(SYMRNN_NULL, pack(SYMRNN_FLOAT, from.get(), n, SYMRNN_FLOAT, nullptr));
    EXPECT(SYMRNN_DTYPE, pack(SYMRNN_BFLOAT16, from.get(), n, SYMRNN_BFLOAT16, packed.get()));
    EXPECT(SYMRNN_DTYPE, pack(SYMRNN_DOUBLE, from.get(), n, SYMRNN_FLOAT, packed.get()));
    EXPECT(SYMRNN_DTYPE, pack(SYMRNN_DOUBLE, from.get(), n, SYMRNN_BFLOAT16, packed.get()));
    EXPECT(SYMRNN_DTYPE, pack(SYMRNN_FLOAT, from.get(), n, SYMRNN_DOUBLE, packed.get()));
    EXPECT(SYMRNN_DTYPE, pack(7, from.get(), n, 7, packed.get()));
    EXPECT(SYMRNN_SIZE, symrnn_pack(1, 5, 4, 1, 0, from.get(), 25, 5, 0, packed.get(), 1));
    EXPECT(SYMRNN_SIZE, symrnn_pack(0, 0, 4, 1, 0, from.get(), 25, 5, 0, packed.get(), 1));
    EXPECT(SYMRNN_SIZE, symrnn_pack(0, 5, 4, 9, 0, from.get(), 25, 5, 0, packed.get(), 1));
    for (const int64_t block : {-1, 0, 3, 24}) {
        EXPECT(SYMRNN_SIZE, symrnn_pack_triangles(40, block, 1, SYMRNN_FLOAT, from.get(), 0, 1, SYMRNN_FLOAT,
                                                  packed.get(), 1));
        EXPECT(SYMRNN_SIZE, symrnn_triangle_adjoint(40, block, 1, SYMRNN_FLOAT, from.get(), 1, back.get(), 1));
    }
    EXPECT(SYMRNN_OK, symrnn_unpack(0, n, n, 1, SYMRNN_FLOAT, packed.get(), back.get()));
    EXPECT(SYMRNN_NULL, symrnn_unpack(0, n, n, 1, SYMRNN_FLOAT, nullptr, back.get()));
    EXPECT(SYMRNN_NULL, symrnn_unpack(0, n, n, 1, SYMRNN_FLOAT, packed.get(), nullptr));
    EXPECT(SYMRNN_DTYPE, symrnn_unpack(0, n, n, 1, 3, packed.get(), back.get()));
    EXPECT(SYMRNN_SIZE, symrnn_unpack(0, n, -1, 1, SYMRNN_FLOAT, packed.get(), back.get()));
    EXPECT(SYMRNN_SIZE, symrnn_unpack(1, n, 4, 1, SYMRNN_FLOAT, packed.get(), back.get()));

    where = "the rest, wrong";
    float sum;
    EXPECT(SYMRNN_DTYPE, symrnn_activate(0, SYMRNN_BFLOAT16, n, from.get(), back.get()));
    REFUSED(symrnn_activate(2, SYMRNN_FLOAT, n, from.get(), back.get()));
    EXPECT(SYMRNN_SIZE, symrnn_activate(0, SYMRNN_FLOAT, -1, from.get(), back.get()));
    EXPECT(SYMRNN_NULL, symrnn_activate(0, SYMRNN_FLOAT, n, nullptr, back.get()));
    EXPECT(SYMRNN_NULL, symrnn_activate(0, SYMRNN_FLOAT, n, from.get(), nullptr));
    EXPECT(SYMRNN_NULL, symrnn_read(nullptr, 8, 1, 1, &sum));
    EXPECT(SYMRNN_NULL, symrnn_read(from.get(), 8, 1, 1, nullptr));
    EXPECT(SYMRNN_SIZE, symrnn_read(from.get(), -8, 1, 1, &sum));
    EXPECT(SYMRNN_CPU, symrnn_use_cpu("z80"));
    REFUSED(symrnn_use_cpu(nullptr));
    EXPECT(SYMRNN_INTERFACE, symrnn_interface());
    for (int status = -3; status < 20; ++status)
        if (!symrnn_message(status) || !*symrnn_message(status)) fail("no words for %d", status);
}

// The first case from this seed on that has every array.
template <typename T>
std::unique_ptr<Case<T>> whole_case(int mode, int kind, int64_t hidden, int64_t batch,
                                    int64_t steps = 3, bool lengths = false, uint64_t seed = 1,
                                    uint64_t *found = nullptr) {
    for (;; ++seed) {
        if (found) *found = seed;
        Random random(seed);
        auto c = std::make_unique<Case<T>>(random, kind, dtype_of<T>(), mode, hidden, batch, 3);
        if (c->ih && c->saved() && c->h0.get() && c->d_output.get() && c->run.steps == steps &&
            (c->run.lengths.get() != nullptr) == lengths)
            return c;
    }
}

// 5 sequences are split by units, 16 by sequences; for 9 steps a symmetric matrix is expanded.
struct Tried {
    int mode, kind;
    int64_t batch, steps;
    bool lengths;
    uint64_t seed = 1;
    Array<float> first{};
};

// All results of a whole case, in one array.
Array<float> results(const Tried &one, uint64_t *seed = nullptr) {
    const auto c = whole_case<float>(one.mode, one.kind, 40, one.batch, one.steps, one.lengths,
                                     one.seed, seed);
    EXPECT(SYMRNN_OK, c->forward());
    EXPECT(SYMRNN_OK, c->backward());
    const Array<float> *all[] = {&c->gates, &c->output,   &c->hn,  &c->cn,
                                 &c->d_gates, &c->d_hidden, &c->d_h0, &c->d_c0};
    int64_t n = 0;
    for (const Array<float> *one : all) n += one->size();
    Array<float> joined(n);
    n = 0;
    for (const Array<float> *one : all)
        for (int64_t i = 0; i < one->size(); ++i) joined[n++] = (*one)[i];
    return joined;
}

// A stack goes through its steps, some at a time, as one layer after the other does.
template <typename T>
void try_advance(Random &random, int mode, int dtype, int64_t layers, int64_t batch, int threads) {
    where = "a stream";
    const int64_t G = gates_of(mode), H = 33, I = 7, T1 = 2, T2 = 1;
    std::vector<std::unique_ptr<Product<T>>> products;
    std::vector<symrnn_layer> stack;
    for (int64_t n = 0; n < layers; ++n) {
        const auto made = [&](int64_t columns, int kind) {
            products.push_back(std::make_unique<Product<T>>(random, kind, dtype, static_cast<int>(G), H,
                                                            columns));
            return &products.back()->c;
        };
        const symrnn_product *hh = made(H, n % 2 ? SKEW : SYMMETRIC);
        stack.push_back({mode, hh, made(n ? H : I, FULL), nullptr, nullptr});
    }
    const bool lstm = mode == SYMRNN_LSTM;
    const int64_t steps = T1 + T2;
    Array<T> x = random_array<T>(random, steps * batch * I), between(steps * batch * H);
    Array<T> h = random_array<T>(random, layers * batch * H), c = random_array<T>(random, layers * batch * H);
    Array<T> h_again = h.copy(), c_again = c.copy(), output(steps * batch * H), again(steps * batch * H);
    for (const auto &[first, count] : {std::pair<int64_t, int64_t>{0, T1}, {T1, T2}}) {
        Array<T> below(count * batch * H), above(count * batch * H);
        for (int64_t n = 0; n < layers; ++n) {
            T *const own_h = &h[n * batch * H], *const own_c = lstm ? &c[n * batch * H] : nullptr;
            EXPECT(SYMRNN_OK, symrnn_forward(&stack[n], count, batch, nullptr, 0,
                                             n ? below.get() : x.get() + first * batch * I, nullptr,
                                             nullptr, own_h, own_c, above.get(), own_h, own_c, threads));
            below = above.copy();
        }
        memcpy(output.get() + first * batch * H, above.get(), count * batch * H * sizeof(T));
    }
    symrnn_stream stream{static_cast<int32_t>(layers), stack.data(), h_again.get(),
                         lstm ? c_again.get() : nullptr};
    const auto advance = [&](int64_t first, int64_t count) {
        return symrnn_advance(&stream, count, batch, x.get() + first * batch * I, between.get(),
                              again.get() + first * batch * H, threads);
    };
    EXPECT(SYMRNN_OK, advance(0, T1));
    EXPECT(SYMRNN_OK, advance(T1, T2));
    if (!same_bits(output, again) || !same_bits(h, h_again) || (lstm && !same_bits(c, c_again)))
        fail("steps of a stream differ");
    EXPECT(SYMRNN_SIZE, advance(0, 0));
    EXPECT(SYMRNN_NULL, symrnn_advance(nullptr, 1, batch, x.get(), between.get(), again.get(), 1));
    EXPECT(SYMRNN_NULL, symrnn_advance(&stream, 1, batch, x.get(), between.get(), nullptr, 1));
    if (layers > 1)
        EXPECT(SYMRNN_NULL, symrnn_advance(&stream, 1, batch, x.get(), nullptr, again.get(), 1));
    symrnn_stream wrong = stream;
    wrong.layers = 0;
    EXPECT(SYMRNN_SIZE, symrnn_advance(&wrong, 1, batch, x.get(), between.get(), again.get(), 1));
    wrong = stream, wrong.h = nullptr;
    EXPECT(SYMRNN_NULL, symrnn_advance(&wrong, 1, batch, x.get(), between.get(), again.get(), 1));
    stack[0].ih = nullptr;
    EXPECT(SYMRNN_NULL, advance(0, 1));
}

// The same bits from a thread team, from many callers at once, and in a child made by fork; and with
// every core taken, so that helpers come late or not at all.
void try_threads() {
    std::vector<Tried> tried;
    for (const int mode : {SYMRNN_LSTM, SYMRNN_GRU}) {
        for (const int kind : {SYMMETRIC, FULL, HALVES, SKEW})
            tried.push_back({mode, kind, 5, 3, false});
        for (const int kind : {SYMMETRIC, PARTLY, SKEW})
            for (const int64_t batch : {5, 16})
                for (const bool lengths : {false, true})
                    tried.push_back({mode, kind, batch, 9, lengths});
    }
    where = "with threads";
    for (Tried &one : tried) one.first = results(one, &one.seed);
    for (const Tried &one : tried)
        if (!same_bits(results(one), one.first)) fail("the bits of a second run differ");
    where = "with many callers";
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] {
            for (const Tried &one : tried)
                if (!same_bits(results(one), one.first)) fail("a caller's bits differ");
        });
    for (std::thread &caller : callers) caller.join();
    where = "on a busy machine";
    std::atomic<bool> stop{false};
    std::vector<std::thread> busy;
    for (unsigned n = 0; n < 2 * std::max(1u, std::thread::hardware_concurrency()); ++n)
        busy.emplace_back([&] { while (!stop.load(std::memory_order_relaxed)) {} });
    for (const Tried &one : tried)
        if (!same_bits(results(one), one.first)) fail("the bits on a busy machine differ");
    stop = true;
    for (std::thread &one : busy) one.join();
    where = "after a fork, in the midst of another thread's call";
    stop = false;
    // One that allocates nothing: sanitizers' allocators do not survive a fork in the midst of them.
    std::thread other([&] {
        const Array<float> &from = tried[0].first;
        float sum;
        while (!stop) symrnn_read(from.get(), from.size() * sizeof(float), 4, 3, &sum);
    });
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        for (const Tried &one : tried)
            if (!same_bits(results(one), one.first)) fail("bits differ");
        _exit(failures ? 1 : 0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        fail("the child ended with status %d", status);
    stop = true;
    other.join();
}

void try_kernels(bool small) {
    const std::vector<int64_t> sizes = small ? std::vector<int64_t>{5, 17}
                                             : std::vector<int64_t>{1, 5, 16, 17, 33, 40, 130};
    const std::vector<int64_t> batches = small ? std::vector<int64_t>{1, 3}
                                               : std::vector<int64_t>{1, 2, 3, 4, 5, 6, 21, 33};
    Random random(1);
    int turn = 0;
    const int kinds = small ? 1 : 2;  // of the nine, in turn
    for (const int64_t hidden : sizes)
        for (const int64_t batch : batches)
            for (int mode = 0; mode < 4; ++mode)
                for (const int dtype : {SYMRNN_FLOAT, SYMRNN_DOUBLE, SYMRNN_BFLOAT16, SYMRNN_INT8,
                                        SYMRNN_BFLOAT16_BOTH})
                    for (int k = 0; k < kinds; ++k) {
                        const int kind = turn++ % KINDS;
                        if (hidden > 100 && turn % 10) continue;  // a few large ones
                        if (dtype == SYMRNN_DOUBLE)
                            try_layer<double>(random, kind, dtype, mode, hidden, batch);
                        else try_layer<float>(random, kind, dtype, mode, hidden, batch);
                    }
    if (!small)  // of more tiles than kernels for many vectors take at a time
        for (const int kind : {SYMMETRIC, FULL})
            for (const int dtype : {SYMRNN_FLOAT, SYMRNN_BFLOAT16_BOTH})
                try_layer<float>(random, kind, dtype, SYMRNN_LSTM, 300, 33);
    try_activations<float>();
    try_activations<double>();
    try_matmul<float>(random);
    try_matmul<double>(random);
    try_reading();
    for (const int64_t side : {5, 33, 50})
        for (const int64_t block : {1, 2, 16, 32, 64}) {
            try_triangles<float>(random, side, block);
            try_triangles<double>(random, side, block);
        }
    for (int mode = 0; mode < 4; ++mode)
        for (const int64_t layers : {1, 3})
            for (const int64_t batch : {1, 4}) {
                try_advance<float>(random, mode, SYMRNN_FLOAT, layers, batch, 2);
                try_advance<float>(random, mode, SYMRNN_BFLOAT16, layers, batch, 1);
                try_advance<double>(random, mode, SYMRNN_DOUBLE, layers, batch, 2);
            }
    for (const int mode : {SYMRNN_LSTM, SYMRNN_GRU}) {
        try_wrong_layers(*whole_case<float>(mode, SYMMETRIC, 17, 3));
        try_wrong_layers(*whole_case<double>(mode, MIRROR, 5, 2));
    }
    try_wrong_products(random);
    try_wrong_packing();
}

}  // namespace

int main(int count, char **words) {
    bool small = false, serial = false, if_any = false;
    std::vector<std::string> names;
    for (int i = 1; i < count; ++i) {
        if (!strcmp(words[i], "--small")) small = true;
        else if (!strcmp(words[i], "--serial")) serial = true;
        else if (!strcmp(words[i], "--if-any")) if_any = true;
        else names.push_back(words[i]);
    }
    if (names.empty()) {
        fprintf(stderr, "usage: exercise [--small] [--serial] [--if-any] avx512|avx2|portable ...\n");
        return 2;
    }
    bool first = true;
    for (const std::string &name : names) {
        where = name;
        const int status = symrnn_use_cpu(name.c_str());
        if (status == SYMRNN_CPU && if_any) {
            printf("exercise: %s: skipped: this processor, or this build, has it not\n", name.c_str());
            continue;
        }
        EXPECT(SYMRNN_OK, status);
        if (status) continue;
        if (name != symrnn_cpu()) fail("%s are in use", symrnn_cpu());
        if (first && !serial) try_threads();
        first = false;
        try_kernels(small);
        printf("exercise: %s: %s\n", name.c_str(), failures.load() ? "WRONG" : "right");
        fflush(stdout);
    }
    return failures ? 1 : 0;
}
