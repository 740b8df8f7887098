// Tokens to rows for their experts, in two steps; between them the rows are counted, and their memory is made.
#pragma once
#include "core/variant.h"
#include "moe/routing.h"

namespace sk::router_gather {

// logits[t, :] = router @ x[t, :] in fp32, then experts and their weights as route_topk or route_hash make them
namespace gate {

struct Args {
  Rows<const void> x;       // [tokens, dim] of dtype
  Dtype dtype;
  Rows<const void> router;  // [experts, dim] of router_dtype
  Dtype router_dtype;
  int64_t tokens, experts, dim;
  moe::Selection selection;
  moe::Weighing weighing;
  const int32_t* chosen;    // [tokens, top_k], experts that are chosen already; or null
  float* weights;           // [tokens, top_k]
  int32_t* ids;             // [tokens, top_k]; where nothing is chosen
  float* logits = nullptr;  // on a device: [tokens, experts], and nothing else is made here
};

SK_CPU_VARIANTS

}  // namespace gate

// rows[slot_row[t, j], :] = x[t, :], or its codes and scales as quantize_fp8 makes them; zeros where row_token is -1
namespace place {

struct Args {
  Rows<const void> x;  // [tokens, dim] of dtype
  Dtype dtype;
  int64_t tokens, dim, top_k;
  const int32_t* slot_row;   // [tokens, top_k]
  const int32_t* row_token;  // [row_count]
  int64_t row_count;
  bool quantize;
  int64_t group;       // that share a scale
  Dtype scale_dtype;
  uint8_t* rows;       // [row_count, dim], codes or values
  uint8_t* scales;     // [row_count, ceil(dim / group)]; where there are codes
};

SK_CPU_VARIANTS

}  // namespace place

}  // namespace sk::router_gather
