// ids are given; weights[t, j] = score(logits[t, ids[t, j]]), normalised and scaled
#pragma once
#include "core/variant.h"
#include "moe/routing.h"

namespace sk::route_hash {

struct Args {
  Rows<const void> logits;  // [tokens, experts] of dtype
  Dtype dtype;
  const int32_t* ids;       // [tokens, top_k], all below experts
  float* weights;           // [tokens, top_k]
  int64_t tokens, experts, top_k;
  moe::Weighing weighing;
};

SK_CPU_VARIANTS

}  // namespace sk::route_hash
