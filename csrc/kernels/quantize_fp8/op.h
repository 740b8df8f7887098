// scale[r, g] = max(max |x[r, group g]|, floor) / 448, q[r, k] = e4m3(x[r, k] * (448 / max))
#pragma once
#include "core/variant.h"

namespace sk::quantize_fp8 {

struct Args {
  Rows<const void> x;  // [rows, dim] of dtype
  Dtype dtype;
  uint8_t* q;          // [rows, dim], e4m3
  void* scale;         // [rows, ceil(dim / group)] of scale_dtype
  Dtype scale_dtype;   // f32, or e8m0: rounded up to a power of two
  int64_t rows, dim, group;
  float floor;
};

SK_CPU_VARIANTS

}  // namespace sk::quantize_fp8
