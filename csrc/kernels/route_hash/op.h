// ids are given; weights[t, j] = score(logits[t, ids[t, j]]), normalised and scaled
#pragma once
#include "core/variant.h"
#include "moe/routing.h"

namespace sk::route_hash {

// On a device the kernel looks experts up, for nobody else reads tensors there.
struct LookUp {
  const int32_t* token_ids;  // [tokens]
  const int32_t* table;      // [table_rows, top_k]
  int64_t table_rows;
  int32_t* ids;              // [tokens, top_k], -1 where there is no such expert
};

struct Args {
  moe::Logits logits;
  int64_t tokens, top_k;
  moe::Weighing weighing;
  const int32_t* ids;  // [tokens, top_k], all below experts
  float* weights;      // [tokens, top_k]
  LookUp on_device = {};  // instead of ids
};

SK_CPU_VARIANTS

}  // namespace sk::route_hash
