// A warp does a row.
#include "cuda/sums.cuh"
#include "kernels/rms_norm/op.h"

namespace sk::rms_norm::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) normalise(const Args a) {
  const int64_t row = thread_number() / kWarp;
  if (row >= a.rows) return;
  const T* x = static_cast<const T*>(a.x.data) + row * a.x.stride;
  const float squares = sum_over(a.dim, [&](float total, int64_t i) {
    const float v = widen(x[i]);
    return fmaf(v, v, total);
  });
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(a.dim) + a.eps);
  for (int64_t i = threadIdx.x % kWarp; i < a.dim; i += kWarp) {
    float v = widen(x[i]) * scale;
    if (a.weight != nullptr) v *= value_at(a.weight, a.weight_dtype, i);
    if (a.bias != nullptr) v += value_at(a.bias, a.bias_dtype, i);
    static_cast<T*>(a.y)[row * a.dim + i] = narrow<T>(v);
  }
}

}  // namespace

void run(const Args& a, void* stream) {
  with_float_type(a.dtype, [&](auto type) {
    launch(normalise<decltype(type)>, ceil_div(a.rows, kThreads / kWarp), kThreads, 0, stream, a);
  });
}

}  // namespace sk::rms_norm::cuda
