// JSON as a tree, for the header of a model file: whatever the text holds, it is read or refused.

#ifndef SYMRNN_JSON_H
#define SYMRNN_JSON_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace symrnn {

class Json {
  public:
    enum Kind : uint8_t { ABSENT, NULL_, FALSE_, TRUE_, INTEGER, NUMBER, STRING, ARRAY, OBJECT };

    // One value. Strings are UTF-8, terminated, and may hold NULs; keys likewise.
    struct Node {
        Kind kind = ABSENT;
        const char *key = nullptr;   // of a member of an object
        const char *text = nullptr;  // of a string
        int64_t length = 0;          // of the text; of an array or object its items
        int64_t integer = 0;
        int64_t first = -1, next = -1;  // places: of the first item, and of the next beside this

        bool is(const char *other) const {
            return kind == STRING && length == static_cast<int64_t>(strlen(other)) &&
                   memcmp(text, other, length) == 0;
        }
    };

    Json() = default;
    Json(const Json &) = delete;
    ~Json() {
        free(text_);
        free(nodes_);
    }

    enum Result { READ, REFUSED, NO_MEMORY };

    // Reads a whole text: one value, and white space around it. A number that is no integer of
    // int64 is a NUMBER, whose value is not read.
    Result read(const char *text, int64_t length);

    const Node &root() const { return nodes_[0]; }

    // A member by its key, the first of those that have it; of what is no object or lacks it, a
    // node that is ABSENT.
    const Node &get(const Node &object, const char *key) const;

    // The items of an array or object: for (const Node *item = first(of); item; item = next(*item))
    const Node *first(const Node &of) const { return of.first < 0 ? nullptr : nodes_ + of.first; }
    const Node *next(const Node &item) const {
        return item.next < 0 ? nullptr : nodes_ + item.next;
    }

  private:
    static constexpr int MAX_DEPTH = 64;

    int64_t value(int depth);  // its place; -1 if it was refused
    int64_t items(int64_t place, bool object, int depth);
    bool string(const char *&text, int64_t &length);
    bool escape(char *&to);
    bool number(Node &node);
    bool literal(const char *word);
    void skip_space() {
        while (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r') ++at_;
    }
    int64_t add();

    char *text_ = nullptr, *at_ = nullptr;  // a copy, terminated; strings are unescaped in it
    Node *nodes_ = nullptr;
    int64_t count_ = 0, room_ = 0;
    bool no_memory_ = false;
    static const Node NOTHING;
};

}  // namespace symrnn

#endif
