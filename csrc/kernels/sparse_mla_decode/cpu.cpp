#include "core/arena.h"
#include "core/parallel.h"
#include "gemm/gemm.h"
#include "kernels/sparse_mla_decode/op.h"
#include "kv/records.h"

namespace sk::sparse_mla_decode::SK_ISA {
using namespace kv::SK_ISA;
namespace {

#include "attention/attend.h"

// Every query has a list of its own: slots of the first pool, then, inverted, those of the second.
struct Named {
  const Args& a;
  const bool plain = a.format == kv::Format::bf16;
  const gemm::Format k_format = format_of(plain ? a.plain_dtype : a.queries.dtype), v_format = k_format;

  int64_t tiles() const { return a.queries.queries; }
  Span tile(int64_t i) const { return {i, 1}; }
  int64_t list_size() const { return a.parts[0].topk + a.parts[1].topk; }
  int64_t open(Span queries, int32_t* list) const {
    int64_t n = 0;
    for (int32_t part = 0; part < 2; ++part) {
      const Selection& from = a.parts[part];
      const int32_t* const indices = from.indices + queries.first * from.topk;
      for (int64_t i = 0; i < from.count(queries.first, a.queries.steps); ++i)
        if (indices[i] >= 0) list[n++] = part == 0 ? indices[i] : ~indices[i];
    }
    return n;
  }
  int64_t seen(int64_t, int64_t keys) const { return keys; }
  int64_t key_bytes() const { return plain ? 0 : round_up(a.queries.dk * size_of(a.queries.dtype), 64); }

  kv::Record<const uint8_t> record(int32_t listed) const {
    const kv::Pool<const uint8_t>& pool = a.parts[listed < 0].pool;
    const int64_t slot = listed < 0 ? ~listed : listed;
    if (plain) return {pool.data + slot * pool.page_stride, nullptr};
    return record_at(kv::layout_of(a.format), pool, slot);
  }
  // Records lie anywhere: no hardware prefetcher finds the next ones.
  void prefetch(const kv::Record<const uint8_t>& r) const {
    if (plain) return prefetch_bytes(r.data, a.queries.dk * size_of(a.plain_dtype));
    prefetch_record(kv::layout_of(a.format), r);
  }
  void fetch(const int32_t* list, int64_t, int64_t, int64_t first, int64_t n, Fetched* to, uint8_t* scratch) const {
    constexpr int64_t kAhead = 2;
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) prefetch(record(list[first + i + kAhead]));
      const kv::Record<const uint8_t> r = record(list[first + i]);
      const uint8_t* values = r.data;
      if (!plain) {
        uint8_t* const row = scratch + i * key_bytes();
        values = row;
        with_float_type(a.queries.dtype, [&](auto type) {
          decode_record(kv::layout_of(a.format), r, reinterpret_cast<decltype(type)*>(row));
        });
      }
      to->k[i] = to->v[i] = values;
    }
  }
};

}  // namespace

void run(const Args& a) {
  if (a.queries.queries * a.queries.heads > 0) attend(a.queries, Named{a});
}

}  // namespace sk::sparse_mla_decode::SK_ISA
