// Scratch memory that is there for the next call too.

#ifndef SYMRNN_SCRATCH_H
#define SYMRNN_SCRATCH_H

#include <stdint.h>
#include <stdlib.h>

namespace symrnn {

// Aligned memory of the calling thread, kept for its next call unless it is large.
class Scratch {
  public:
    ~Scratch() { free(at_); }

    char *get(int64_t bytes) {
        if (bytes > size_) {
            free(at_);
            at_ = nullptr;
            size_ = 0;
            bytes = (bytes + 4095) / 4096 * 4096;
            void *found = nullptr;
            if (posix_memalign(&found, 64, bytes) != 0) return nullptr;
            at_ = static_cast<char *>(found);
            size_ = bytes;
        }
        return at_;
    }

    void done() {
        if (size_ <= KEPT) return;
        free(at_);
        at_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr int64_t KEPT = int64_t(16) << 20;
    char *at_ = nullptr;
    int64_t size_ = 0;
};

inline thread_local Scratch scratch;
inline thread_local Scratch shared_scratch;  // a caller's, beside the one it uses as a member

// Hands out pieces of one block: first told what is wanted, then given the block.
class Pieces {
  public:
    template <typename T>
    void want(T *&place, int64_t numbers) {
        piece_[count_++] = {&place, size_, [](void *to, char *at) {
                                *static_cast<T **>(to) = reinterpret_cast<T *>(at);
                            }};
        size_ += (numbers * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    }

    bool take(Scratch &from = scratch) {
        char *const at = from.get(size_ + 64);
        if (!at) return false;
        for (int n = 0; n < count_; ++n) piece_[n].assign(piece_[n].place, at + piece_[n].offset);
        return true;
    }

  private:
    struct Piece {
        void *place;
        int64_t offset;
        void (*assign)(void *place, char *at);
    };

    int count_ = 0;
    Piece piece_[32];
    int64_t size_ = 0;
};

}  // namespace symrnn

#endif
