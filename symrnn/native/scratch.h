// Scratch memory that is reused from call to call.

#ifndef SYMRNN_SCRATCH_H
#define SYMRNN_SCRATCH_H

#include <stdint.h>
#include <stdlib.h>

namespace symrnn {

// Aligned scratch memory of one thread, cached for its next call unless it is large.
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

    void trim() {
        if (size_ <= MAX_CACHED) return;
        free(at_);
        at_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr int64_t MAX_CACHED = int64_t(16) << 20;
    char *at_ = nullptr;
    int64_t size_ = 0;
};

inline thread_local Scratch scratch;
inline thread_local Scratch shared_scratch;  // a calling thread's second one, which its team reads

// Divides one allocation into arrays: first reserve each, then allocate all at once.
class Arena {
  public:
    template <typename T>
    void reserve(T *&place, int64_t elements) {
        arrays_[count_++] = {&place, size_, [](void *to, char *at) {
                                *static_cast<T **>(to) = reinterpret_cast<T *>(at);
                            }};
        size_ += (elements * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    }

    bool allocate(Scratch &from = scratch) {
        char *const at = from.get(size_ + 64);
        if (!at) return false;
        for (int n = 0; n < count_; ++n) arrays_[n].assign(arrays_[n].place, at + arrays_[n].offset);
        return true;
    }

  private:
    struct Array {
        void *place;
        int64_t offset;
        void (*assign)(void *place, char *at);
    };

    int count_ = 0;
    Array arrays_[32];
    int64_t size_ = 0;
};

}  // namespace symrnn

#endif
