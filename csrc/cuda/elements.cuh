// Elements and vectors of them, rounded as the CPU kernels round (csrc/simd/scalar.h): the same bits.
#pragma once
#include "cuda/launch.cuh"

namespace sk::cuda {

constexpr float kLargestFloat = 3.402823466e38f;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline uint32_t bf16_bits(float x) {
  const uint32_t u = __float_as_uint(x);
  return x != x ? 0x7fc0u : (u + (u >> 16 & 1) + 0x7fff) >> 16;
}
// Value i of a vector that may be of either type, or absent.
__device__ inline float value_at(const void* p, Dtype dtype, int64_t i) {
  return dtype == Dtype::f32 ? static_cast<const float*>(p)[i] : widen(static_cast<const bf16*>(p)[i]);
}

// Results: every NaN is the same one.
template <class T>
__device__ inline T narrow(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x != x ? __uint_as_float(0x7fc00000u) : x;
  else
    return {static_cast<uint16_t>(bf16_bits(x))};
}

// kCount elements that lie together and are aligned together, as floats.
template <int kCount, class T>
__device__ inline void load(const T* p, float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    x[0] = widen(*p);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    static_assert(kCount % 4 == 0);
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  } else {
    static_assert(kCount == 8);
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}
template <int kCount, class T>
__device__ inline void store(T* p, const float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    *p = narrow<T>(x[0]);
  } else if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(p + i) =
          make_float4(narrow<T>(x[i]), narrow<T>(x[i + 1]), narrow<T>(x[i + 2]), narrow<T>(x[i + 3]));
  } else {
    static_assert(kCount == 8);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = bf16_bits(x[2 * i]) | bf16_bits(x[2 * i + 1]) << 16;
    *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// The larger of kLanes neighbouring lanes' numbers, in all of them. No NaN among them.
template <int kLanes>
__device__ inline float largest_of(float x) {
#pragma unroll
  for (int by = kLanes / 2; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, by));
  return x;
}

}  // namespace sk::cuda
