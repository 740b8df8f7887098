// ids are given; weights[t, j] = score(logits[t, ids[t, j]]), normalised and scaled
#pragma once
#include "core/variant.h"
#include "moe/routing.h"

namespace sk::route_hash {

struct Args {
  moe::Logits logits;
  int64_t tokens, top_k;
  moe::Weighing weighing;
  const int32_t* ids;  // [tokens, top_k], all below experts
  float* weights;      // [tokens, top_k]
};

SK_CPU_VARIANTS

}  // namespace sk::route_hash
