#include "core/parallel.h"
#include "kernels/rms_norm/op.h"
#include "simd/isa.h"

namespace sk::rms_norm::SK_ISA {
using namespace sk::simd::SK_ISA;

// Four chains hide the FMA latency. The order of additions is part of the result: same on every ISA.
template <class T>
static float sum_of_squares(const T* x, int64_t n) {
  F32 acc[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const F32 v = load(x + i + u * kLanes);
      acc[u] = fma(v, v, acc[u]);
    }
  for (; i < n; i += kLanes) {
    const F32 v = load(x + i, n - i);
    acc[0] = fma(v, v, acc[0]);
  }
  return sum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto x_type) {
    with_float_type(a.weight_dtype, [&](auto w_type) {
      with_float_type(a.bias_dtype, [&](auto b_type) {
        using T = decltype(x_type);
        const auto* weight = static_cast<const decltype(w_type)*>(a.weight);
        const auto* bias = static_cast<const decltype(b_type)*>(a.bias);
        parallel_rows(a.rows, 2 * a.dim * size_of(a.dtype), [&](int64_t first_row, int64_t last_row) {
          for (int64_t r = first_row; r < last_row; ++r) {
            const T* x = static_cast<const T*>(a.x.data) + r * a.x.stride;
            T* y = static_cast<T*>(a.y) + r * a.dim;
            const float mean = sum_of_squares(x, a.dim) / static_cast<float>(a.dim);
            const F32 scale = splat(1.0f / __builtin_sqrtf(mean + a.eps));
            for (int64_t i = 0; i < a.dim; i += kLanes) {
              const int64_t n = min(kLanes, a.dim - i);
              F32 v = mul(load(x + i, n), scale);
              if (weight != nullptr) v = mul(v, load(weight + i, n));
              if (bias != nullptr) v = add(v, load(bias + i, n));
              store(y + i, v, n);
            }
          }
        });
      });
    });
  });
}

}  // namespace sk::rms_norm::SK_ISA
