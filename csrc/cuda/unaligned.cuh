// Numbers at any address.
#pragma once
#include "cuda/launch.cuh"

namespace sk::cuda {

__device__ inline uint16_t load_half(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
__device__ inline float load_word(const uint8_t* p) {
  return __uint_as_float(p[0] | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24);
}

}  // namespace sk::cuda
