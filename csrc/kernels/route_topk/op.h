// ids[t, :] = the top_k experts of token t by score(logits[t, :]) + bias, within its best groups;
// weights[t, :] = their scores, normalised and scaled
#pragma once
#include "core/variant.h"
#include "moe/routing.h"

namespace sk::route_topk {

struct Args {
  moe::Logits logits;
  int64_t tokens;
  moe::Selection selection;
  moe::Weighing weighing;
  float* weights;  // [tokens, top_k]
  int32_t* ids;    // [tokens, top_k]
};

SK_CPU_VARIANTS

}  // namespace sk::route_topk
