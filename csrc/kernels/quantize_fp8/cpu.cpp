#include "core/parallel.h"
#include "kernels/quantize_fp8/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::quantize_fp8::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  const int64_t groups = ceil_div(a.dim, a.group);
  const bool power_of_two = a.scale_dtype == Dtype::e8m0;
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, a.dim * (size_of(a.dtype) + 1), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const T* x = static_cast<const T*>(a.x.data) + r * a.x.stride;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t k = g * a.group, n = min(a.group, a.dim - k);
          const float scale =
              quantize_block<E4m3, T>({x + k, 0}, 1, n, a.floor, power_of_two, {a.q + r * a.dim + k, 0});
          store_scale(a.scale, a.scale_dtype, r * groups + g, scale);
        }
      }
    });
  });
}

}  // namespace sk::quantize_fp8::SK_ISA
