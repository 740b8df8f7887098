// lse[r] = ln(e^lse_a[r] + e^lse_b[r]), out[r, :] = e^(lse_a[r] - lse[r]) * a[r, :] + e^(lse_b[r] - lse[r]) * b[r, :]
#pragma once
#include "core/variant.h"

namespace sk::merge_attn_states {

struct Args {
  Rows<const void> a, b;  // [rows, dim] of a_dtype and b_dtype
  Dtype a_dtype, b_dtype;
  const float *lse_a, *lse_b;  // [rows]; an infinity: nothing was attended to
  void* out;  // [rows, dim] of a_dtype
  float* lse;  // [rows]
  int64_t rows, dim;
};

SK_CPU_VARIANTS

}  // namespace sk::merge_attn_states
