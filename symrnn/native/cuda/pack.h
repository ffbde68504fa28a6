// Packing of symmetric matrices on a GPU.

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

// As symrnn_cuda_pack has it.
cudaError_t pack(const SymmetricMatrices &of, int from_dtype, const void *from, int to_dtype,
                 void *to, cudaStream_t stream);

// Loads the kernels, which have no code in this build for every GPU.
cudaError_t load_pack();

}  // namespace symrnn

#endif
