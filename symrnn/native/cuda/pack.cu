#include "pack.h"

#include "../schedule.h"
#include "../symrnn.h"
#include "device.h"

namespace symrnn {
namespace {

// A thread block packs one tile: tile blockIdx.x, over all gates, of panel blockIdx.y.
template <typename From, typename To>
__global__ void __launch_bounds__(TILE) pack_tile(const SymmetricMatrices of, const From *from, To *to) {
    const int64_t tiles = tiles_of(of.side), panel = blockIdx.y, height = tiles - panel;
    const int64_t k = blockIdx.x;
    if (k >= height * of.gates) return;
    const int64_t gate = k / height, row = (panel + k % height) * SIDE + threadIdx.x % SIDE,
                  column = panel * SIDE + threadIdx.x / SIDE;
    const int64_t upper = row < column ? row : column, right = row < column ? column : row;
    const float x = right < of.side ? to_float(from[gate * of.gate_stride +
                                                    upper * of.row_stride + right])
                                    : 0.0f;
    to[packed_tile(tiles, of.gates, static_cast<int>(gate), panel + k % height, panel) +
       threadIdx.x] = from_float<To>(x);
}

struct Packing {
    const SymmetricMatrices &of;
    const void *from;
    void *to;
    cudaStream_t stream;

    template <typename From, typename To>
    cudaError_t operator()(From, To) const {
        const int64_t tiles = tiles_of(of.side);
        const dim3 grid(static_cast<unsigned>(tiles * of.gates), static_cast<unsigned>(tiles));
        pack_tile<<<grid, TILE, 0, stream>>>(of, static_cast<const From *>(from), static_cast<To *>(to));
        return cudaGetLastError();
    }
};

struct Loading {
    template <typename From, typename To>
    cudaError_t operator()(From, To) const {
        cudaFuncAttributes attributes;
        return cudaFuncGetAttributes(&attributes, pack_tile<From, To>);
    }
};

// Calls `work` with a number of either type, whose kernel it instantiates.
template <typename Work, typename From>
cudaError_t with_to(int to_dtype, const Work &work, From from) {
    switch (to_dtype) {
    case SYMRNN_BFLOAT16: return work(from, bfloat16());
    case SYMRNN_HALF: return work(from, half());
    default: return work(from, float());
    }
}

template <typename Work>
cudaError_t with_types(int from_dtype, int to_dtype, const Work &work) {
    switch (from_dtype) {
    case SYMRNN_BFLOAT16: return with_to(to_dtype, work, bfloat16());
    case SYMRNN_HALF: return with_to(to_dtype, work, half());
    default: return with_to(to_dtype, work, float());
    }
}

}  // namespace

cudaError_t pack(const SymmetricMatrices &of, int from_dtype, const void *from, int to_dtype,
                 void *to, cudaStream_t stream) {
    return with_types(from_dtype, to_dtype, Packing{of, from, to, stream});
}

cudaError_t load_pack() {
    constexpr int DTYPES[] = {SYMRNN_FLOAT, SYMRNN_BFLOAT16, SYMRNN_HALF};
    for (const int from : DTYPES)
        for (const int to : DTYPES)
            if (cudaError_t error = with_types(from, to, Loading())) return error;
    return cudaSuccess;
}

}  // namespace symrnn
