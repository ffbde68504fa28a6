// A model file in memory: mapped, its structure read and checked once.

#ifndef SYMRNN_MODEL_H
#define SYMRNN_MODEL_H

#include <stdlib.h>

#include "json.h"
#include "symrnn_runtime.h"

namespace symrnn {

// A file, mapped read-only.
class Mapping {
  public:
    Mapping() = default;
    Mapping(const Mapping &) = delete;
    ~Mapping();

    int open(const char *path);  // a status
    const char *at() const { return at_; }
    int64_t bytes() const { return bytes_; }

  private:
    const char *at_ = nullptr;
    int64_t bytes_ = 0;
};

// Arrays of plain structures, which live as long as the pool.
class Pool {
  public:
    Pool() = default;
    Pool(const Pool &) = delete;
    ~Pool() {
        while (last_) {
            Block *const before = last_->before;
            free(last_);
            last_ = before;
        }
    }

    // So many, of zeros; null if there is no memory.
    template <typename T>
    T *array(int64_t count) {
        auto *const block = static_cast<Block *>(calloc(1, sizeof(Block) + count * sizeof(T)));
        if (!block) return nullptr;
        block->before = last_;
        last_ = block;
        return reinterpret_cast<T *>(block + 1);
    }

  private:
    struct alignas(16) Block {
        Block *before;
    };
    Block *last_ = nullptr;
};

// The vocabulary, all of it in the file: token i is the text from start[i] to start[i+1], and order
// has the tokens in the order of their bytes. What these say is checked where it is read.
struct Vocabulary {
    int kind = SYMRNN_NO_TEXT;
    int64_t size = 0, bytes = 0;  // of the text
    const char *text = nullptr;
    const int64_t *start = nullptr;  // (size + 1)
    const int32_t *order = nullptr;  // (size), of SYMRNN_WORDS

    // The text of a token; null where the file says nothing sensible.
    const char *token(int64_t token, int64_t &length) const;
};

// A matrix with a bias: the decoder, or what else follows the layers.
struct Linear {
    const symrnn_product *weight = nullptr;
    const float *bias = nullptr;  // (rows), padded to whole tiles with zeros; or null
};

}  // namespace symrnn

struct symrnn_model {
    symrnn::Mapping file;
    symrnn::Json header, structure;
    symrnn::Pool pool;
    symrnn_about about = {};
    const char *json = "{}";
    const symrnn_layer *layers = nullptr;
    const symrnn_product *embedding = nullptr;  // (V, I), of a model that takes tokens
    symrnn::Linear linear;                      // its weight is null where there is none
    symrnn::Vocabulary vocabulary;
    const void *pieces = nullptr;
    int64_t pieces_bytes = 0;
    int64_t entries = 0;  // the packed numbers of the largest layer, for the choice of threads
};

#endif
