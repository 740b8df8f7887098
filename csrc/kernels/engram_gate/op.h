// out[t, s] = x[t, s] + g v[t], g = sigmoid(copysign(sqrt(max(|d|, 1e-6)), d)), d = rms_norm(x) w . rms_norm(k) /
// sqrt(dim)
#pragma once
#include "core/variant.h"

namespace sk::engram_gate {

struct Args {
  Rows<const void> x, k;      // [tokens * streams, dim]
  Rows<const void> v;         // [tokens, dim]
  Dtype x_dtype, k_dtype, v_dtype;
  Rows<const float> w;        // [streams, dim]
  const uint8_t* token_mask;  // [tokens], 0: nothing is added; or null
  void* out;                  // [tokens * streams, dim] of x_dtype
  int64_t tokens, streams, dim;
  float eps;
};

SK_CPU_VARIANTS

}  // namespace sk::engram_gate
