// out[t, :] = sum_j weights[t, j] * w2[e] @ (silu(gate) * up),   gate, up = w13[e] @ x[t],   e = ids[t, j]
#pragma once
#include "core/variant.h"
#include "gemm/gemm.h"

namespace sk::fused_moe {

struct Args {
  Rows<const void> x;    // [tokens, hidden]
  Dtype dtype;           // f32 or bf16
  gemm::Weights w13;     // of expert 0: [2 * inter, hidden], gate above up
  gemm::Weights w2;      // of expert 0: [hidden, inter]
  const float* weights;  // [tokens, top_k]
  const int32_t* ids;    // [tokens, top_k]; what is not an expert is dropped
  int64_t tokens, top_k, experts, hidden, inter;
  float limit;           // bounds gate above and up on both sides; infinity: none
  bool quantize;         // both inputs of GEMMs to e4m3, groups of 128
  bool weight_on_hidden; // multiply by the routing weight before the second GEMM
  void* out;             // [tokens, hidden]
  Dtype out_dtype;
  gemm::Blocking blocking;
};

SK_CPU_VARIANTS

}  // namespace sk::fused_moe
