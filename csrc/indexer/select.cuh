// The k best of some numbers by a block: larger first, of equal ones the smaller index. Radix select: which key is
// the k-th is found eight bits at a time; then the chosen are written in the order in which they lie. Nothing depends
// on the order in which threads run: counts are integers.
#pragma once
#include "cuda/elements.cuh"

namespace sk::indexer::cuda {
using namespace sk::cuda;

constexpr int kSelectThreads = 512;

// Unsigned integers in the order of the numbers; 0 is what is never chosen: -inf and NaN.
__device__ inline uint32_t rank_of(float x) {
  if (!(x > -INFINITY)) return 0;
  const uint32_t u = __float_as_uint(x + 0.0f);  // -0 equals 0
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

struct WarpCount { int better, equal; };
struct SelectMemory {
  int counts[256];
  WarpCount warps[2][kSelectThreads / kWarp];
  uint32_t prefix;
  int left;
};

// The key of the k-th best, and how many of those equal to it are among the k. For all threads of the block.
struct Cut {
  uint32_t key;
  int ties;
};
template <class KeyAt>
__device__ inline Cut find_cut(SelectMemory& m, int64_t n, int64_t k, const KeyAt& key_at) {
  if (threadIdx.x == 0) {
    m.prefix = 0;
    m.left = static_cast<int>(k);
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) m.counts[threadIdx.x] = 0;
    __syncthreads();
    const uint32_t prefix = m.prefix;
    for (int64_t i = threadIdx.x; i < n; i += kSelectThreads) {
      const uint32_t key = key_at(i);
      if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&m.counts[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {  // lane l: the bins 255 - 8 l and below
      const int lane = threadIdx.x, left = m.left;
      int own = 0;
      for (int b = 0; b < 8; ++b) own += m.counts[255 - 8 * lane - b];
      int upto = own;
#pragma unroll
      for (int by = 1; by < kWarp; by *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, upto, by);
        if (lane >= by) upto += other;
      }
      const uint32_t past = __ballot_sync(0xffffffffu, upto >= left);
      __syncwarp();  // all have read
      // Fewer numbers than k: all of them are better than key 0.
      if (past == 0 && lane == 0) m.prefix = m.left = 0;
      if (past != 0 && lane == __ffs(static_cast<int>(past)) - 1) {
        int bin = 255 - 8 * lane, before = upto - own;
        while (before + m.counts[bin] < left) before += m.counts[bin--];
        m.prefix = prefix << 8 | static_cast<uint32_t>(bin);
        m.left = left - before;
      }
    }
    __syncthreads();
    if (m.left == 0) return {0, 0};
  }
  return {m.prefix, m.prefix == 0 ? 0 : m.left};
}

// take(place, i) for the chosen i, ascending; returns how many there are.
template <class KeyAt, class Take>
__device__ inline int64_t take_best(SelectMemory& m, int64_t n, int64_t k, const KeyAt& key_at, const Take& take) {
  const Cut cut = find_cut(m, n, k, key_at);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t below = (1u << lane) - 1;
  int64_t better = 0, equal = 0;  // so far
  for (int64_t base = 0, turn = 0; base < n; base += kSelectThreads, turn ^= 1) {
    const int64_t i = base + threadIdx.x;
    const uint32_t key = i < n ? key_at(i) : 0;
    const uint32_t betters = __ballot_sync(0xffffffffu, key > cut.key),
                   equals = __ballot_sync(0xffffffffu, key == cut.key && i < n);
    auto& counts = m.warps[turn];  // two, so that one barrier a turn will do
    if (lane == 0) counts[warp] = {__popc(betters), __popc(equals)};
    __syncthreads();
    int64_t better_before = better + __popc(betters & below), equal_before = equal + __popc(equals & below);
    for (int w = 0; w < kSelectThreads / kWarp; ++w) {
      const WarpCount c = counts[w];
      if (w < warp) {
        better_before += c.better;
        equal_before += c.equal;
      }
      better += c.better;
      equal += c.equal;
    }
    if (key > cut.key || (key == cut.key && i < n && equal_before < cut.ties))
      take(better_before + min(equal_before, int64_t{cut.ties}), i);
  }
  return better + min(equal, int64_t{cut.ties});
}

}  // namespace sk::indexer::cuda
