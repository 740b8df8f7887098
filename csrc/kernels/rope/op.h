// y[t, h, :] = x[t, h, :], but pairs of channels rotated by positions[t] * frequency
#pragma once
#include "core/variant.h"
#include "rope/rotation.h"

namespace sk::rope {

struct Args {
  Rows<const void> x;        // [tokens * heads, dim] of dtype
  Dtype dtype;
  const int32_t* positions;  // [tokens]
  Rotation rotation;
  float* tables;             // scratch, threads() * table_floats(pairs)
  void* y;                   // [tokens * heads, dim] of dtype
  int64_t tokens, heads, dim;
};

SK_CPU_VARIANTS

}  // namespace sk::rope
