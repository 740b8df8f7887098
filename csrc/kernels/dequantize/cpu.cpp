#include "core/parallel.h"
#include "kernels/dequantize/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::dequantize::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  const int64_t down = ceil_div(a.rows, a.block_rows), across = ceil_div(a.cols, a.block_cols);
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.matrices * a.rows, a.cols * (size_of(a.dtype) + 1), [&](int64_t first_row, int64_t last_row) {
      for (int64_t r = first_row; r < last_row; ++r) {
        const int64_t scale_row = r / a.rows * down + r % a.rows / a.block_rows;
        const uint8_t* q = a.q.data + r * a.q.stride;
        T* x = static_cast<T*>(a.x) + r * a.cols;
        for (int64_t b = 0; b < across; ++b) {
          const int64_t k = b * a.block_cols, n = min(a.block_cols, a.cols - k);
          const float scale = load_scale(a.scale.data, a.scale_dtype, scale_row * a.scale.stride + b);
          if (a.fp4)
            decode_row(E2m1{}, q + k / 2, n, scale, x + k);
          else
            decode_row(E4m3{}, q + k, n, scale, x + k);
        }
      }
    });
  });
}

}  // namespace sk::dequantize::SK_ISA
