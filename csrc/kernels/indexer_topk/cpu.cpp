#include "core/arena.h"
#include "core/parallel.h"
#include "indexer/best.h"
#include "kernels/indexer_topk/op.h"
#include "simd/small_floats.h"

namespace sk::indexer_topk::SK_ISA {
using namespace sk::indexer::SK_ISA;
namespace {

#include "indexer/score.h"

using indexer::Best;
using indexer::Workspace;

// --- lists of the best, between two steps

struct List {
  int64_t* count;
  float* numbers;
  int32_t* indices;
};
List list_at(uint8_t* memory, int64_t i, int64_t k) {
  uint8_t* const start = memory + i * indexer::list_bytes(k);
  float* const numbers = reinterpret_cast<float*>(start + 64);
  return {reinterpret_cast<int64_t*>(start), numbers, reinterpret_cast<int32_t*>(numbers) + round_up(k, kLanes)};
}
void store_list(Best& b, const List& list) {
  keep_best(b);
  *list.count = b.count;
  for (int64_t i = 0; i < b.count; i += kLanes) {
    store(list.numbers + i, load(b.numbers + i));
    store(list.indices + i, load(b.indices + i));
  }
}

// --- some queries' keys

struct Worker {
  Buffers buffers;
  Best* best;  // of each query of a group
};

// Offers keys [first, last), or the best of each of their blocks.
void offer_keys(const Plan& plan, const Problem& p, const Group& g, int64_t first, int64_t last, const Worker& w) {
  for (int64_t j = first; j < last; j += kTile) {
    const int64_t n = min(kTile, last - j);
    score_tile(plan, p, g, j, last, w.buffers);
    for (int64_t i = 0; i < g.count; ++i) offer(w.best[i], w.buffers.scores + i * kTile, n, from(j));
  }
}
void offer_blocks(const Plan& plan, const Problem& p, const Group& g, int64_t first, int64_t last, int64_t block,
                  const Worker& w) {
  float most[indexer::kRows];  // of the block that a tile ends in
  for (float& m : most) m = -kInfinity;
  for (int64_t j = first; j < last; j += kTile) {
    const int64_t n = min(kTile, last - j);
    score_tile(plan, p, g, j, last, w.buffers);
    for (int64_t i = 0; i < g.count; ++i) {
      const float* const scores = w.buffers.scores + i * kTile;
      float complete[kTile];
      int64_t count = 0;
      for (int64_t at = j, end; at < j + n; at = end) {
        end = min(j + n, (at / block + 1) * block);
        for (int64_t key = at; key < end; ++key) most[i] = scores[key - j] > most[i] ? scores[key - j] : most[i];
        if (end % block != 0 && end != last) continue;
        complete[count++] = most[i];
        most[i] = -kInfinity;
      }
      offer(w.best[i], complete, count, from(j / block));
    }
  }
}

// --- steps

// body(item, worker), by so many workers at most.
template <class Body>
void share(int64_t items, int64_t workers, bool worth_threads, const Body& body) {
  int64_t next = 0;
  parallel_for(
      min(items, workers),
      [&](int64_t worker, int) {
        for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) body(i, worker);
      },
      worth_threads);
}

// The k best of what `offer_part(group, part, worker)` offers, for the queries of some groups; done(row, best).
struct Step {
  const Args& a;
  const Workspace& w;
  const Plan& plan;
  int64_t first_group, groups, k;
  uint8_t *workers, *lists;
};
template <class OfferPart, class Done>
void find_best(const Step& s, const OfferPart& offer_part, const Done& done) {
  const Problem& p = s.a.problem;
  const bool worth_threads =
      p.queries.rows * p.queries.heads * p.queries.dim * s.a.most_keys >= indexer::kWorthThreads;
  const auto worker_at = [&](int64_t i) {
    Memory memory{s.workers + i * s.w.worker_bytes, 0};
    Worker worker{take_buffers(s.plan, p, memory), nullptr};
    take(memory, worker.best, s.plan.queries);
    for (int64_t q = 0; q < s.plan.queries; ++q) worker.best[q] = take_best(memory, s.k, -kInfinity);
    return worker;
  };
  const int64_t first_row = group_at(s.plan, p, s.first_group).first;
  share(s.groups * s.w.parts, s.w.workers, worth_threads, [&](int64_t i, int64_t worker) {
    const Group g = group_at(s.plan, p, s.first_group + i / s.w.parts);
    const Worker own = worker_at(worker);
    offer_part(g, i % s.w.parts, own);
    for (int64_t q = 0; q < g.count; ++q) {
      if (s.w.parts == 1)
        done(g.first + q, own.best[q]);
      else
        store_list(own.best[q], list_at(s.lists, (g.first + q - first_row) * s.w.parts + i % s.w.parts, s.k));
    }
  });
  if (s.w.parts == 1) return;
  const Group last = group_at(s.plan, p, s.first_group + s.groups - 1);
  share(last.first + last.count - first_row, s.w.workers, worth_threads, [&](int64_t row, int64_t worker) {
    Best& best = worker_at(worker).best[0];
    for (int64_t part = 0; part < s.w.parts; ++part) {
      const List list = list_at(s.lists, row * s.w.parts + part, s.k);
      offer_best(best, {list.numbers, list.indices, s.k, s.k, *list.count, -kInfinity});
    }
    done(first_row + row, best);
  });
}

}  // namespace

void run(const Args& a) {
  const Problem& p = a.problem;
  const indexer::Choice& c = a.choice;
  const Workspace w =
      indexer::plan_workspace(p, c, a.most_keys, gemm::SK_ISA::multiplies_f32(p.queries.dtype), threads(), a.limit);
  Scratch scratch;
  uint8_t* const workers = scratch.take<uint8_t>(w.bytes);
  uint8_t* const chosen = workers + w.workers * w.worker_bytes;
  const Plan single = plan_for(p, 1);

  const auto write = [&](int64_t row, Best& best) {
    int32_t* const out = a.out + row * a.columns;
    write_best(best, out, a.columns);
    if (!a.physical) return;
    const int32_t* const pages = p.keys.table + row / p.rows_a_sequence * p.keys.table_stride;
    for (int64_t i = 0; i < best.count; ++i)
      out[i] = static_cast<int32_t>(pages[out[i] / p.keys.page_size] * p.keys.page_size + out[i] % p.keys.page_size);
  };
  // Keys of a group, in parts that end where blocks do.
  const auto part_of = [&](const Group& g, int64_t part, int64_t unit) {
    const Range seen = seen_by(p, g);
    const int64_t first = seen.first / unit, units = ceil_div(seen.last, unit) - first;
    return Range{static_cast<int32_t>(max(seen.first, (first + units * part / w.parts) * unit)),
                 static_cast<int32_t>(min(seen.last, (first + units * (part + 1) / w.parts) * unit))};
  };

  const int64_t groups = w.plan.groups(p);
  for (int64_t first = 0; first < groups; first += w.groups) {
    const int64_t count = min(w.groups, groups - first), first_row = group_at(w.plan, p, first).first;
    const Group last = group_at(w.plan, p, first + count - 1);
    const int64_t rows = last.first + last.count - first_row;
    uint8_t* const lists = chosen + (c.blocks > 0 ? rows * indexer::list_bytes(c.blocks) : 0);
    if (c.blocks == 0) {
      find_best(
          {a, w, w.plan, first, count, c.k, workers, lists},
          [&](const Group& g, int64_t part, const Worker& own) {
            const Range keys = part_of(g, part, kTile);
            if (keys.first >= keys.last) return;
            take_queries(w.plan, p.queries, g, own.buffers);
            offer_keys(w.plan, p, g, keys.first, keys.last, own);
          },
          write);
      continue;
    }
    find_best(
        {a, w, w.plan, first, count, c.blocks, workers, lists},
        [&](const Group& g, int64_t part, const Worker& own) {
          const Range keys = part_of(g, part, c.block);
          if (keys.first >= keys.last) return;
          take_queries(w.plan, p.queries, g, own.buffers);
          offer_blocks(w.plan, p, g, keys.first, keys.last, c.block, own);
        },
        [&](int64_t row, Best& best) { store_list(best, list_at(chosen, row - first_row, c.blocks)); });
    find_best(
        {a, w, single, first_row, rows, c.k, workers, lists},
        [&](const Group& g, int64_t part, const Worker& own) {
          const List blocks = list_at(chosen, g.first - first_row, c.blocks);
          const int64_t begin = *blocks.count * part / w.parts, end = *blocks.count * (part + 1) / w.parts;
          if (begin == end) return;
          take_queries(single, p.queries, g, own.buffers);
          const Range seen = p.ranges[g.first];
          for (int64_t i = begin; i < end; ++i) {
            const int64_t key = blocks.indices[i] * c.block;
            offer_keys(single, p, g, max(key, seen.first), min(key + c.block, seen.last), own);
          }
        },
        write);
  }
}

}  // namespace sk::indexer_topk::SK_ISA
