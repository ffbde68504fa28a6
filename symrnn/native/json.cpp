// A recursive-descent reader of JSON (RFC 8259) in one copy of the text.
//
// The copy ends in a NUL, which no token but a string may contain and no string unescaped, so no
// look at a character needs the length.

#include "json.h"

namespace symrnn {

const Json::Node Json::NOTHING;

Json::Result Json::read(const char *text, int64_t length) {
    text_ = static_cast<char *>(malloc(length + 1));
    if (!text_) return NO_MEMORY;
    memcpy(text_, text, length);
    text_[length] = 0;
    at_ = text_;
    const int64_t place = value(0);
    if (place < 0) return no_memory_ ? NO_MEMORY : REFUSED;
    skip_space();
    return at_ == text_ + length ? READ : REFUSED;
}

const Json::Node &Json::get(const Node &object, const char *key) const {
    if (object.kind == OBJECT)
        for (const Node *item = first(object); item; item = next(*item))
            if (strcmp(item->key, key) == 0) return *item;
    return NOTHING;
}

int64_t Json::add() {
    if (count_ == room_) {
        room_ = room_ ? 2 * room_ : 64;
        void *const grown = realloc(nodes_, room_ * sizeof(Node));
        if (!grown) {
            no_memory_ = true;
            return -1;
        }
        nodes_ = static_cast<Node *>(grown);
    }
    nodes_[count_] = Node();
    return count_++;
}

int64_t Json::value(int depth) {
    const int64_t place = add();
    if (place < 0 || depth > MAX_DEPTH) return -1;
    skip_space();
    if (*at_ == '{' || *at_ == '[') return items(place, *at_ == '{', depth);
    Node node;
    bool good = false;
    switch (*at_) {
    case '"':
        node.kind = STRING;
        good = string(node.text, node.length);
        break;
    case 'n': node.kind = NULL_, good = literal("null"); break;
    case 't': node.kind = TRUE_, good = literal("true"); break;
    case 'f': node.kind = FALSE_, good = literal("false"); break;
    default: good = number(node);
    }
    nodes_[place] = node;
    return good ? place : -1;
}

// What stands between the brackets of an array or object.
int64_t Json::items(int64_t place, bool object, int depth) {
    const char end = object ? '}' : ']';
    nodes_[place].kind = object ? OBJECT : ARRAY;
    ++at_;
    skip_space();
    if (*at_ == end) return ++at_, place;
    for (int64_t last = -1;; ++at_) {
        const char *key = nullptr;
        int64_t length = 0;
        if (object) {
            skip_space();
            if (*at_ != '"' || !string(key, length)) return -1;
            skip_space();
            if (*at_ != ':') return -1;
            ++at_;
        }
        const int64_t item = value(depth + 1);
        if (item < 0) return -1;
        nodes_[item].key = key;
        (last < 0 ? nodes_[place].first : nodes_[last].next) = item;
        last = item;
        ++nodes_[place].length;
        skip_space();
        if (*at_ == end) return ++at_, place;
        if (*at_ != ',') return -1;
    }
}

bool Json::string(const char *&text, int64_t &length) {
    char *to = ++at_;
    text = to;
    while (*at_ != '"') {
        if (static_cast<unsigned char>(*at_) < 0x20) return false;  // the end of the text too
        if (*at_ != '\\') *to++ = *at_++;
        else if (!escape(to)) return false;
    }
    length = to - text;
    ++at_;
    *to = 0;  // at the latest the closing quote
    return true;
}

namespace {

int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                               : -1;
}

// The four digits after \u; -1 if they are none.
int code_unit(const char *at) {
    int found = 0;
    for (int k = 0; k < 4; ++k) {
        const int digit = hex_digit(at[k]);
        if (digit < 0) return -1;
        found = found * 16 + digit;
    }
    return found;
}

}  // namespace

// An escape takes at least as many bytes as what it stands for.
bool Json::escape(char *&to) {
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    const char name = at_[1];
    if (name != 'u') {
        const char *const found = name ? strchr(NAMES, name) : nullptr;
        if (!found) return false;
        *to++ = VALUES[found - NAMES];
        at_ += 2;
        return true;
    }
    int code = code_unit(at_ + 2);
    if (code < 0 || (code >= 0xdc00 && code < 0xe000)) return false;
    at_ += 6;
    if (code >= 0xd800 && code < 0xdc00) {
        const int low = at_[0] == '\\' && at_[1] == 'u' ? code_unit(at_ + 2) : -1;
        if (low < 0xdc00 || low >= 0xe000) return false;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        at_ += 6;
    }
    const auto put = [&](int byte) { *to++ = static_cast<char>(byte); };
    if (code < 0x80) put(code);
    else if (code < 0x800) put(0xc0 | code >> 6), put(0x80 | (code & 63));
    else if (code < 0x10000)
        put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    else
        put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 63)), put(0x80 | (code >> 6 & 63)),
            put(0x80 | (code & 63));
    return true;
}

bool Json::number(Node &node) {
    const auto digits = [&] {
        const char *const start = at_;
        while (*at_ >= '0' && *at_ <= '9') ++at_;
        return at_ > start;
    };
    const bool negative = *at_ == '-';
    at_ += negative;
    const char *const start = at_;
    if (!digits() || (*start == '0' && at_ > start + 1)) return false;
    node.kind = at_ - start <= 18 ? INTEGER : NUMBER;  // 10¹⁸ fits
    if (node.kind == INTEGER) {
        for (const char *at = start; at < at_; ++at) node.integer = node.integer * 10 + (*at - '0');
        if (negative) node.integer = -node.integer;
    }
    if (*at_ == '.') {
        node.kind = NUMBER;
        ++at_;
        if (!digits()) return false;
    }
    if (*at_ == 'e' || *at_ == 'E') {
        node.kind = NUMBER;
        ++at_;
        if (*at_ == '+' || *at_ == '-') ++at_;
        if (!digits()) return false;
    }
    return true;
}

bool Json::literal(const char *word) {
    const size_t length = strlen(word);
    if (strncmp(at_, word, length) != 0) return false;
    at_ += length;
    return true;
}

}  // namespace symrnn
