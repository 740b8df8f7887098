// x[n, k] = value(q[n, k]) * scale[n / block_rows, k / block_cols], rounded once
#pragma once
#include "core/variant.h"

namespace sk::dequantize {

struct Args {
  Rows<const uint8_t> q;    // [matrices * rows, cols] e4m3, or two e2m1 a byte: the stride is in bytes
  bool fp4;                 // then cols and block_cols are even
  Rows<const void> scale;   // [matrices * ceil(rows / block_rows), ceil(cols / block_cols)] of scale_dtype
  Dtype scale_dtype;        // f32 or e8m0
  void* x;                  // [matrices * rows, cols] of dtype
  Dtype dtype;
  int64_t matrices, rows, cols, block_rows, block_cols;
};

SK_CPU_VARIANTS

}  // namespace sk::dequantize
