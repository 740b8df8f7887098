#include "core/parallel.h"
#include "kernels/quantize_fp8/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::quantize_fp8::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  const int64_t groups = ceil_div(a.dim, a.group);
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, a.dim * (size_of(a.dtype) + 1), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r)
        quantize_row<E4m3>(static_cast<const T*>(a.x.data) + r * a.x.stride, a.dim, a.group, a.floor, a.q + r * a.dim,
                           a.scale, a.scale_dtype, r * groups);
    });
  });
}

}  // namespace sk::quantize_fp8::SK_ISA
