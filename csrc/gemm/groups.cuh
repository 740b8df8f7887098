// Which rows a block works on.
#pragma once
#include "cuda/launch.cuh"
#include "gemm/device.h"

namespace sk::gemm::cuda {
using namespace sk::cuda;

struct RowTile {
  int64_t expert, first;  // row
  int rows;               // that the tile has; fewer than its height at the end of a group
  bool zero;              // past all groups
};

// Tiles that there may be at most; how many there are only the device knows.
inline int64_t most_tiles(const DeviceArgs& p, int64_t height) {
  if (p.groups.offsets != nullptr) return ceil_div(p.rows, height) + p.groups.experts;
  if (p.groups.counts != nullptr) return p.groups.experts * ceil_div(p.groups.most, height);
  return ceil_div(p.rows, height);
}

// Tile number `tile`, found by the whole warp.
template <int kHeight>
__device__ inline RowTile find_tile(const DeviceArgs& p, int64_t tile) {
  if (p.groups.counts != nullptr) {
    const int64_t each = ceil_div(p.groups.most, kHeight), expert = tile / each, start = tile % each * kHeight;
    const int64_t count = min(max(p.groups.counts[expert], 0), p.groups.most);
    return {expert, expert * p.groups.most + start, static_cast<int>(min(max(count - start, 0), kHeight)), false};
  }
  if (p.groups.offsets == nullptr) {
    const int64_t first = tile * kHeight;
    return {0, first, static_cast<int>(min(p.rows - first, kHeight)), false};
  }
  const int lane = threadIdx.x % kWarp;
  const auto offset = [&](int64_t e) { return min(max(p.groups.offsets[e], 0), p.rows); };
  int64_t before = 0;  // tiles of the experts up to here
  for (int64_t base = 0; base < p.groups.experts; base += kWarp) {
    const int64_t e = base + lane;
    const int64_t first = e < p.groups.experts ? offset(e) : 0;
    const int64_t rows = e < p.groups.experts ? max(offset(e + 1) - first, 0) : 0;
    int tiles = static_cast<int>(ceil_div(rows, kHeight));
    const int own = tiles;
#pragma unroll
    for (int by = 1; by < kWarp; by *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, tiles, by);
      if (lane >= by) tiles += other;
    }
    const uint32_t past = __ballot_sync(0xffffffffu, before + tiles > tile);
    if (past != 0) {
      const int at = __ffs(static_cast<int>(past)) - 1;
      const int64_t start = (tile - before - (tiles - own)) * kHeight;
      const RowTile mine = {e, first + start, static_cast<int>(min(rows - start, kHeight)), false};
      return {__shfl_sync(0xffffffffu, mine.expert, at), __shfl_sync(0xffffffffu, mine.first, at),
              __shfl_sync(0xffffffffu, mine.rows, at), false};
    }
    before += __shfl_sync(0xffffffffu, tiles, kWarp - 1);
  }
  const int64_t first = offset(p.groups.experts) + (tile - before) * kHeight;
  return {0, first, static_cast<int>(min(max(p.rows - first, 0), kHeight)), true};
}

}  // namespace sk::gemm::cuda
