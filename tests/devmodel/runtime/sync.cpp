// Where threads wait for each other, and what they know of each other afterwards.
#include <algorithm>
#include <cstring>

#include "core.h"

namespace model {
namespace {

void merge(Clocks& into, const Clocks& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

// All that happened before this thread's next access.
void merge_knowledge(Clocks& into, const Thread& t) {
  merge(into, t.block->known);
  if (t.has_view) merge(into, t.view);
  const uint32_t first = t.id & ~31u;
  for (uint32_t l = 0; l < 32 && first + l < into.size(); ++l)
    into[first + l] = std::max(into[first + l], t.warp_clock[l]);
  into[t.id] = std::max(into[t.id], t.clock);
}

void join_clocks(Warp& w, uint32_t mask) {
  uint32_t latest[32] = {};
  const Thread* with_view = nullptr;
  Clocks view;
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    const Thread& t = *w.threads[l];
    for (int i = 0; i < 32; ++i) latest[i] = std::max(latest[i], t.warp_clock[i]);
    if (t.has_view) {
      with_view = &t;
      merge(view, t.view);
    }
  }
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) latest[l] = std::max(latest[l], w.threads[l]->clock);
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    Thread& t = *w.threads[l];
    memcpy(t.warp_clock, latest, sizeof latest);
    ++t.clock;
    if (with_view != nullptr) {
      t.view = view;
      t.has_view = true;
    }
  }
}

// Every thread of the block knows what any of them knew.
void join_block(Block& b) {
  for (Thread* t : b.members) {
    if (b.cluster->blocks.size() > 1 && t->has_view) merge(b.known, t->view);
    t->has_view = false;
    b.known[t->id] = t->clock++;
  }
}

uint32_t reduced(const Barrier& b, Reduce how) {
  if (how == Reduce::and_) return b.result == b.expected;
  return how == Reduce::or_ ? b.result != 0 : b.result;
}

}  // namespace

void release_into(Clocks& clocks) {
  if (!settings.checking) return;
  clocks.resize(std::max<size_t>(clocks.size(), current->block->cluster->ids), 0);
  merge_knowledge(clocks, *current);
  ++current->clock;
}

void acquire_for(Thread& t, const Clocks& clocks) {
  if (!settings.checking || clocks.empty()) return;
  if (!t.has_view) {
    t.view = t.block->known;
    t.has_view = true;
  }
  merge(t.view, clocks);
}
void acquire_from(const Clocks& clocks) { acquire_for(*current, clocks); }

void warp_operation(const char* name, uint32_t mask, void (*body)(Warp&, uint32_t), void* operands, int line,
                    bool aligned) {
  Thread* me = current;
  Warp& w = *me->warp;
  mask &= w.present;
  if (!(mask >> me->lane & 1)) {
    report("divergent warp operation", line, "lane %u calls %s for lanes %08x", me->lane, name, mask);
    return;
  }
  ++counters.warp_operations;
  me->operands = operands;
  if (w.arrived == 0) {
    w.mask = mask;
    w.operation = name;
    w.line = line;
  } else if (w.mask != mask || strcmp(w.operation, name) != 0 || (aligned && w.line != line)) {
    report("divergent warp operation", line,
           "lane %u calls %s for lanes %08x while lanes %08x wait in %s for %08x (line %d)", me->lane, name, mask,
           w.arrived, w.operation, w.mask, w.line);
    wait_for("its warp, which went another way", line);
    return;
  }
  w.arrived |= 1u << me->lane;
  if (w.arrived != w.mask) {
    wait_for(name, line);
    return;
  }
  body(w, mask);
  w.arrived = 0;
  for (int l = 0; l < 32; ++l)
    if ((mask >> l & 1) && w.threads[l] != me) ready(w.threads[l]);
  if (settings.policy != Policy::fifo) give_way();
}

void join_warp(uint32_t mask, int line) {
  if (is_mutated(line)) return;
  warp_operation("bar.warp.sync", mask, [](Warp& w, uint32_t m) { join_clocks(w, m); }, nullptr, line, false);
}

uint32_t barrier(uint32_t number, uint32_t count, bool waits, int line, Reduce reduce, bool predicate) {
  if (is_mutated(line)) return 0;
  Block& b = *current->block;
  if (number > 15) {
    report("barrier", line, "barrier %u, of 16", number);
    return 0;
  }
  Barrier& bar = b.barriers[number];
  const uint32_t whole = (b.threads + 31) / 32 * 32, expected = count == 0 ? b.threads : std::min(count, b.threads);
  if (count % 32 != 0 || count > whole)
    report("barrier", line, "barrier %u for %u threads, expected a multiple of 32 up to %u", number, count, whole);
  if (bar.arrived == 0) {
    bar.expected = expected;
    bar.line = line;
    bar.result = 0;
  } else {
    if (bar.expected != expected)
      report("barrier", line, "barrier %u for %u threads, but others (line %d) expect %u", number, expected, bar.line,
             bar.expected);
    if (count == 0 && bar.line != line)
      report("divergent barrier", line, "a barrier of the whole block, while others wait at another (line %d)",
             bar.line);
  }
  ++bar.arrived;
  bar.result += predicate;
  const bool whole_block = bar.expected == b.threads && waits && count == 0;
  if (!whole_block) release_into(bar.clocks);
  if (bar.arrived < bar.expected) {
    if (!waits) return 0;
    bar.waiting.push_back(current);
    wait_for("a barrier", line);
    return bar.last_result;
  }
  bar.last_result = reduced(bar, reduce);
  bar.arrived = 0;
  std::vector<Thread*> waiting;
  waiting.swap(bar.waiting);
  if (whole_block && bar.clocks.empty()) {
    join_block(b);
  } else {
    Clocks clocks;
    clocks.swap(bar.clocks);
    for (Thread* t : waiting) acquire_for(*t, clocks);
    if (waits) acquire_from(clocks);
  }
  for (Thread* t : waiting) ready(t);
  const uint32_t result = bar.last_result;
  if (waits) give_way();
  return result;
}

void cluster_arrive(int line) {
  Cluster& c = *current->block->cluster;
  Barrier& bar = c.barrier;
  release_into(bar.clocks);
  bar.line = line;
  ++current->cluster_arrivals;
  uint32_t threads = 0;
  for (const Block* b : c.blocks) threads += b->threads;
  if (++bar.arrived < threads) return;
  bar.arrived = 0;
  ++bar.result;  // phases that are over
  c.last_clocks.swap(bar.clocks);
  bar.clocks.clear();
  std::vector<Thread*> waiting;
  waiting.swap(bar.waiting);
  for (Thread* t : waiting) ready(t);
}

void cluster_wait(int line) {
  Cluster& c = *current->block->cluster;
  if (current->cluster_arrivals == 0) report("barrier", line, "barrier.cluster.wait without an arrive");
  while (c.barrier.result < current->cluster_arrivals) {
    c.barrier.waiting.push_back(current);
    wait_for("barrier.cluster", line);
  }
  acquire_from(c.last_clocks);
}

MBarrier& mbarrier_at(Block& b, uint32_t offset, int line) {
  for (MBarrier& m : b.mbarriers)
    if (m.offset == offset) return m;
  report("mbarrier", line, "shared+%#x was never initialised as an mbarrier", offset);
  MBarrier& made = b.mbarriers.emplace_back();
  made.offset = offset;
  made.count = made.pending = 1;
  return made;
}

void complete(Block&, MBarrier& m) {
  if (m.pending != 0 || m.bytes != 0) return;
  ++m.phase;
  m.pending = m.count;
  m.last_clocks.swap(m.clocks);
  m.clocks.clear();
  std::vector<Thread*> waiting;
  waiting.swap(m.waiting);
  for (Thread* t : waiting) ready(t);
}

}  // namespace model
