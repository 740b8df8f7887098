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

// The code of x * inverse in e4m3, to nearest even, saturating; csrc/simd/small_floats.h explains it. NaN keeps the
// sign of x, which the product has lost here.
__device__ inline uint32_t e4m3_bits(float unscaled, float inverse) {
  const float x = unscaled * inverse;
  constexpr int kShift = 20, kSmallest = 121, kBiasInCode = -(kSmallest << 3) & 0xff;
  const float a = fabsf(x);
  const float magnitude = x != x ? 480.0f : fminf(a, 448.0f);
  const uint32_t e = max(__float_as_uint(magnitude) & 0x7f800000u, static_cast<uint32_t>(kSmallest << 23));
  const float large = __uint_as_float(e + (kShift << 23) + kBiasInCode);
  const uint32_t code = __float_as_uint(magnitude + large) + (e >> kShift);
  return (__float_as_uint(unscaled) >> 24 & 0x80u) | (code & 0xffu);
}

// --- scales of blocks of codes
struct Scale { float scale, inverse; };

// csrc/simd/small_floats.h, scales_for: fp32, or e8m0 rounded up to a power of two.
__device__ inline Scale scale_for(float most, float floor, float largest_code, bool power_of_two) {
  const float amax = fmaxf(fminf(most, kLargestFloat), floor);
  const float scale = amax / largest_code;
  if (!power_of_two) return {scale, fminf(largest_code / amax, kLargestFloat)};
  const uint32_t up = (__float_as_uint(scale) + 0x7fffffu) & 0x7f800000u;
  return {__uint_as_float(up), __uint_as_float((254u << 23) - up)};
}
__device__ inline void store_scale(void* scales, Dtype dtype, int64_t i, float scale) {
  if (dtype == Dtype::f32)
    static_cast<float*>(scales)[i] = scale;
  else
    static_cast<uint8_t*>(scales)[i] = static_cast<uint8_t>(__float_as_uint(scale) >> 23);
}

// The larger of kLanes neighbouring lanes' numbers, in all of them. No NaN among them.
template <int kLanes>
__device__ inline float largest_of(float x) {
#pragma unroll
  for (int by = kLanes / 2; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, by));
  return x;
}

}  // namespace sk::cuda
