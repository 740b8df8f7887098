// Attention over rows of keys and values: those that each query names, or a range of them (attention/queries.h).
#pragma once
#include "attention/queries.h"
#include "core/variant.h"

namespace sk::sparse_attention {

// On a device every query finds out itself what it may see.
struct DeviceRanges {
  const int32_t *cu_q, *cu_k;  // [sequences + 1] or null: one sequence
  int64_t sequences;
  bool causal;
};

struct Args {
  attention::Queries queries;
  attention::KeyRows rows;
  int64_t keys;
  const int32_t *first, *last;  // [queries] which keys a query may see: [first, last); null: all
  const int32_t* indices;       // [queries, topk] the keys that it does see
  int64_t topk;                 // -1: there are no indices, it sees all of these
  const int32_t* lengths;       // [queries] how many of its indices count; null: all
  DeviceRanges on_device = {};  // instead of first and last; without indices `lengths` are of ranges
};

SK_CPU_VARIANTS

}  // namespace sk::sparse_attention
