// The inverse of pack_weights, exactly.
#pragma once
#include "core/variant.h"
#include "gemm/gemm.h"

namespace sk::unpack_weights {

struct Args {
  gemm::Weights weights;  // of expert 0, packed
  int64_t experts;
  uint8_t* rows;          // [experts, n, row_bytes]
  int64_t row_bytes;
  uint8_t* masks;         // [experts, n, mask_bytes] of 2:4 weights, or null
  void* scale;            // [experts, ceil(n / block_n), segments] or null
};

SK_CPU_VARIANTS

}  // namespace sk::unpack_weights
