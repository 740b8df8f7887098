// The functions of csrc/simd/math.h, one value at a time: the same bits.
#pragma once
#include "cuda/elements.cuh"

namespace sk::cuda {

// min and max as the CPU's vectors have them: the second operand where one is NaN.
__device__ inline float lesser(float a, float b) { return a < b ? a : b; }
__device__ inline float greater(float a, float b) { return a > b ? a : b; }

__device__ inline float scale_by_power(float x, float n) {
  const int whole = __float2int_rn(n), half = whole >> 1;
  return x * __int_as_float((half + 127) << 23) * __int_as_float((whole - half + 127) << 23);
}

// e^x = e^r 2^n; a sum with 1.5 * 2^23 is an integer, and has it in its lowest bits: n_bits holds n + kOffset there.
struct SplitExp {
  float power, n;
  int n_bits;
};
template <int kOffset = 0>
__device__ inline SplitExp split_exp(float x) {
  const float integers = 12582912.0f + kOffset, sum = fmaf(x, 1.44269504f, integers), n = sum - integers;
  float r = fmaf(n, -0.693145752f, x);
  r = fmaf(n, -1.42860677e-6f, r);
  float p = 1.38144335e-3f;
  p = fmaf(p, r, 8.36879667e-3f);
  p = fmaf(p, r, 4.16683964e-2f);
  p = fmaf(p, r, 1.66665196e-1f);
  p = fmaf(p, r, 0.49999994f);
  p = fmaf(r * r, p, r);
  return {p + 1.0f, n, __float_as_int(sum)};
}
// Within 1 ulp; NaN stays NaN.
__device__ inline float exp_of(float x) {
  const SplitExp e = split_exp(greater(-104.0f, lesser(89.0f, x)));
  return scale_by_power(e.power, e.n);
}
__device__ inline float exp_minus_abs(float x) {
  const SplitExp e = split_exp<64>(greater(-104.0f, __int_as_float(__float_as_int(x) | INT32_MIN)));
  return __int_as_float(__float_as_int(e.power) + (e.n_bits << 23)) * 0x1p-64f;
}

// ln(2^e (1 + f)).
__device__ inline float log_of(int e, float f) {
  const float s = f / (2.0f + f), z = s * s;
  float p = 0.24279079f;
  p = fmaf(p, z, 0.28498787f);
  p = fmaf(p, z, 0.40000972f);
  p = fmaf(p, z, 0.66666663f);
  const float half_square = 0.5f * (f * f), n = static_cast<float>(e);
  const float tail = fmaf(s, fmaf(z, p, half_square), n * 9.05800061e-6f);
  return fmaf(n, 0.693138123f, f - half_square) + tail;
}
// ln x for x > 0 normal.
__device__ inline float log_of(float x) {
  const int e = (__float_as_int(x) - 0x3f3504f3) >> 23;
  return log_of(e, __int_as_float(__float_as_int(x) - (e << 23)) - 1.0f);
}
__device__ inline float log1p_of(float x) {
  const float u = 1.0f + x, lost = x - (u - 1.0f);
  const int e = (__float_as_int(u) - 0x3f3504f3) >> 23, shift = e << 23;
  const float power = __int_as_float(0x3f800000 - shift);
  return log_of(e, fmaf(lost, power, __int_as_float(__float_as_int(u) - shift) - 1.0f));
}

__device__ inline float sigmoid_of(float x) {
  const float t = exp_minus_abs(x);
  return (x < 0.0f ? t : 1.0f) / (1.0f + t);
}
__device__ inline float silu_of(float x) { return x / (1.0f + exp_of(-x)); }
// silu(gate) * up, bounded; limit infinity bounds nothing.
__device__ inline float gated_silu(float gate, float up, float limit) {
  return silu_of(lesser(limit, gate)) * greater(-limit, lesser(limit, up));
}

}  // namespace sk::cuda
