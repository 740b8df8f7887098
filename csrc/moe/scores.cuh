// Scores of experts, their keys and the weights made of them, as csrc/moe/scores.h and best.h have them.
#pragma once
#include "cuda/math.cuh"
#include "cuda/sums.cuh"
#include "moe/routing.h"

namespace sk::moe::cuda {
using namespace sk::cuda;

constexpr int32_t kNone = INT32_MIN;  // below the key of every number

__device__ inline float finite(float z) {
  return greater(-kLargestFloat, lesser(kLargestFloat, z));
}  // NaN stays NaN
__device__ inline float without_nan(float x) { return x == x ? x : 0.0f; }

// `top` is the row's largest logit, which only a softmax asks for.
__device__ inline float score(Scoring how, float z, float top) {
  if (how == Scoring::sigmoid) return sigmoid_of(z);
  if (how == Scoring::softmax) return without_nan(exp_of(finite(z) - top));
  const float x = lesser(kLargestFloat, z);
  return sqrtf(20.0f < x ? x : log1p_of(exp_of(x)));
}

// Integers in the order of the numbers; NaN counts as -inf, and x must not be -0.
__device__ inline int32_t key_of(float x) {
  const int32_t u = __float_as_int(greater(x, -INFINITY));
  return u ^ (u >> 31 & INT32_MAX);
}
__device__ inline float number_of(int32_t key) { return __int_as_float(key ^ (key >> 31 & INT32_MAX)); }
__device__ inline int32_t selection_key(Scoring how, float z, float score, float bias) {
  return key_of((how == Scoring::softmax ? z + 0.0f : score) + bias);
}

// The largest finite logit of a row, for one warp; all lanes get it.
template <class T>
__device__ inline float top_of(const T* z, int64_t n) {
  float top = -kLargestFloat;
  for (int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) top = greater(finite(widen(z[i])), top);
#pragma unroll
  for (int by = 16; by > 0; by /= 2) top = greater(__shfl_xor_sync(0xffffffffu, top, by), top);
  return top;
}

// The weight of this lane's expert, the lane-th chosen of k; `total` divides a softmax. For all lanes of a warp.
__device__ inline float weight_of(float chosen, int k, float total, const Weighing& how) {
  float w = without_nan(chosen);
  if (how.scoring == Scoring::softmax) w = w / (total < 1.0f ? 1.0f : total);
  if (how.renormalize) {
    float sum = 1e-20f;
    for (int i = 0; i < k; ++i) sum += __shfl_sync(0xffffffffu, w, i);
    w = w / sum;
  }
  return w * how.scale;
}

}  // namespace sk::moe::cuda
