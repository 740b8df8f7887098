// The steps of hyper-connections, as csrc/hyper has them: the same bits.
#pragma once
#include "cuda/math.cuh"
#include "cuda/sums.cuh"
#include "hyper/streams.h"

namespace sk::hyper::cuda {
using namespace sk::cuda;

// The n values at m, `step` apart, over their sum + eps.
__device__ inline void divide_by_sum(float* m, int n, int step, float eps) {
  float total = m[0];
  for (int i = 1; i < n; ++i) total += m[i * step];
  const float inverse = 1.0f / (total + eps);
  for (int i = 0; i < n; ++i) m[i * step] *= inverse;
}

// m [n][n]: a softmax of each row, then rows and columns by turns.
__device__ inline void balance(float* m, int n, int64_t iters, float eps) {
  for (int r = 0; r < n; ++r) {
    float* const row = m + r * n;
    float top = row[0];
    for (int i = 1; i < n; ++i) top = greater(top, row[i]);
    for (int i = 0; i < n; ++i) row[i] = exp_of(row[i] - top);
    divide_by_sum(row, n, 1, 0.0f);
    for (int i = 0; i < n; ++i) row[i] += eps;
  }
  for (int64_t it = 0; it < iters; ++it) {
    for (int r = 0; r < n && it > 0; ++r) divide_by_sum(m + r * n, n, 1, eps);
    for (int c = 0; c < n; ++c) divide_by_sum(m + c, n, n, eps);
  }
}

// A block does a token: mix[j] = x . fn[j] / rms(x), for j < outputs, in shared memory. The sums are those of the
// CPU: lane by lane over the pieces of a stream, sixteen lanes apart; a half of a warp takes an output.
constexpr int kMixThreads = 256, kMostOutputs = kMaxStreams * (kMaxStreams + 2) + 1;

template <class T>
__device__ inline void mix_token(const Streams& s, const Mixer& m, int64_t token, float* mix) {
  const int lane = threadIdx.x % 16, half = threadIdx.x / 16;
  const T* const x = static_cast<const T*>(s.x.data) + token * s.n * s.x.stride;
  for (int64_t base = 0; base <= m.outputs; base += kMixThreads / 16) {
    const int64_t j = base + half;  // the last one: squares
    float sum = 0.0f;
    if (j <= m.outputs)
      for (int64_t at = 0; at < s.dim; at += kPiece)
        for (int64_t stream = 0; stream < s.n; ++stream) {
          const T* const values = x + stream * s.x.stride;
          const float* const fn = m.fn.data + j * m.fn.stride + stream * s.dim;
          float piece = 0.0f;
          for (int64_t i = at + lane; i < min(at + kPiece, s.dim); i += 16) {
            const float v = widen(values[i]);
            piece = fmaf(v, j == m.outputs ? v : fn[i], piece);
          }
          sum += piece;
        }
    const float total = sum_half(sum);
    if (j <= m.outputs && lane == 0) mix[j] = total;
  }
  __syncthreads();
  const float mean = mix[m.outputs] / static_cast<float>(s.n * s.dim);
  const float inverse = 1.0f / sqrtf(mean + m.rms_eps);
  for (int64_t j = threadIdx.x; j < m.outputs; j += kMixThreads) mix[j] *= inverse;
  __syncthreads();
}

__device__ inline float gate(const Mixer& m, int kind, int64_t j, float mix) {
  return sigmoid_of(mix * m.scale[kind] + m.base[j]);
}

// y = sum of weight[i] * stream i, ascending i. For the block.
template <class T>
__device__ inline void collapse(const Streams& s, int64_t token, const float* weight, T* y) {
  const T* const x = static_cast<const T*>(s.x.data) + token * s.n * s.x.stride;
  for (int64_t i = threadIdx.x; i < s.dim; i += kMixThreads) {
    float sum = weight[0] * widen(x[i]);
    for (int64_t stream = 1; stream < s.n; ++stream)
      sum = fmaf(weight[stream], widen(x[stream * s.x.stride + i]), sum);
    y[i] = narrow<T>(sum);
  }
}

// mhc_pre of one token, by a block.
template <class T>
__device__ inline void pre_token(const Pre& a, int64_t token, float* mix) {
  const int n = static_cast<int>(a.in.n);
  mix_token<T>(a.in, a.mixer, token, mix);
  if (threadIdx.x < n) {
    float& before = mix[threadIdx.x];
    before = narrow<float>(gate(a.mixer, 0, threadIdx.x, before) + a.mixer.eps);
    const int at = n + threadIdx.x;
    a.post[token * n + threadIdx.x] = narrow<float>(gate(a.mixer, 1, at, mix[at]) * a.post_mult);
  }
  float* const comb = mix + 2 * n;
  for (int i = threadIdx.x; i < n * n; i += kMixThreads)
    comb[i] = comb[i] * a.mixer.scale[2] + a.mixer.base[2 * n + i];
  __syncthreads();
  if (threadIdx.x == 0) balance(comb, n, a.iters, a.mixer.eps);
  __syncthreads();
  for (int i = threadIdx.x; i < n * n; i += kMixThreads) a.comb[token * n * n + i] = narrow<float>(comb[i]);
  collapse(a.in, token, mix, static_cast<T*>(a.layer_in) + token * a.in.dim);
}

// mhc_post of one token, by a block: out[k] = post[k] * y + sum over i of comb[i, k] * x[i], ascending i.
template <class T>
__device__ inline void post_token(const Post& a, int64_t token) {
  const int n = static_cast<int>(a.in.n);
  const T* const x = static_cast<const T*>(a.in.x.data) + token * n * a.in.x.stride;
  const float *const post = a.post + token * n, *const comb = a.comb + token * n * n;
  T* const out = static_cast<T*>(a.out) + token * n * a.in.dim;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < a.in.dim; i += blockDim.x) {
    const float y = value_at(a.y.data, a.y_dtype, token * a.y.stride + i);
#pragma unroll 1
    for (int k = 0; k < n; ++k) {
      float sum = post[k] * y;
      for (int s = 0; s < n; ++s) sum = fmaf(comb[s * n + k], widen(x[s * a.in.x.stride + i]), sum);
      out[k * a.in.dim + i] = narrow<T>(sum);
    }
  }
}

}  // namespace sk::hyper::cuda
