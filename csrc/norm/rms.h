// The root mean square of a row, and a row divided by it.
#pragma once
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::norm::SK_ISA {
using namespace sk::simd::SK_ISA;

template <class T>
SK_INLINE float inverse_rms(const T* x, int64_t dim, float eps) {
  const float squares = sum_over(dim, [&](F32 total, int64_t i, auto lanes) {
    const F32 v = load(x + i, lanes);
    return fma(v, v, total);
  });
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
}

// y may be x.
template <class T, class W>
SK_INLINE void normalise(const T* x, int64_t dim, float eps, const W* weight, T* y) {
  const F32 scale = splat(inverse_rms(x, dim, eps));
  map_row(x, y, dim,
          [&](int64_t i, auto lanes) { return mul(mul(load(x + i, lanes), scale), load(weight + i, lanes)); });
}

}  // namespace sk::norm::SK_ISA
