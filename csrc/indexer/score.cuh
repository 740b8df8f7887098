// Scores of the indexer by blocks: each does a query and a tile of keys, which lie in shared memory as floats. A
// thread multiplies a key by every fourth head; one warp adds the heads up, in order. Right for all dtypes and sizes
// whose tile fits, in float32 units.
#pragma once
#include "cuda/codes.cuh"
#include "cuda/math.cuh"
#include "cuda/unaligned.cuh"
#include "indexer/problem.h"

namespace sk::indexer::cuda {
using namespace sk::cuda;

constexpr int kTile = kWarp, kWarps = 4, kScoreThreads = kWarps * kWarp, kPitch = kTile + 1;

// Where a key is, null: nowhere.
struct Key { const uint8_t *data, *scale; };
__device__ inline Key key_at(const Keys& k, int64_t sequence, int64_t at) {
  if (k.table == nullptr) return {k.data + at * k.stride, k.scale + at * k.scale_bytes};
  const int32_t page = k.table[sequence * k.table_stride + at / k.page_size];
  if (page < 0 || page >= k.pages) return {nullptr, nullptr};
  const uint8_t* const start = k.data + page * k.page_bytes;
  const int64_t place = at % k.page_size;
  return {start + place * k.stride, start + k.page_size * k.stride + place * k.page_scale_bytes};
}

// Value i of a key, or of a query's head, without its scale.
__device__ inline float value_of(Dtype dtype, const uint8_t* row, int64_t i) {
  if (dtype == Dtype::e4m3) return e4m3_value(row[i]);
  if (dtype == Dtype::u8) return e2m1_value(row[i / 2] >> i % 2 * 4);
  return value_at(row, dtype, i);
}

inline int64_t score_bytes(const Queries& q) {
  return 4 * (q.dim * kPitch + (ceil_div(q.dim, kFp4Group) + q.heads) * kTile);
}

// out[r, j] of queries `first`, ... : -inf where one does not see the key.
static __global__ void __launch_bounds__(kScoreThreads)
    score(const Problem p, int64_t first, int64_t cols, int64_t tiles, float* out) {
  extern __shared__ __align__(16) float memory[];
  const Queries& q = p.queries;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = first + blockIdx.x / tiles, start = blockIdx.x % tiles * kTile, key = start + lane;
  const int64_t sequence = row / p.rows_a_sequence, groups = ceil_div(q.dim, kFp4Group);
  const bool fp4 = q.dtype == Dtype::u8;
  float *const keys = memory, *const scales = keys + q.dim * kPitch, *const dots = scales + groups * kTile;
  float* const to = out + (row - first) * cols;
  const Range seen = p.on_device.range_of(row, p.rows_a_sequence);
  if (start >= seen.last || start + kTile <= seen.first) {
    if (warp == 0 && key < cols) to[key] = -INFINITY;
    return;
  }

  const auto find = [&](int64_t at) {
    return at >= seen.first && at < seen.last ? key_at(p.keys, sequence, at) : Key{nullptr, nullptr};
  };
  for (int64_t i = threadIdx.x; i < q.dim * kTile; i += kScoreThreads) {
    const Key k = find(start + i / q.dim);
    keys[i % q.dim * kPitch + i / q.dim] = k.data == nullptr ? 0.0f : value_of(q.dtype, k.data, i % q.dim);
  }
  const Key mine = find(key);
  for (int64_t g = warp; fp4 && g < groups; g += kWarps)
    scales[g * kTile + lane] = mine.data == nullptr ? 0.0f : scale_at(mine.scale, Dtype::e8m0, g);
  __syncthreads();

  for (int64_t h = warp; h < q.heads; h += kWarps) {
    const uint8_t* const head = q.data + (row * q.heads + h) * q.stride;
    float total = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {  // of FP4 apart, for their scales
      float sum = fp4 ? 0.0f : total;
      for (int64_t d = g * kFp4Group; d < min(q.dim, (g + 1) * kFp4Group); ++d)
        sum = fmaf(value_of(q.dtype, head, d), keys[d * kPitch + lane], sum);
      const float scale = fp4 ? scale_at(q.scale.data, Dtype::e8m0, (row * q.heads + h) * q.scale.stride + g) : 1.0f;
      total = fp4 ? fmaf(sum * scale, scales[g * kTile + lane], total) : sum;
    }
    dots[h * kTile + lane] = total;
  }
  __syncthreads();

  if (warp != 0 || key >= cols) return;
  float total = 0.0f;
  for (int64_t h = 0; h < q.heads; ++h)
    total = fmaf(greater(0.0f, dots[h * kTile + lane]), q.weights.data[row * q.weights.stride + h], total);
  if (q.dtype == Dtype::e4m3 && mine.data != nullptr) total *= load_word(mine.scale);
  to[key] = mine.data == nullptr ? -INFINITY : narrow<float>(total);
}

inline void score_rows(const Problem& p, int64_t first, int64_t rows, int64_t cols, float* out, void* stream) {
  const int64_t tiles = ceil_div(cols, kTile);
  launch(score, rows * tiles, kScoreThreads, score_bytes(p.queries), stream, p, first, cols, tiles, out);
}

}  // namespace sk::indexer::cuda
