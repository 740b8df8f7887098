// Attention by warps, a head of a query each, in float32: any dtypes, formats and sizes. Each chunk of a query's keys
// is summed by itself and the sums are added in order, by the warp that made them or, where there are few queries, by
// another kernel: the bits are the same.
//
// A kernel's `Keys`, which it gets by value:
//   int64_t count(query)                       how many keys its list has
//   int32_t find(query, position)              one of them; kNobody: it is not seen
//   float k(found, kv_head, i), v(...)         its values
#pragma once
#include "attention/queries.h"
#include "cuda/math.cuh"

namespace sk::attention::cuda {
using namespace sk::cuda;

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int32_t kNobody = INT32_MIN;

__device__ inline float sum_of_warp(float x) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
  return x;
}

// The largest logit, the sum of the weights e^(logit - top), and values times these: channel i is lane i % 32's.
struct Sums {
  float top, sum;
  float* values;
};

__device__ inline void fold(Sums& a, float top_b, float sum_b, const float* values, int64_t dv) {
  if (sum_b == 0.0f) return;
  const float top = a.top > top_b ? a.top : top_b;
  const float keep = a.sum == 0.0f ? 0.0f : exp_of(a.top - top), gain = exp_of(top_b - top);
  for (int64_t i = threadIdx.x % kWarp; i < dv; i += kWarp)
    a.values[i] = a.sum == 0.0f ? values[i] * gain : fmaf(values[i], gain, a.values[i] * keep);
  a.sum = fmaf(sum_b, gain, a.sum * keep);
  a.top = top;
}

// Results of one row.
__device__ inline void finish(const Queries& q, int64_t query, int64_t head, const Sums& s) {
  const int64_t row = query * q.heads + head;
  float factor = 0.0f, max_logit = -INFINITY, lse = INFINITY;
  if (s.sum != s.sum) {
    factor = max_logit = lse = s.sum;
  } else if (s.sum != 0.0f) {
    max_logit = s.top;
    lse = s.top + log_of(s.sum);
    factor = 1.0f / s.sum;
    if (const float sink = q.sink == nullptr ? -INFINITY : q.sink[head]; q.sink == nullptr) {
    } else if (sink > s.top) {
      const float share = exp_of(s.top - sink);
      factor = share / (s.sum * share + 1.0f);
    } else {
      factor = 1.0f / (s.sum + exp_of(sink - s.top));
    }
  }
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = lane; i < q.dv; i += kWarp) {
    const float x = s.sum == 0.0f ? 0.0f : s.values[i] * factor;
    if (q.dtype == Dtype::f32)
      static_cast<float*>(q.out)[row * q.dv + i] = narrow<float>(x);
    else
      static_cast<bf16*>(q.out)[row * q.dv + i] = narrow<bf16>(x);
  }
  if (lane != 0) return;
  q.lse[(query / q.steps * q.heads + head) * q.steps + query % q.steps] = lse;
  if (q.max_logits != nullptr) q.max_logits[row] = max_logit;
}

// Shared memory: which keys the chunk has, then for each warp its logits, its chunk's values and its sums of all.
constexpr int64_t shared_bytes(int64_t dv) { return 4 * (kChunk + kWarps * (kChunk + 2 * dv)); }

template <class Keys>
__global__ void __launch_bounds__(kThreads) attend_chunks(const Queries q, const Keys keys, int64_t chunks) {
  extern __shared__ __align__(16) float memory[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t groups = ceil_div(q.heads, kWarps), parts = q.partials == nullptr ? 1 : chunks;
  const int64_t part = blockIdx.x % parts, query = blockIdx.x / parts / groups;
  const int64_t head = blockIdx.x / parts % groups * kWarps + warp, kv_head = head / (q.heads / q.kv_heads);
  const bool works = head < q.heads;
  int32_t* const found = reinterpret_cast<int32_t*>(memory);
  float* const weights = memory + kChunk + warp * (kChunk + 2 * q.dv);
  float* const values = weights + kChunk;
  Sums all = {-INFINITY, 0.0f, values + q.dv};

  const int64_t count = keys.count(query), first = q.partials == nullptr ? 0 : part;
  const int64_t last = q.partials == nullptr ? chunks : part + 1;
  const int64_t row = query * q.heads + (works ? head : 0);
  const auto query_at = [&](int64_t i) { return value_at(q.q.data, q.dtype, row * q.q.stride + i); };
  for (int64_t chunk = first; chunk < last && chunk * kChunk < count; ++chunk) {
    const int n = static_cast<int>(min(kChunk, count - chunk * kChunk));
    for (int i = threadIdx.x; i < n; i += kThreads) found[i] = keys.find(query, chunk * kChunk + i);
    __syncthreads();
    float top = -INFINITY, sum = 0.0f;
    for (int i = 0; i < n; ++i) {
      const int32_t key = found[i];
      float dot = 0.0f;
      for (int64_t c = lane; works && key != kNobody && c < q.dk; c += kWarp)
        dot = fmaf(query_at(c), keys.k(key, kv_head, c), dot);
      const float logit = key == kNobody ? -INFINITY : sum_of_warp(dot) * q.scale;
      top = greater(logit, top);
      if (lane == 0) weights[i] = logit;
    }
    __syncwarp();
    for (int i = lane; i < n; i += kWarp) {
      weights[i] = found[i] == kNobody ? 0.0f : exp_of(weights[i] - (top == -INFINITY ? 0.0f : top));
      sum += weights[i];
    }
    sum = sum_of_warp(sum);
    __syncwarp();
    for (int64_t c = lane; works && c < q.dv; c += kWarp) {
      float x = 0.0f;
      for (int i = 0; i < n; ++i)
        if (found[i] != kNobody) x = fmaf(weights[i], keys.v(found[i], kv_head, c), x);
      values[c] = x;
    }
    fold(all, top, sum, values, works ? q.dv : 0);
    __syncthreads();  // all have read what is found
  }
  if (!works) return;
  if (q.partials == nullptr) return finish(q, query, head, all);
  float* const to = q.partials + (row * chunks + part) * (q.dv + 2);
  if (lane == 0) {
    to[q.dv] = all.top;
    to[q.dv + 1] = all.sum;
  }
  for (int64_t c = lane; c < q.dv && all.sum != 0.0f; c += kWarp) to[c] = all.values[c];
}

// The sums of a row's chunks, in order.
static __global__ void __launch_bounds__(kThreads) add_chunks(const Queries q, int64_t chunks) {
  extern __shared__ __align__(16) float memory[];
  const int64_t row = thread_number() / kWarp;
  if (row >= q.queries * q.heads) return;
  Sums all = {-INFINITY, 0.0f, memory + threadIdx.x / kWarp * q.dv};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* const part = q.partials + (row * chunks + chunk) * (q.dv + 2);
    fold(all, part[q.dv], part[q.dv + 1], part, q.dv);
  }
  finish(q, row / q.heads, row % q.heads, all);
}

// `most`: keys that a list may have.
template <class Keys>
void attend(const Queries& q, const Keys& keys, int64_t most, void* stream) {
  const int64_t chunks = ceil_div(most, kChunk), parts = q.partials == nullptr ? 1 : chunks;
  launch(attend_chunks<Keys>, q.queries * ceil_div(q.heads, kWarps) * parts, kThreads, shared_bytes(q.dv), stream, q,
         keys, chunks);
  if (q.partials != nullptr)
    launch(add_chunks, ceil_div(q.queries * q.heads, kWarps), kThreads, 4 * kWarps * q.dv, stream, q, chunks);
}

}  // namespace sk::attention::cuda
