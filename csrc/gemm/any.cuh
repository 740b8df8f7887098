// The GEMM of everything else: float32 operands, odd sizes, scales of any blocks. Values are decoded and scaled on
// their way into shared memory and multiplied as floats.
#pragma once
#include "cuda/codes.cuh"
#include "gemm/tensor.cuh"

namespace sk::gemm::cuda {

constexpr int kAnyTile = 32, kAnyThreads = 256;  // 32 x 32 results, four a thread

// Element i of a row of any format.
__device__ inline float element(const void* row, Format f, int64_t i) {
  if (f == Format::f32) return static_cast<const float*>(row)[i];
  if (f == Format::bf16) return widen(static_cast<const bf16*>(row)[i]);
  if (f == Format::e4m3) return e4m3_value(static_cast<const uint8_t*>(row)[i]);
  return e2m1_value(static_cast<const uint8_t*>(row)[i / 2] >> i % 2 * 4);
}

static __global__ void __launch_bounds__(kAnyThreads) any_gemm(const DeviceArgs p, int64_t tiles) {
  __shared__ float a_tile[kAnyTile][kAnyTile + 1], b_tile[kAnyTile][kAnyTile + 1];
  const RowTile tile = find_tile<kAnyTile>(p, blockIdx.x % tiles);
  if (tile.rows <= 0) return;
  const int64_t first_column = blockIdx.x / tiles * kAnyTile;
  const Weights& w = p.weights;
  const Format a_format = p.a_dtype == Dtype::f32    ? Format::f32
                          : p.a_dtype == Dtype::bf16 ? Format::bf16
                                                     : Format::e4m3;
  const int lane = threadIdx.x % kAnyTile, line = threadIdx.x / kAnyTile;  // of 8
  float sums[4] = {};
  for (int64_t base = 0; base < (tile.zero ? 0 : w.k); base += kAnyTile) {
    const int64_t k = base + lane;
    for (int r = line; r < kAnyTile; r += kAnyThreads / kAnyTile) {
      float x = 0.0f, y = 0.0f;
      const int64_t row = r < tile.rows ? (p.a_row == nullptr ? tile.first + r : p.a_row[tile.first + r]) : -1;
      if (k < w.k && static_cast<uint64_t>(row) < static_cast<uint64_t>(p.a_rows)) {
        x = element(static_cast<const uint8_t*>(p.a.data) + row * p.a.stride * size_of(p.a_dtype), a_format, k);
        if (p.a_scale.data != nullptr) x *= p.a_scale.data[row * p.a_scale.stride + k / p.a_group];
      }
      const int64_t n = first_column + r;
      if (k < w.k && n < w.n) {
        y = element(w.data + tile.expert * w.expert_bytes + n * w.row_bytes, w.format, k);
        if (w.scale != nullptr)
          y *= scale_at(w.scale, w.scale_dtype,
                        tile.expert * w.expert_scales + n / w.block_n * ceil_div(w.k, w.block_k) + k / w.block_k);
      }
      a_tile[r][lane] = x;
      b_tile[r][lane] = y;
    }
    __syncthreads();
    for (int i = 0; i < kAnyTile; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[r] = fmaf(a_tile[line + r * 8][i], b_tile[lane][i], sums[r]);
    __syncthreads();
  }
  const int64_t n = first_column + lane;
  if (n >= w.n) return;
  float bias = 0.0f;
  if (p.bias != nullptr) bias = value_at(p.bias, p.bias_dtype, n);
  for (int r = 0; r < 4; ++r) {
    if (line + r * 8 >= tile.rows) continue;
    const int64_t at = (tile.first + line + r * 8) * w.n + n;
    const float x = p.bias != nullptr ? sums[r] + bias : sums[r];
    if (p.out_dtype == Dtype::f32)
      static_cast<float*>(p.out)[at] = narrow<float>(x);
    else
      static_cast<bf16*>(p.out)[at] = narrow<bf16>(x);
  }
}

inline void start_any_gemm(const DeviceArgs& p, void* stream) {
  const int64_t tiles = most_tiles(p, kAnyTile);
  launch(any_gemm, tiles * ceil_div(p.weights.n, kAnyTile), kAnyThreads, 0, stream, p, tiles);
}

}  // namespace sk::gemm::cuda
