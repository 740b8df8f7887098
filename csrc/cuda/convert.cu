// Arguments in the form that kernels want.
#include "cuda/launch.cuh"

namespace sk::cuda {
namespace {

__global__ void narrow_indices(const int64_t* from, int64_t rows, int64_t cols, int64_t stride, int32_t* to) {
  const int64_t i = thread_number();
  if (i >= rows * cols) return;
  const int64_t v = from[i / cols * stride + i % cols];
  to[i] = v == static_cast<int32_t>(v) ? static_cast<int32_t>(v) : INT32_MIN;
}
__global__ void pack_indices(const int32_t* from, int64_t rows, int64_t cols, int64_t stride, int32_t* to) {
  const int64_t i = thread_number();
  if (i < rows * cols) to[i] = from[i / cols * stride + i % cols];
}
__global__ void widen_powers(const uint8_t* from, int64_t rows, int64_t cols, int64_t stride, float* to) {
  const int64_t i = thread_number();
  if (i < rows * cols) to[i] = __uint_as_float(uint32_t{from[i / cols * stride + i % cols]} << 23);
}

constexpr int kThreads = 256;

}  // namespace

void to_int32(const void* from, bool wide, int64_t rows, int64_t cols, int64_t stride, int32_t* to, void* stream) {
  const int64_t blocks = ceil_div(rows * cols, kThreads);
  if (wide)
    launch(narrow_indices, blocks, kThreads, 0, stream, static_cast<const int64_t*>(from), rows, cols, stride, to);
  else
    launch(pack_indices, blocks, kThreads, 0, stream, static_cast<const int32_t*>(from), rows, cols, stride, to);
}

void widen_scales(const uint8_t* from, int64_t rows, int64_t cols, int64_t stride, float* to, void* stream) {
  launch(widen_powers, ceil_div(rows * cols, kThreads), kThreads, 0, stream, from, rows, cols, stride, to);
}

}  // namespace sk::cuda
