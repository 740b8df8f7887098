// A warp's sums in the order of the CPU's vectors: the same bits.
#pragma once
#include "cuda/elements.cuh"

namespace sk::cuda {

// Lane l < 16 holds the sum of lane l of a vector: halves are added, 8, 4, 2, 1. All lanes get the result.
__device__ inline float sum_lanes(float x) {
#pragma unroll
  for (int by = 8; by > 0; by /= 2) x += __shfl_down_sync(0xffffffffu, x, by);
  return __shfl_sync(0xffffffffu, x, 0);
}

// The same in each half of a warp.
__device__ inline float sum_half(float x) {
#pragma unroll
  for (int by = 8; by > 0; by /= 2) x += __shfl_down_sync(0xffffffffu, x, by, 16);
  return __shfl_sync(0xffffffffu, x, 0, 16);
}

// Of acc = step(acc, i) as simd/loops.h, sum_over, has it: of every 64 values the sixteens go to four chains, and
// what is left at the end goes to the first of them. A lane does a sixteenth of two chains.
template <class Step>
__device__ inline float sum_over(int64_t size, const Step& step) {
  const int lane = threadIdx.x % kWarp;
  float low = 0.0f, high = 0.0f;  // chains lane / 16 and 2 + lane / 16
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) {
    low = step(low, i + lane);
    high = step(high, i + kWarp + lane);
  }
  for (; i < size; i += 16)
    if (lane < 16 && i + lane < size) low = step(low, i + lane);
  const float second = __shfl_down_sync(0xffffffffu, low, 16), fourth = __shfl_down_sync(0xffffffffu, high, 16);
  return sum_lanes((low + second) + (high + fourth));
}

// Of at(i), i < 32 rounds, in one chain of sixteens.
template <class At>
__device__ inline float sum_of_sixteens(int64_t rounds, const At& at) {
  float sum = 0.0f;
  for (int64_t r = 0; r < rounds; ++r) {
    const float mine = at(r * kWarp + threadIdx.x % kWarp), above = __shfl_down_sync(0xffffffffu, mine, 16);
    sum = sum + mine + above;
  }
  return sum_lanes(sum);
}

}  // namespace sk::cuda
