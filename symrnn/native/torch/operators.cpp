// Packed layers and matrices as operators of PyTorch: torch.ops.symrnn, in Python and without it.
//
// They stand on PyTorch's stable ABI, so one build serves every torch from 2.10 on, and call the
// kernels of symrnn.h. What Python registers under the same namespace is other operators; which of
// the two is loaded first does not matter.
//
// A "structure" is an int32 tensor that says what lies in the packed numbers. Of layers:
//
//     mode (symrnn_mode), layers L, directions D, H, 1 if there are biases else 0,
//     and of each layer and direction the product of the hidden and that of the input weights;
//
// of a linear layer: H, and one product. A product is
//
//     C, the number of groups, and for each: symmetric (-1 of the factors of a skew part), rows,
//     columns, gates, and where in the structure its maps begin, before and after it (0: none);
//
// with the letters and the meanings that symrnn.h has. The numbers of a product's groups lie one
// after another. A map is: from, to, start (to + 1), index (n), and scale (n), as bits of floats.
// Nothing here trusts a structure to fit: it may come from a file.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../symrnn.h"

namespace {

using torch::stable::Tensor;

constexpr int MOST_GROUPS = 8, MOST_DIMENSIONS = 8;

// As in symrnn/rnn/fused/inference.py, which says how they were found.
constexpr int64_t MOST_ROWS = 2048;
constexpr int64_t WORTH_THREADS = 1 << 16;
constexpr int64_t OWN_SEQUENCES = 5;

void check(int status) {
    STD_TORCH_CHECK(status == SYMRNN_OK, "symrnn's native kernels: ", symrnn_message(status));
}

// The kernels may be a file that somebody copied.
void check_kernels() {
    static const int found = symrnn_interface();
    STD_TORCH_CHECK(found == SYMRNN_INTERFACE, "_kernels.so has interface number ", found,
                    ", these operators were compiled for ", SYMRNN_INTERFACE);
}

int64_t size_of(int dtype) {
    if (dtype == SYMRNN_DOUBLE) return 8;
    return dtype == SYMRNN_FLOAT ? 4 : dtype == SYMRNN_BFLOAT16 ? 2 : 1;
}

int32_t type_of(const Tensor &tensor) {
    int32_t dtype;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    return dtype;
}

int packed_dtype(const Tensor &numbers) {
    const int32_t dtype = type_of(numbers);
    if (dtype == aoti_torch_dtype_float32()) return SYMRNN_FLOAT;
    if (dtype == aoti_torch_dtype_float64()) return SYMRNN_DOUBLE;
    if (dtype == aoti_torch_dtype_bfloat16()) return SYMRNN_BFLOAT16;
    STD_TORCH_CHECK(dtype == aoti_torch_dtype_int8(),
                    "packed weights should be float32, float64, bfloat16 or int8");
    return SYMRNN_INT8;
}

// What a layer with such packed weights computes in.
int32_t arithmetic(int dtype) {
    return dtype == SYMRNN_DOUBLE ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

Tensor empty(const int64_t *sizes, int64_t dimensions, int32_t dtype) {
    int64_t strides[MOST_DIMENSIONS], stride = 1;
    for (int64_t d = dimensions; d-- > 0; stride *= sizes[d]) strides[d] = stride;
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dimensions, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
    return Tensor(made);
}

Tensor dense(const Tensor &tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

const char *bytes(const Tensor &from) { return static_cast<const char *>(from.const_data_ptr()); }
char *bytes_to(const Tensor &to) { return static_cast<char *>(to.mutable_data_ptr()); }

const void *numbers(const Tensor &bias, int32_t dtype, int64_t length) {
    STD_TORCH_CHECK(type_of(bias) == dtype && bias.numel() == length && bias.is_contiguous(),
                    "a bias should have ", length, " numbers of the dtype of input");
    return bias.const_data_ptr();
}

int threads_for(int64_t entries, int64_t steps, int64_t batch) {
    const int64_t threads = torch::stable::get_num_threads();
    if (threads > 1) {
        const int64_t sequences = batch < OWN_SEQUENCES * threads ? batch : batch * steps;
        if (entries * sequences < WORTH_THREADS) return 1;
    }
    return static_cast<int>(std::min<int64_t>(threads, 64));
}

// Moves packed weights into huge pages when they are first met: they were written before they came
// here. Those met last are remembered by their addresses, where others may lie by the next time: these
// are not moved, and only read more slowly.
void settle(const char *packed, int64_t bytes) {
    static std::atomic<const char *> met[256];
    if (bytes < int64_t(1) << 22) return;  // room for one, wherever it begins
    std::atomic<const char *> &own = met[reinterpret_cast<uintptr_t>(packed) / 64 % 251];
    if (own.exchange(packed, std::memory_order_relaxed) == packed) return;
    symrnn_prefer_huge_pages(packed, bytes, 1);
}

// ---- structures --------------------------------------------------------------------------------

// A product, its parts beside it. It must not be moved once it is read.
struct Product {
    symrnn_product w;
    symrnn_term terms[MOST_GROUPS];
    symrnn_map maps[MOST_GROUPS][2];
    symrnn_skew skew;
    int64_t entries;  // packed; of int8 an eighth, as a second thread pays that much later
};

class Structure {
  public:
    explicit Structure(const Tensor &tensor) : length_(tensor.numel()) {
        STD_TORCH_CHECK(type_of(tensor) == aoti_torch_dtype_int32() && tensor.is_contiguous(),
                        "structure should be int32 and contiguous");
        numbers_ = static_cast<const int32_t *>(tensor.const_data_ptr());
    }

    int32_t next() {
        STD_TORCH_CHECK(at_ < length_, "structure ends too early");
        return numbers_[at_++];
    }

    // The product with these packed numbers.
    void read(int gates, int rows, const Tensor &numbers, Product &to) {
        const int dtype = packed_dtype(numbers);
        const int columns = next(), groups = next();
        to.w = {dtype, gates, rows, columns, 0, to.terms, nullptr};
        STD_TORCH_CHECK(rows >= 1 && columns >= 1, "structure has a matrix of ", rows, " x ",
                        columns);
        STD_TORCH_CHECK(groups >= 1 && groups <= MOST_GROUPS && numbers.is_contiguous(),
                        "structure does not fit the packed weights");
        const char *place = bytes(numbers);
        const char *const end = place + numbers.numel() * size_of(dtype);
        settle(place, end - place);
        to.entries = numbers.numel() / (dtype == SYMRNN_INT8 ? 8 : 1);
        for (int n = 0; n < groups; ++n) {
            const int symmetric = next(), r = next(), c = next(), of = next();
            const int maps[] = {next(), next()};
            const bool is_skew = symmetric < 0;
            const int own = is_skew && dtype == SYMRNN_INT8 ? int(SYMRNN_FLOAT) : dtype;
            const int64_t length =
                symrnn_packed_length(std::max(symmetric, 0), r, c, __builtin_popcount(of), own);
            STD_TORCH_CHECK(length > 0 && length * size_of(own) <= end - place,
                            "structure does not fit the packed weights");
            if (is_skew) {
                // The kernels take its height from the product.
                STD_TORCH_CHECK(!to.w.skew && r == rows && c % 2 == 0,
                                "structure has a skew part that cannot be one");
                to.skew = {c / 2, of, place};
                to.w.skew = &to.skew;
            } else {
                const int t = to.w.terms++;
                to.terms[t] = {symmetric, r, c, of, place, nullptr, nullptr, nullptr, nullptr};
                if (maps[0]) to.terms[t].inputs = map(maps[0], to.maps[t][0]);
                if (maps[1]) to.terms[t].outputs = map(maps[1], to.maps[t][1]);
            }
            place += length * size_of(own);
        }
        STD_TORCH_CHECK(place == end, "structure does not fit the packed weights");
    }

  private:
    // The kernels look at what start and index hold; here only that all lies within the tensor.
    const symrnn_map *map(int64_t at, symrnn_map &to) const {
        const bool begins = at > 0 && at + 2 < length_ && numbers_[at + 1] >= 0 &&
                            at + 3 + numbers_[at + 1] <= length_;
        STD_TORCH_CHECK(begins, "structure ends too early");
        const int32_t *const start = numbers_ + at + 2;
        to = {numbers_[at], numbers_[at + 1], start, start + numbers_[at + 1] + 1, nullptr};
        const int64_t count = start[to.to];
        STD_TORCH_CHECK(count >= 0 && at + 3 + to.to + 2 * count <= length_,
                        "structure ends too early");
        to.scale = reinterpret_cast<const float *>(to.index + count);
        return &to;
    }

    const int32_t *numbers_;
    int64_t length_, at_ = 0;
};

// ---- layers ------------------------------------------------------------------------------------

// Some steps, one after another, that are run by one call of the kernels.
struct Chunk {
    int64_t first, steps;  // the first step, and how many
    int64_t batch, row;    // the sequences of the first, and its row
};

// The kernels hold the gates of all rows that they are given.
std::vector<Chunk> chunks_of(int64_t steps, int64_t batch, const int64_t *lengths) {
    std::vector<Chunk> chunks;
    int64_t row = 0;
    for (int64_t t = 0; t < steps;) {
        Chunk chunk{t, 0, lengths ? lengths[t] : batch, row};
        do row += lengths ? lengths[t] : batch;
        while (++t < steps && row - chunk.row + (lengths ? lengths[t] : batch) <= MOST_ROWS);
        chunk.steps = t - chunk.first;
        chunks.push_back(chunk);
    }
    return chunks;
}

int gates_of(int mode) {
    const bool known = mode >= SYMRNN_LSTM && mode <= SYMRNN_RNN_RELU;
    STD_TORCH_CHECK(known, "structure has an unknown mode");
    return mode == SYMRNN_LSTM ? 4 : mode == SYMRNN_GRU ? 3 : 1;
}

// All layers and directions of a recurrent module, without dropout.
//
// input: (T, B, I), or (R, I) with batch_sizes (T) of int64, sorted by falling length.
// state: h, and of an LSTM c, each (L·D, B, H).
// weights: of each layer and direction in PyTorch's order hh and ih, packed; with biases then
//     (G·H), what is added to the gates, and of a GRU (H), the hidden bias of n.
// output_size: D·H; for the shape function, which sees no structure.
//
// Returns the output (…, D·H), h, and of an LSTM c, else an empty tensor. What is computed in, and
// all but the packed weights is of, is float64 of such weights, else float32.
std::tuple<Tensor, Tensor, Tensor> packed_layers(
    const Tensor &input, const std::optional<Tensor> &batch_sizes, const std::vector<Tensor> &state,
    const std::vector<Tensor> &weights, const Tensor &structure, int64_t output_size) {
    check_kernels();
    Structure from(structure);
    const int mode = from.next(), layers = from.next(), directions = from.next();
    const int64_t side = from.next();
    const bool biases = from.next() != 0;
    const int gates = gates_of(mode);
    const bool lstm = mode == SYMRNN_LSTM, gru = mode == SYMRNN_GRU;
    const size_t each = 2 + (biases ? 1 + gru : 0);
    STD_TORCH_CHECK(layers >= 1 && (directions == 1 || directions == 2) && side >= 1 &&
                        output_size == directions * side &&
                        weights.size() == each * layers * directions,
                    "structure does not fit the weights");
    const int32_t dtype = arithmetic(packed_dtype(weights[0]));
    const int64_t item = dtype == aoti_torch_dtype_float64() ? 8 : 4;
    STD_TORCH_CHECK(type_of(input) == dtype, "input should be ", item == 8 ? "float64" : "float32");

    // Sizes.
    const int64_t dimensions = batch_sizes ? 2 : 3;
    STD_TORCH_CHECK(input.dim() == dimensions && state.size() == 1u + lstm && state[0].dim() == 3,
                    "input should have ", dimensions, " dimensions, and state be ",
                    lstm ? "h and c" : "h", ", of 3");
    int64_t rows = input.size(0), steps = rows, batch = state[0].size(1);
    Tensor sizes;
    const int64_t *lengths = nullptr;
    if (batch_sizes) {
        sizes = dense(*batch_sizes);
        STD_TORCH_CHECK(type_of(sizes) == aoti_torch_dtype_int64() && sizes.dim() == 1,
                        "batch_sizes should be int64 of one dimension");
        lengths = static_cast<const int64_t *>(sizes.const_data_ptr());
        steps = sizes.numel();
        int64_t sum = 0, before = batch;
        for (int64_t t = 0; t < steps; before = lengths[t++]) {
            STD_TORCH_CHECK(lengths[t] >= 1 && (t ? lengths[t] <= before : lengths[t] == batch),
                            "batch_sizes should fall from ", batch, " to 1 at least");
            sum += lengths[t];
        }
        STD_TORCH_CHECK(sum == rows, "batch_sizes should sum to the ", rows, " rows of input");
    } else {
        STD_TORCH_CHECK(input.size(1) == batch, "state should be of ", input.size(1),
                        " sequences, got: ", batch);
        rows *= batch;
    }
    STD_TORCH_CHECK(steps >= 1, "Expected sequence length to be larger than 0 in RNN");
    for (const Tensor &part : state)
        STD_TORCH_CHECK(part.dim() == 3 && part.size(0) == layers * directions &&
                            part.size(1) == batch && part.size(2) == side && type_of(part) == dtype,
                        "state should be of shape (", layers * directions, ", ", batch, ", ", side,
                        ") and the dtype of input");

    // Results. The state is copied, and then moves on in place.
    const int64_t nothing = 0;
    const auto shape = input.sizes();
    int64_t output_shape[3] = {shape[0], shape[1], output_size};
    output_shape[dimensions - 1] = output_size;
    const Tensor output = empty(output_shape, dimensions, dtype);
    const auto copy = [&](const Tensor &part) {
        const Tensor given = dense(part), made = empty(given.sizes().data(), 3, dtype);
        std::memcpy(bytes_to(made), bytes(given), given.numel() * item);
        return made;
    };
    const Tensor hn = copy(state[0]), cn = lstm ? copy(state[1]) : empty(&nothing, 1, dtype);
    if (rows == 0) return {output, hn, cn};

    const std::vector<Chunk> chunks = chunks_of(steps, batch, lengths);
    const int64_t part = batch * side * item, row = side * item;
    const int64_t wide_shape[] = {rows, output_size}, half_shape[] = {rows, side};
    const Tensor half = directions == 1 ? output : empty(half_shape, 2, dtype);
    Tensor x = dense(input), wide;
    int64_t columns = shape[dimensions - 1];
    const Tensor *w = weights.data();
    for (int k = 0; k < layers * directions; ++k, w += each) {
        const int depth = k / directions;
        const bool last = depth == layers - 1, reverse = k % directions == 1;
        Product hh, ih;
        from.read(gates, side, w[0], hh);
        from.read(gates, side, w[1], ih);
        STD_TORCH_CHECK(ih.w.columns == columns, "the input of layer ", depth, " should have ",
                        ih.w.columns, " columns, got: ", columns);
        const auto bias = [&](size_t n, int64_t length) {
            return n < each ? numbers(w[n], dtype, length) : nullptr;
        };
        const symrnn_layer layer{mode, &hh.w, &ih.w, bias(2, gates * side),
                                 gru ? bias(3, side) : nullptr};
        // A layer has read all its input before it writes: one direction writes where it reads.
        if (last) wide = output;
        else if (!reverse && (directions == 2 || depth == 0)) wide = empty(wide_shape, 2, dtype);
        const Tensor &to = directions == 1 ? wide : half;
        char *const h = bytes_to(hn) + k * part;
        char *const c = lstm ? bytes_to(cn) + k * part : nullptr;
        for (size_t n = 0; n < chunks.size(); ++n) {
            const Chunk &chunk = chunks[reverse ? chunks.size() - 1 - n : n];
            check(symrnn_forward(&layer, chunk.steps, chunk.batch,
                                 lengths ? lengths + chunk.first : nullptr, reverse,
                                 bytes(x) + chunk.row * columns * item, nullptr, nullptr, h, c,
                                 bytes_to(to) + chunk.row * row, h, c,
                                 threads_for(hh.entries + ih.entries, chunk.steps, chunk.batch)));
        }
        for (int64_t r = 0; directions == 2 && r < rows; ++r)
            std::memcpy(bytes_to(wide) + (2 * r + reverse) * row, bytes(half) + r * row, row);
        if (k % directions == directions - 1) {
            x = wide;
            columns = output_size;
        }
    }
    return {output, hn, cn};
}

template <typename T>
void add(T *to, const T *bias, int64_t rows, int64_t side) {
    for (int64_t r = 0; r < rows; ++r, to += side)
        for (int64_t i = 0; i < side; ++i) to[i] += bias[i];
}

// input (…, C) times the transposed packed matrix (H, C), plus bias (H): (…, H), of the dtype of
// input, which is float64 if the matrix is, else float32.
Tensor packed_linear(const Tensor &input, const Tensor &weight, const std::optional<Tensor> &bias,
                     const Tensor &structure, int64_t output_size) {
    check_kernels();
    Structure from(structure);
    const int side = from.next();
    Product product;
    from.read(1, side, weight, product);
    const int32_t dtype = arithmetic(product.w.dtype);
    const int64_t dimensions = input.dim(), columns = product.w.columns;
    STD_TORCH_CHECK(output_size == side, "structure does not fit output_size");
    STD_TORCH_CHECK(type_of(input) == dtype && dimensions >= 1 && dimensions <= MOST_DIMENSIONS &&
                        input.size(dimensions - 1) == columns,
                    "input should be of shape (..., ", columns, ") and the weight's dtype");
    int64_t shape[MOST_DIMENSIONS];
    std::copy_n(input.sizes().data(), dimensions, shape);
    shape[dimensions - 1] = side;
    const Tensor output = empty(shape, dimensions, dtype), x = dense(input);
    const int64_t rows = input.numel() / columns;
    check(symrnn_multiply(&product.w, 0, rows, bytes(x), bytes_to(output), 1,
                          threads_for(product.entries, 1, rows)));
    if (!bias) return output;
    const void *const b = numbers(*bias, dtype, side);
    void *const y = output.mutable_data_ptr();
    if (product.w.dtype == SYMRNN_DOUBLE)
        add(static_cast<double *>(y), static_cast<const double *>(b), rows, side);
    else add(static_cast<float *>(y), static_cast<const float *>(b), rows, side);
    return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(symrnn, m) {
    m.def("packed_layers(Tensor input, Tensor? batch_sizes, Tensor[] state, Tensor[] weights, "
          "Tensor structure, int output_size) -> (Tensor, Tensor, Tensor)");
    m.def("packed_linear(Tensor input, Tensor weight, Tensor? bias, Tensor structure, "
          "int output_size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(symrnn, CPU, m) {
    m.impl("packed_layers", TORCH_BOX(&packed_layers));
    m.impl("packed_linear", TORCH_BOX(&packed_linear));
}
