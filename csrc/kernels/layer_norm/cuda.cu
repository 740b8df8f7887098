// A warp does a row.
#include "cuda/sums.cuh"
#include "kernels/layer_norm/op.h"

namespace sk::layer_norm::cuda {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) normalise(const Args a) {
  const int64_t row = thread_number() / kWarp;
  if (row >= a.rows) return;
  const T* x = static_cast<const T*>(a.x.data) + row * a.x.stride;
  const float size = static_cast<float>(a.dim);
  const float mean = sum_over(a.dim, [&](float total, int64_t i) { return total + widen(x[i]); }) / size;
  const float squares = sum_over(a.dim, [&](float total, int64_t i) {
    const float d = widen(x[i]) - mean;
    return fmaf(d, d, total);
  });
  const float scale = 1.0f / sqrtf(squares / size + a.eps);
  for (int64_t i = threadIdx.x % kWarp; i < a.dim; i += kWarp) {
    float v = (widen(x[i]) - mean) * scale;
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

}  // namespace sk::layer_norm::cuda
