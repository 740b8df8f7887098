#include "core/parallel.h"
#include "kernels/quantize_fp8_blocks/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::quantize_fp8_blocks::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  const int64_t down = ceil_div(a.rows, a.block_rows), across = ceil_div(a.cols, a.block_cols);
  const int64_t block_bytes = min(a.block_rows, a.rows) * min(a.block_cols, a.cols) * (size_of(a.dtype) + 1);
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.matrices * down * across, block_bytes, [&](int64_t first_block, int64_t last_block) {
      for (int64_t b = first_block; b < last_block; ++b) {
        const int64_t strip = b / across;  // the blocks of some rows
        const int64_t top = strip % down * a.block_rows, height = min(a.block_rows, a.rows - top);
        const int64_t left = b % across * a.block_cols, width = min(a.block_cols, a.cols - left);
        const int64_t row = strip / down * a.rows + top;
        const T* w = static_cast<const T*>(a.w.data) + row * a.w.stride + left;
        quantize_block<E4m3, T>({w, a.w.stride}, height, width, a.floor, {a.q + row * a.cols + left, a.cols}, a.scale,
                                a.scale_dtype, b);
      }
    });
  });
}

}  // namespace sk::quantize_fp8_blocks::SK_ISA
