// The functions of symrnn_cuda.h.

#include "symrnn_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

#include <atomic>
#include <new>

#include "call.h"
#include "call_wavefront.h"
#include "launch.h"
#include "pack.h"
#include "rows_launch.h"
#include "wavefront_launch.h"

namespace symrnn {
namespace {

thread_local const char *last_error = "no error";

int status_of(cudaError_t error) {
    if (error == cudaSuccess) return SYMRNN_OK;
    cudaGetLastError();  // clears it for the next caller
    last_error = cudaGetErrorString(error);
    return SYMRNN_GPU;
}

// Where the kernels of this process say why they were stopped: in memory of the host, for that of a GPU
// is lost with it. Null before the first symrnn_cuda_gpu, and where there is no such memory.
std::atomic<Stopped *> stopped{nullptr};

Stopped *allocate_stopped() {
    void *memory = nullptr;
    if (cudaHostAlloc(&memory, sizeof(Stopped), cudaHostAllocPortable | cudaHostAllocMapped)) {
        cudaGetLastError();
        return nullptr;
    }
    return new (memory) Stopped();
}

// Makes a GPU the calling thread's current device, for a scope.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        error = cudaGetDevice(&before_);
        if (!error && device != before_) error = cudaSetDevice(device);
    }
    ~DeviceGuard() {
        if (!error) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard &) = delete;
    DeviceGuard &operator=(const DeviceGuard &) = delete;

    cudaError_t error;

  private:
    int before_ = 0;
};

cudaError_t attribute(int *value, cudaDeviceAttr name, int device) {
    return cudaDeviceGetAttribute(value, name, device);
}

int gpu_of(int device, symrnn_gpu *gpu) {
    int count = 0, major = 0, cooperative = 0, multiprocessors = 0, shared = 0;
    if (int bad = status_of(cudaGetDeviceCount(&count))) return bad;
    if (device < 0 || device >= count) return SYMRNN_SIZE;
    if (int bad = status_of(attribute(&major, cudaDevAttrComputeCapabilityMajor, device))) return bad;
    if (int bad = status_of(attribute(&cooperative, cudaDevAttrCooperativeLaunch, device))) return bad;
    if (int bad = status_of(attribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)))
        return bad;
    if (int bad = status_of(attribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)))
        return bad;
    if (major < 8 || !cooperative) return SYMRNN_FIT;
    *gpu = {multiprocessors, shared};
    return SYMRNN_OK;
}

template <typename Call, typename Arrays>
int start(const Call &call, const Arrays &arrays, int device, void *stream) {
    symrnn_gpu gpu;
    if (int bad = gpu_of(device, &gpu)) return bad;
    const DeviceGuard guard(device);
    if (guard.error) return status_of(guard.error);
    return run(call, arrays, gpu, [&](auto policy, const auto &job, const auto &fit) {
        return status_of(launch<decltype(policy)>(job, fit.columns, fit.shared_bytes,
                                                  gpu.shared_bytes,
                                                  static_cast<cudaStream_t>(stream)));
    });
}

}  // namespace
}  // namespace symrnn

using namespace symrnn;

int symrnn_cuda_interface(void) { return SYMRNN_INTERFACE; }

const char *symrnn_cuda_error(void) {
    const volatile Stopped *const why = stopped.load();
    if (!why || !why->written) return last_error;
    thread_local char words[256];
    snprintf(words, sizeof words,
             "%s; a kernel was stopped: block %d waited in vain for the %s of block %d, which were "
             "written %d times, not %d",
             last_error, why->block, why->states ? "states" : "partial sums", why->other, why->seen,
             why->count);
    return words;
}

int symrnn_cuda_gpu(int device, symrnn_gpu *gpu) {
    if (!gpu) return SYMRNN_NULL;
    if (int bad = gpu_of(device, gpu)) return bad;
    const DeviceGuard guard(device);
    if (guard.error) return status_of(guard.error);
    cudaError_t error = load_pack();
    if (!error) error = load<Exact>();
    if (!error) error = load<Tf32>();
    if (!error) error = load<Bits16<bfloat16>>();
    if (!error) error = load<Bits16<half>>();
    if (!error) error = load_rows<Exact>();
    if (!error) error = load_rows<Tf32>();
    if (!error) error = load_rows<Bits16<bfloat16>>();
    if (!error) error = load_rows<Bits16<half>>();
    if (!error) error = load_wavefront<Exact>();
    if (!error) error = load_wavefront<Tf32>();
    if (!error) error = load_wavefront<Bits16<bfloat16>>();
    if (!error) error = load_wavefront<Bits16<half>>();
    if (!error) {
        static Stopped *const allocated = allocate_stopped();  // once, whichever thread comes first
        stopped = allocated;
    }
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
        cudaGetLastError();
        return SYMRNN_FIT;
    }
    return status_of(error);
}

int symrnn_cuda_pack(int64_t side, int gates, int from_dtype, const void *from,
                     int64_t gate_stride, int64_t row_stride, int to_dtype, void *to, int device,
                     void *stream) {
    if (!from || !to) return SYMRNN_NULL;
    if (side < 1 || tiles_of(side) > MAX_TILES || gates < 1 || gates > MAX_GATES || gate_stride < 0 ||
        row_stride < side || !aligned(to, 16))
        return SYMRNN_SIZE;
    if (!weight_bytes(from_dtype) || !weight_bytes(to_dtype)) return SYMRNN_DTYPE;
    const DeviceGuard guard(device);
    if (guard.error) return status_of(guard.error);
    return status_of(pack({side, gates, gate_stride, row_stride}, from_dtype, from, to_dtype, to,
                          static_cast<cudaStream_t>(stream)));
}

int symrnn_cuda_forward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps,
                        int64_t batch, int reverse, void *gates, float *saved_cells, const void *h0, const void *c0,
                        void *output, void *hn, void *cn, void *workspace, int64_t bytes,
                        int device, void *stream) {
    const Call call{layer, kernel, tf32, steps, batch, reverse != 0, false, workspace, bytes, stopped};
    return start(call, ForwardArrays{gates, saved_cells, h0, c0, output, hn, cn}, device, stream);
}

int symrnn_cuda_forward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                                  const void *w_ih, const void *between, void *gates,
                                  float *saved_cells, const void *h0, const void *c0, void *output,
                                  void *hn, void *cn, void *workspace, int64_t bytes, int device,
                                  void *stream) {
    const WavefrontCall call{layers, tf32,    steps,     batch, false,
                             w_ih,   between, workspace, bytes, stopped};
    return start(call, ForwardArrays{gates, saved_cells, h0, c0, output, hn, cn}, device, stream);
}

int symrnn_cuda_backward(const symrnn_layer *layer, int kernel, int tf32, int64_t steps,
                         int64_t batch, int reverse, const void *gates, const float *saved_cells, const void *h0,
                         const void *c0, const void *output, const void *d_output,
                         const void *d_hn, const void *d_cn, void *d_gates, void *d_hidden,
                         void *d_h0, void *d_c0, void *workspace, int64_t bytes, int device,
                         void *stream) {
    const Call call{layer, kernel, tf32, steps, batch, reverse != 0, true, workspace, bytes, stopped};
    return start(call,
                 BackwardArrays{gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates,
                                d_hidden, d_h0, d_c0},
                 device, stream);
}

int symrnn_cuda_backward_wavefront(const symrnn_layer *layers, int tf32, int64_t steps, int64_t batch,
                                   const void *w_ih, const void *between, const void *gates,
                                   const float *saved_cells, const void *h0, const void *c0,
                                   const void *output, const void *d_output, const void *d_hn,
                                   const void *d_cn, void *d_gates, void *d_hidden, void *d_h0,
                                   void *d_c0, void *workspace, int64_t bytes, int device,
                                   void *stream) {
    const WavefrontCall call{layers, tf32,    steps,     batch, true,
                             w_ih,   between, workspace, bytes, stopped};
    return start(call,
                 BackwardArrays{gates, saved_cells, h0, c0, output, d_output, d_hn, d_cn, d_gates,
                                d_hidden, d_h0, d_c0},
                 device, stream);
}
