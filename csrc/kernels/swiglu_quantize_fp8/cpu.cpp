#include "core/parallel.h"
#include "kernels/swiglu_quantize_fp8/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::swiglu_quantize_fp8::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int64_t kBuffer = 1024;

// A group's activations wait in the buffer for their scale. A group that is longer than the buffer goes through it in
// pieces, and a second time once its scale is known.
template <class T>
static float quantize_group(const T* gate, const T* up, int64_t size, float row_weight, const Args& a, uint8_t* q) {
  const F32 weight = splat(row_weight), limit = splat(a.limit);
  alignas(64) float y[kBuffer];
  const auto activate = [&](int64_t from, int64_t count) {
    map_row(gate, y, count, [&](int64_t i, auto n) {
      return mul(gated_silu(load(gate + from + i, n), load(up + from + i, n), limit), weight);
    });
  };
  F32 most = splat(0.0f);
  for (int64_t i = 0; i < size; i += kBuffer) {
    const int64_t n = min(kBuffer, size - i);
    activate(i, n);
    most = larger_magnitudes(most, y, n);
  }
  const GroupScale s = group_scale<E4m3>(largest(most), a.floor, a.scale_dtype == Dtype::e8m0);
  for (int64_t i = 0; i < size; i += kBuffer) {
    const int64_t n = min(kBuffer, size - i);
    if (size > kBuffer) activate(i, n);
    encode_row(E4m3{}, y, n, s.inverse, q + i);
  }
  return s.scale;
}

void run(const Args& a) {
  const int64_t groups = ceil_div(a.dim, a.group);
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, a.dim * (2 * size_of(a.dtype) + 1), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const T* gate = static_cast<const T*>(a.gate_up.data) + r * a.gate_up.stride;
        const float weight = a.weight == nullptr ? 1.0f : a.weight[r];
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t k = g * a.group, n = min(a.group, a.dim - k);
          const float scale = quantize_group(gate + k, gate + a.dim + k, n, weight, a, a.q + r * a.dim + k);
          store_scale(a.scale, a.scale_dtype, r * groups + g, scale);
        }
      }
    });
  });
}

}  // namespace sk::swiglu_quantize_fp8::SK_ISA
