// Attention over rows of keys and values: those that each query names, or a range of them (attention/queries.h).
#pragma once
#include "attention/queries.h"
#include "core/variant.h"

namespace sk::sparse_attention {

struct Args {
  attention::Queries queries;
  attention::KeyRows rows;
  int64_t keys;
  const int32_t *first, *last;  // [queries] which keys a query may see: [first, last); null: all
  const int32_t* indices;       // [queries, topk] the keys that it does see
  int64_t topk;                 // -1: there are no indices, it sees all of these
  const int32_t* lengths;       // [queries] how many of its indices count; null: all
};

SK_CPU_VARIANTS

}  // namespace sk::sparse_attention
