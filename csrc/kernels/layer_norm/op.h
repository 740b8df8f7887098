// y[r, :] = (x[r, :] - mean) / sqrt(variance + eps) * weight + bias
#pragma once
#include "core/variant.h"

namespace sk::layer_norm {

struct Args {
  Rows<const void> x;   // [rows, dim] of dtype
  Dtype dtype;
  const void* weight;   // [dim] or null
  Dtype weight_dtype;
  const void* bias;     // [dim] or null
  Dtype bias_dtype;
  void* y;              // [rows, dim] of dtype
  int64_t rows, dim;
  float eps;
};

SK_CPU_VARIANTS

}  // namespace sk::layer_norm
