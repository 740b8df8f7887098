#include "async.h"

#include <algorithm>

namespace model {
namespace {

MBarrier& usable(u32 address, Access kind, int line) {
  u8* p = shared_pointer(address);
  access(p, 8, kind, line);
  Block* owner = owner_of_window(p);
  return mbarrier_at(*owner, static_cast<u32>(p - owner->shared), line);
}

u64 state_of(const MBarrier& m) { return u64{m.phase} << 32 | m.pending; }

// Arrivals of somebody else: of a copy that has landed, say.
void arrive(MBarrier& m, u32 count, const Clocks& clocks, int line) {
  if (m.clocks.size() < clocks.size()) m.clocks.resize(clocks.size(), 0);
  for (size_t i = 0; i < clocks.size(); ++i) m.clocks[i] = std::max(m.clocks[i], clocks[i]);
  if (m.pending < count)
    report("mbarrier", line, "%u arrivals at shared+%#x, which awaits %u of %u", count, m.offset, m.pending, m.count);
  m.pending -= std::min(m.pending, count);
}

bool wait_until(u32 address, bool blocks, int line, const auto& is_over) {
  for (;;) {
    MBarrier& m = usable(address, Access::relaxed_read, line);
    if (is_over(m)) {
      acquire_from(m.last_clocks);
      return true;
    }
    if (!blocks) {
      after_polling();
      return false;
    }
    m.waiting.push_back(current);
    wait_for("an mbarrier", line);
  }
}

// Makes the destination unreadable until the copy lands.
void begin_landing(u8* to, u32 bytes, Access kind, int line) {
  for (u32 i = 0; i < bytes; i += 16) access(to + i, std::min(bytes - i, 16u), kind, line);
  mark_inflight(to, bytes, true);
  if (settings.checking) memset(to, 0xff, bytes);
}

void land(CopyGroup& group) {
  for (const auto& c : group.copies) {
    mark_inflight(c.to, c.bytes, false);
    access(c.to, c.bytes, Access::write, c.line);  // as if written now, by the thread that waited
    memcpy(c.to, c.from, c.bytes_read);
    memset(c.to + c.bytes_read, 0, c.bytes - c.bytes_read);
  }
}

}  // namespace

// --- cp.async

void copy_async(u32 to, const void* from, u32 bytes, u32 bytes_read, int line) {
  u8* p = shared_pointer(to);
  bytes_read = std::min(bytes, bytes_read);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0)
    report("misaligned", line, "cp.async of %u bytes from %p", bytes, from);
  if (bytes_read == bytes) {
    if (!access(from, bytes, Access::read, line)) return;
  } else {
    for (u32 i = 0; i < bytes_read; ++i)
      if (!access(static_cast<const u8*>(from) + i, 1, Access::read, line)) return;
  }
  if (!access(p, bytes, Access::write, line)) return;
  mark_inflight(p, bytes, true);
  if (settings.checking) memset(p, 0xff, bytes);
  current->open_copies.copies.push_back({p, static_cast<const u8*>(from), bytes, bytes_read, line});
}

void copy_commit(int line) {
  if (is_mutated(line)) return;
  current->copies.push_back(std::move(current->open_copies));
  current->open_copies = {};
}

void copy_wait(u32 groups_left, int line) {
  auto& groups = current->copies;
  if (is_mutated(line)) {
    if (!mutation.weakened || groups_left == ~0u) return;
    ++groups_left;
  }
  if (groups_left == ~0u) {
    copy_commit(0);
    groups_left = 0;
  }
  if (groups.size() <= groups_left) return;
  const auto end = groups.end() - groups_left;
  for (auto g = groups.begin(); g != end; ++g) land(*g);
  groups.erase(groups.begin(), end);
}

// The barrier gets an arrival when all copies of this thread so far have landed. Here they land at once.
void copy_arrive(u32 address, bool counted, int line) {
  std::vector<CopyGroup> groups;
  groups.swap(current->copies);
  for (CopyGroup& g : groups) land(g);
  land(current->open_copies);
  current->open_copies = {};
  MBarrier& m = usable(address, Access::atomic, line);
  if (counted) ++m.pending;
  Clocks mine;
  release_into(mine);
  arrive(m, 1, mine, line);
  complete(*current->block, m);
}

// --- mbarriers

void mbarrier_init(u32 address, u32 count, int line) {
  u8* p = shared_pointer(address);
  store(p, {u64{count}}, line);
  const auto offset = static_cast<u32>(p - current->block->shared);
  auto& all = current->block->mbarriers;
  std::erase_if(all, [&](const MBarrier& m) { return m.offset == offset; });
  MBarrier& m = all.emplace_back();
  m.offset = offset;
  m.count = m.pending = count;
}

void mbarrier_invalidate(u32 address, int line) {
  const MBarrier& m = usable(address, Access::write, line);
  if (!m.waiting.empty()) report("mbarrier", line, "invalidated while threads wait for it");
  std::erase_if(current->block->mbarriers, [&](const MBarrier& o) { return o.offset == m.offset; });
}

u64 mbarrier_arrive(u32 address, u32 count, int line) {
  MBarrier& m = usable(address, Access::atomic, line);
  const u64 state = state_of(m);
  Clocks mine;
  release_into(mine);
  arrive(m, count, mine, line);
  complete(*current->block, m);
  return state;
}

u64 mbarrier_expect(u32 address, u32 bytes, bool arrives, int line) {
  MBarrier& m = usable(address, Access::atomic, line);
  const u64 state = state_of(m);
  m.bytes += bytes;
  if (arrives) {
    Clocks mine;
    release_into(mine);
    arrive(m, 1, mine, line);
  }
  complete(*current->block, m);
  return state;
}

void mbarrier_complete(u32 address, u32 bytes, int line) {
  MBarrier& m = usable(address, Access::atomic, line);
  m.bytes -= bytes;
  complete(*current->block, m);
}

bool mbarrier_wait_parity(u32 address, u32 parity, bool blocks, int line) {
  return wait_until(address, blocks, line, [&](const MBarrier& m) { return (m.phase & 1) != (parity & 1); });
}
bool mbarrier_wait_state(u32 address, u64 state, bool blocks, int line) {
  return wait_until(address, blocks, line, [&](const MBarrier& m) { return m.phase != state >> 32; });
}

// --- bulk copies

void fence_proxy_async() { current->proxy_fence = ++current->clock; }

void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier_address, u32 multicast, int line) {
  if (multicast != 0) report("unknown instruction", line, "cp.async.bulk with multicast");
  u8* p = shared_pointer(to);
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || to % 16 != 0)
    report("misaligned", line, "cp.async.bulk of %u bytes from %p to shared+%#x", bytes, from, to);
  for (u32 i = 0; i + 16 <= bytes; i += 16)
    if (!access(static_cast<const u8*>(from) + i, 16, Access::read, line)) return;
  begin_landing(p, bytes, Access::async_write, line);
  Block* owner = owner_of_window(shared_pointer(barrier_address));
  const auto offset = static_cast<u32>(shared_pointer(barrier_address) - owner->shared);
  Clocks issuer;
  release_into(issuer);
  current->block->cluster->delayed.push_back({[=] {
    memcpy(p, from, bytes);
    mark_inflight(p, bytes, false);
    mark_initialised(p, bytes);
    MBarrier& m = mbarrier_at(*owner, offset, line);
    arrive(m, 0, issuer, line);
    m.bytes -= bytes;
    complete(*owner, m);
  }});
}

void bulk_store(void* to, u32 from, u32 bytes, int line) {
  u8* p = shared_pointer(from);
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 || from % 16 != 0)
    report("misaligned", line, "cp.async.bulk of %u bytes from shared+%#x to %p", bytes, from, to);
  for (u32 i = 0; i + 16 <= bytes; i += 16) {
    access(p + i, 16, Access::async_read, line);
    if (!access(static_cast<u8*>(to) + i, 16, Access::write, line)) return;
  }
  memcpy(to, p, bytes);
  mark_source(p, bytes, true);
  current->open_stores.push_back({p, bytes, line});
}

void bulk_commit() {
  current->stores.push_back(std::move(current->open_stores));
  current->open_stores.clear();
}

void bulk_wait(u32 groups_left, int) {
  auto& groups = current->stores;
  if (groups.size() <= groups_left) return;
  const auto end = groups.end() - groups_left;
  for (auto g = groups.begin(); g != end; ++g)
    for (const Source& s : *g) {
      mark_source(s.data, s.bytes, false);
      for (u32 i = 0; i < s.bytes; i += 16) access(s.data + i, 16, Access::read, s.line);  // it was read until now
    }
  groups.erase(groups.begin(), end);
}

}  // namespace model
