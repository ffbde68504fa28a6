// The CUDA that the kernels use, under names of our own: threads, flags between blocks, tensor cores,
// 16-bit floats. Nothing else in layer.h and products.h is CUDA's. With SYMRNN_EMULATED the same
// kernels run on a CPU: tests/native/emulated_gpu.h defines these names too.

#ifndef SYMRNN_CUDA_DEVICE_H
#define SYMRNN_CUDA_DEVICE_H

#include <stdint.h>

#ifdef SYMRNN_EMULATED
#include "emulated_gpu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

#define SYMRNN_DEVICE __device__ __forceinline__
#define SYMRNN_COLD [[noreturn]] __device__ __noinline__

namespace symrnn {

using bfloat16 = __nv_bfloat16;
using half = __half;

// ---- threads -------------------------------------------------------------------------------------

SYMRNN_DEVICE int block_index() { return blockIdx.x; }
SYMRNN_DEVICE int thread_index() { return threadIdx.x; }

// A barrier for the threads of a block; what they wrote before it is visible to all of them.
SYMRNN_DEVICE void sync_block() { __syncthreads(); }
// The same for the threads of a warp.
SYMRNN_DEVICE void sync_warp() { __syncwarp(); }

// Signal and wait. By one thread, after sync_block: who sees the flag sees all that the block wrote.
SYMRNN_DEVICE void signal_flag(uint32_t *flag, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Waits until the flag has reached the value; false if it has not after so many polls. Each takes more
// than half a microsecond, so these are seconds, and a step takes some microseconds: the block that is
// waited for will never come. (A look at the clock would take registers of those that are scarce.)
constexpr uint32_t PATIENCE = 1 << 22;  // polls
SYMRNN_DEVICE bool wait_for_flag(const uint32_t *flag, uint32_t value) {
    for (uint32_t polls = PATIENCE; polls; --polls) {
        uint32_t seen;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if (seen >= value) return true;
    }
    return false;
}

// Returns for the first thread of all blocks that comes here. The others stay until the launch is
// stopped. word: 0 at first.
SYMRNN_DEVICE void claim(uint32_t *word) {
    while (atomicExch(word, 1u) != 0) {}
}

// Stops the launch with an error, after all that this thread wrote has reached the host.
[[noreturn]] SYMRNN_DEVICE void stop_launch() {
    __threadfence_system();
    __trap();
    __builtin_unreachable();
}

// ---- memory --------------------------------------------------------------------------------------

// Four adjacent elements.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
    T at[4];
};
struct alignas(8) Pair {
    float at[2];
};

// In one load each.
SYMRNN_DEVICE Quad<float> load_quad(const float *from) {
    const float4 v = *reinterpret_cast<const float4 *>(from);
    return {{v.x, v.y, v.z, v.w}};
}
SYMRNN_DEVICE Pair load_pair(const float *from) {
    const float2 v = *reinterpret_cast<const float2 *>(from);
    return {{v.x, v.y}};
}

// Loads what other blocks wrote, past L1, which is not coherent.
SYMRNN_DEVICE float load_past_l1(const float *from) { return __ldcg(from); }
// Not CUDA's own __ldcg of 16-bit floats: its asm does not tell the compiler that it reads memory.
template <typename T>
SYMRNN_DEVICE T load_past_l1(const T *from) {
    static_assert(sizeof(T) == sizeof(unsigned short));
    const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short *>(from));
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

SYMRNN_DEVICE Quad<float> load_past_l1(const Quad<float> *from) {
    const float4 v = __ldcg(reinterpret_cast<const float4 *>(from));
    return {{v.x, v.y, v.z, v.w}};
}
template <typename T>
SYMRNN_DEVICE Quad<T> load_past_l1(const Quad<T> *from) {
    static_assert(sizeof(Quad<T>) == sizeof(uint2));
    const uint2 v = __ldcg(reinterpret_cast<const uint2 *>(from));
    Quad<T> quad;
    memcpy(&quad, &v, sizeof quad);
    return quad;
}

// 16 bytes, whatever they are.
struct alignas(16) Words {
    uint32_t at[4];
};
SYMRNN_DEVICE Words load_words(const Words *from) {
    const uint4 v = *reinterpret_cast<const uint4 *>(from);
    return {{v.x, v.y, v.z, v.w}};
}
SYMRNN_DEVICE Words load_past_l1(const Words *from) {
    const uint4 v = __ldcg(reinterpret_cast<const uint4 *>(from));
    return {{v.x, v.y, v.z, v.w}};
}
SYMRNN_DEVICE float float_of(uint32_t word) { return __uint_as_float(word); }
// What this lane of the warp has. All lanes call it.
SYMRNN_DEVICE Words words_of_lane(const Words &mine, int lane) {
    Words words;
#pragma unroll
    for (int k = 0; k < 4; ++k) words.at[k] = __shfl_sync(0xffffffffu, mine.at[k], lane);
    return words;
}

// Copies 16 bytes from global to shared memory, past L1, without waiting. Both addresses are multiples
// of 16. What is copied is there for this thread after wait_for_copies, for its block after a barrier.
SYMRNN_DEVICE void copy_async(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(global) : "memory");
}
// What was copied since the last commit is a group.
SYMRNN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's groups but for the last `PENDING`.
template <int PENDING>
SYMRNN_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- floating-point types ------------------------------------------------------------------------

SYMRNN_DEVICE float to_float(float x) { return x; }
SYMRNN_DEVICE float to_float(bfloat16 x) { return __bfloat162float(x); }
SYMRNN_DEVICE float to_float(half x) { return __half2float(x); }

template <typename T>
SYMRNN_DEVICE T from_float(float x);
template <>
SYMRNN_DEVICE float from_float(float x) { return x; }
template <>
SYMRNN_DEVICE bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
template <>
SYMRNN_DEVICE half from_float(float x) { return __float2half_rn(x); }

// Rounds to the nearest TF32.
SYMRNN_DEVICE float round_to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// ---- tensor cores --------------------------------------------------------------------------------

// c (16 × 8) += a (16 × 8) · b (8 × 8), in the fragments of PTX's mma.m16n8k8.
SYMRNN_DEVICE void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// c (16 × 8) += a (16 × 16) · b (16 × 8), in the fragments of PTX's mma.m16n8k16.
template <typename T>
SYMRNN_DEVICE void mma_16_bits(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
SYMRNN_DEVICE void mma_16_bits<bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
SYMRNN_DEVICE void mma_16_bits<half>(float (&c)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

SYMRNN_DEVICE uint32_t shared_address(const void *row) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(row));
}

// Four matrices of 8 × 8 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8.
SYMRNN_DEVICE void load_matrices(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)) : "memory");
}
// The same, each transposed.
SYMRNN_DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)) : "memory");
}
// Two matrices: lanes 0 to 15 give the addresses.
SYMRNN_DEVICE void load_matrices(uint32_t (&to)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row)) : "memory");
}

}  // namespace symrnn

#endif  // SYMRNN_EMULATED

namespace symrnn {

constexpr int WARP = 32;

// As many as do not spill registers: loads in flight for each gate where partial sums are added, and
// blocks of 16 × 8 sums that a warp has at once. The compiler finds more registers for 9.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int LOADS_IN_FLIGHT = 4;
constexpr int MOST_SUMS = 8;
#else
constexpr int LOADS_IN_FLIGHT = 8;
constexpr int MOST_SUMS = 9;
#endif

SYMRNN_DEVICE int lane_index() { return thread_index() % WARP; }
SYMRNN_DEVICE int warp_index() { return thread_index() / WARP; }

}  // namespace symrnn

#endif
