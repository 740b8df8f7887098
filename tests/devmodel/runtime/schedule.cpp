// Fibers, and which of them runs next.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

#include "core.h"

namespace model {

Settings settings;
Thread* current = nullptr;
Launch launching;
Counters counters;

// Saves the callee-saved registers on this stack, its top in *from, and goes on where `to` had stopped.
extern "C" void model_switch(void** from, void* to);
asm(R"(
.text
.globl model_switch
.type model_switch, @function
model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rax
  jmp *%rax
.size model_switch, .-model_switch
)");

namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096;

void* outside = nullptr;  // stack pointer of run()
std::vector<Cluster*> resident;
uint64_t random_state = 1;

// Threads that can go on. A ring: first in, first out or last in, first out, or anyone.
class Queue {
 public:
  void push(Thread* t) {
    if (size_ == ring_.size()) grow();
    ring_[(first_ + size_++) & (ring_.size() - 1)] = t;
  }
  Thread* pop() {
    if (size_ == 0) return nullptr;
    const size_t mask = ring_.size() - 1;
    size_t at = first_;
    if (settings.policy == Policy::lifo) at = (first_ + size_ - 1) & mask;
    if (settings.policy == Policy::random) {
      at = (first_ + random_number() % size_) & mask;
      std::swap(ring_[at], ring_[first_]);
      at = first_;
    }
    Thread* t = ring_[at];
    if (settings.policy != Policy::lifo) first_ = (first_ + 1) & mask;
    --size_;
    return t;
  }
  void clear() { first_ = size_ = 0; }

 private:
  void grow() {
    std::vector<Thread*> larger(std::max<size_t>(64, 2 * ring_.size()));
    for (size_t i = 0; i < size_; ++i) larger[i] = ring_[(first_ + i) & (ring_.size() - 1)];
    ring_.swap(larger);
    first_ = 0;
  }
  std::vector<Thread*> ring_;
  size_t first_ = 0, size_ = 0;
} queue;

// Lets one bulk copy land: any of them where the order is random. False: none is on its way.
bool land_one() {
  for (Cluster* c : resident)
    if (!c->delayed.empty()) {
      const size_t i = settings.policy == Policy::random ? random_number() % c->delayed.size()
                       : settings.policy == Policy::lifo ? c->delayed.size() - 1
                                                         : 0;
      Delayed d = std::move(c->delayed[i]);
      c->delayed.erase(c->delayed.begin() + static_cast<int64_t>(i));
      d.run();
      return true;
    }
  return false;
}

// To the next thread, or back to run() where none can go on.
void switch_away() {
  Thread* me = current;
  if (settings.policy == Policy::random && random_number() % 8 == 0) land_one();
  Thread* next = queue.pop();
  while (next == nullptr && land_one()) next = queue.pop();
  if (next == me) return;
  void* nowhere;
  void** from = me == nullptr ? &outside : me->done ? &nowhere : &me->stack_pointer;
  current = next;
  ++counters.switches;
  model_switch(from, next != nullptr ? next->stack_pointer : outside);
}

void finish_thread() {
  Thread& t = *current;
  for (const auto& group : t.copies)
    for (const auto& c : group.copies) mark_inflight(c.to, c.bytes, false);
  if (!t.open_copies.copies.empty())
    report("cp.async", t.open_copies.copies[0].line, "a thread ends with copies that it never committed");
  if (t.warp->arrived && (t.warp->mask >> t.lane & 1))
    report("divergent warp operation", t.warp->line, "lane %u ends while others wait for it in %s", t.lane,
           t.warp->operation);
  --t.block->alive;
  t.done = true;
}

void thread_main() {
  launching.kernel->run(launching.parameters.data());
  finish_thread();
  switch_away();
  __builtin_unreachable();
}

// Stacks are kept. Their tops are spread over a page: the same cache set for all would make every switch a miss.
uint8_t* stack_of(size_t i) {
  static std::vector<uint8_t*> stacks;
  while (stacks.size() <= i) {
    void* p =
        mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, kGuard, PROT_NONE) != 0) {
      perror("device model: a fiber's stack");
      abort();
    }
    stacks.push_back(static_cast<uint8_t*>(p) + kGuard);
  }
  return stacks[i];
}

void prepare(Thread& t, size_t fiber) {
  t.stack_low = stack_of(fiber);
  t.stack_high = t.stack_low + kStack;
  uint8_t* top = t.stack_high - 64 - fiber % 61 * 64;
  auto* sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
  *--sp = nullptr;  // where a return address would be: keeps the stack aligned as after a call
  *--sp = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  t.stack_pointer = sp;
}

Dim3 unfold(uint64_t i, Dim3 size) {
  return {static_cast<uint32_t>(i % size.x), static_cast<uint32_t>(i / size.x % size.y),
          static_cast<uint32_t>(i / size.x / size.y)};
}

struct Everything {  // of a cluster
  Cluster cluster;
  std::vector<Block> blocks;
  std::vector<Thread> threads;
};

void build(Everything& e, const Launch& l, uint64_t number, uint32_t first_slot, size_t first_fiber) {
  const uint32_t count = l.cluster.x * l.cluster.y * l.cluster.z, threads = l.block.x * l.block.y * l.block.z;
  const uint32_t stride = (threads + 31) / 32 * 32;
  const Dim3 clusters = {l.grid.x / l.cluster.x, l.grid.y / l.cluster.y, l.grid.z / l.cluster.z};
  const Dim3 at = unfold(number, clusters);
  e.cluster.number = number;
  e.cluster.ids = count * stride;
  e.blocks.resize(count);
  e.threads.resize(size_t{count} * threads);
  const uint32_t dynamic_offset = l.kernel->dynamic_offset;
  for (uint32_t r = 0; r < count; ++r) {
    Block& b = e.blocks[r];
    const Dim3 in = unfold(r, l.cluster);
    b.cluster = &e.cluster;
    b.rank = r;
    b.index = {at.x * l.cluster.x + in.x, at.y * l.cluster.y + in.y, at.z * l.cluster.z + in.z};
    b.first_id = r * stride;
    b.threads = b.alive = threads;
    b.shared = shared_window(first_slot + r);
    b.dynamic_offset = dynamic_offset;
    open_window(b.shared, dynamic_offset + l.dynamic_shared);
    allow(b.shared, dynamic_offset, false);
    for (const auto& [offset, size] : l.kernel->shared) allow(b.shared + offset, size, true);
    set_owner(first_slot + r, &b);
    b.known.assign(e.cluster.ids, 0);
    b.warps.resize(stride / 32);
    for (uint32_t i = 0; i < threads; ++i) {
      Thread& t = e.threads[size_t{r} * threads + i];
      t.block = &b;
      t.number = i;
      t.lane = i % 32;
      t.id = b.first_id + i;
      t.index = unfold(i, l.block);
      t.warp = &b.warps[i / 32];
      t.warp->threads[t.lane] = &t;
      t.warp->present |= 1u << t.lane;
      b.members.push_back(&t);
      prepare(t, first_fiber + size_t{r} * threads + i);
      queue.push(&t);
    }
    e.cluster.blocks.push_back(&b);
    ++counters.blocks;
  }
}

void report_stuck(const Block& b) {
  std::map<std::pair<std::string, int>, int> where;
  for (const Thread* t : b.members)
    if (!t->done) ++where[{t->waits_for != nullptr ? t->waits_for : "nothing", t->line}];
  for (const auto& [what, count] : where)
    report("deadlock", what.second, "%d of %u threads of block (%u, %u, %u) wait for ever for %s", count, b.threads,
           b.index.x, b.index.y, b.index.z, what.first.c_str());
}

}  // namespace

uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state >> 11;
}

void ready(Thread* t) {
  t->waits_for = nullptr;
  queue.push(t);
}
void wait_for(const char* what, int line) {
  current->waits_for = what;
  current->line = line;
  switch_away();
}
void give_way() {
  queue.push(current);
  switch_away();
}

void run(const Launch& launch) {
  launching = launch;
  ++counters.launches;
  random_state = (settings.seed + 1) * 0x9e3779b97f4a7c15ull + counters.launches;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t clusters = blocks / (launch.cluster.x * launch.cluster.y * launch.cluster.z);
  std::vector<uint64_t> order(clusters);
  for (uint64_t i = 0; i < clusters; ++i) order[i] = settings.policy == Policy::lifo ? clusters - 1 - i : i;
  if (settings.policy == Policy::random)
    for (uint64_t i = clusters; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  for (const uint64_t number : order) {
    const auto e = std::make_unique<Everything>();
    queue.clear();
    resident = {&e->cluster};
    build(*e, launch, number, 0, 0);
    current = nullptr;
    switch_away();
    for (const Block& b : e->blocks)
      if (b.alive != 0) report_stuck(b);
    for (uint32_t r = 0; r < e->blocks.size(); ++r) set_owner(r, nullptr);
    resident.clear();
  }
}

}  // namespace model
