// An emulated GPU for symrnn/native/cuda/device.h: each thread of each block is a fiber, and one real
// thread schedules them all, in an order that can be chosen.
//
// A fiber runs until it waits: for its block, its warp, or a flag of another block. In a random order
// it may also be preempted wherever it synchronises or reads what others wrote. In a deadlock one that
// waits for a flag gives up, as on a GPU after a while.
// Memory is that of the process, so what is tested is who reads what after which wait, and every index;
// not the coherence of a GPU's caches. Compiled for it (happens_before.h), it also tells of accesses
// that nothing orders, whether or not they came in an order that does harm.

#ifndef EMULATED_GPU_H
#define EMULATED_GPU_H

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <random>
#include <vector>

#include "happens_before.h"

#define SYMRNN_DEVICE inline
#define SYMRNN_COLD [[noreturn]] inline

namespace symrnn {

// ---- floating-point types ------------------------------------------------------------------------

struct bfloat16 {
    uint16_t bits;
};
#if defined(__x86_64__)
using half = _Float16;
#else
using half = __fp16;
#endif

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}
inline float to_float(half x) { return static_cast<float>(x); }

template <typename T>
T from_float(float x);
template <>
inline float from_float(float x) { return x; }
template <>
inline bfloat16 from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // ties to even
}
template <>
inline half from_float(float x) { return static_cast<half>(x); }

inline float with_bits(float x, uint32_t added, uint32_t mask) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x - x == 0) bits = (bits + added) & mask;  // infinities and none stay
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline float round_to_tf32(float x) { return with_bits(x, 0x1000, 0xffffe000); }

// ---- fibers --------------------------------------------------------------------------------------

struct Group {  // fibers that wait for one another: a block, or a warp of it
    int size = 0;
    std::vector<struct Fiber *> here;
};

struct Copy {
    void *to;
    const void *from;
};

struct Fiber {
    int block, thread;
    int number;     // among the threads of all blocks
    unsigned rank;  // under UNEVEN the higher goes first
    Group *of_block, *of_warp;
    ucontext_t begin;
    jmp_buf at;
    bool begun = false, gave_up = false;
    alignas(16) unsigned char shown[64];  // to the other lanes
    std::vector<Fiber *> *warp;
    std::deque<std::vector<Copy>> copies;  // the groups that were begun; the last is not committed
};

class EmulatedGpu {
  public:
    // The order in which fibers that can go on do: first come first served, last first, or random;
    // UNEVEN is random too, but starves some blocks and some of their warps.
    enum Order { FIRST, LAST, ANY, UNEVEN };

    // 0 and 1 are the first two; every other number is another random order.
    static Order kind_of(unsigned order) {
        return order == 0 ? FIRST : order == 1 ? LAST : order % 2 == 0 ? ANY : UNEVEN;
    }

    static EmulatedGpu *&running() {
        static EmulatedGpu *one = nullptr;
        return one;
    }
    Fiber *current = nullptr;
    bool misaligned = false;  // whether something was loaded from an unaligned address

    // Runs `body` on so many blocks of threads; false for a deadlock.
    bool launch(int blocks, int threads, unsigned order, const std::function<void(int)> &body) {
        constexpr size_t STACK = 64 << 10;
        const size_t count = static_cast<size_t>(blocks) * threads;
        char *const stacks = static_cast<char *>(mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                                      -1, 0));
        if (stacks == MAP_FAILED) return false;
        order_ = kind_of(order);
        random_.seed(order);
        body_ = &body;
        const int warps = (threads + 31) / 32;
        std::vector<Group> of_block(blocks), of_warp(static_cast<size_t>(blocks) * warps);
        std::vector<std::vector<Fiber *>> lanes(of_warp.size());
        std::vector<Fiber> fibers(count);
        std::vector<unsigned> block_rank(blocks), warp_rank(of_warp.size());
        for (unsigned &rank : block_rank) rank = random_() % 1024;
        for (unsigned &rank : warp_rank) rank = random_() % 1024;
        running() = this;
        happens_before::begin(blocks, threads);
        for (size_t k = 0; k < count; ++k) {
            Fiber &f = fibers[k];
            f.block = static_cast<int>(k / threads);
            f.thread = static_cast<int>(k % threads);
            f.number = static_cast<int>(k);
            const size_t warp = f.block * warps + f.thread / 32;
            f.rank = block_rank[f.block] + warp_rank[warp];
            f.of_block = &of_block[f.block];
            f.of_warp = &of_warp[warp];
            ++f.of_block->size;
            ++f.of_warp->size;
            lanes[warp].push_back(&f);
            f.warp = &lanes[warp];
            getcontext(&f.begin);
            f.begin.uc_stack.ss_sp = stacks + k * STACK;
            f.begin.uc_stack.ss_size = STACK;
            f.begin.uc_link = nullptr;
            makecontext(&f.begin, enter, 0);
            ready_.push_back(&f);
        }
        while (!stopped_ && (!ready_.empty() || one_gives_up())) resume_next();
        happens_before::run(-1);
        munmap(stacks, count * STACK);
        watching_.clear();
        running() = nullptr;
        return ended_ == count;
    }

    // Waits for all of a group. in_order: what its threads did before comes before what they do after.
    void meet(Group &group, bool in_order) {
        group.here.push_back(current);
        if (static_cast<int>(group.here.size()) == group.size) {
            if (in_order) {
                std::vector<int> threads;
                for (const Fiber *f : group.here) threads.push_back(f->number);
                happens_before::meet(threads);
            }
            for (Fiber *f : group.here) ready_.push_back(f);
            group.here.clear();
        }
        leave();
    }

    UNSEEN bool wait_for(const uint32_t *flag, uint32_t value) {
        while (*flag < value) {
            if (current->gave_up) return false;
            watching_.push_back(current);
            leave();
        }
        happens_before::wait(flag, value);
        return true;
    }

    [[noreturn]] void stop() {
        stopped_ = true;
        _longjmp(back_, 1);
    }

    // In a random order, preempts the current fiber now and then.
    void pause() {
        if (order_ == FIRST || order_ == LAST || random_() % 8 != 0) return;
        ready_.push_back(current);
        leave();
    }

    // In a random order: whether an asynchronous copy takes place where it is begun.
    bool at_once() { return order_ != FIRST && order_ != LAST && random_() % 2 == 0; }

    void signalled() {
        for (Fiber *f : watching_) ready_.push_back(f);
        watching_.clear();
    }

  private:
    void resume_next() {
        current = next();
        happens_before::run(current->number);
        if (_setjmp(back_)) return;
        if (current->begun) _longjmp(current->at, 1);
        current->begun = true;
        setcontext(&current->begin);
    }

    // Where nobody can go on: whether there is a fiber that waits for a flag, and now gives up.
    bool one_gives_up() {
        if (watching_.empty()) return false;
        watching_.front()->gave_up = true;
        ready_.push_back(watching_.front());
        watching_.erase(watching_.begin());
        return true;
    }

    static void enter() {
        EmulatedGpu &gpu = *running();
        (*gpu.body_)(gpu.current->block);
        ++gpu.ended_;
        _longjmp(gpu.back_, 1);
    }

    void leave() {
        if (!_setjmp(current->at)) _longjmp(back_, 1);
    }

    Fiber *next() {
        if (order_ == FIRST) {
            Fiber *const f = ready_.front();
            ready_.pop_front();
            return f;
        }
        for (int k = order_ == LAST ? 0 : order_ == ANY ? 1 : 16; k > 0; --k) {
            Fiber *&one = ready_[random_() % ready_.size()];
            if (order_ == ANY || one->rank > ready_.back()->rank) std::swap(one, ready_.back());
        }
        Fiber *const f = ready_.back();
        ready_.pop_back();
        return f;
    }

    Order order_ = FIRST;
    std::mt19937 random_;
    const std::function<void(int)> *body_ = nullptr;
    std::deque<Fiber *> ready_;
    std::vector<Fiber *> watching_;
    size_t ended_ = 0;
    bool stopped_ = false;
    jmp_buf back_;
};

// ---- the names of device.h -------------------------------------------------------------------------

inline EmulatedGpu &gpu() { return *EmulatedGpu::running(); }
inline int block_index() { return gpu().current->block; }
inline int thread_index() { return gpu().current->thread; }
inline void sync_block() { gpu().meet(*gpu().current->of_block, true); }
inline void sync_warp() { gpu().meet(*gpu().current->of_warp, true); }
UNSEEN inline void signal_flag(uint32_t *flag, uint32_t value) {
    gpu().pause();
    happens_before::signal(flag, value);
    *flag = value;
    gpu().signalled();
    gpu().pause();
}
inline bool wait_for_flag(const uint32_t *flag, uint32_t value) {
    const bool came = gpu().wait_for(flag, value);
    gpu().pause();
    return came;
}
inline void claim(uint32_t *) {}  // only one gives up
[[noreturn]] inline void stop_launch() { gpu().stop(); }

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
    T at[4];
};
struct alignas(8) Pair {
    float at[2];
};
struct alignas(16) Words {
    uint32_t at[4];
};

// A GPU faults at an address that is no multiple of the size. Inlined, so that an access has the place
// in the kernel's code.
#define INLINED __attribute__((always_inline)) inline
template <typename T>
INLINED T load_aligned(const void *from) {
    if (reinterpret_cast<uintptr_t>(from) % alignof(T)) gpu().misaligned = true;
    T loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

INLINED Quad<float> load_quad(const float *from) { return load_aligned<Quad<float>>(from); }
INLINED Pair load_pair(const float *from) { return load_aligned<Pair>(from); }
INLINED Words load_words(const Words *from) { return load_aligned<Words>(from); }
inline float float_of(uint32_t word) {
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

template <typename T>
INLINED T load_past_l1(const T *from) {
    gpu().pause();
    return load_aligned<T>(from);
}

// Asynchronous copies take place as late as they may, or, in a random order, now and then at once: who
// reads too early reads what was there before.
UNSEEN inline void copy_16(const Copy &copy) { memcpy(copy.to, copy.from, 16); }
INLINED void copy_async(void *shared, const void *global) {
    gpu().pause();
    for (const void *address : {static_cast<const void *>(shared), global})
        if (reinterpret_cast<uintptr_t>(address) % 16) gpu().misaligned = true;
    std::deque<std::vector<Copy>> &copies = gpu().current->copies;
    if (copies.empty()) copies.emplace_back();
    happens_before::copy(shared, global, 16);
    const Copy copy{shared, global};
    if (gpu().at_once()) copy_16(copy);
    else copies.back().push_back(copy);
}
inline void commit_copies() {
    happens_before::commit();
    gpu().current->copies.emplace_back();
}
template <int PENDING>
void wait_for_copies() {
    std::deque<std::vector<Copy>> &copies = gpu().current->copies;
    while (copies.size() > PENDING + 1) {
        for (const Copy &copy : copies.front()) copy_16(copy);
        copies.pop_front();
    }
    happens_before::wait_for_copies(PENDING);
    gpu().pause();
}

// What each lane shows, once all lanes have.
template <typename T, typename Work>
void among_lanes(const T &mine, const Work &work) {
    static_assert(sizeof(T) <= sizeof(Fiber::shown));
    Fiber &f = *gpu().current;
    memcpy(f.shown, &mine, sizeof mine);
    gpu().pause();
    gpu().meet(*f.of_warp, false);
    work([&](int lane) {
        T shown;
        memcpy(&shown, (*f.warp)[lane]->shown, sizeof shown);
        return shown;
    });
    gpu().meet(*f.of_warp, false);
}

inline Words words_of_lane(const Words &mine, int lane) {
    Words words;
    among_lanes(mine, [&](const auto &of) { words = of(lane); });
    return words;
}

// The matrix units look at the upper bits of a float, and at no others.
inline float cut_to_tf32(float x) { return with_bits(x, 0, 0xffffe000); }

inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    struct Shown {
        float a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    among_lanes(mine, [&](const auto &of) {
        for (int k = 0; k < 8; ++k) {
            const Shown left = of(g * 4 + k % 4);
            for (int i = 0; i < 4; ++i)
                c[i] += cut_to_tf32(left.a[i / 2 + k / 4 * 2]) *
                        cut_to_tf32(of((t * 2 + i % 2) * 4 + k % 4).b[k / 4]);
        }
    });
}

template <typename T>
float half_of(uint32_t two, int k) {
    const uint16_t bits = static_cast<uint16_t>(two >> (k * 16));
    T x;
    memcpy(&x, &bits, sizeof x);
    return to_float(x);
}

template <typename T>
void mma_16_bits(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Shown {
        uint32_t a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    among_lanes(mine, [&](const auto &of) {
        for (int k = 0; k < 16; ++k) {
            const Shown left = of(g * 4 + k % 8 / 2);
            for (int i = 0; i < 4; ++i)
                c[i] += half_of<T>(left.a[i / 2 + k / 8 * 2], k % 2) *
                        half_of<T>(of((t * 2 + i % 2) * 4 + k % 8 / 2).b[k / 8], k % 2);
        }
    });
}

inline uint32_t two_of(const void *row, int first, const void *other_row, int second) {
    const uint16_t *x = static_cast<const uint16_t *>(row),
                   *y = static_cast<const uint16_t *>(other_row);
    return x[first] | static_cast<uint32_t>(y[second]) << 16;
}

template <int M>
void load_matrices(uint32_t (&to)[M], const void *row) {
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    among_lanes(row, [&](const auto &of) {
        for (int m = 0; m < M; ++m) to[m] = two_of(of(m * 8 + g), t * 2, of(m * 8 + g), t * 2 + 1);
    });
}

inline void load_matrices_transposed(uint32_t (&to)[4], const void *row) {
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    among_lanes(row, [&](const auto &of) {
        for (int m = 0; m < 4; ++m) to[m] = two_of(of(m * 8 + t * 2), g, of(m * 8 + t * 2 + 1), g);
    });
}

}  // namespace symrnn

#endif
