// Device memory and its shadow.
//
// Every byte has flags: whether it exists, holds a value, awaits an asynchronous write, is still read by one. Every
// four bytes have a cell that says who wrote them last and who has read them since; where bytes of a word are
// accessed apart, the cell splits into four.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "core.h"

namespace model {
namespace {

// launch 10 | cluster 18 | thread in cluster 13 | atomic 1 | clock 21; bit 63 is free.
using Epoch = uint64_t;
constexpr int kClockBits = 21, kIdBits = 13, kClusterBits = 18;
constexpr Epoch kAtomic = 1ull << kClockBits, kSplit = 1ull << 63;
constexpr int kIdShift = kClockBits + 1, kClusterShift = kIdShift + kIdBits,
              kLaunchShift = kClusterShift + kClusterBits;
uint32_t clock_of(Epoch e) { return e & ((1u << kClockBits) - 1); }
uint32_t id_of(Epoch e) { return e >> kIdShift & ((1u << kIdBits) - 1); }
bool is_atomic(Epoch e) { return e & kAtomic; }
Epoch thread_of(Epoch e) { return e >> kIdShift; }

struct Cell { Epoch write, read[2]; };  // where bit 63 of write is set, read[0] points to four cells
enum Flag : uint8_t { kValid = 1, kHolds = 2, kInflight = 4, kSource = 8, kGeneric = 16 };

constexpr size_t kWindows = 64, kSharedBytes = kWindows * kWindowBytes, kConstantBytes = 64 << 20;
constexpr size_t kHeapBytes = 2ull << 30, kHeap = kSharedBytes + kConstantBytes, kBytes = kHeap + kHeapBytes;
constexpr size_t kRedZone = 256;

uint8_t* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("device model: mmap");
    abort();
  }
  return static_cast<uint8_t*>(p);
}
uint8_t* const memory = reserve(kBytes);
uint8_t* const flags = reserve(kBytes);
Cell* const cells = reinterpret_cast<Cell*>(reserve(kBytes / 4 * sizeof(Cell)));
size_t heap_used = 0, constants_used = 0;
Block* owners[kWindows] = {};
uint32_t opened[kWindows] = {};  // bytes
std::map<size_t, Cell*> split_cells;  // to free them

size_t offset_of(const void* p) { return static_cast<size_t>(static_cast<const uint8_t*>(p) - memory); }

Epoch epoch_of(const Thread& t, bool atomic) {
  const Epoch launch = counters.launches & 0x3ff, cluster = t.block->cluster->number & ((1u << kClusterBits) - 1);
  if (t.clock >> kClockBits) report("model-limit", 0, "a thread synchronises more than %d times", 1 << kClockBits);
  return launch << kLaunchShift | cluster << kClusterShift | static_cast<Epoch>(t.id) << kIdShift |
         (atomic ? kAtomic : 0) | (t.clock & (kAtomic - 1));
}

bool before(const Thread& t, Epoch me, Epoch e) {
  if (e == 0 || (e ^ me) >> kLaunchShift) return true;
  if ((e ^ me) >> kClusterShift) return false;
  return happened_before(t, id_of(e), clock_of(e));
}

// What is wrong with this access to this cell; else notes it there.
const char* touch(Cell& c, const Thread& t, Epoch me, Access kind, Epoch* other) {
  const bool writes = kind == Access::write || kind == Access::atomic || kind == Access::async_write;
  const bool both_atomic = is_atomic(me) && is_atomic(c.write);
  if (c.write != me && !both_atomic && !before(t, me, c.write)) {
    *other = c.write;
    return writes ? "race: write after write" : "race: read after write";
  }
  if (writes) {
    for (const Epoch r : c.read)
      if (r != 0 && !(is_atomic(me) && is_atomic(r)) && !before(t, me, r)) {
        *other = r;
        return "race: write after read";
      }
    c = {me, {0, 0}};
  } else if (c.read[0] != me) {
    for (Epoch& r : c.read)
      if (r == 0 || thread_of(r) == thread_of(me) || before(t, me, r)) {
        r = me;
        break;
      }
  }
  return nullptr;
}

Cell* split(size_t word) {
  Cell& c = cells[word];
  if (c.write & kSplit) return reinterpret_cast<Cell*>(c.read[0]);
  auto*& four = split_cells[word];
  if (four == nullptr) four = new Cell[4];
  for (int i = 0; i < 4; ++i) four[i] = c;
  c = {kSplit, {reinterpret_cast<Epoch>(four), 0}};
  return four;
}

std::string name_of(size_t offset) {
  char text[64];
  if (offset < kSharedBytes)
    snprintf(text, sizeof text, "shared+%#zx", offset % kWindowBytes);
  else
    snprintf(text, sizeof text, "global+%#zx", offset - kHeap);
  return text;
}

const char* verb(Access kind) {
  switch (kind) {
    case Access::read:
    case Access::relaxed_read:
      return "read";
    case Access::write:
      return "write";
    case Access::atomic:
      return "atomic";
    case Access::async_read:
      return "asynchronous read";
    default:
      return "asynchronous write";
  }
}

std::string thread_name(Epoch me, Epoch other) {
  if ((me ^ other) >> kClusterShift) return "another block";
  std::string name;
  for (const Block* b : current->block->cluster->blocks)
    if (id_of(other) >= b->first_id)
      name = "thread " + std::to_string(id_of(other) - b->first_id) +
             (b == current->block ? "" : " of block " + std::to_string(b->rank) + " of the cluster");
  return name;
}

// Why bytes with such flags cannot be accessed that way.
const char* refusal(uint8_t f, bool writes, bool reads) {
  if (!(f & kValid)) return "out of bounds";
  if (f & kInflight) return "asynchronous write in flight";
  if (writes && (f & kSource)) return "write to what an asynchronous store still reads";
  if (reads && !(f & kHolds)) return "uninitialised";
  return nullptr;
}

bool check_flags(size_t o, uint32_t n, Access kind, bool writes, bool reads, int line) {
  const uint8_t wanted = kValid | (reads ? kHolds : 0), unwanted = kInflight | (writes ? kSource : 0);
  const uint8_t* f = flags + o;
  bool good = true;
  if (n % 8 == 0) {
    const uint64_t ones = 0x0101010101010101ull;
    for (uint32_t i = 0; i < n; i += 8) {
      uint64_t word;
      memcpy(&word, f + i, 8);
      good &= (word & ones * (wanted | unwanted)) == ones * wanted;
    }
  } else {
    for (uint32_t i = 0; i < n; ++i) good &= (f[i] & (wanted | unwanted)) == wanted;
  }
  if (good) return true;
  for (uint32_t i = 0; i < n; ++i)
    if (const char* why = refusal(f[i], writes, reads)) {
      report(why, line, "%u-byte %s of %s", n, verb(kind), name_of(o + i).c_str());
      return strcmp(why, "out of bounds") != 0;
    }
  return true;
}

// Shared memory of another block is reachable only within a cluster, and only while that block lives.
bool window_is_ours(size_t o) {
  const Block* owner = owners[o / kWindowBytes];
  return owner != nullptr && owner->cluster == current->block->cluster;
}

bool is_private(const void* p, uint32_t n) {
  const auto* b = static_cast<const uint8_t*>(p);
  if (b >= current->stack_low && b + n <= current->stack_high) return true;
  const auto& parameters = launching.parameters;
  return b >= parameters.data() && b + n <= parameters.data() + parameters.size();
}

void set_flag(const void* p, size_t n, uint8_t flag, bool on) {
  const size_t o = offset_of(p);
  if (o >= kBytes || o + n > kBytes) return;
  for (size_t i = 0; i < n; ++i) flags[o + i] = on ? flags[o + i] | flag : flags[o + i] & ~flag;
}

}  // namespace

bool happened_before(const Thread& t, uint32_t id, uint32_t clock) {
  if (id == t.id || clock <= t.block->known[id]) return true;
  if (id / 32 == t.id / 32 && clock <= t.warp_clock[id % 32]) return true;
  return t.has_view && clock <= t.view[id];
}

bool access(const void* p, uint32_t n, Access kind, int line) {
  const size_t o = offset_of(p);
  if (o >= kBytes) {
    if (is_private(p, n)) return true;
    report("out of bounds", line, "%u-byte %s of %p, which is not device memory", n, verb(kind), p);
    return false;
  }
  if (!settings.checking) return true;
  ++counters.accesses;
  if ((n & (n - 1)) == 0 && (o & (n - 1)) != 0) {
    report("misaligned", line, "%u-byte %s of %s", n, verb(kind), name_of(o).c_str());
    return true;
  }
  const bool writes = kind == Access::write || kind == Access::atomic || kind == Access::async_write;
  const bool reads = kind != Access::write && kind != Access::async_write;
  if (o < kSharedBytes && !window_is_ours(o)) {
    report("out of bounds", line, "%u-byte %s of %s of another block", n, verb(kind), name_of(o).c_str());
    return false;
  }
  if (!check_flags(o, n, kind, writes, reads, line)) return false;

  const Thread& t = *current;
  const Epoch me = epoch_of(t, kind == Access::atomic || kind == Access::relaxed_read);
  const char* why = nullptr;
  Epoch other = 0;
  size_t where = o;
  const auto check = [&](Cell& c, size_t at) {
    if (kind == Access::async_read && (flags[at] & kGeneric) && !((c.write ^ me) >> kClusterShift)) {
      // Written the ordinary way: its writer must have fenced before the asynchronous proxy may read it.
      for (const Block* b : t.block->cluster->blocks)
        for (const Thread* w : b->members)
          if (w->id == id_of(c.write) && w->proxy_fence <= clock_of(c.write)) why = "missing proxy fence";
    }
    if (const char* race = touch(c, t, me, kind, &other); race != nullptr && why == nullptr) why = race;
    if (why != nullptr) where = at;
  };
  if ((o | n) % 4 == 0) {
    for (uint32_t i = 0; i < n && why == nullptr; i += 4) {
      Cell& c = cells[(o + i) / 4];
      if (c.write & kSplit) {
        Cell* four = reinterpret_cast<Cell*>(c.read[0]);
        for (int b = 0; b < 4 && why == nullptr; ++b) check(four[b], o + i + b);
        if (writes && why == nullptr) c = four[0];
      } else {
        check(c, o + i);
      }
    }
  } else {
    for (uint32_t i = 0; i < n && why == nullptr; ++i) check(split((o + i) / 4)[(o + i) % 4], o + i);
  }
  if (why != nullptr) {
    const std::string against = other != 0 ? ", against " + thread_name(me, other) : "";
    report(why, line, "%u-byte %s of %s%s", n, verb(kind), name_of(where).c_str(), against.c_str());
  }
  if (writes) {
    const uint8_t generic = kind == Access::async_write ? 0 : kGeneric;
    for (uint32_t i = 0; i < n; ++i)
      flags[o + i] = static_cast<uint8_t>((flags[o + i] & ~kGeneric) | kHolds | generic);
  }
  return true;
}

void mark_inflight(const void* p, size_t n, bool on) { set_flag(p, n, kInflight, on); }
void mark_source(const void* p, size_t n, bool on) { set_flag(p, n, kSource, on); }
void mark_initialised(const void* p, size_t n) { set_flag(p, n, kHolds, true); }
void mark_uninitialised(const void* p, size_t n) { set_flag(p, n, kHolds, false); }
void allow(uint8_t* p, size_t n, bool valid) { set_flag(p, n, kValid, valid); }

size_t uninitialised_bytes(const uint8_t* p, size_t n) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) count += (flags[offset_of(p) + i] & (kValid | kHolds)) == kValid;
  return count;
}

// Red zones lie around every allocation; fresh memory holds nothing.
uint8_t* allocate(size_t n) {
  const size_t o = kHeap + heap_used + kRedZone;
  if (n > kHeapBytes || o + n + kRedZone > kBytes) return nullptr;
  heap_used = (o - kHeap + n + kRedZone - 1) / kRedZone * kRedZone;
  memset(memory + o, 0xff, n);
  memset(flags + o, kValid, n);
  return memory + o;
}

uint8_t* allocate_constant(const void* values, size_t n) {
  const size_t o = kSharedBytes + constants_used + kRedZone;
  constants_used = (o - kSharedBytes + n + kRedZone - 1) / kRedZone * kRedZone;
  if (constants_used > kConstantBytes) abort();
  memcpy(memory + o, values, n);
  memset(flags + o, kValid | kHolds, n);
  return memory + o;
}

void free_everything() {
  madvise(flags + kHeap, kHeapBytes, MADV_DONTNEED);
  madvise(memory + kHeap, kHeapBytes, MADV_DONTNEED);
  madvise(reinterpret_cast<uint8_t*>(cells), kBytes / 4 * sizeof(Cell), MADV_DONTNEED);
  for (const auto& [word, four] : split_cells) delete[] four;
  split_cells.clear();
  heap_used = 0;
}

uint8_t* shared_window(uint32_t slot) { return memory + slot * size_t{kWindowBytes}; }
void open_window(uint8_t* window, uint32_t bytes) {
  const size_t o = offset_of(window);
  uint32_t& before = opened[o / kWindowBytes];
  memset(window, 0xff, bytes);
  memset(flags + o, 0, before);
  memset(flags + o, kValid, bytes);
  memset(static_cast<void*>(cells + o / 4), 0, (bytes + 3) / 4 * sizeof(Cell));
  before = bytes;
}
Block* owner_of_window(const uint8_t* p) {
  const size_t o = offset_of(p);
  return o < kSharedBytes ? owners[o / kWindowBytes] : nullptr;
}
void set_owner(uint32_t slot, Block* block) { owners[slot] = block; }

constexpr uint32_t kRankShift = 24;
uint8_t* shared_pointer(uint32_t address) {
  const uint32_t rank = address >> kRankShift;
  const Block* b = current->block;
  // Addresses of the block itself carry no rank: rank r + 1 stands for block r of the cluster.
  if (rank != 0 && rank <= b->cluster->blocks.size()) b = b->cluster->blocks[rank - 1];
  return b->shared + (address & ((1u << kRankShift) - 1)) % kWindowBytes;
}
uint32_t shared_address(const void* p) {
  const size_t o = offset_of(p);
  if (o >= kSharedBytes) return ~0u;
  const Block* owner = owners[o / kWindowBytes];
  const auto within = static_cast<uint32_t>(o % kWindowBytes);
  return owner == nullptr || owner == current->block ? within : (owner->rank + 1) << kRankShift | within;
}

}  // namespace model
