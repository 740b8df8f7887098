// What all attention kernels have in common: the queries, and what is made of them.
//
//   out[q, :] = sum over keys j of p[j] * v[j, :] / (sum over j of p[j] + e^(sink - top))
//   p[j] = e^(logit[j] - top), logit[j] = scale * (q . k[j]), top = the largest logit
//   lse = top + ln(sum over j of p[j])
//
// The keys that a query sees are taken in order, in chunks of kChunk. Each chunk is summed by itself, with a top of
// its own, and the chunks' sums are added in order (docs/numerics.md). So a query's bits depend on its keys alone.
#pragma once
#include "core/types.h"

namespace sk::attention {

constexpr int64_t kChunk = 512;

struct Queries {
  Rows<const void> q;     // [queries * heads, dk] of dtype
  Dtype dtype;
  int64_t queries, heads, kv_heads, dk, dv;
  float scale;
  const float* sink;      // [heads] or null
  void* out;              // [queries * heads, dv] of dtype
  float* max_logits;      // [queries, heads] or null
  float* lse;             // [queries / steps, heads, steps]
  int64_t steps;
  float* partials = nullptr;  // on a device: partial_floats(), null: none are needed
};

// Sums of chunks apart, where there are too few queries for a device to work on all of them at once.
constexpr int64_t partial_floats(const Queries& q, int64_t most_keys) {
  const int64_t rows = q.queries * q.heads, chunks = ceil_div(most_keys, kChunk);
  return chunks < 2 || rows >= 4096 ? 0 : rows * chunks * (q.dv + 2);
}

// Keys and values as the rows of two tensors; that of key j for head h of kv_heads is row j * kv_heads + h.
struct KeyRows {
  Rows<const void> k, v;
  Dtype k_dtype, v_dtype;
};

}  // namespace sk::attention
