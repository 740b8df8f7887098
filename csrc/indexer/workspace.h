// How the best keys of queries are found within a limit of memory.
//
// Workers take groups of queries and go through their keys, tile by tile, keeping the best. Where there are too few
// groups for all workers, a group's keys go in parts, whose best are merged; the result is the same. With candidates,
// blocks of keys are chosen first, in the same way, by the best key of each.
#pragma once
#include "indexer/plan.h"

namespace sk::indexer {

struct Choice {
  int64_t k;
  int64_t block, blocks;  // keys of a block, blocks to choose; 0: any key is a candidate

  int64_t most() const { return max(k, blocks); }  // kept at once
};

// The best of a part of the keys: their count, the numbers, the indices.
constexpr int64_t list_bytes(int64_t k) { return 64 + 2 * round_up(4 * k, 64); }

struct Workspace {
  Plan plan;
  int64_t workers, worker_bytes;
  int64_t parts;  // of a group's keys
  int64_t groups;  // at once
  int64_t row_bytes;  // of each of their queries: chosen blocks, and lists
  int64_t bytes;
};

constexpr int64_t kKeysAPart = 512;  // at least

static inline int64_t worker_bytes(const Plan& plan, const Problem& p, const Choice& c) {
  Memory m{};
  take_buffers(plan, p, m);
  Best* best;
  take(m, best, plan.queries);
  for (int64_t i = 0; i < plan.queries; ++i) take_best(m, c.most(), 0);
  return m.used;
}

// For queries of which one sees `keys` keys and none more. Takes more than the limit where nothing less will do.
static inline Workspace plan_workspace(const Problem& p, const Choice& c, int64_t keys, bool as_f32, int64_t threads,
                                       int64_t limit) {
  const int64_t chosen = c.blocks > 0 ? list_bytes(c.blocks) : 0;
  Workspace w = {.plan = make_plan(p, as_f32, INT64_MAX),
                 .workers = threads,
                 .worker_bytes = 0,
                 .parts = 1,
                 .groups = 0,
                 .row_bytes = chosen,
                 .bytes = 0};
  for (;; w.plan = make_plan(p, as_f32, w.plan.queries / 2)) {
    w.worker_bytes = worker_bytes(w.plan, p, c);
    if (w.plan.queries == 1 || w.workers * w.worker_bytes + w.plan.queries * chosen <= limit) break;
  }
  w.workers = max(1, min(w.workers, (limit - chosen) / w.worker_bytes));

  const int64_t left = limit - w.workers * w.worker_bytes, groups = w.plan.groups(p);
  if (groups < 4 * w.workers) w.parts = min(ceil_div(4 * w.workers, max(groups, 1)), ceil_div(keys, kKeysAPart));
  w.parts = max(1, min(w.parts, (left / max(p.queries.rows, 1) - chosen) / list_bytes(c.most())));
  if (w.parts > 1) w.row_bytes += w.parts * list_bytes(c.most());
  w.groups = w.row_bytes == 0 ? groups : max(1, min(groups, left / (w.row_bytes * w.plan.queries)));
  w.bytes = w.workers * w.worker_bytes + min(p.queries.rows, w.groups * w.plan.queries) * w.row_bytes;
  return w;
}

}  // namespace sk::indexer
