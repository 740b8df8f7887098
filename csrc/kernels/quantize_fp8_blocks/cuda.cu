// A thread block does a block of values: all of them twice, for the maximum and for the codes.
#include "cuda/codes.cuh"
#include "kernels/quantize_fp8_blocks/op.h"

namespace sk::quantize_fp8_blocks::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) quantize(const Args a, int64_t down, int64_t across) {
  __shared__ float most_of[kThreads / kWarp];
  const int64_t strip = blockIdx.x / across;  // the blocks of some rows
  const int64_t top = strip % down * a.block_rows, height = min(a.block_rows, a.rows - top);
  const int64_t left = blockIdx.x % across * a.block_cols, width = min(a.block_cols, a.cols - left);
  const int64_t row = strip / down * a.rows + top;
  const T* w = static_cast<const T*>(a.w.data) + row * a.w.stride + left;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  float most = 0.0f;
  for (int64_t r = warp; r < height; r += kThreads / kWarp)
    for (int64_t k = lane; k < width; k += kWarp) most = fmaxf(most, fabsf(widen(w[r * a.w.stride + k])));
  most = largest_of<kWarp>(most);
  if (lane == 0) most_of[warp] = most;
  __syncthreads();
  most = largest_of<kThreads / kWarp>(most_of[lane % (kThreads / kWarp)]);
  const Scale s = scale_for(most, a.floor, E4m3::kLargest, a.scale_dtype != Dtype::f32);
  uint8_t* q = a.q + row * a.cols + left;
  for (int64_t r = warp; r < height; r += kThreads / kWarp)
    for (int64_t k = lane; k < width; k += kWarp)
      q[r * a.cols + k] = static_cast<uint8_t>(code_of(E4m3{}, widen(w[r * a.w.stride + k]), s.inverse));
  if (threadIdx.x == 0) store_scale(a.scale, a.scale_dtype, blockIdx.x, s.scale);
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t down = ceil_div(a.rows, a.block_rows), across = ceil_div(a.cols, a.block_cols);
  with_float_type(a.dtype, [&](auto type) {
    launch(quantize<decltype(type)>, a.matrices * down * across, kThreads, 0, stream, a, down, across);
  });
}

}  // namespace sk::quantize_fp8_blocks::cuda
