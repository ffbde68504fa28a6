// What a step of the GPU layer is made of, each by itself: how long a flag is on its way, an exchange
// between all blocks and a barrier of a cluster take, and at what rates L2 and shared memory are read and
// matrix units multiply. No kernel of ours: only the instructions that ours are made of.
//
//     nvcc -std=c++17 -O3 -arch=sm_90 scripts/benchmarks/gpu/micro.cu -o micro
//     ./micro >> results.jsonl
//
// Each result is a line of JSON, written as it comes. Ends with 1 where CUDA reports an error; a wait that
// never ends is cut off after PATIENCE polls, by a trap.

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace {

constexpr int WARP = 32, THREADS = 256, WARPS = THREADS / WARP;
constexpr int BLOCKS_AT_MOST = 256, LINE = 32;  // words between two flags
constexpr uint32_t PATIENCE = 1 << 22;

// ---- on the GPU ----------------------------------------------------------------------------------

__device__ void signal_flag(uint32_t *flag, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ void wait_for_flag(const uint32_t *flag, uint32_t value) {
    for (uint32_t polls = PATIENCE; polls; --polls) {
        uint32_t seen;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if (seen >= value) return;
    }
    __trap();
}

// Blocks 0 and `other` answer each other `turns` times.
__global__ void ping_pong(uint32_t *flags, int other, int turns) {
    const int block = blockIdx.x;
    if (threadIdx.x != 0 || (block != 0 && block != other)) return;
    uint32_t *const mine = flags + block * LINE, *const theirs = flags + (block ? 0 : other) * LINE;
    for (int n = 1; n <= turns; ++n) {
        if (block == 0) signal_flag(mine, n);
        wait_for_flag(theirs, n);
        if (block != 0) signal_flag(mine, n);
    }
}

// Steps of a layer without its products: each block writes its share of `quads` (16 bytes each), signals,
// waits for all blocks, each warp for an eighth of them, and reads what all wrote: all of it, each warp an
// eighth. With no quads, the flags alone.
__global__ void exchange(uint32_t *flags, uint4 *buffer, int quads, int steps, uint32_t *sink) {
    const int blocks = gridDim.x, block = blockIdx.x, lane = threadIdx.x % WARP,
              warp = threadIdx.x / WARP;
    const int first = quads * block / blocks, last = quads * (block + 1) / blocks;
    const int my_first = quads * warp / WARPS, my_last = quads * (warp + 1) / WARPS;
    uint32_t all = 0;
    for (int n = 1; n <= steps; ++n) {
        uint4 *const at = buffer + n % 2 * quads;
        for (int k = first + threadIdx.x; k < last; k += THREADS) at[k] = make_uint4(n, k, all, 0);
        __syncthreads();
        if (threadIdx.x == 0) signal_flag(flags + block, n);
        for (int k = blocks * warp / WARPS + lane; k < blocks * (warp + 1) / WARPS; k += WARP)
            wait_for_flag(flags + k, n);
        __syncwarp();
        if (quads == 0) __syncthreads();
#pragma unroll 8
        for (int k = my_first + lane; k < my_last; k += WARP) all += __ldcg(at + k).x;
        __syncthreads();
    }
    if (all == 1) *sink = all;
}

// Each block reads `quads` of 16 bytes, from its own place on, `times` times.
__global__ void read_l2(const uint4 *from, int quads, int own, int times, uint32_t *sink) {
    const uint4 *const mine = from + static_cast<int64_t>(blockIdx.x) * own;
    uint32_t all = 0;
    for (int n = 0; n < times; ++n)
#pragma unroll 8
        for (int k = threadIdx.x; k < quads; k += THREADS) {
            const uint4 q = __ldcg(mine + k);
            all += q.x ^ q.y ^ q.z ^ q.w;
        }
    if (all == 1) *sink = all;
}

extern __shared__ __align__(128) char shared[];

// Clocks in which a block reads 16 bytes a thread `times` times, of its shared memory, without conflicts.
__global__ void read_shared(int times, int64_t *clocks, uint32_t *sink) {
    constexpr int IN_FLIGHT = 8, QUADS = IN_FLIGHT * THREADS;
    uint4 *const quads = reinterpret_cast<uint4 *>(shared);
    for (int k = threadIdx.x; k < QUADS; k += THREADS) quads[k] = make_uint4(k, k, k, k);
    __syncthreads();
    uint32_t all = 0;
    const int64_t start = clock64();
    for (int n = 0; n < times; ++n) {
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; ++j) {
            uint4 q;
            asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
                         : "r"(static_cast<uint32_t>(
                             __cvta_generic_to_shared(quads + j * THREADS + threadIdx.x))));
            all += q.x ^ q.y ^ q.z ^ q.w;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) *clocks = clock64() - start;
    if (all == 1) *sink = all;
}

struct BFloat16 {
    static constexpr int PRODUCTS = 16 * 8 * 16;
    static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

struct TF32 {
    static constexpr int PRODUCTS = 16 * 8 * 8;
    static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
};

// Clocks in which each warp of a block multiplies SUMS · times tiles, from registers.
template <typename Policy>
__global__ void multiply(int times, int64_t *clocks, float *sink) {
    constexpr int SUMS = 6;  // independent ones, which hide the units' latency
    float sum[SUMS][4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    __syncthreads();
    const int64_t start = clock64();
    for (int n = 0; n < times; ++n)
#pragma unroll
        for (int k = 0; k < SUMS; ++k) Policy::multiply(sum[k], a, b);
    __syncthreads();
    if (threadIdx.x == 0) *clocks = clock64() - start;
    float all = 0;
    for (int k = 0; k < SUMS; ++k)
        for (int i = 0; i < 4; ++i) all += sum[k][i];
    if (all == 1) *sink = all;
}

// Clocks of `times` barriers of a cluster, one after the other.
__global__ void cluster_barrier(int times, int64_t *clocks) {
#if __CUDA_ARCH__ >= 900
    const int64_t start = clock64();
    for (int n = 0; n < times; ++n) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
    if (threadIdx.x == 0 && blockIdx.x == 0) *clocks = clock64() - start;
#else
    if (threadIdx.x == 0 && blockIdx.x == 0) *clocks = 0 * times;
#endif
}

// Clocks, and nanoseconds, of a wait that is as good as any.
__global__ void clock_rate(int64_t *clocks, int64_t *nanoseconds) {
    int64_t before, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(before));
    const int64_t start = clock64();
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - before < 5'000'000);
    *clocks = clock64() - start;
    *nanoseconds = now - before;
}

// ---- on the host ---------------------------------------------------------------------------------

void check(cudaError_t error, const char *what) {
    if (!error) return;
    printf("{\"part\": \"micro\", \"case\": \"%s\", \"what\": \"micro\", \"ok\": false, "
           "\"words\": \"%s\"}\n",
           what, cudaGetErrorString(error));
    fflush(stdout);
    exit(1);
}

void report(const char *what, double value, const char *unit) {
    printf("{\"part\": \"micro\", \"case\": \"%s\", \"what\": \"micro\", \"ok\": true, \"words\": \"\", "
           "\"value\": %.6g, \"unit\": \"%s\"}\n",
           what, value, unit);
    fflush(stdout);
}

int attribute(cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, 0), "the GPU");
    return value;
}

// Microseconds of a launch, the least of a few.
double time_of(const char *what, const std::function<void()> &launch) {
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), what);
    check(cudaEventCreate(&end), what);
    float least = 1e30f;
    for (int n = 0; n < 5; ++n) {
        check(cudaEventRecord(start), what);
        launch();
        check(cudaEventRecord(end), what);
        check(cudaDeviceSynchronize(), what);
        float took = 0;
        check(cudaEventElapsedTime(&took, start, end), what);
        least = std::min(least, took);
    }
    check(cudaEventDestroy(start), what);
    check(cudaEventDestroy(end), what);
    return least * 1e3;
}

template <typename... Parameters, typename... Arguments>
void launch_together(const char *what, void (*kernel)(Parameters...), int blocks, int threads,
                     Arguments... arguments) {
    void *pointers[] = {&arguments...};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void *>(kernel), dim3(blocks),
                                      dim3(threads), pointers, 0, nullptr),
          what);
}

struct Memory {
    uint32_t *flags;
    uint4 *quads;
    int64_t *clocks;
    uint32_t *sink;
};

constexpr int64_t L2_BYTES = 32 << 20;  // less than any L2 that is meant has

void flags(const Memory &memory, int blocks) {
    const char *const what = "a flag, from one multiprocessor to another";
    constexpr int TURNS = 1000;
    std::vector<double> found;
    for (int other = 1; other < blocks; other += 5)
        found.push_back(time_of(what, [&] {
                            check(cudaMemsetAsync(memory.flags, 0, BLOCKS_AT_MOST * LINE * 4), what);
                            launch_together(what, ping_pong, blocks, WARP, memory.flags, other, TURNS);
                        }) /
                        (2 * TURNS));
    std::sort(found.begin(), found.end());
    report("a flag, the nearest two multiprocessors", found.front(), "µs");
    report(what, found[found.size() / 2], "µs");
    report("a flag, the farthest two multiprocessors", found.back(), "µs");
}

void exchanges(const Memory &memory, int blocks) {
    constexpr int STEPS = 1000;
    const struct {
        const char *what;
        int bytes;
    } cases[] = {
        {"an exchange, flags alone", 0},
        {"an exchange, H=650 B=20 in 16 bits", 650 * 20 * 2},
        {"an exchange, H=1500 B=20 in 16 bits", 1500 * 20 * 2},
        {"an exchange, H=1500 B=20 in float32", 1500 * 20 * 4},
        {"an exchange, H=768 B=16 in 16 bits", 768 * 16 * 2},
    };
    for (const auto &one : cases)
        report(one.what,
               time_of(one.what,
                       [&] {
                           check(cudaMemsetAsync(memory.flags, 0, BLOCKS_AT_MOST * LINE * 4), one.what);
                           launch_together(one.what, exchange, blocks, THREADS, memory.flags,
                                           memory.quads, one.bytes / 16, STEPS, memory.sink);
                       }) /
                   STEPS,
               "µs");
}

void rates(const Memory &memory, int blocks) {
    constexpr int TIMES = 200, SAME = 60'000 / 16;
    const int own = static_cast<int>(L2_BYTES / 16 / blocks);
    const auto rate = [&](const char *what, int quads, int apart) {
        const double took = time_of(what, [&] {
            read_l2<<<blocks, THREADS>>>(memory.quads, quads, apart, TIMES, memory.sink);
        });
        report(what, 16.0 * quads * blocks * TIMES / took / 1e6, "TB/s");
    };
    rate("L2, the same 60 kB by all blocks", SAME, 0);
    rate("L2, 32 MiB, each block its own", own, own);
}

// Clocks that a kernel has measured in its first block.
template <typename Launch>
double clocks_of(const char *what, const Memory &memory, const Launch &launch) {
    int64_t found = 0;
    for (int n = 0; n < 2; ++n) {
        launch();
        check(cudaMemcpy(&found, memory.clocks, sizeof found, cudaMemcpyDeviceToHost), what);
    }
    return static_cast<double>(found);
}

void units(const Memory &memory) {
    constexpr int TIMES = 2000, SHARED = 8 * THREADS * 16;
    const char *const reading = "shared memory of a multiprocessor";
    const double read = clocks_of(reading, memory, [&] {
        read_shared<<<1, THREADS, SHARED>>>(TIMES, memory.clocks, memory.sink);
    });
    report(reading, 16.0 * 8 * THREADS * TIMES / read, "bytes a clock");
    const auto multiplying = [&](const char *what, auto policy) {
        using Policy = decltype(policy);
        const double took = clocks_of(what, memory, [&] {
            multiply<Policy><<<1, THREADS>>>(TIMES, memory.clocks,
                                             reinterpret_cast<float *>(memory.sink));
        });
        report(what, 6.0 * Policy::PRODUCTS * WARPS * TIMES / took, "multiply-adds a clock");
    };
    multiplying("mma.sync, bfloat16", BFloat16());
    multiplying("mma.sync, TF32", TF32());
}

void clusters(const Memory &memory) {
    if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return;
    constexpr int TIMES = 1000;
    for (const int size : {2, 4, 8, 16}) {
        char what[64];
        snprintf(what, sizeof what, "a barrier of a cluster of %d", size);
        if (size > 8)
            check(cudaFuncSetAttribute(cluster_barrier, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  what);
        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = size;
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(size);
        config.blockDim = dim3(THREADS);
        config.attrs = &cluster;
        config.numAttrs = 1;
        const double took = clocks_of(what, memory, [&] {
            check(cudaLaunchKernelEx(&config, cluster_barrier, TIMES, memory.clocks), what);
        });
        report(what, took / TIMES, "clocks");
    }
}

void clock(const Memory &memory) {
    const char *const what = "the clock of a multiprocessor";
    clock_rate<<<1, 1>>>(memory.clocks, memory.clocks + 1);
    int64_t found[2];
    check(cudaMemcpy(found, memory.clocks, sizeof found, cudaMemcpyDeviceToHost), what);
    report(what, 1e3 * static_cast<double>(found[0]) / static_cast<double>(found[1]), "MHz");
}

}  // namespace

int main() {
    const int blocks = std::min(attribute(cudaDevAttrMultiProcessorCount), BLOCKS_AT_MOST);
    Memory memory;
    const char *const what = "memory";
    check(cudaMalloc(&memory.flags, BLOCKS_AT_MOST * LINE * 4), what);
    check(cudaMalloc(&memory.quads, L2_BYTES), what);
    check(cudaMemset(memory.quads, 0, L2_BYTES), what);
    check(cudaMalloc(&memory.clocks, 2 * sizeof(int64_t)), what);
    check(cudaMalloc(&memory.sink, sizeof(uint32_t)), what);
    rates(memory, blocks);  // first: it wakes the clocks up
    clock(memory);
    units(memory);
    exchanges(memory, blocks);
    flags(memory, blocks);
    clusters(memory);
    return 0;
}
