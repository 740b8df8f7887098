#include "gemm/cuda.h"
#include "gemm/tensor.cuh"

namespace sk::gemm::cuda {

void start_bf16_rows(const DeviceArgs& p, int64_t promote, void* stream) {
  if (p.weights.format == Format::bf16) return start_tensor_gemm<16, 16>(p, promote, stream);
  if (p.weights.format == Format::e4m3) return start_tensor_gemm<16, 8>(p, promote, stream);
  start_tensor_gemm<16, 4>(p, promote, stream);
}

}  // namespace sk::gemm::cuda
