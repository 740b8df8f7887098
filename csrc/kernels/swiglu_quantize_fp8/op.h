// y = swiglu(gate_up) in fp32; scale[r, g] = max(max |y[r, group g]|, floor) / 448, q = e4m3(y * (448 / max))
#pragma once
#include "core/variant.h"

namespace sk::swiglu_quantize_fp8 {

struct Args {
  Rows<const void> gate_up;  // [rows, 2 * dim] of dtype
  Dtype dtype;
  const float* weight;       // [rows] or null
  uint8_t* q;                // [rows, dim], e4m3
  void* scale;               // [rows, ceil(dim / group)] of scale_dtype
  Dtype scale_dtype;         // f32, or e8m0: rounded up to a power of two
  int64_t rows, dim, group;
  float limit;               // infinity: none
  float floor;
};

SK_CPU_VARIANTS

}  // namespace sk::swiglu_quantize_fp8
