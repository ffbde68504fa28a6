// Text to tokens and back, by the vocabulary of a model.

#include <string.h>

#include <algorithm>

#include "failure.h"
#include "model.h"

namespace symrnn {
namespace {

// The length of the UTF-8 character at `at`, and the character; 0 if there is none.
int character(const char *at, const char *end, uint32_t &found) {
    const auto byte = [&](int k) { return static_cast<unsigned char>(at[k]); };
    const auto follows = [&](int k) { return at + k < end && (byte(k) & 0xc0) == 0x80; };
    if (byte(0) < 0x80) return found = byte(0), 1;
    const int length = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
    if (byte(0) < 0xc2 || byte(0) > 0xf4) return 0;
    found = byte(0) & (0x7f >> length);
    for (int k = 1; k < length; ++k) {
        if (!follows(k)) return 0;
        found = found << 6 | (byte(k) & 63);
    }
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool surrogate = found >= 0xd800 && found < 0xe000;
    return found < LEAST[length] || found > 0x10ffff || surrogate ? 0 : length;
}

// What Python's str.split() splits at.
bool is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

// The token of a word, by binary search; -1 if there is none, -2 if the file says nothing sensible.
int64_t look_up(const Vocabulary &of, const char *word, int64_t length) {
    int64_t low = 0, high = of.size;
    while (low < high) {
        const int64_t middle = (low + high) / 2, token = of.order[middle];
        int64_t other;
        const char *const text = token >= 0 && token < of.size ? of.token(token, other) : nullptr;
        if (!text) return -2;
        const int order = memcmp(text, word, std::min(length, other));
        if (order == 0 && other == length) return token;
        if (order < 0 || (order == 0 && other < length)) low = middle + 1;
        else high = middle;
    }
    return -1;
}

int no_text(const symrnn_model &model, bool to_write) {
    static const char *const WHY[] = {"the file has no vocabulary", "",
                                      "its tokens are made by a function of Python's",
                                      "its tokens are made by sentencepiece"};
    return fail(SYMRNN_TEXT, "this model %s text: %s", to_write ? "writes no" : "reads no",
                WHY[model.about.vocabulary]);
}

int damaged() { return fail(SYMRNN_FILE, "the vocabulary of this model is damaged"); }

// A piece of text that is written as far as there is room.
struct Output {
    char *text;
    int64_t room, count = 0;

    void put(const char *from, int64_t bytes) {
        if (count < room) memcpy(text + count, from, std::min(bytes, room - count));
        count += bytes;
    }
};

// What `line` of symrnn_write holds.
enum : int32_t { BEGUN = 1, SPACE_DUE = 2 };

// In pieces a space is U+2581; a text's own U+2581 and U+2585 are U+FDD0 and U+FDD1 there.
void write_piece(const char *at, const char *end, int32_t &line, Output &to) {
    while (at < end) {
        uint32_t c = 0;
        const int length = std::max(1, character(at, end, c));
        if (c == 0x2581 || is_space(c)) line |= SPACE_DUE;
        else {
            if (line == (BEGUN | SPACE_DUE)) to.put(" ", 1);
            line = BEGUN;
            if (c == 0xfdd0) to.put("\u2581", 3);
            else if (c == 0xfdd1) to.put("\u2585", 3);
            else to.put(at, length);
        }
        at += length;
    }
}

}  // namespace
}  // namespace symrnn

using namespace symrnn;

int symrnn_encode(const symrnn_model *model, const char *text, int64_t bytes, int32_t *tokens,
                  int64_t room, int64_t *count) {
    if (!model || !count || (bytes > 0 && !text) || (room > 0 && !tokens))
        return fail(SYMRNN_NULL, "model, text, tokens and count should not be null");
    if (bytes < 0 || room < 0) return fail(SYMRNN_SIZE, "bytes and room should be at least 0");
    if (model->about.vocabulary != SYMRNN_WORDS) return no_text(*model, false);
    const char *const end = text + bytes;
    int64_t found = 0;
    const auto add = [&](int64_t token) {
        if (found < room) tokens[found] = static_cast<int32_t>(token);
        ++found;
    };
    const auto add_word = [&](const char *word, int64_t length) -> int {
        if (length == 0) return SYMRNN_OK;
        if (length == 5 && memcmp(word, "<eos>", 5) == 0)
            return fail(SYMRNN_TEXT,
                        "the text has the word <eos>, which stands for the end of a line");
        int64_t token = look_up(model->vocabulary, word, length);
        if (token == -2) return damaged();
        if (token < 0) token = model->about.unknown;
        if (token < 0)
            return fail(SYMRNN_TEXT,
                        "the word %.*s is not in the vocabulary, and none stands for it",
                        static_cast<int>(std::min(length, int64_t(64))), word);
        add(token);
        return SYMRNN_OK;
    };
    const char *word = text;
    for (const char *at = text; at < end;) {
        uint32_t c;
        const int length = character(at, end, c);
        if (length == 0 || c == 0)
            return fail(SYMRNN_TEXT, length ? "the text has a NUL" : "the text is not UTF-8");
        if (is_space(c)) {
            if (const int bad = add_word(word, at - word)) return bad;
            if (c == '\n') add(model->about.eos);
            word = at + length;
        }
        at += length;
    }
    if (bytes > 0)
        if (const int bad = add_word(word, end - word)) return bad;
    *count = found;
    return SYMRNN_OK;
}

int symrnn_write(const symrnn_model *model, int32_t token, int32_t *line, char *text, int64_t room,
                 int64_t *count) {
    if (!model || !line || !count || (room > 0 && !text))
        return fail(SYMRNN_NULL, "model, line, text and count should not be null");
    if (room < 0) return fail(SYMRNN_SIZE, "room should be at least 0");
    const Vocabulary &vocabulary = model->vocabulary;
    if (vocabulary.kind == SYMRNN_NO_TEXT) return no_text(*model, true);
    if (token < 0 || token >= vocabulary.size)
        return fail(SYMRNN_TOKEN, "token should be from 0 to %lld, got: %d",
                    static_cast<long long>(vocabulary.size - 1), token);
    Output to{text, room};
    if (token == model->about.eos) {
        to.put("\n", 1);
        *line = 0;
    } else {
        int64_t length;
        const char *const at = vocabulary.token(token, length);
        if (!at) return damaged();
        if (vocabulary.kind == SYMRNN_PIECES) write_piece(at, at + length, *line, to);
        else {
            if (*line) to.put(" ", 1);
            to.put(at, length);
            *line = BEGUN;
        }
    }
    *count = to.count;
    return SYMRNN_OK;
}
