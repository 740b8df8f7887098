#include "core/parallel.h"
#include "kernels/engram_gate/op.h"
#include "norm/rms.h"

namespace sk::engram_gate::SK_ISA {
using namespace sk::simd::SK_ISA;

template <class X, class K>
static F32 gate_of(const X* x, const K* k, const float* w, int64_t dim, float eps) {
  const float product = sum_over(dim, [&](F32 total, int64_t i, auto lanes) {
    return fma(mul(load(x + i, lanes), load(w + i, lanes)), load(k + i, lanes), total);
  });
  const float d = product * norm::SK_ISA::inverse_rms(x, dim, eps) * norm::SK_ISA::inverse_rms(k, dim, eps) *
                  (1.0f / __builtin_sqrtf(static_cast<float>(dim)));
  const float size = __builtin_fabsf(d), least = 1e-6f;
  return sigmoid(splat(__builtin_copysignf(__builtin_sqrtf(least > size ? least : size), d)));  // NaN stays NaN
}

void run(const Args& a) {
  with_float_type(a.x_dtype, [&](auto x_type) {
    with_float_type(a.k_dtype, [&](auto k_type) {
      with_float_type(a.v_dtype, [&](auto v_type) {
        using X = decltype(x_type);
        const int64_t bytes = (2 * size_of(a.x_dtype) + size_of(a.k_dtype)) * a.dim;
        parallel_rows(a.tokens * a.streams, bytes, [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; ++r) {
            const int64_t token = r / a.streams, stream = r % a.streams;
            const X* x = static_cast<const X*>(a.x.data) + r * a.x.stride;
            const auto* k = static_cast<const decltype(k_type)*>(a.k.data) + r * a.k.stride;
            const auto* v = static_cast<const decltype(v_type)*>(a.v.data) + token * a.v.stride;
            X* out = static_cast<X*>(a.out) + r * a.dim;
            if (a.token_mask != nullptr && a.token_mask[token] == 0) {
              map_row(x, out, a.dim, [&](int64_t i, auto lanes) { return load(x + i, lanes); });
              continue;
            }
            const F32 gate = gate_of(x, k, a.w.data + stream * a.w.stride, a.dim, a.eps);
            map_row(x, out, a.dim,
                    [&](int64_t i, auto lanes) { return fma(gate, load(v + i, lanes), load(x + i, lanes)); });
          }
        });
      });
    });
  });
}

}  // namespace sk::engram_gate::SK_ISA
