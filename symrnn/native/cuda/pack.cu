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

template <typename From, typename To>
cudaError_t pack_from(const SymmetricMatrices &of, const void *from, void *to, cudaStream_t stream) {
    const int64_t tiles = tiles_of(of.side);
    const dim3 grid(static_cast<unsigned>(tiles * of.gates), static_cast<unsigned>(tiles));
    pack_tile<<<grid, TILE, 0, stream>>>(of, static_cast<const From *>(from), static_cast<To *>(to));
    return cudaGetLastError();
}

template <typename From>
cudaError_t pack_to(const SymmetricMatrices &of, const void *from, int to_dtype, void *to,
                    cudaStream_t stream) {
    switch (to_dtype) {
    case SYMRNN_BFLOAT16: return pack_from<From, bfloat16>(of, from, to, stream);
    case SYMRNN_HALF: return pack_from<From, half>(of, from, to, stream);
    default: return pack_from<From, float>(of, from, to, stream);
    }
}

}  // namespace

cudaError_t pack(const SymmetricMatrices &of, int from_dtype, const void *from, int to_dtype,
                 void *to, cudaStream_t stream) {
    switch (from_dtype) {
    case SYMRNN_BFLOAT16: return pack_to<bfloat16>(of, from, to_dtype, to, stream);
    case SYMRNN_HALF: return pack_to<half>(of, from, to_dtype, to, stream);
    default: return pack_to<float>(of, from, to_dtype, to, stream);
    }
}

cudaError_t load_pack() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, pack_tile<float, float>);
}

}  // namespace symrnn
