// Attention over the first keys of sequences that lie in pages; values are the first channels of the keys.
#pragma once
#include "attention/queries.h"
#include "core/variant.h"

namespace sk::mla_decode {

struct Args {
  attention::Queries queries;  // `steps` of each sequence
  Rows<const void> cache;      // [pages * page_size * kv_heads, dk] of dtype
  Dtype dtype;
  int64_t pages, page_size;
  const int32_t* block_table;  // [sequences, max_pages]
  int64_t max_pages;
  const int32_t* seq_lens;     // [sequences]
  bool causal;                 // the last query of a sequence sees all its keys, the one before it one less
};

SK_CPU_VARIANTS

}  // namespace sk::mla_decode
