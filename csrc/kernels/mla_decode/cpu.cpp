#include "core/arena.h"
#include "core/parallel.h"
#include "gemm/gemm.h"
#include "kernels/mla_decode/op.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::mla_decode::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "attention/attend.h"

// Queries of a sequence share its keys.
struct InPages {
  const Args& a;
  const gemm::Format k_format = format_of(a.dtype), v_format = k_format;
  const int64_t steps = a.queries.steps;
  const int64_t most = min(steps, queries_a_tile(a.queries.heads / a.queries.kv_heads));  // queries of a tile
  const int64_t per_sequence = ceil_div(steps, most);

  int64_t tiles() const { return a.queries.queries / steps * per_sequence; }
  Span tile(int64_t i) const {
    const int64_t step = i % per_sequence * most;
    return {i / per_sequence * steps + step, min(most, steps - step)};
  }
  int64_t list_size() const { return 0; }
  int64_t open(Span queries, int32_t*) const { return seen(queries.first + queries.count - 1, 0); }
  int64_t seen(int64_t query, int64_t) const {
    const int64_t later = a.causal ? steps - 1 - query % steps : 0;
    return max(0, a.seq_lens[query / steps] - later);
  }
  int64_t key_bytes() const { return 0; }
  void fetch(const int32_t*, int64_t query, int64_t kv_head, int64_t first, int64_t n, Fetched* to, uint8_t*) const {
    const int32_t* const table = a.block_table + query / steps * a.max_pages;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t key = first + i, slot = table[key / a.page_size] * a.page_size + key % a.page_size;
      to->k[i] = to->v[i] = row_of(a.cache, a.dtype, slot * a.queries.kv_heads + kv_head);
    }
  }
};

}  // namespace

void run(const Args& a) {
  if (a.queries.queries * a.queries.heads > 0) attend(a.queries, InPages{a});
}

}  // namespace sk::mla_decode::SK_ISA
