#include "core/arena.h"
#include "core/parallel.h"
#include "gemm/gemm.h"
#include "kernels/sparse_attention/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::sparse_attention::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "attention/attend.h"

struct KeysInRows {
  const Args& a;
  const gemm::Format k_format = format_of(a.rows.k_dtype), v_format = format_of(a.rows.v_dtype);

  int64_t first(int64_t query) const { return a.first != nullptr ? a.first[query] : 0; }
  int64_t last(int64_t query) const { return a.last != nullptr ? a.last[query] : a.keys; }
  int64_t key_bytes() const { return 0; }
  // Where the i-th row is that fetch() was asked for.
  void point(int64_t i, int64_t key, int64_t kv_head, Fetched* to) const {
    const int64_t row = key * a.queries.kv_heads + kv_head;
    to->k[i] = row_of(a.rows.k, a.rows.k_dtype, row);
    to->v[i] = row_of(a.rows.v, a.rows.v_dtype, row);
  }
};

// Every query has a list of its own.
struct Selected : KeysInRows {
  int64_t tiles() const { return a.queries.queries; }
  Span tile(int64_t i) const { return {i, 1}; }
  int64_t list_size() const { return a.topk; }
  int64_t open(Span queries, int32_t* list) const {
    const int64_t query = queries.first, from = first(query), to = last(query);
    const int64_t count = a.lengths != nullptr ? a.lengths[query] : a.topk;
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t key = a.indices[query * a.topk + i];
      if (key >= from && key < to) list[n++] = key;
    }
    return n;
  }
  int64_t seen(int64_t, int64_t keys) const { return keys; }
  void fetch(const int32_t* list, int64_t, int64_t kv_head, int64_t first, int64_t n, Fetched* to, uint8_t*) const {
    for (int64_t i = 0; i < n; ++i) point(i, list[first + i], kv_head, to);
  }
};

// Neighbours whose ranges begin alike share keys.
struct Ranges : KeysInRows {
  const int32_t* spans;  // [count + 1] the query that a tile begins with
  int64_t count;

  int64_t tiles() const { return count; }
  Span tile(int64_t i) const { return {spans[i], spans[i + 1] - spans[i]}; }
  int64_t list_size() const { return 0; }
  int64_t open(Span queries, int32_t*) const {
    int64_t most = 0;
    for (int64_t i = 0; i < queries.count; ++i) most = max(most, seen(queries.first + i, 0));
    return most;
  }
  int64_t seen(int64_t query, int64_t) const { return max(0, last(query) - first(query)); }
  void fetch(const int32_t*, int64_t query, int64_t kv_head, int64_t first_key, int64_t n, Fetched* to,
             uint8_t*) const {
    for (int64_t i = 0; i < n; ++i) point(i, first(query) + first_key + i, kv_head, to);
  }
};

}  // namespace

void run(const Args& a) {
  if (a.queries.queries * a.queries.heads == 0) return;
  if (a.topk >= 0) return attend(a.queries, Selected{{a}});
  Scratch scratch;
  const int64_t most = queries_a_tile(a.queries.heads / a.queries.kv_heads);
  Ranges ranges{{a}, nullptr, 0};
  int32_t* const spans = scratch.take<int32_t>(a.queries.queries + 1);
  for (int64_t i = 0, start = 0; i < a.queries.queries; ++i) {
    if (i > 0 && i - start < most && ranges.first(i) == ranges.first(start)) continue;
    start = i;
    spans[ranges.count++] = static_cast<int32_t>(i);
  }
  spans[ranges.count] = static_cast<int32_t>(a.queries.queries);
  ranges.spans = spans;
  attend(a.queries, ranges);
}

}  // namespace sk::sparse_attention::SK_ISA
