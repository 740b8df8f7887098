// A warp does a stream of a token.
#include "cuda/math.cuh"
#include "cuda/sums.cuh"
#include "kernels/engram_gate/op.h"

namespace sk::engram_gate::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

template <class At>
__device__ float inverse_rms(const Args& a, const At& at) {
  const float squares = sum_over(a.dim, [&](float total, int64_t i) {
    const float v = at(i);
    return fmaf(v, v, total);
  });
  return 1.0f / sqrtf(squares / static_cast<float>(a.dim) + a.eps);
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_gated(const Args a) {
  const int64_t row = thread_number() / kWarp, token = row / a.streams;
  if (row >= a.tokens * a.streams) return;
  const T* const x = static_cast<const T*>(a.x.data) + row * a.x.stride;
  T* const out = static_cast<T*>(a.out) + row * a.dim;
  const int lane = threadIdx.x % kWarp;
  if (a.token_mask != nullptr && a.token_mask[token] == 0) {
    for (int64_t i = lane; i < a.dim; i += kWarp) out[i] = narrow<T>(widen(x[i]));
    return;
  }
  const auto x_at = [&](int64_t i) { return widen(x[i]); };
  const auto k_at = [&](int64_t i) { return value_at(a.k.data, a.k_dtype, row * a.k.stride + i); };
  const float* const w = a.w.data + row % a.streams * a.w.stride;
  const float product = sum_over(a.dim, [&](float total, int64_t i) { return fmaf(x_at(i) * w[i], k_at(i), total); });
  const float d = product * inverse_rms(a, x_at) * inverse_rms(a, k_at) * (1.0f / sqrtf(static_cast<float>(a.dim)));
  const float size = fabsf(d), least = 1e-6f, root = sqrtf(least > size ? least : size);  // NaN stays NaN
  const float gate = sigmoid_of(__uint_as_float(__float_as_uint(root) | (__float_as_uint(d) & 0x80000000u)));
  for (int64_t i = lane; i < a.dim; i += kWarp)
    out[i] = narrow<T>(fmaf(gate, value_at(a.v.data, a.v_dtype, token * a.v.stride + i), x_at(i)));
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.x_dtype, [&](auto type) {
    launch(add_gated<decltype(type)>, ceil_div(a.tokens * a.streams, kThreads / kWarp), kThreads, 0, stream, a);
  });
}

}  // namespace sk::engram_gate::cuda
