// Attention over selected, paged and dense keys.
#include <cmath>
#include <iterator>

#include "attention/queries.h"
#include "bindings/families.h"
#include "bindings/indices.h"
#include "kernels/merge_attn_states/op.h"
#include "kernels/sparse_attention/op.h"

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
          .sink = c.arg(sink).as<const float>(),
          .out = nullptr,
          .max_logits = nullptr,
          .lse = nullptr,
          .steps = 1};
}

// The first channels of keys that are their values.
int64_t read_d_v(const Call& c, int option, const char* keys, int64_t channels) {
  if (c.integer(option) < 1 || c.integer(option) > channels)
    fail("d_v is ", c.integer(option), ", expected 1 to the ", channels, " channels of ", keys);
  return c.integer(option);
}

const int32_t* read_lengths(Call& c, int arg, int64_t most) {
  if (!c.arg(arg).present()) return nullptr;
  const int32_t* lengths = c.indices(arg);
  check_range(c, arg, "lengths", lengths, 0, most + 1);
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

  if (c.flag(kCausal) || c.arg(kCuQ).present() || (a.lengths != nullptr && topk < 0)) {
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

constexpr Binding kBindings[] = {
    {"merge_attn_states", "out_a lse_a out_b lse_b", &merge_attn_states},
    {"sparse_mla_prefill", "q kv indices sink lengths scale d_v", &sparse_mla_prefill},
    {"sparse_attention", "q k v indices sink lengths cu_seqlens_q cu_seqlens_k scale causal", &sparse_attention_op},
};

}  // namespace

Family attention_family() { return {kBindings, std::size(kBindings)}; }

}  // namespace sk
