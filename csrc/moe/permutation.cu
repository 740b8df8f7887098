// A counting sort without atomics: chunks of slots are counted, the counts become the rows where each chunk's slots
// of each expert begin, and every chunk hands out its rows in order. A warp does a chunk, 32 slots at a time. One
// chunk alone needs one launch.
#include "cuda/launch.cuh"
#include "moe/device.h"

namespace sk::moe {
namespace {
using namespace sk::cuda;

constexpr int kThreads = 1024;  // of the block that adds up

struct Args {
  Slots slots;
  int32_t* counts;  // [chunks, experts]
  int64_t alignment;
  Permutation result;
};

struct Chunk { int64_t first, last; };  // slots
__device__ Chunk chunk_of(const Args& a, int64_t chunk) {
  const int64_t slots = a.slots.tokens * a.slots.top_k;
  return {chunk * kSlotsAChunk, min(slots, (chunk + 1) * kSlotsAChunk)};
}

// Calls step(slot, id, peers) for 32 slots of the chunk after the other: peers are the lanes with the same id, of
// which lanes without an expert have none.
template <class Step>
__device__ void for_slots(const Args& a, Chunk c, const Step& step) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t base = c.first; base < c.last; base += kWarp) {
    const int64_t slot = base + lane;
    const int32_t id = slot < c.last ? a.slots.ids[slot] : -1;
    const bool counts = static_cast<uint32_t>(id) < static_cast<uint64_t>(a.slots.experts);
    const uint32_t peers = __match_any_sync(0xffffffffu, counts ? id : -1);
    step(slot, id, counts ? peers : 0u);
    __syncwarp();  // the next 32 slots see what these have written
  }
}

// How many slots of a chunk each expert has. For one warp.
__device__ void count_chunk(const Args& a, int64_t chunk) {
  int32_t* counts = a.counts + chunk * a.slots.experts;
  const int lane = threadIdx.x % kWarp;
  for (int64_t e = lane; e < a.slots.experts; e += kWarp) counts[e] = 0;
  __syncwarp();
  for_slots(a, chunk_of(a, chunk), [&](int64_t, int32_t id, uint32_t peers) {
    if (peers != 0 && lane == __ffs(static_cast<int>(peers)) - 1) counts[id] += __popc(peers);
  });
}

// Inclusive sums over the threads of the block; `sums` holds a number per warp.
__device__ int32_t scan_block(int32_t x, int32_t* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto scan_warp = [&](int32_t v) {
    for (int by = 1; by < kWarp; by *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, v, by);
      if (lane >= by) v += other;
    }
    return v;
  };
  x = scan_warp(x);
  if (lane == kWarp - 1) sums[warp] = x;
  __syncthreads();
  if (warp == 0) sums[lane] = scan_warp(sums[lane]);
  __syncthreads();
  const int32_t before = warp == 0 ? 0 : sums[warp - 1];
  __syncthreads();  // sums is free again
  return before + x;
}

__device__ void pad(const Args& a, int64_t first, int64_t last, int step, int offset) {
  for (int64_t r = first + offset; r < min(last, a.result.rows); r += step)
    a.result.row_token[r] = a.result.row_slot[r] = -1;
}

// Counts become first rows; rows that nobody fills get -1. For one block.
__device__ void place_experts(const Args& a, int64_t chunks) {
  __shared__ int32_t sums[kWarp];
  int32_t base = 0;
  for (int64_t first = 0; first < a.slots.experts; first += kThreads) {
    const int64_t e = first + threadIdx.x;
    int32_t rows = 0;
    if (e < a.slots.experts)
      for (int64_t c = 0; c < chunks; ++c) rows += a.counts[c * a.slots.experts + e];
    const int32_t padded = static_cast<int32_t>(round_up(rows, a.alignment));
    const int32_t end = base + scan_block(padded, sums);
    if (e < a.slots.experts) {
      int32_t row = end - padded;
      a.result.expert_offsets[e] = row;
      for (int64_t c = 0; c < chunks; ++c) {
        int32_t* count = a.counts + c * a.slots.experts + e;
        const int32_t n = *count;
        *count = row;
        row += n;
      }
      pad(a, row, end, 1, 0);
    }
    if (threadIdx.x == kThreads - 1) sums[0] = end;
    __syncthreads();
    base = sums[0];
    __syncthreads();
  }
  if (threadIdx.x == 0) a.result.expert_offsets[a.slots.experts] = base;
  pad(a, base, a.result.rows, kThreads, threadIdx.x);
}

// Gives the slots of a chunk their rows. For one warp.
__device__ void place_chunk(const Args& a, int64_t chunk) {
  int32_t* next = a.counts + chunk * a.slots.experts;
  const int lane = threadIdx.x % kWarp;
  for_slots(a, chunk_of(a, chunk), [&](int64_t slot, int32_t id, uint32_t peers) {
    int32_t row = peers != 0 ? next[id] + __popc(peers & ((1u << lane) - 1)) : -1;
    __syncwarp();  // all have read
    if (peers != 0 && lane == __ffs(static_cast<int>(peers)) - 1) next[id] = row + __popc(peers);
    if (slot >= a.slots.tokens * a.slots.top_k) return;
    if (row >= a.result.rows) row = -1;  // num_rows was too small
    a.result.slot_row[slot] = row;
    if (row < 0) return;
    a.result.row_token[row] = static_cast<int32_t>(slot / a.slots.top_k);
    a.result.row_slot[row] = static_cast<int32_t>(slot);
  });
}

__global__ void __launch_bounds__(kWarp) count_chunks(const Args a) { count_chunk(a, blockIdx.x); }
__global__ void __launch_bounds__(kThreads) place(const Args a, int64_t chunks) { place_experts(a, chunks); }
__global__ void __launch_bounds__(kWarp) place_chunks(const Args a) { place_chunk(a, blockIdx.x); }

__global__ void __launch_bounds__(kThreads) permute_one_chunk(const Args a) {
  if (threadIdx.x < kWarp) count_chunk(a, 0);
  __syncthreads();
  place_experts(a, 1);
  __syncthreads();
  if (threadIdx.x < kWarp) place_chunk(a, 0);
}

}  // namespace

void permute_on_device(const Slots& slots, int32_t* counts, int64_t alignment, const Permutation& result,
                       void* stream) {
  const Args a = {slots, counts, alignment, result};
  const int64_t chunks = chunks_on_device(slots.tokens * slots.top_k);
  if (chunks == 1) return launch(permute_one_chunk, 1, kThreads, 0, stream, a);
  launch(count_chunks, chunks, kWarp, 0, stream, a);
  launch(place, 1, kThreads, 0, stream, a, chunks);
  launch(place_chunks, chunks, kWarp, 0, stream, a);
}

}  // namespace sk::moe
