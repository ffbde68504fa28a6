// Damages model files in every way that it can think of, and runs whatever opens: a program by
// itself, for the sanitizers. See scripts/check_native.
//
//     mutate COUNT FILE ...    so many mutations of each file, the same on every machine
//
// Those in models/ are small ones that symrnn.save_runtime wrote, of version 1, which are always read.
// A mutated file is refused with a sentence, or runs. Exits with 1 if one does neither, or a whole
// file is refused.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "symrnn_runtime.h"

namespace {

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2 + 1) {}
    uint64_t next() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state * 0x2545f4914f6cdd1dull >> 11;
    }
    size_t below(size_t n) { return n ? next() % n : 0; }
};

// A file in its parts, so that one can be changed and the rest still fit.
struct File {
    std::string header, data;

    static File read(const char *path) {
        std::string all;
        char some[4096];
        FILE *const file = fopen(path, "rb");
        if (!file) {
            perror(path);
            exit(2);
        }
        for (size_t n; (n = fread(some, 1, sizeof some, file)) > 0;) all.append(some, n);
        fclose(file);
        uint64_t length;
        memcpy(&length, all.data(), 8);
        return {all.substr(8, length), all.substr(8 + length)};
    }

    std::string bytes() const {
        std::string padded = header;
        while ((8 + padded.size()) % 64) padded += ' ';
        uint64_t length = padded.size();
        return std::string(reinterpret_cast<char *>(&length), 8) + padded + data;
    }
};

template <size_t n>
const char *any_of(Random &random, const char *const (&of)[n]) {
    return of[random.below(n)];
}

// The places in a text where a run of such characters begins.
std::vector<size_t> runs(const std::string &text, bool (*belongs)(char)) {
    std::vector<size_t> found;
    for (size_t k = 0; k < text.size(); ++k)
        if (belongs(text[k]) && (k == 0 || !belongs(text[k - 1]))) found.push_back(k);
    return found;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.';
}

void replace_run(Random &random, std::string &text, bool (*belongs)(char), const std::string &by) {
    const auto places = runs(text, belongs);
    if (places.empty()) return;
    const size_t first = places[random.below(places.size())];
    size_t last = first;
    while (last < text.size() && belongs(text[last])) ++last;
    text.replace(first, last - first, by);
}

std::string word_of(Random &random, const std::string &text) {
    const auto places = runs(text, is_letter);
    const size_t first = places[random.below(places.size())];
    size_t last = first;
    while (last < text.size() && is_letter(text[last])) ++last;
    return text.substr(first, last - first);
}

void change_header(Random &random, std::string &header) {
    static const char *const NUMBERS[] = {
        "0", "-1", "1", "2", "3", "5", "15", "16", "17", "64", "255", "65535", "65536",
        "2147483647", "2147483648", "-2147483648", "4294967296", "1099511627776",
        "9223372036854775807", "9223372036854775808", "-9223372036854775808",
        "1e400", "1.5", "0x10", "00", "null", "true", "[]", "{}", "\\\"\\\""};
    static const char *const WORDS[] = {
        "F32", "I8", "BF16", "U8", "I32", "I64", "F64", "LSTM", "GRU", "RNN_TANH", "skew",
        "rows", "columns", "groups", "numbers", "inputs", "outputs", "symmetric",
        "sentencepiece", "word", "callable", "\\u0000", "\\ud800", "\\ud83d\\ude00", "null"};
    const size_t at = random.below(header.size());
    switch (random.below(10)) {
    case 0: header[at] ^= static_cast<char>(1 << random.below(8)); break;
    case 1: header[at] = static_cast<char>(random.next()); break;
    case 2: header.erase(at, 1 + random.below(random.below(2) ? 4 : 200)); break;
    case 3:
        header.insert(at, header.substr(random.below(header.size()), 1 + random.below(100)));
        break;
    case 4:
        header.insert(at, std::string(random.below(3) ? 70 : 20000, random.below(2) ? '[' : '{'));
        break;
    case 5: replace_run(random, header, is_letter, any_of(random, WORDS)); break;
    case 6:  // ties what was not
        replace_run(random, header, is_letter, word_of(random, header));
        break;
    default: replace_run(random, header, is_digit, any_of(random, NUMBERS));
    }
}

// Of each tensor equally often, whatever its size: the small ones have what is computed with.
void change_data(Random &random, const std::string &header, std::string &data) {
    std::vector<size_t> places;
    for (size_t k = 0; (k = header.find("\"data_offsets\":[", k)) != std::string::npos; ++k)
        places.push_back(k + 16);
    if (places.empty() || data.size() < 64) return;
    char *end;
    const char *const at = header.c_str() + places[random.below(places.size())];
    const size_t first = strtoul(at, &end, 10), last = strtoul(end + 1, nullptr, 10);
    if (last > data.size() || first + 8 > last) return;
    static const int64_t VALUES[] = {
        0, -1, 1, 7, 16, 255, 65536, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, -8,
        int64_t(1) << 32, 0x7f80000000000000, 0x7fc000007fc00000};
    const int64_t value = VALUES[random.below(sizeof VALUES / sizeof *VALUES)];
    for (size_t times = 1 + random.below(4); times; --times) {
        const size_t place = first + random.below((last - first) / 8) * 8;
        if (random.below(2)) memcpy(&data[place], &value, 8);
        else if (random.below(2)) memcpy(&data[place + random.below(2) * 4], &value, 4);
        else data[place + random.below(8)] ^= static_cast<char>(1 << random.below(8));
    }
}

std::string mutated(Random &random, const File &file) {
    File own = file;
    const size_t kind = random.below(10);
    for (size_t times = 1 + random.below(3); times; --times) {
        if (kind < 6) change_header(random, own.header);
        if (kind >= 5) change_data(random, file.header, own.data);
    }
    std::string bytes = own.bytes();
    switch (random.below(12)) {
    case 0: bytes.resize(random.below(bytes.size())); break;
    case 1: bytes.append(random.below(200), 'x'); break;
    case 2: bytes[random.below(8)] = static_cast<char>(random.next()); break;
    case 3: bytes[random.below(bytes.size())] ^= static_cast<char>(1 << random.below(8)); break;
    }
    return bytes;
}

long opened = 0, refused = 0, wrong = 0;

void expect(bool good, const char *what) {
    if (good) return;
    ++wrong;
    fprintf(stderr, "mutate: %s: %s\n", what, symrnn_why());
}

// All that can be done with a model. Sizes are those of its file, which is small.
void run(const symrnn_model *model) {
    symrnn_about about;
    expect(symrnn_model_about(model, &about) == SYMRNN_OK, "about");
    expect(symrnn_model_json(model) != nullptr, "json");
    const void *pieces;
    int64_t bytes;
    expect(symrnn_model_pieces(model, &pieces, &bytes) == SYMRNN_OK, "pieces");
    int64_t sum = 0;
    for (int64_t k = 0; k < bytes; ++k) sum += static_cast<const char *>(pieces)[k];
    constexpr int64_t B = 2, T = 3;
    symrnn_session *session = nullptr, *copy = nullptr;
    expect(symrnn_session_open(model, B, 2, &session) == SYMRNN_OK, "session");
    if (!session) return;
    std::vector<float> output(T * B * about.output_size);
    if (about.tokens) {
        std::vector<int32_t> tokens(T * B);
        for (int64_t first = 0; first < about.tokens; first += T * B) {
            for (int64_t k = 0; k < T * B; ++k)
                tokens[k] = static_cast<int32_t>((first + k) % about.tokens);
            expect(symrnn_run_tokens(session, T, tokens.data(), T, output.data()) == SYMRNN_OK,
                   "run");
        }
        tokens[1] = about.tokens;
        expect(symrnn_run_tokens(session, 1, tokens.data(), 0, nullptr) == SYMRNN_TOKEN, "token");
    } else {
        std::vector<float> x(T * B * about.input_size, 0.5f);
        expect(symrnn_run_vectors(session, T, x.data(), 1, output.data()) == SYMRNN_OK, "run");
    }
    expect(symrnn_session_copy(session, &copy) == SYMRNN_OK, "copy");
    symrnn_session_close(copy);
    expect(symrnn_session_reset(session, 1) == SYMRNN_OK, "reset");
    symrnn_session_close(session);
    symrnn_generator generator;
    symrnn_seed(&generator, 1);
    int32_t token;
    const int drawn =
        symrnn_draw(about.output_size, output.data(), &generator, 0.7, 3, 0.9, &token);
    expect(drawn == SYMRNN_OK ? token >= 0 && token < about.output_size : drawn == SYMRNN_LOGITS,
           "draw");
    int32_t line = 0;
    char text[8];
    for (int32_t n = 0; n < about.tokens; ++n) {
        const int status = symrnn_write(model, n, &line, text, sizeof text, &bytes);
        expect(status == SYMRNN_OK || status == SYMRNN_TEXT || status == SYMRNN_FILE, "write");
    }
    int32_t tokens[4];
    for (const char *words : {"the cat\nsat  on", "zebra \xff", "\xe2\x80\xa8"}) {
        const int status = symrnn_encode(model, words, strlen(words), tokens, 4, &bytes);
        expect(status == SYMRNN_OK || status == SYMRNN_TEXT || status == SYMRNN_FILE, "encode");
    }
}

bool try_file(const std::string &bytes, const char *path) {
    FILE *const file = fopen(path, "wb");
    if (!file || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) {
        perror(path);
        exit(2);
    }
    fclose(file);
    symrnn_model *model;
    const int status = symrnn_model_open(path, &model);
    if (status != SYMRNN_OK) {
        expect(model == nullptr && *symrnn_why(), "a refusal has a sentence and no model");
        ++refused;
        return false;
    }
    ++opened;
    run(model);
    symrnn_model_close(model);
    return true;
}

}  // namespace

int main(int count, char **words) {
    if (count < 3) {
        fprintf(stderr, "usage: mutate COUNT FILE ...\n");
        return 2;
    }
    // In memory where that can be: ten thousand small files take a disk half a minute.
    char in_memory[] = "/dev/shm/mutated-XXXXXX", on_disk[] = "/tmp/mutated-XXXXXX";
    char *const path = access("/dev/shm", W_OK) == 0 ? in_memory : on_disk;
    const int made = mkstemp(path);
    if (made < 0) {
        perror(path);
        return 2;
    }
    close(made);
    const long mutations = strtol(words[1], nullptr, 10);
    for (int k = 2; k < count; ++k) {
        const File file = File::read(words[k]);
        expect(try_file(file.bytes(), path), words[k]);
        for (long n = 0; n < mutations; ++n) {
            Random random(1000003 * k + n);
            try_file(mutated(random, file), path);
        }
    }
    unlink(path);
    printf("mutate: %ld files refused, %ld ran, %s\n", refused, opened, wrong ? "WRONG" : "right");
    return wrong ? 1 : 0;
}
