#include "core/arena.h"
#include "core/parallel.h"
#include "indexer/plan.h"
#include "kernels/indexer_logits/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::indexer_logits::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

#include "indexer/score.h"

constexpr int64_t kSpan = 1024;  // keys of an item

void fill(float* x, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += kLanes) store(x + i, splat(kNoScore), last - i);
}

}  // namespace

void run(const Args& a) {
  const Problem& p = a.problem;
  if (p.queries.rows == 0 || a.cols == 0) return;
  const Plan plan = plan_for(p);
  const int64_t spans = ceil_div(a.cols, kSpan);
  Memory need{};
  take_buffers(plan, p, need);
  Scratch scratch;
  uint8_t* const workers = scratch.take<uint8_t>(threads() * need.used);

  parallel_for(
      plan.groups(p) * spans,
      [&](int64_t i, int worker) {
        const Group g = group_at(plan, p, i / spans);
        const Range seen = seen_by(p, g);
        const int64_t begin = i % spans * kSpan, end = min(a.cols, begin + kSpan);
        const int64_t first = min(max(begin, seen.first), end), last = max(first, min(end, seen.last));
        for (int64_t r = g.first; r < g.first + g.count; ++r) {
          fill(a.out + r * a.cols, begin, first);
          fill(a.out + r * a.cols, last, end);
        }
        if (first == last) return;
        Memory memory{workers + worker * need.used, 0};
        const Buffers b = take_buffers(plan, p, memory);
        take_queries(plan, p.queries, g, b);
        for (int64_t j = first; j < last; j += kTile) {
          const int64_t n = min(kTile, last - j);
          score_tile(plan, p, g, j, last, b);
          for (int64_t r = 0; r < g.count; ++r)
            for (int64_t v = 0; v < n; v += kLanes)
              store(a.out + (g.first + r) * a.cols + j + v, load(b.scores + r * kTile + v), n - v);
        }
      },
      p.queries.rows * p.queries.heads * p.queries.dim * a.cols >= indexer::kWorthThreads);
}

}  // namespace sk::indexer_logits::SK_ISA
