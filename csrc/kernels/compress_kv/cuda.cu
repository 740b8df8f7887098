// A block makes an entry, a thread some of its channels; more blocks keep the rows that wait.
#include "cuda/math.cuh"
#include "cuda/sums.cuh"
#include "kernels/compress_kv/op.h"

namespace sk::compress_kv::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 256;

// Channel i of one row of kv and gate, wherever it lies; false: there is no such row.
struct Values { float kv, gate; };
template <class K>
__device__ bool read(const Args& a, int64_t row, int64_t i, Values* to) {
  if (row >= a.before) {
    const int64_t token = row - a.before;
    *to = {widen(static_cast<const K*>(a.kv.data)[token * a.kv.stride + i]),
           value_at(a.gate.data, a.gate_dtype, token * a.gate.stride + i)};
    return true;
  }
  if (a.state == nullptr) return false;
  const int64_t width = a.series * a.dim;
  *to = {a.state[row * 2 * width + i], a.state[row * 2 * width + width + i]};
  return true;
}

template <class K>
__device__ void make_entry(const Args& a, int64_t window) {
  __shared__ float scale;
  K* const entry = static_cast<K*>(a.entries) + window * a.dim;
  for (int64_t i = threadIdx.x; i < a.dim; i += kThreads) {
    const auto each_slot = [&](const auto& body) {
      for (int64_t slot = 0; slot < a.series * a.ratio; ++slot) {
        const int64_t half = slot / a.ratio * a.dim;
        Values v;
        if (!read<K>(a, window * a.ratio + slot, half + i, &v)) continue;
        body(v.kv, v.gate + a.ape.data[slot % a.ratio * a.ape.stride + half + i]);
      }
    };
    float top = -INFINITY, total = 0.0f, weighted = 0.0f;
    each_slot([&](float, float score) { top = greater(top, score); });
    each_slot([&](float kv, float score) {
      const float p = exp_of(score - top);
      total += p;
      weighted = fmaf(p, kv, weighted);
    });
    entry[i] = narrow<K>(weighted / total);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const float squares = sum_over(a.dim, [&](float sum, int64_t i) {
      const float v = widen(entry[i]);
      return fmaf(v, v, sum);
    });
    if (threadIdx.x == 0) scale = 1.0f / sqrtf(squares / static_cast<float>(a.dim) + a.eps);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.dim; i += kThreads)
    entry[i] = narrow<K>(widen(entry[i]) * scale * value_at(a.weight, a.weight_dtype, i));
}

template <class K>
__device__ void keep_row(const Args& a, int64_t r) {
  const int64_t width = a.series * a.dim;
  float* const to = a.state_out + r * 2 * width;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    Values v = {0.0f, -INFINITY};  // weighs nothing
    read<K>(a, a.windows * a.ratio + r, i, &v);
    to[i] = narrow<float>(v.kv);
    to[width + i] = narrow<float>(v.gate);
  }
}

template <class K>
__global__ void __launch_bounds__(kThreads) compress(const Args a) {
  if (blockIdx.x < a.windows)
    make_entry<K>(a, blockIdx.x);
  else
    keep_row<K>(a, blockIdx.x - a.windows);
}

}  // namespace

void run(const Args& a, void* stream) {
  const int64_t kept = a.before + a.tokens - a.windows * a.ratio;
  with_float_type(a.kv_dtype,
                  [&](auto type) { launch(compress<decltype(type)>, a.windows + kept, kThreads, 0, stream, a); });
}

}  // namespace sk::compress_kv::cuda
