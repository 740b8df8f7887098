// out[t, :] = sum over j of weights[t, j] * y[slot_row[t, j], :], without the slots whose row is -1
#pragma once
#include "core/variant.h"

namespace sk::moe_combine {

struct Args {
  Rows<const void> y;       // [rows, dim] of dtype
  Dtype dtype;
  const int32_t* slot_row;  // [tokens, top_k], -1 or a row
  Rows<const float> weights;  // [tokens, top_k]; data is null: all 1
  void* out;                // [tokens, dim] of out_dtype
  Dtype out_dtype;
  int64_t tokens, top_k, dim, rows;
};

SK_CPU_VARIANTS

}  // namespace sk::moe_combine
