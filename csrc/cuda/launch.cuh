// Starting kernels. Errors of a launch stay with the CUDA run time, where the binding looks for them.
#pragma once
#include <cuda_runtime.h>

#include "core/tensor_view.h"

namespace sk::cuda {

constexpr int kWarp = 32;
constexpr int64_t kDefaultShared = 48 << 10;

// Any number of blocks: in one dimension they are up to 2^31 - 1. None: nothing to do.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, void* stream,
            Arguments... arguments) {
  if (blocks <= 0) return;
  if (shared > kDefaultShared)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared),
           static_cast<cudaStream_t>(stream)>>>(arguments...);
}

// The index of a thread among all.
__device__ inline int64_t thread_number() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// body(T{}) with the element type of activations.
template <class Body>
void with_float_type(Dtype t, const Body& body) {
  t == Dtype::f32 ? body(float{}) : body(bf16{});
}

}  // namespace sk::cuda
