// y[r, i] = gate / (1 + exp(-gate)) * up * weight[r]
// gate = min(gate_up[r, i], limit), up = clamp(gate_up[r, dim + i], -limit, limit)
#pragma once
#include "core/variant.h"

namespace sk::swiglu {

struct Args {
  Rows<const void> gate_up;  // [rows, 2 * dim] of dtype
  Dtype dtype;
  const float* weight;       // [rows] or null
  void* y;                   // [rows, dim] of dtype
  int64_t rows, dim;
  float limit;               // infinity: none
};

SK_CPU_VARIANTS

}  // namespace sk::swiglu
