// scale[b] = max(max |w[block b]|, floor) / 448, q[n, k] = e4m3(w[n, k] * (448 / max))
#pragma once
#include "core/variant.h"

namespace sk::quantize_fp8_blocks {

struct Args {
  Rows<const void> w;  // [matrices * rows, cols] of dtype
  Dtype dtype;
  uint8_t* q;          // as w, e4m3
  void* scale;         // [matrices, ceil(rows / block_rows), ceil(cols / block_cols)] of scale_dtype
  Dtype scale_dtype;   // f32, or e8m0: rounded up to a power of two
  int64_t matrices, rows, cols, block_rows, block_cols;
  float floor;
};

SK_CPU_VARIANTS

}  // namespace sk::quantize_fp8_blocks
