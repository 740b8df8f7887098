// Of every four values of a row the two of largest |w| * importance, and where they were.
#pragma once
#include "core/variant.h"

namespace sk::sparsify_2to4 {

struct Args {
  Rows<const void> w;      // [rows, dim] of dtype; dim a multiple of 4
  Dtype dtype;             // f32, bf16 or e4m3
  const void* importance;  // [dim] or null: all the same
  Dtype importance_dtype;  // f32 or bf16
  void* values;            // [rows, dim / 2] of dtype
  uint8_t* metadata;       // [rows, ceil(dim / 8)]: four bits a four, the first four in the lower half
  int64_t rows, dim;
};

SK_CPU_VARIANTS

}  // namespace sk::sparsify_2to4
