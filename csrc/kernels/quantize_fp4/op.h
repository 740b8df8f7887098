// scale[r, g] = 2^ceil(log2(max(max |x[r, group g]|, floor) / 6)), q[r, k] = e2m1(x[r, k] / scale[r, g])
#pragma once
#include "core/variant.h"

namespace sk::quantize_fp4 {

struct Args {
  Rows<const void> x;  // [rows, dim] of dtype; dim and group are even
  Dtype dtype;
  uint8_t* q;          // [rows, dim / 2], the earlier value in the lower half
  uint8_t* scale;      // [rows, ceil(dim / group)], e8m0
  int64_t rows, dim, group;
  float floor;
};

SK_CPU_VARIANTS

}  // namespace sk::quantize_fp4
