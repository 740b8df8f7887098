// FP8 (e4m3), FP4 (e2m1) and their scales, as csrc/simd/small_floats.h has them: the same bits.
#pragma once
#include "cuda/elements.cuh"

namespace sk::cuda {

struct E4m3 {
  static constexpr int kBits = 8;
  static constexpr float kLargest = 448.0f;
};
struct E2m1 {
  static constexpr int kBits = 4;
  static constexpr float kLargest = 6.0f;
};

// The code of x * inverse, to nearest even, saturating; small_floats.h explains it. NaN keeps the sign of x, which
// the product has lost here. Where the format has no NaN it becomes the largest number.
__device__ inline uint32_t code_of(E4m3, float unscaled, float inverse) {
  constexpr int kShift = 20, kSmallest = 121, kBiasInCode = -(kSmallest << 3) & 0xff;
  const float x = unscaled * inverse;
  const float magnitude = x != x ? 480.0f : fminf(fabsf(x), E4m3::kLargest);
  const uint32_t e = max(__float_as_uint(magnitude) & 0x7f800000u, static_cast<uint32_t>(kSmallest << 23));
  const float large = __uint_as_float(e + (kShift << 23) + kBiasInCode);
  const uint32_t code = __float_as_uint(magnitude + large) + (e >> kShift);
  return (__float_as_uint(unscaled) >> 24 & 0x80u) | (code & 0xffu);
}
__device__ inline uint32_t code_of(E2m1, float unscaled, float inverse) {
  constexpr int kShift = 22, kSmallest = 127, kBiasInCode = -(kSmallest << 1) & 0xff;
  const float x = unscaled * inverse;
  const float magnitude = fminf(fabsf(x), E2m1::kLargest);
  const uint32_t e = max(__float_as_uint(magnitude) & 0x7f800000u, static_cast<uint32_t>(kSmallest) << 23);
  const float large = __uint_as_float(e + (kShift << 23) + kBiasInCode);
  const uint32_t code = __float_as_uint(magnitude + large) + (e >> kShift);
  return (x != x ? 0u : __float_as_uint(unscaled) >> 28 & 8u) | (code & 7u);
}

__device__ inline float e4m3_value(uint32_t code) {
  const uint32_t magnitude = code & 0x7f, sign = (code & 0x80) << 24;
  if (magnitude == 0x7f) return __uint_as_float(0x7fc00000u | sign);
  const float x = magnitude < 8 ? magnitude * 0x1p-9f : __uint_as_float((magnitude << 20) + (120u << 23));
  return __uint_as_float(__float_as_uint(x) | sign);
}
__device__ inline float e2m1_value(uint32_t code) {
  const uint32_t magnitude = code & 7, sign = (code & 8) << 28;
  const float x = magnitude < 2 ? magnitude * 0.5f : __uint_as_float((magnitude << 22) + (126u << 23));
  return __uint_as_float(__float_as_uint(x) | sign);
}

// --- scales of groups: fp32, or e8m0, rounded up to a power of two

struct Scale { float scale, inverse; };
__device__ inline Scale scale_for(float most, float floor, float largest_code, bool power_of_two) {
  const float amax = fmaxf(fminf(most, kLargestFloat), floor);
  const float scale = amax / largest_code;
  if (!power_of_two) return {scale, fminf(largest_code / amax, kLargestFloat)};
  const uint32_t up = (__float_as_uint(scale) + 0x7fffffu) & 0x7f800000u;
  return {__uint_as_float(up), __uint_as_float((254u << 23) - up)};
}
__device__ inline float scale_at(const void* scales, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(scales)[i];
  return __uint_as_float(uint32_t{static_cast<const uint8_t*>(scales)[i]} << 23);
}
__device__ inline void store_scale(void* scales, Dtype dtype, int64_t i, float scale) {
  if (dtype == Dtype::f32)
    static_cast<float*>(scales)[i] = scale;
  else
    static_cast<uint8_t*>(scales)[i] = static_cast<uint8_t>(__float_as_uint(scale) >> 23);
}

// Quantises a group with one warp: at(k) is value k of `size`, an even number where two codes share a byte.
template <class Code, class At>
__device__ inline void quantize_group(Code code, int64_t size, float floor, Dtype scale_dtype, uint8_t* q,
                                      void* scales, int64_t scale_index, const At& at) {
  const int lane = threadIdx.x % kWarp;
  float most = 0.0f;
  for (int64_t k = lane; k < size; k += kWarp) most = fmaxf(most, fabsf(at(k)));
  const Scale s = scale_for(largest_of<kWarp>(most), floor, Code::kLargest, scale_dtype != Dtype::f32);
  if constexpr (Code::kBits == 8)
    for (int64_t k = lane; k < size; k += kWarp) q[k] = static_cast<uint8_t>(code_of(code, at(k), s.inverse));
  else
    for (int64_t k = lane; k < size / 2; k += kWarp)
      q[k] = static_cast<uint8_t>(code_of(code, at(2 * k), s.inverse) | code_of(code, at(2 * k + 1), s.inverse) << 4);
  if (lane == 0) store_scale(scales, scale_dtype, scale_index, s.scale);
}

}  // namespace sk::cuda
