// Weights [experts, n, k] -> panels (gemm/gemm.h), and their scales -> lanes where every row has its own.
#pragma once
#include "core/variant.h"
#include "gemm/gemm.h"

namespace sk::pack_weights {

struct Args {
  gemm::Weights weights;  // of expert 0, in rows
  int64_t experts;
  uint8_t* panels;        // [experts, packed_bytes]
  void* scale;            // [experts, packed_scales] or null
};

SK_CPU_VARIANTS

}  // namespace sk::pack_weights
