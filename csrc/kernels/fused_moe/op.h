// out[t, :] = sum_j weights[t, j] * w2[e] @ (silu(gate) * up),   gate, up = w13[e] @ x[t],   e = ids[t, j]
#pragma once
#include "core/variant.h"
#include "gemm/gemm.h"

namespace sk::fused_moe {

// On a device: what a step leaves for the next ones. Slots: tokens * top_k.
struct DeviceScratch {
  int32_t *counts, *expert_offsets;         // [chunks of slots, experts], [experts + 1]
  int32_t *row_token, *row_slot, *slot_row;  // [slots]
  uint8_t* codes;                           // [tokens, hidden] of x, where it is quantised
  float* scales;                            // [tokens, ceil(hidden / kGroup)]
  float* gate_up;                           // [slots, 2 * inter]
  void* activated;                          // [slots, inter]
  float* activated_scales;                  // [slots, ceil(inter / kGroup)]
  float* parts;                             // [slots, hidden]
};

inline constexpr int64_t kGroup = 128;  // of activations that share a scale
inline constexpr float kAmaxFloor = 1e-4f;

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
  DeviceScratch scratch = {};
};

SK_CPU_VARIANTS

}  // namespace sk::fused_moe
