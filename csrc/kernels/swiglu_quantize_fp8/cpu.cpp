#include "core/parallel.h"
#include "kernels/swiglu_quantize_fp8/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::swiglu_quantize_fp8::SK_ISA {
using namespace sk::simd::SK_ISA;

// Activations wait in a buffer for their scale.
constexpr int64_t kBuffer = 2048;

template <class T>
SK_INLINE void activate(const T* gate, const T* up, int64_t size, float limit, float weight, float* y) {
  map_row(gate, y, size, [&](int64_t i, auto lanes) {
    return mul(gated_silu(load(gate + i, lanes), load(up + i, lanes), splat(limit)), splat(weight));
  });
}

// A group that does not fit into the buffer goes through it twice: for its maximum, and when its scale is known.
template <class T>
static void quantize_long_group(const T* gate, const T* up, int64_t size, float weight, const Args& a, int64_t at,
                                int64_t scale_at) {
  float y[kBuffer];
  F32 most = splat(0.0f);
  for (int64_t i = 0; i < size; i += kBuffer) {
    const int64_t n = min(kBuffer, size - i);
    activate(gate + i, up + i, n, a.limit, weight, y);
    most = larger_magnitudes(most, y, n);
  }
  const Scales s = scales_for<E4m3>(splat(largest(most)), a.floor, a.scale_dtype);
  store_scales(a.scale, a.scale_dtype, scale_at, s.scale, int64_t{1});
  for (int64_t i = 0; i < size; i += kBuffer) {
    const int64_t n = min(kBuffer, size - i);
    activate(gate + i, up + i, n, a.limit, weight, y);
    encode_row(E4m3{}, y, n, largest(s.inverse), a.q + at + i);
  }
}

template <class T>
static void quantize_groups(const T* gate, const T* up, int64_t size, float weight, const Args& a, int64_t at,
                            int64_t scale_at) {
  float y[kBuffer];
  activate(gate, up, size, a.limit, weight, y);
  quantize_row<E4m3>(y, size, a.group, a.floor, a.q + at, a.scale, a.scale_dtype, scale_at);
}

void run(const Args& a) {
  const int64_t groups = ceil_div(a.dim, a.group);
  const int64_t groups_at_once = max(1, kBuffer / a.group);
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, a.dim * (2 * size_of(a.dtype) + 1), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const T* gate = static_cast<const T*>(a.gate_up.data) + r * a.gate_up.stride;
        const T* up = gate + a.dim;
        const float weight = a.weight == nullptr ? 1.0f : a.weight[r];
        for (int64_t g = 0; g < groups; g += groups_at_once) {
          const int64_t k = g * a.group, n = min(groups_at_once * a.group, a.dim - k);
          if (n <= kBuffer)
            quantize_groups(gate + k, up + k, n, weight, a, r * a.dim + k, r * groups + g);
          else
            quantize_long_group(gate + k, up + k, n, weight, a, r * a.dim + k, r * groups + g);
        }
      }
    });
  });
}

}  // namespace sk::swiglu_quantize_fp8::SK_ISA
