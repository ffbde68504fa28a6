// Opening a model file. docs/format.md says what stands in it; nothing of it is believed.
//
// The header and the small arrays (maps, sums of rows) are read and checked here, so that whatever
// the rest of a file holds, the kernels stay inside of it. Of the packed numbers and the text no
// byte is read.

#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "failure.h"
#include "layout.h"

namespace symrnn {

Mapping::~Mapping() {
    if (at_) munmap(const_cast<char *>(at_), bytes_);
}

int Mapping::open(const char *path) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    struct stat found;
    if (file < 0 || fstat(file, &found) != 0) {
        const int status = fail(SYMRNN_FILE, "%s: %s", path, strerror(errno));
        if (file >= 0) close(file);
        return status;
    }
    int status = SYMRNN_OK;
    void *at = MAP_FAILED;
    if (!S_ISREG(found.st_mode)) status = fail(SYMRNN_FILE, "%s: is not a file", path);
    else if (found.st_size == 0) status = fail(SYMRNN_FILE, "%s: is empty", path);
    else at = mmap(nullptr, found.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (status == SYMRNN_OK && at == MAP_FAILED)
        status = fail(SYMRNN_FILE, "%s: cannot be mapped: %s", path, strerror(errno));
    close(file);
    if (status != SYMRNN_OK) return status;
    at_ = static_cast<const char *>(at);
    bytes_ = found.st_size;
    return SYMRNN_OK;
}

const char *Vocabulary::token(int64_t token, int64_t &length) const {
    const int64_t first = start[token], last = start[token + 1];
    if (first < 0 || first > last || last > bytes) return nullptr;
    length = last - first;
    return text + first;
}

namespace {

constexpr int64_t MAX_HEADER = int64_t(4) << 20;
constexpr int64_t MAX_LAYERS = 1024, MAX_MAPS = 64, MAX_GROUPS = 9;  // eight terms and a skew part
// Sums of an int8 product stay below 2³¹ whatever bytes stand in the file.
constexpr int64_t MAX_INT8_COLUMNS = 32768;

struct Type {
    const char *name;
    int64_t bytes;
};
constexpr Type FLOATS = {"F32", 4}, BYTES = {"U8", 1}, INTS = {"I32", 4}, LONGS = {"I64", 8};

Type type_of(int dtype) {
    return dtype == SYMRNN_BFLOAT16 ? Type{"BF16", 2}
           : dtype == SYMRNN_INT8   ? Type{"I8", 1}
                                    : FLOATS;
}

struct Tensor {
    const Json::Node *node;
    int64_t first, last;  // bytes of the data
    int64_t elements;
};

// Reads one file into a model. Each function returns a status.
class Reader {
  public:
    Reader(symrnn_model &model, const char *path) : model_(model), path_(path) {}
    ~Reader() { free(tensors_); }

    int read();

  private:
    __attribute__((format(printf, 2, 3))) int refuse(const char *format, ...) const {
        char why[200];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(why, sizeof why, format, arguments);
        va_end(arguments);
        return fail(SYMRNN_FILE, "%s: is no model that can be used: %s", path_, why);
    }
    int no_memory() const { return fail(SYMRNN_MEMORY, "%s: out of memory", path_); }

    int read_header();
    int read_tensors();
    int read_structure();
    int read_maps(const Json::Node &maps);
    int read_map(const Json::Node &node, symrnn_map &map);
    int read_layer(const Json::Node &node, symrnn_layer &layer, int64_t inputs);
    int read_matrix(const Json::Node &node, const char *name, int64_t columns,
                    const symrnn_product *&found);
    int read_product(const Json::Node &node, const char *name, int64_t rows, int64_t columns,
                     int gates, const symrnn_product *&found);
    int read_group(const Json::Node &node, const char *name, symrnn_product &product,
                   int64_t &place, int64_t bytes, const char *numbers);
    int check_row_sums(const symrnn_term &term, const char *name) const;
    int read_vocabulary(const Json::Node &node);

    int integer(const Json::Node &of, const char *key, int64_t least, int64_t most,
                int64_t &to) const;
    int map_of(const Json::Node &node, const char *key, const symrnn_map *&to) const;
    // The tensor that a member names: `least` elements of a type, or more.
    int tensor(const Json::Node &of, const char *key, Type type, int64_t least,
               const Tensor *&found) const;
    template <typename T>
    int array(const Json::Node &of, const char *key, Type type, int64_t least, const T *&to) const {
        const Tensor *found;
        if (const int bad = tensor(of, key, type, least, found)) return bad;
        to = reinterpret_cast<const T *>(data_ + found->first);
        return SYMRNN_OK;
    }
    static bool is_given(const Json::Node &node) {
        return node.kind != Json::ABSENT && node.kind != Json::NULL_;
    }

    symrnn_model &model_;
    const char *const path_;
    const char *data_ = nullptr;
    int64_t data_bytes_ = 0;
    Tensor *tensors_ = nullptr;  // by name
    int64_t count_ = 0;
    symrnn_map *maps_ = nullptr;
    int64_t map_count_ = 0;
};

int Reader::read() {
    if (const int bad = model_.file.open(path_)) return bad;
    if (const int bad = read_header()) return bad;
    if (const int bad = read_tensors()) return bad;
    return read_structure();
}

// ---- safetensors --------------------------------------------------------------------------------

int Reader::read_header() {
    const char *const at = model_.file.at();
    const int64_t bytes = model_.file.bytes();
    if (bytes < 10 || at[8] != '{') return refuse("it is no safetensors file");
    uint64_t length = 0;
    for (int k = 7; k >= 0; --k) length = length << 8 | static_cast<unsigned char>(at[k]);
    if (length > static_cast<uint64_t>(MAX_HEADER)) return refuse("its header is too long");
    const int64_t header = static_cast<int64_t>(length);
    if (header > bytes - 8) return refuse("it ends in its header");
    if ((8 + header) % 64) return refuse("its data is not aligned to 64 bytes");
    switch (model_.header.read(at + 8, header)) {
    case Json::READ: break;
    case Json::REFUSED: return refuse("its header is no JSON");
    case Json::NO_MEMORY: return no_memory();
    }
    data_ = at + 8 + header;
    data_bytes_ = bytes - 8 - header;
    return SYMRNN_OK;
}

int64_t product_of(const Json &json, const Json::Node &shape) {
    int64_t elements = 1;
    for (const Json::Node *size = json.first(shape); size; size = json.next(*size)) {
        if (size->kind != Json::INTEGER || size->integer < 0) return -1;
        if (__builtin_mul_overflow(elements, size->integer, &elements)) return -1;
    }
    return shape.kind == Json::ARRAY ? elements : -1;
}

int Reader::read_tensors() {
    const Json &header = model_.header;
    const Json::Node &all = header.root();
    if (all.kind != Json::OBJECT) return refuse("its header is no object");
    tensors_ = static_cast<Tensor *>(malloc((all.length + 1) * sizeof(Tensor)));
    if (!tensors_) return no_memory();
    for (const Json::Node *node = header.first(all); node; node = header.next(*node)) {
        if (strcmp(node->key, "__metadata__") == 0) continue;
        const Json::Node &offsets = header.get(*node, "data_offsets");
        const Json::Node *const first = header.first(offsets);
        const Json::Node *const last = first ? header.next(*first) : nullptr;
        const int64_t elements = product_of(header, header.get(*node, "shape"));
        if (offsets.kind != Json::ARRAY || offsets.length != 2 || first->kind != Json::INTEGER ||
            last->kind != Json::INTEGER || elements < 0)
            return refuse("its tensor %.64s has no shape or place", node->key);
        tensors_[count_++] = {node, first->integer, last->integer, elements};
    }
    // Each byte belongs to one tensor, as safetensors wants it.
    std::sort(tensors_, tensors_ + count_, [](const Tensor &a, const Tensor &b) {
        return a.first != b.first ? a.first < b.first : a.last < b.last;
    });
    int64_t place = 0;
    for (int64_t n = 0; n < count_; ++n) {
        if (tensors_[n].first != place || tensors_[n].last < place)
            return refuse("its tensor %.64s overlaps another, or leaves a hole",
                          tensors_[n].node->key);
        place = tensors_[n].last;
    }
    if (place > data_bytes_) return refuse("it ends before its tensors do");
    if (place < data_bytes_) return refuse("it goes on after its tensors");
    const auto before = [](const Tensor &a, const Tensor &b) {
        return strcmp(a.node->key, b.node->key) < 0;
    };
    std::sort(tensors_, tensors_ + count_, before);
    for (int64_t n = 1; n < count_; ++n)
        if (!before(tensors_[n - 1], tensors_[n]))
            return refuse("it has two tensors %.64s", tensors_[n].node->key);
    return SYMRNN_OK;
}

int Reader::tensor(const Json::Node &of, const char *key, Type type, int64_t least,
                   const Tensor *&found) const {
    const Json::Node &name = model_.structure.get(of, key);
    if (name.kind != Json::STRING) return refuse("its %s names no tensor", key);
    const Tensor *const end = tensors_ + count_;
    found = std::lower_bound(
        const_cast<const Tensor *>(tensors_), end, name.text,
        [](const Tensor &a, const char *b) { return strcmp(a.node->key, b) < 0; });
    if (found == end || strcmp(found->node->key, name.text) != 0)
        return refuse("it has no tensor %.64s", name.text);
    if (!model_.header.get(*found->node, "dtype").is(type.name))
        return refuse("its tensor %.64s should be %s", name.text, type.name);
    if (found->elements > INT64_MAX / 8 ||
        found->elements * type.bytes != found->last - found->first)
        return refuse("its tensor %.64s has another shape than place", name.text);
    if (found->elements < least)
        return refuse("its tensor %.64s has %lld of %lld elements", name.text,
                      static_cast<long long>(found->elements), static_cast<long long>(least));
    if (found->first % 64) return refuse("its tensor %.64s is not aligned to 64 bytes", name.text);
    return SYMRNN_OK;
}

// ---- the structure -----------------------------------------------------------------------------

int Reader::integer(const Json::Node &of, const char *key, int64_t least, int64_t most,
                    int64_t &to) const {
    const Json::Node &node = model_.structure.get(of, key);
    if (node.kind != Json::INTEGER || node.integer < least || node.integer > most)
        return refuse("its %s should be an integer from %lld to %lld", key,
                      static_cast<long long>(least), static_cast<long long>(most));
    to = node.integer;
    return SYMRNN_OK;
}

int Reader::read_structure() {
    const Json &header = model_.header;
    const Json::Node &metadata = header.get(header.root(), "__metadata__");
    const Json::Node &text = header.get(metadata, "symrnn.runtime");
    if (text.kind != Json::STRING)
        return refuse("its __metadata__ has no \"symrnn.runtime\"");
    const Json::Node &about = header.get(metadata, "symrnn");
    if (about.kind == Json::STRING) model_.json = about.text;
    Json &structure = model_.structure;
    switch (structure.read(text.text, text.length)) {
    case Json::READ: break;
    case Json::REFUSED: return refuse("its structure is no JSON");
    case Json::NO_MEMORY: return no_memory();
    }
    const Json::Node &root = structure.root();
    int64_t version = 0, inputs = 0, hidden = 0;
    if (const int bad = integer(root, "version", 0, INT32_MAX, version)) return bad;
    if (version != 1)
        return refuse("it is of version %lld, and this library reads 1",
                      static_cast<long long>(version));
    symrnn_about &found = model_.about;
    found.bytes = model_.file.bytes();
    static const char *const MODES[] = {"LSTM", "GRU", "RNN_TANH", "RNN_RELU"};
    static const int DTYPES[] = {SYMRNN_FLOAT, SYMRNN_BFLOAT16, SYMRNN_INT8};
    found.mode = found.dtype = -1;
    for (int mode = 0; mode < 4; ++mode)
        if (structure.get(root, "mode").is(MODES[mode])) found.mode = mode;
    for (const int dtype : DTYPES)
        if (structure.get(root, "dtype").is(type_of(dtype).name)) found.dtype = dtype;
    if (found.mode < 0) return refuse("its mode should be LSTM, GRU, RNN_TANH or RNN_RELU");
    if (found.dtype < 0) return refuse("its dtype should be F32, BF16 or I8");
    if (const int bad = integer(root, "input_size", 1, INT32_MAX, inputs)) return bad;
    if (const int bad = integer(root, "hidden_size", 1, INT32_MAX, hidden)) return bad;
    found.input_size = static_cast<int32_t>(inputs);
    found.hidden_size = found.output_size = static_cast<int32_t>(hidden);
    if (const int bad = read_maps(structure.get(root, "maps"))) return bad;

    const Json::Node &layers = structure.get(root, "layers");
    if (layers.kind != Json::ARRAY || layers.length < 1 || layers.length > MAX_LAYERS)
        return refuse("its layers should be an array of 1 to %lld",
                      static_cast<long long>(MAX_LAYERS));
    found.layers = static_cast<int32_t>(layers.length);
    symrnn_layer *const made = model_.pool.array<symrnn_layer>(layers.length);
    if (!made) return no_memory();
    int64_t n = 0;
    for (const Json::Node *node = structure.first(layers); node; node = structure.next(*node), ++n)
        if (const int bad = read_layer(*node, made[n], n == 0 ? inputs : hidden)) return bad;
    model_.layers = made;
    // The kernels' own checks of what was read, of no sequence.
    float none = 0;
    const symrnn_stream stream = {found.layers, made, &none, &none};
    if (const int bad = symrnn_advance(&stream, 1, 0, nullptr, nullptr, nullptr, 1))
        return refuse("its layers: %s", symrnn_message(bad));

    const Json::Node &embedding = structure.get(root, "embedding");
    if (is_given(embedding)) {
        if (const int bad = read_matrix(embedding, "embedding", inputs, model_.embedding))
            return bad;
        found.tokens = model_.embedding->rows;
    }
    const Json::Node &linear = structure.get(root, "linear");
    if (is_given(linear)) {
        Linear &end = model_.linear;
        if (const int bad = read_matrix(linear, "linear", hidden, end.weight)) return bad;
        found.output_size = end.weight->rows;
        if (is_given(structure.get(linear, "bias")))
            if (const int bad =
                    array(linear, "bias", FLOATS, tiles_of(end.weight->rows) * SIDE, end.bias))
                return bad;
    }
    return read_vocabulary(structure.get(root, "vocabulary"));
}

// The maps of folded forms, which layers share.
int Reader::read_maps(const Json::Node &maps) {
    if (!is_given(maps)) return SYMRNN_OK;
    if (maps.kind != Json::ARRAY || maps.length > MAX_MAPS)
        return refuse("its maps should be an array of at most %lld",
                      static_cast<long long>(MAX_MAPS));
    maps_ = model_.pool.array<symrnn_map>(maps.length);
    if (!maps_) return no_memory();
    const Json &structure = model_.structure;
    for (const Json::Node *node = structure.first(maps); node; node = structure.next(*node))
        if (const int bad = read_map(*node, maps_[map_count_++])) return bad;
    return SYMRNN_OK;
}

int Reader::read_map(const Json::Node &node, symrnn_map &map) {
    int64_t from = 0, to = 0;
    if (const int bad = integer(node, "from", 1, INT32_MAX, from)) return bad;
    if (const int bad = integer(node, "to", 1, INT32_MAX, to)) return bad;
    map.from = static_cast<int32_t>(from);
    map.to = static_cast<int32_t>(to);
    if (const int bad = array(node, "start", INTS, to + 1, map.start)) return bad;
    // That starts grow and indices lie inside the kernels check; not how long the arrays are.
    const int64_t count = map.start[to];
    if (const int bad = array(node, "index", INTS, count, map.index)) return bad;
    return array(node, "scale", FLOATS, count, map.scale);
}

int Reader::map_of(const Json::Node &node, const char *key, const symrnn_map *&to) const {
    if (!is_given(model_.structure.get(node, key))) return SYMRNN_OK;
    int64_t n = 0;
    if (map_count_ == 0) return refuse("its %s name a map, and it has none", key);
    if (const int bad = integer(node, key, 0, map_count_ - 1, n)) return bad;
    to = maps_ + n;
    return SYMRNN_OK;
}

int Reader::read_layer(const Json::Node &node, symrnn_layer &layer, int64_t inputs) {
    const int64_t hidden = model_.about.hidden_size;
    const int gates = gates_of(model_.about.mode);
    const Json &structure = model_.structure;
    layer.mode = model_.about.mode;
    if (const int bad =
            read_product(structure.get(node, "hh"), "hh", hidden, hidden, gates, layer.hh))
        return bad;
    if (const int bad =
            read_product(structure.get(node, "ih"), "ih", hidden, inputs, gates, layer.ih))
        return bad;
    const float *bias = nullptr, *bias_n = nullptr;
    if (is_given(structure.get(node, "bias")))
        if (const int bad = array(node, "bias", FLOATS, gates * hidden, bias)) return bad;
    if (is_given(structure.get(node, "bias_n")))
        if (const int bad = array(node, "bias_n", FLOATS, hidden, bias_n)) return bad;
    layer.bias = bias;
    layer.bias_n = bias_n;
    return SYMRNN_OK;
}

// A full matrix in one group, as sessions take it: rows of it by their place, no skew part added.
int Reader::read_matrix(const Json::Node &node, const char *name, int64_t columns,
                        const symrnn_product *&found) {
    int64_t rows = 0;
    if (const int bad = integer(node, "rows", 1, INT32_MAX, rows)) return bad;
    if (const int bad = read_product(node, name, rows, columns, 1, found)) return bad;
    const symrnn_term &term = *found->term;
    if (found->terms > 1 || found->skew || term.symmetric || term.inputs || term.outputs)
        return refuse("its %s should be one group: full, without maps and without a skew part",
                      name);
    return SYMRNN_OK;
}

// Matrices (rows, columns) of so many gates, in groups whose numbers follow one another.
int Reader::read_product(const Json::Node &node, const char *name, int64_t rows, int64_t columns,
                         int gates, const symrnn_product *&found) {
    const Json &structure = model_.structure;
    const Json::Node &groups = structure.get(node, "groups");
    if (groups.kind != Json::ARRAY || groups.length < 1 || groups.length > MAX_GROUPS)
        return refuse("the groups of its %s should be an array of 1 to %lld", name,
                      static_cast<long long>(MAX_GROUPS));
    auto *const product = model_.pool.array<symrnn_product>(1);
    auto *const terms = model_.pool.array<symrnn_term>(groups.length);
    if (!product || !terms) return no_memory();
    product->dtype = model_.about.dtype;
    product->gates = gates;
    product->rows = static_cast<int32_t>(rows);
    product->columns = static_cast<int32_t>(columns);
    product->term = terms;
    const Tensor *numbers;
    if (const int bad = tensor(node, "numbers", type_of(product->dtype), 1, numbers)) return bad;
    const int64_t bytes = numbers->last - numbers->first;
    int64_t place = 0;
    for (const Json::Node *group = structure.first(groups); group; group = structure.next(*group))
        if (const int bad =
                read_group(*group, name, *product, place, bytes, data_ + numbers->first))
            return bad;
    if (place != bytes)
        return refuse("the groups of its %s take %lld bytes, and there are %lld", name,
                      static_cast<long long>(place), static_cast<long long>(bytes));
    // The kernels' own checks, of no vector.
    if (const int bad = symrnn_multiply(product, 0, 0, nullptr, nullptr, 1, 1))
        return refuse("its %s: %s", name, symrnn_message(bad));
    int64_t entries = bytes / type_of(product->dtype).bytes;
    // Measured: int8 pays for a second thread from eight times as many entries on.
    if (product->dtype == SYMRNN_INT8) entries /= 8;
    model_.entries = std::max(model_.entries, entries);
    found = product;
    return SYMRNN_OK;
}

int Reader::read_group(const Json::Node &node, const char *name, symrnn_product &product,
                       int64_t &place, int64_t bytes, const char *numbers) {
    int64_t rows = 0, columns = 0, symmetric = 0, gates = 0;
    if (const int bad = integer(node, "rows", 1, INT32_MAX, rows)) return bad;
    if (const int bad = integer(node, "columns", 1, INT32_MAX, columns)) return bad;
    if (const int bad = integer(node, "gates", 1, (1 << product.gates) - 1, gates)) return bad;
    if (const int bad = integer(node, "symmetric", 0, INT32_MAX, symmetric)) return bad;
    const bool skew = model_.structure.get(node, "skew").kind == Json::TRUE_;
    const int dtype = skew && product.dtype == SYMRNN_INT8 ? int(SYMRNN_FLOAT) : product.dtype;
    const int64_t length = symrnn_packed_length(static_cast<int>(symmetric), rows, columns,
                                                __builtin_popcountll(gates), dtype);
    if (length < 0 || (dtype == SYMRNN_INT8 && columns > MAX_INT8_COLUMNS))
        return refuse("a group of its %s has sizes that there are not", name);
    const int64_t own = length * type_of(dtype).bytes;
    if (own > bytes - place) return refuse("the numbers of its %s end too early", name);
    const void *const packed = numbers + place;
    place += own;
    if (skew) {
        if (product.skew || symmetric || columns % 2 || rows != product.rows)
            return refuse("the skew part of its %s cannot be one", name);
        auto *const made = model_.pool.array<symrnn_skew>(1);
        if (!made) return no_memory();
        *made = {static_cast<int32_t>(columns / 2), static_cast<int32_t>(gates), packed};
        product.skew = made;
        return SYMRNN_OK;
    }
    auto &term = const_cast<symrnn_term &>(product.term[product.terms++]);
    term.symmetric = static_cast<int32_t>(symmetric);
    term.rows = static_cast<int32_t>(rows);
    term.columns = static_cast<int32_t>(columns);
    term.gates = static_cast<int32_t>(gates);
    term.packed = packed;
    if (const int bad = map_of(node, "inputs", term.inputs)) return bad;
    if (const int bad = map_of(node, "outputs", term.outputs)) return bad;
    return dtype == SYMRNN_INT8 ? check_row_sums(term, name) : int(SYMRNN_OK);
}

// They are subtracted from sums of as many products, in 32 bits.
int Reader::check_row_sums(const symrnn_term &term, const char *name) const {
    const int gates = __builtin_popcount(term.gates);
    const Int8Matrices of(term.packed, term.symmetric, term.rows, term.columns, gates);
    const int64_t most = 128 * tiles_of(term.columns) * SIDE;
    for (int64_t k = 0; k < gates * tiles_of(term.rows) * SIDE; ++k)
        if (of.row_sum[k] > most || of.row_sum[k] < -most)
            return refuse("its %s has a sum of a row that none can have", name);
    return SYMRNN_OK;
}

int Reader::read_vocabulary(const Json::Node &node) {
    symrnn_about &about = model_.about;
    about.eos = about.unknown = -1;
    if (!is_given(node)) return SYMRNN_OK;
    const Json &structure = model_.structure;
    Vocabulary &found = model_.vocabulary;
    static const char *const KINDS[] = {nullptr, "word", "callable", "sentencepiece"};
    for (int kind = SYMRNN_WORDS; kind <= SYMRNN_PIECES; ++kind)
        if (structure.get(node, "kind").is(KINDS[kind])) found.kind = kind;
    if (found.kind == SYMRNN_NO_TEXT)
        return refuse("the kind of its vocabulary should be word, callable or sentencepiece");
    if (!about.tokens) return refuse("it has a vocabulary, and no embedding");
    found.size = about.tokens;
    int64_t id = 0;
    if (const int bad = integer(node, "eos", 0, found.size - 1, id)) return bad;
    about.eos = static_cast<int32_t>(id);
    if (is_given(structure.get(node, "unknown"))) {
        if (const int bad = integer(node, "unknown", 0, found.size - 1, id)) return bad;
        about.unknown = static_cast<int32_t>(id);
    }
    const Tensor *text;
    if (const int bad = tensor(node, "text", BYTES, 0, text)) return bad;
    found.text = data_ + text->first;
    found.bytes = text->elements;
    if (const int bad = array(node, "start", LONGS, found.size + 1, found.start)) return bad;
    if (found.kind == SYMRNN_WORDS)
        if (const int bad = array(node, "order", INTS, found.size, found.order)) return bad;
    if (found.kind == SYMRNN_PIECES) {
        const Tensor *pieces;
        if (const int bad = tensor(node, "model", BYTES, 0, pieces)) return bad;
        if (const int bad = integer(node, "model_bytes", 0, pieces->elements, model_.pieces_bytes))
            return bad;
        model_.pieces = data_ + pieces->first;
    }
    about.vocabulary = found.kind;
    return SYMRNN_OK;
}

}  // namespace
}  // namespace symrnn

using namespace symrnn;

const char *symrnn_why(void) { return failure; }

int symrnn_model_open(const char *path, symrnn_model **model) {
    if (model) *model = nullptr;
    if (!path || !model) return fail(SYMRNN_NULL, "path and model should not be null");
    auto *const made = new (std::nothrow) symrnn_model;
    if (!made) return fail(SYMRNN_MEMORY, "%s: out of memory", path);
    const int status = Reader(*made, path).read();
    if (status == SYMRNN_OK) *model = made;
    else delete made;
    return status;
}

void symrnn_model_close(symrnn_model *model) { delete model; }

int symrnn_model_about(const symrnn_model *model, symrnn_about *about) {
    if (!model || !about) return fail(SYMRNN_NULL, "model and about should not be null");
    *about = model->about;
    return SYMRNN_OK;
}

const char *symrnn_model_json(const symrnn_model *model) { return model ? model->json : "{}"; }

int symrnn_model_pieces(const symrnn_model *model, const void **pieces, int64_t *bytes) {
    if (!model || !pieces || !bytes)
        return fail(SYMRNN_NULL, "model, pieces and bytes should not be null");
    *pieces = model->pieces;
    *bytes = model->pieces_bytes;
    return SYMRNN_OK;
}
