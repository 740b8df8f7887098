// Attention over selected, paged and dense keys.
#include <cmath>
#include <iterator>

#include "attention/queries.h"
#include "bindings/families.h"
#include "bindings/indices.h"
#include "bindings/pool.h"
#include "kernels/merge_attn_states/op.h"
#include "kernels/mla_decode/op.h"
#include "kernels/sparse_attention/op.h"
#include "kernels/sparse_mla_decode/op.h"

namespace sk {
namespace {

void merge_attn_states(Call& c) {
  enum { kOutA, kLseA, kOutB, kLseB };
  const TensorView &a = c.arg(kOutA), &b = c.arg(kOutB);
  c.make_outputs();
  c.run(merge_attn_states::kVariants, {.a = a.as_rows<const void>(),
                                       .b = b.as_rows<const void>(),
                                       .a_dtype = a.dtype,
                                       .b_dtype = b.dtype,
                                       .lse_a = c.arg(kLseA).as<const float>(),
                                       .lse_b = c.arg(kLseB).as<const float>(),
                                       .out = c.out(0).data,
                                       .lse = c.out(1).as<float>(),
                                       .rows = a.rows(),
                                       .dim = a.last()});
}

// What all attention ops read alike; the results come when they are made.
constexpr int kNone = -1;  // no such argument
attention::Queries read_queries(const Call& c, int q_arg, int64_t kv_heads, int64_t dv, int scale, int sink) {
  const TensorView& q = c.arg(q_arg);
  const int64_t heads = c.size("Hq");
  if (!std::isfinite(c.real(scale))) fail("scale is ", c.real(scale), ", expected a finite number");
  if (heads > 0 && (kv_heads == 0 || heads % kv_heads != 0))
    fail("q has ", heads, " heads, expected a multiple of the ", kv_heads, " of the keys");
  return {.q = q.as_rows<const void>(),
          .dtype = q.dtype,
          .queries = heads > 0 ? q.rows() / heads : 0,
          .heads = heads,
          .kv_heads = kv_heads,
          .dk = q.last(),
          .dv = dv,
          .scale = c.real(scale),
          .sink = sink == kNone ? nullptr : c.arg(sink).as<const float>(),
          .out = nullptr,
          .max_logits = nullptr,
          .lse = nullptr,
          .steps = 1};
}

float* partials(Call& c, const attention::Queries& q, int64_t most_keys) {
  return c.floats(0, attention::partial_floats(q, most_keys));
}

// The first channels of keys that are their values.
int64_t read_d_v(const Call& c, int option, const char* keys, int64_t channels) {
  if (c.integer(option) < 1 || c.integer(option) > channels)
    fail("d_v is ", c.integer(option), ", expected 1 to the ", channels, " channels of ", keys);
  return c.integer(option);
}

const int32_t* read_lengths(Call& c, int arg, int64_t most, const char* name = "lengths") {
  if (!c.arg(arg).present()) return nullptr;
  const int32_t* lengths = c.indices(arg);
  check_range(c, arg, name, lengths, 0, most + 1);
  return lengths;
}

void check_count(const char* what, int64_t count) {
  if (count > INT32_MAX) fail(what, " has ", count, " rows, expected at most ", INT32_MAX);
}

void sparse_mla_prefill(Call& c) {
  enum { kQ, kKv, kIndices, kSink, kLengths };
  enum { kScale, kDv };
  const TensorView& kv = c.arg(kKv);
  check_count("kv", kv.rows());
  sparse_attention::Args a = {.queries = read_queries(c, kQ, 1, read_d_v(c, kDv, "kv", kv.last()), kScale, kSink),
                              .rows = {kv.as_rows<const void>(), kv.as_rows<const void>(), kv.dtype, kv.dtype},
                              .keys = kv.rows(),
                              .first = nullptr,
                              .last = nullptr,
                              .indices = c.indices(kIndices),
                              .topk = c.arg(kIndices).last(),
                              .lengths = read_lengths(c, kLengths, c.arg(kIndices).last())};
  a.queries.partials = partials(c, a.queries, a.topk);
  c.make_outputs();
  a.queries.out = c.out(0).data;
  a.queries.max_logits = c.out(1).as<float>();
  a.queries.lse = c.out(2).as<float>();
  c.run(sparse_attention::kVariants, a);
}

// Where sequences begin and end, from 0 to at most `length`.
const int32_t* read_bounds(Call& c, int arg, const char* name, int64_t length) {
  const int32_t* bounds = c.indices(arg);
  for (int64_t i = 0, least = 0; i < c.arg(arg).last(); least = bounds[i++])
    if (bounds[i] < least || bounds[i] > (i == 0 ? 0 : length))
      fail(name, "[", i, "] is ", given(c.arg(arg), 0, i), ", expected ", least, " to ", i == 0 ? 0 : length);
  return bounds;
}

void sparse_attention_op(Call& c) {
  enum { kQ, kK, kV, kIndices, kSink, kLengths, kCuQ, kCuK };
  enum { kScale, kCausal };
  const TensorView &q = c.arg(kQ), &k = c.arg(kK), &v = c.arg(kV), &indices = c.arg(kIndices);
  const int64_t queries = q.shape[0], keys = k.shape[0], topk = indices.present() ? indices.last() : -1;
  check_count("q", queries);
  check_count("k", keys);
  if (c.arg(kCuQ).present() != c.arg(kCuK).present())
    fail(c.arg(kCuQ).present() ? "cu_seqlens_k" : "cu_seqlens_q", " is None, expected it beside the other one");
  sparse_attention::Args a = {.queries = read_queries(c, kQ, k.shape[1], v.last(), kScale, kSink),
                              .rows = {k.as_rows<const void>(), v.as_rows<const void>(), k.dtype, v.dtype},
                              .keys = keys,
                              .first = nullptr,
                              .last = nullptr,
                              .indices = indices.present() ? c.indices(kIndices) : nullptr,
                              .topk = topk,
                              .lengths = read_lengths(c, kLengths, topk < 0 ? keys : topk)};

  a.queries.partials = partials(c, a.queries, topk >= 0 ? topk : keys);
  if (!Call::kReadsValues) {
    const bool several = c.arg(kCuQ).present();
    a.on_device = {.cu_q = several ? c.indices(kCuQ) : nullptr,
                   .cu_k = several ? c.indices(kCuK) : nullptr,
                   .sequences = several ? max(c.arg(kCuQ).last() - 1, 0) : 1,
                   .causal = c.flag(kCausal)};
  } else if (c.flag(kCausal) || c.arg(kCuQ).present() || (a.lengths != nullptr && topk < 0)) {
    const int32_t one_sequence[2][2] = {{0, static_cast<int32_t>(queries)}, {0, static_cast<int32_t>(keys)}};
    const int32_t *q_bounds = one_sequence[0], *k_bounds = one_sequence[1];
    int64_t sequences = 1;
    if (c.arg(kCuQ).present()) {
      q_bounds = read_bounds(c, kCuQ, "cu_seqlens_q", queries);
      k_bounds = read_bounds(c, kCuK, "cu_seqlens_k", keys);
      sequences = max(c.arg(kCuQ).last() - 1, 0);
    }
    int32_t *const first = c.scratch().take<int32_t>(queries), *const last = c.scratch().take<int32_t>(queries);
    for (int64_t i = 0, s = 0; i < queries; ++i) {
      while (s < sequences && q_bounds[s + 1] <= i) ++s;
      first[i] = last[i] = 0;
      if (s == sequences) continue;  // behind the last sequence
      int64_t end = k_bounds[s + 1];
      if (c.flag(kCausal)) end -= q_bounds[s + 1] - 1 - i;
      if (a.lengths != nullptr && topk < 0) end = min(end, k_bounds[s] + a.lengths[i]);
      first[i] = k_bounds[s];
      last[i] = static_cast<int32_t>(max(end, k_bounds[s]));
    }
    a.first = first;
    a.last = last;
  }
  c.make_outputs();
  a.queries.out = c.out(0).data;
  a.queries.max_logits = c.out(1).as<float>();
  a.queries.lse = c.out(2).as<float>();
  c.run(sparse_attention::kVariants, a);
}

// Refuses slots past the end of the pool; below 0 they name nothing, and what does not count may be anything.
void check_slots(const Call& c, int arg, const char* name, const sparse_mla_decode::Selection& s, int64_t steps,
                 int64_t slots) {
  if constexpr (!Call::kReadsValues) return;
  const TensorView& t = c.arg(arg);
  for (int64_t query = 0; query < t.rows(); ++query)
    for (int64_t i = 0; i < s.count(query, steps); ++i) {
      const int32_t slot = s.indices[query * s.topk + i];
      if ((slot < 0 && slot != INT32_MIN) || (slot >= 0 && slot < slots)) continue;
      if (const int64_t wide = given(t, query, i); wide >= 0)
        fail(name, "[", query / steps, ", ", query % steps, ", ", i, "] is ", wide, ", expected less than the ",
             slots, " slots of the pool");
    }
}

void sparse_mla_decode_op(Call& c) {
  enum { kQ, kPool, kIndices, kSink, kLengths, kExtraPool, kExtraIndices, kExtraLengths };
  enum { kFormat, kPageSize, kScale, kDv, kExtraPageSize };
  const TensorView& q = c.arg(kQ);
  const bool extra = c.arg(kExtraPool).present();
  if (c.arg(kExtraIndices).present() != extra || c.option(kExtraPageSize).present != extra ||
      (c.arg(kExtraLengths).present() && !extra))
    fail("extra_pool is ", extra ? "given" : "None",
         ", expected extra_pool, extra_indices and extra_page_size together");
  const PoolArg pool = pool_arg(c, kPool, "pool", kFormat, kPageSize);
  const int64_t channels = pool.plain() ? c.arg(kPool).last() : kv::layout_of(pool.format).dim;
  if (q.last() != channels) fail("q has ", q.last(), " channels, expected the ", channels, " of the pool's records");
  sparse_mla_decode::Args a = {.queries = read_queries(c, kQ, 1, read_d_v(c, kDv, "pool", channels), kScale, kSink),
                               .format = pool.format,
                               .plain_dtype = pool.dtype,
                               .parts = {{pool.by_slots<const uint8_t>(), c.indices(kIndices), c.arg(kIndices).last(),
                                          read_lengths(c, kLengths, c.arg(kIndices).last()), pool.records()},
                                         {}}};
  a.queries.steps = max(q.shape[1], 1);
  check_slots(c, kIndices, "indices", a.parts[0], a.queries.steps, pool.pages * pool.page_size);
  if (extra) {
    const PoolArg more = pool_arg(c, kExtraPool, "extra_pool", kFormat, kExtraPageSize, "extra_page_size");
    if (more.dtype != pool.dtype) fail("extra_pool is not of the dtype of pool");
    a.parts[1] = {more.by_slots<const uint8_t>(), c.indices(kExtraIndices), c.arg(kExtraIndices).last(),
                  read_lengths(c, kExtraLengths, c.arg(kExtraIndices).last(), "extra_lengths"), more.records()};
    check_slots(c, kExtraIndices, "extra_indices", a.parts[1], a.queries.steps, more.pages * more.page_size);
  }
  a.queries.partials = partials(c, a.queries, a.parts[0].topk + a.parts[1].topk);
  c.make_outputs();
  a.queries.out = c.out(0).data;
  a.queries.lse = c.out(1).as<float>();
  c.run(sparse_mla_decode::kVariants, a);
}

void mla_decode_op(Call& c) {
  enum { kQ, kCache, kTable, kLens };
  enum { kScale, kDv, kCausal };
  const TensorView &q = c.arg(kQ), &cache = c.arg(kCache);
  const int64_t pages = cache.shape[0], page_size = cache.shape[1], batch = q.shape[0],
                max_pages = c.size("max_pages");
  if (page_size < 1) fail("cache has pages of 0 keys, expected at least 1");
  const int32_t* const table = c.indices(kTable);
  const int32_t* const lens = c.indices(kLens);
  check_range(c, kLens, "seq_lens", lens, 0, min(max_pages * page_size, INT32_MAX - 1) + 1);
  for (int64_t b = 0; b < batch && Call::kReadsValues; ++b)
    for (int64_t i = 0; i < ceil_div(lens[b], page_size); ++i)
      if (const int32_t page = table[b * max_pages + i]; page < 0 || page >= pages)
        fail("block_table[", b, ", ", i, "] is ", given(c.arg(kTable), b, i), ", expected 0 to ", pages - 1,
             ": a page of the cache");
  mla_decode::Args a = {
      .queries = read_queries(c, kQ, cache.shape[2], read_d_v(c, kDv, "cache", cache.last()), kScale, kNone),
      .cache = cache.as_rows<const void>(),
      .dtype = cache.dtype,
      .pages = pages,
      .page_size = page_size,
      .block_table = table,
      .max_pages = max_pages,
      .seq_lens = lens,
      .causal = c.flag(kCausal)};
  a.queries.steps = max(q.shape[1], 1);
  a.queries.partials = partials(c, a.queries, max_pages * page_size);
  c.make_outputs();
  a.queries.out = c.out(0).data;
  a.queries.lse = c.out(1).as<float>();
  c.run(mla_decode::kVariants, a);
}

constexpr Binding kBindings[] = {
    {"mla_decode", "q cache block_table seq_lens scale d_v causal", &mla_decode_op},
    {"merge_attn_states", "out_a lse_a out_b lse_b", &merge_attn_states},
    {"sparse_mla_decode",
     "q pool indices sink lengths extra_pool extra_indices extra_lengths format page_size scale d_v extra_page_size",
     &sparse_mla_decode_op},
    {"sparse_mla_prefill", "q kv indices sink lengths scale d_v", &sparse_mla_prefill},
    {"sparse_attention", "q k v indices sink lengths cu_seqlens_q cu_seqlens_k scale causal", &sparse_attention_op},
};

}  // namespace

Family attention_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
