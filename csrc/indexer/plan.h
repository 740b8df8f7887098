// How a problem is cut, and how much memory that takes: the same on every instruction set.
#pragma once
#include "gemm/gemm.h"
#include "indexer/memory.h"
#include "indexer/problem.h"

namespace sk::indexer {

constexpr int64_t kTile = gemm::kPanel;     // keys that are scored together
constexpr int64_t kRows = 256;              // heads of queries that meet a tile together: their sums stay near
constexpr int64_t kWorthThreads = 1 << 20;  // products below which waking threads costs more than it saves

struct Plan {
  gemm::Format format;
  gemm::Segments depth;  // how dim is laid out
  int64_t scales;        // of a row, where it is FP4
  bool as_f32;           // what rows of queries are multiplied as
  int64_t stride;        // elements of such a row
  int64_t queries;       // that meet a tile together, at most
  int64_t groups_a_sequence;

  int64_t groups(const Problem& p) const { return p.queries.rows / p.rows_a_sequence * groups_a_sequence; }
};

static inline Plan make_plan(const Problem& p, bool as_f32, int64_t most_queries) {
  const Queries& q = p.queries;
  const gemm::Format format = q.dtype == Dtype::f32    ? gemm::Format::f32
                              : q.dtype == Dtype::bf16 ? gemm::Format::bf16
                              : q.dtype == Dtype::e4m3 ? gemm::Format::e4m3
                                                       : gemm::Format::e2m1;
  const bool fp4 = format == gemm::Format::e2m1;
  const gemm::Segments depth(format, q.dim, fp4 ? kFp4Group : 0);
  const int64_t queries = max(1, min(min(p.rows_a_sequence, kRows / q.heads), most_queries));
  return {.format = format,
          .depth = depth,
          .scales = fp4 ? depth.count() : 0,
          .as_f32 = as_f32,
          .stride = round_up(depth.total(), 64) + 32,  // rows 4 KB apart would evict each other
          .queries = queries,
          .groups_a_sequence = ceil_div(p.rows_a_sequence, queries)};
}

// Queries that meet keys together.
struct Group { int64_t sequence, first, count; };
static inline Group group_at(const Plan& plan, const Problem& p, int64_t i) {
  const int64_t in_sequence = i % plan.groups_a_sequence * plan.queries, sequence = i / plan.groups_a_sequence;
  return {sequence, sequence * p.rows_a_sequence + in_sequence, min(plan.queries, p.rows_a_sequence - in_sequence)};
}

// What one worker scores with.
struct Buffers {
  uint8_t* rows;               // [queries * heads, stride] for the GEMM
  float* row_scales;           // [queries * heads, scales]
  float* sums;                 // [queries * heads, kTile]
  float* scores;               // [queries, kTile]
  uint8_t *keys, *key_scales;  // of a tile that lies in pages
  uint8_t* gemm;
};
static inline Buffers take_buffers(const Plan& plan, const Problem& p, Memory& m) {
  const int64_t rows = plan.queries * p.queries.heads;
  Buffers b;
  take(m, b.rows, rows * plan.stride * (plan.as_f32 ? 4 : 2));
  take(m, b.row_scales, rows * plan.scales);
  take(m, b.sums, rows * kTile);
  take(m, b.scores, plan.queries * kTile);
  take(m, b.keys, p.keys.table == nullptr ? 0 : kTile * p.keys.stride);
  take(m, b.key_scales, p.keys.table == nullptr ? 0 : kTile * p.keys.scale_bytes);
  take(m, b.gemm, gemm::kScratchBytes);
  return b;
}

}  // namespace sk::indexer
