// Attention over records of paged caches that each query names, of two pools one after the other
// (attention/queries.h). Records are decoded to the dtype of the queries.
#pragma once
#include "attention/queries.h"
#include "core/variant.h"
#include "kv/format.h"

namespace sk::sparse_mla_decode {

// What a query names of one pool.
struct Selection {
  kv::Pool<const uint8_t> pool;  // bf16: of one row a page
  const int32_t* indices;        // [queries, topk] slots; below 0: none
  int64_t topk;                  // 0: there is no such pool
  const int32_t* lengths;        // [queries / steps] how many of them count; null: all
  int64_t records;               // of the pool

  int64_t count(int64_t query, int64_t steps) const { return lengths != nullptr ? lengths[query / steps] : topk; }
};

struct Args {
  attention::Queries queries;
  kv::Format format;
  Dtype plain_dtype;  // of the records of format bf16
  Selection parts[2];
};

SK_CPU_VARIANTS

}  // namespace sk::sparse_mla_decode
