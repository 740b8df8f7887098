// out[r, :] = x[row_token[r], :], or zeros where row_token[r] is -1. Bytes are copied, whatever they mean
#pragma once
#include "core/variant.h"

namespace sk::moe_gather {

struct Args {
  Rows<const uint8_t> x;     // [tokens, bytes]; the stride in bytes
  const int32_t* row_token;  // [rows], -1 or a token
  uint8_t* out;              // [rows, bytes]
  int64_t rows, bytes, tokens;
};

SK_CPU_VARIANTS

}  // namespace sk::moe_gather
