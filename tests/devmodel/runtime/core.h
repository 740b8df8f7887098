// The model's machine: threads that are fibers, in warps, blocks and clusters; one runs at a time.
//
// Threads give way only where they wait for each other, so a run is decided by the policy and the seed. What another
// order could have changed is found by the clocks: every access is compared with those that did not happen before it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace model {

struct Dim3 { uint32_t x = 1, y = 1, z = 1; };

using Clocks = std::vector<uint32_t>;  // of the threads of a cluster, by id

enum class Policy : int { fifo, lifo, random };

struct Settings {
  bool checking = true;
  Policy policy = Policy::fifo;
  uint64_t seed = 1;
  uint64_t rounding = 0;  // 0: approximate instructions return the nearest float; else they are off by hashes of this
  bool truncating = false;  // tensor cores round sums to nearest; or, as hardware is said to, towards zero
};
extern Settings settings;

struct Block;
struct Warp;

struct CopyGroup {  // of cp.async
  struct Copy {
    uint8_t* to;
    const uint8_t* from;
    uint32_t bytes, bytes_read;
    int line;
  };
  std::vector<Copy> copies;
};
struct Source {
  uint8_t* data;
  uint32_t bytes;
  int line;
};  // shared memory that a bulk store still reads

struct Thread {
  void* stack_pointer = nullptr;
  uint8_t *stack_low = nullptr, *stack_high = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Dim3 index;
  uint32_t number = 0, lane = 0;  // in its block
  uint32_t id = 0;  // in its cluster, a multiple of 32 apart from block to block
  bool done = false;
  const char* waits_for = nullptr;
  int line = 0;  // of the PTX

  // What happened before this thread's next access: block->known, and for its warp, and by barriers of some threads.
  uint32_t clock = 1;
  uint32_t warp_clock[32] = {};
  bool has_view = false;
  Clocks view;
  uint32_t proxy_fence = 0;  // clock at its last fence.proxy.async
  uint32_t cluster_arrivals = 0;

  void* operands = nullptr;  // what it brings to an operation of its warp
  std::vector<CopyGroup> copies;  // committed
  CopyGroup open_copies;
  std::vector<std::vector<Source>> stores;  // bulk stores, committed
  std::vector<Source> open_stores;
};

struct Warp {
  Thread* threads[32] = {};
  uint32_t present = 0;  // lanes that exist
  uint32_t arrived = 0, mask = 0;
  const char* operation = nullptr;
  int line = 0;
};

struct Barrier {
  uint32_t arrived = 0, expected = 0, result = 0, last_result = 0;
  int line = 0;
  std::vector<Thread*> waiting;
  Clocks clocks;
};

struct MBarrier {
  uint32_t offset = 0, count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;  // expected and not yet there
  std::vector<Thread*> waiting;
  Clocks clocks, last_clocks;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  Dim3 index;
  uint32_t rank = 0;  // in its cluster
  uint32_t first_id = 0, threads = 0, alive = 0;
  uint8_t* shared = nullptr;
  uint32_t dynamic_offset = 0;
  std::vector<Thread*> members;
  std::vector<Warp> warps;
  Clocks known;  // what happened before every thread of the block
  Barrier barriers[16];
  std::vector<MBarrier> mbarriers;
};

struct Delayed { std::function<void()> run; };  // a bulk copy on its way

struct Cluster {
  uint64_t number = 0;
  std::vector<Block*> blocks;
  uint32_t ids = 0;  // room for threads of all blocks
  Barrier barrier;  // barrier.cluster
  Clocks last_clocks;
  std::vector<Delayed> delayed;
};

struct Kernel {
  const char* name;
  void (*run)(const uint8_t* parameters);
  std::vector<std::pair<uint32_t, uint32_t>> parameters;  // offset, size
  uint32_t static_shared, dynamic_offset;  // bytes; where the dynamic part begins
  std::vector<std::pair<uint32_t, uint32_t>> shared;  // offset and size of every variable: red zones lie between
  Dim3 cluster;
  uint32_t max_threads;  // 0: not said
  const int (*lines)[3];  // PTX line, file, line; ends with zeros
  const char* const* files;
};

struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> parameters;
};

extern Thread* current;
extern Launch launching;  // the launch in progress

// One synchronisation that is left out, or weakened, to see whether anything notices (mutation.py).
struct Mutation {
  const Kernel* kernel = nullptr;
  int line = 0;
  bool weakened = false;
  uint64_t reached = 0;  // how often a thread came there
};
extern Mutation mutation;
inline bool is_mutated(int line) {
  if (line != mutation.line || launching.kernel != mutation.kernel) return false;
  ++mutation.reached;
  return true;
}

struct Counters { uint64_t launches = 0, blocks = 0, switches = 0, warp_operations = 0, macs = 0, accesses = 0; };
extern Counters counters;

// --- errors
[[gnu::format(printf, 3, 4)]] void report(const char* kind, int line, const char* format, ...);
uint64_t error_count();
std::string take_errors();  // as JSON, and forgets them
const Kernel* find_kernel(const char* name);
void define_kernel(const Kernel* kernel);
// arguments: one pointer per parameter, as cudaLaunchKernel takes them; cluster.x 0: as the kernel says. False:
// refused.
bool start_kernel(const Kernel& kernel, Dim3 grid, Dim3 block, Dim3 cluster, uint32_t dynamic_shared,
                  void** arguments);

// --- schedule.cpp
void run(const Launch& launch);
void wait_for(const char* what, int line);  // until somebody calls ready()
void ready(Thread* thread);
void give_way();
uint64_t random_number();

// --- sync.cpp
// Every lane of `mask` brings operands to the same operation; the last one runs it for all.
void warp_operation(const char* name, uint32_t mask, void (*body)(Warp&, uint32_t mask), void* operands, int line,
                    bool aligned = true);
void join_warp(uint32_t mask, int line);  // bar.warp.sync
enum class Reduce { none, popc, and_, or_ };
uint32_t barrier(uint32_t number, uint32_t count, bool waits, int line, Reduce reduce = Reduce::none,
                 bool predicate = false);
void cluster_arrive(int line);
void cluster_wait(int line);
MBarrier& mbarrier_at(Block& block, uint32_t offset, int line);
void complete(Block& block, MBarrier& barrier);  // ends the phase if all has arrived
void release_into(Clocks& clocks);
void acquire_from(const Clocks& clocks);
void acquire_for(Thread& thread, const Clocks& clocks);

// --- memory.cpp
enum class Access : uint8_t { read, write, atomic, relaxed_read, async_read, async_write };
// False: there is no such memory, and the access must not be made.
bool access(const void* p, uint32_t bytes, Access kind, int line);
void mark_inflight(const void* p, size_t bytes, bool on);  // an asynchronous write has yet to land
void mark_source(const void* p, size_t bytes, bool on);  // an asynchronous read is not over
void mark_initialised(const void* p, size_t bytes);
void mark_uninitialised(const void* p, size_t bytes);
bool happened_before(const Thread& thread, uint32_t id, uint32_t clock);

uint8_t* allocate(size_t bytes);
uint8_t* allocate_constant(const void* values, size_t bytes);  // as long as the program
void allow(uint8_t* p, size_t bytes, bool valid);  // holes in allocations: the gaps of strided tensors
size_t uninitialised_bytes(const uint8_t* p, size_t bytes);
void free_everything();
uint8_t* shared_window(uint32_t slot);
void open_window(uint8_t* window, uint32_t bytes);
constexpr uint32_t kWindowBytes = 256 << 10;
Block* owner_of_window(const uint8_t* p);
void set_owner(uint32_t slot, Block* block);

// 32-bit shared addresses: in a cluster the block's rank is in the upper bits.
uint8_t* shared_pointer(uint32_t address);
uint32_t shared_address(const void* p);

}  // namespace model
