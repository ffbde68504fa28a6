// Packs symmetric matrices on a GPU.

#ifndef SYMRNN_CUDA_PACK_H
#define SYMRNN_CUDA_PACK_H

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace symrnn {

struct SymmetricMatrices {
    int64_t side;
    int gates;
    int64_t gate_stride, row_stride;
};

// The arguments of symrnn_cuda_pack.
cudaError_t pack(const SymmetricMatrices &of, int from_dtype, const void *from, int to_dtype,
                 void *to, cudaStream_t stream);

// Loads the kernels of all pairs of types: CUDA would else load each at its first launch, which fails if
// that one is captured into a graph. An error if this build has no code for the GPU.
cudaError_t load_pack();

}  // namespace symrnn

#endif
