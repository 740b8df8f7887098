// FP8 (e4m3), FP4 (e2m1) and their scales, made of the vocabulary: exact, to nearest even, the same bits everywhere.
#pragma once
#include "simd/loops.h"

namespace sk::simd::SK_ISA {

struct E4m3 {
  static constexpr int kBits = 8, kMantissa = 3, kBias = 7;
  static constexpr float kMax = 448.0f;
};
struct E2m1 {
  static constexpr int kBits = 4, kMantissa = 1, kBias = 1;
  static constexpr float kMax = 6.0f;
};

// --- codes

// What is too large, infinities included, becomes the largest value. NaN becomes 480, whose code would be that of
// NaN, and keeps its sign; where the format has no NaN it becomes +kMax, as the hardware has it.
SK_INLINE F32 saturated_magnitude(E4m3, F32 x) { return min(min(splat(E4m3::kMax), abs(x)), splat(480.0f)); }
SK_INLINE F32 saturated_magnitude(E2m1, F32 x) { return min(abs(x), splat(E2m1::kMax)); }
SK_INLINE F32 signed_like(E4m3, F32 x) { return x; }
SK_INLINE F32 signed_like(E2m1, F32 x) { return min(x, splat(1.0f)); }

// x -> codes, in the low byte of each lane; the other bytes are arbitrary.
//
// Let e be the exponent of x, or that of the smallest normal if this is larger: codes around x are 2^(e - kMantissa)
// apart. Adding 2^(e + kShift) to |x| rounds it to k such steps, k in the low bits of the sum. The code is k plus
// what e contributes; the bias of e, always the same, is in the low bits of the large number from the start.
template <class Format>
SK_INLINE I32 encode(F32 x) {
  constexpr int kShift = 23 - Format::kMantissa, kSmallest = 128 - Format::kBias;
  constexpr int kBiasInCode = -(kSmallest << Format::kMantissa) & 0xff;
  static_assert(kBiasInCode % 2 == 0, "an odd one would turn ties to odd");
  const F32 magnitude = saturated_magnitude(Format{}, x);
  const F32 power = from_bits(and_(bits(magnitude), splat_i(0x7f800000)));
  const I32 e = bits(max(power, from_bits(splat_i(kSmallest << 23))));
  const F32 large = from_bits(add(e, splat_i((kShift << 23) + kBiasInCode)));
  const I32 code = add(bits(add(magnitude, large)), shr<kShift>(e));
  const I32 sign = shr<32 - Format::kBits>(bits(signed_like(Format{}, x)));
  return or_(and_(sign, splat_i(1 << (Format::kBits - 1))), code);
}

// Codes -> their values, exactly. Bits above a code are ignored.
template <class Format>
SK_INLINE F32 decode(I32 code) {
  constexpr int kShift = 23 - Format::kMantissa;
  const I32 top = shl<32 - Format::kBits>(code);  // the sign where floats have it
  const I32 magnitude = and_(top, splat_i(INT32_MAX));
  const I32 fields = shr<32 - Format::kBits - kShift>(magnitude);  // exponent and mantissa where floats have them
  const I32 bias = splat_i((127 - Format::kBias) << 23), bias_and_one = splat_i((128 - Format::kBias) << 23);
  const F32 normal = from_bits(add(fields, bias));
  const F32 subnormal = sub(from_bits(add(fields, bias_and_one)), from_bits(bias_and_one));
  F32 value = select(gt(splat_i(1 << 23), fields), subnormal, normal);
  if constexpr (Format::kBits == 8)
    value = select(eq(magnitude, splat_i(0x7f << 24)), from_bits(splat_i(0x7fc00000)), value);
  return from_bits(or_(bits(value), and_(top, splat_i(INT32_MIN))));
}

// --- scales

// The largest magnitude, lane by lane; NaN counts as nothing.
SK_INLINE F32 larger_magnitude(F32 most, F32 x) { return max(abs(x), most); }
template <class T>
SK_INLINE F32 larger_magnitudes(F32 most, const T* x, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) < sizeof(float))
    for (; i + 2 * kLanes <= n; i += 2 * kLanes)
      most = larger_magnitude(larger_magnitude(most, load(x + i, Even{})), load(x + i, Odd{}));
  for (; i + kLanes <= n; i += kLanes) most = larger_magnitude(most, load(x + i));
  return i < n ? larger_magnitude(most, load(x + i, n - i)) : most;
}

// Sixteen groups: x is about code * scale, and the code is that of x * inverse.
struct Scales { F32 scale, inverse; };

// Scales of groups whose largest magnitudes are in `most`: fp32, or e8m0, rounded up to a power of two.
//
// An infinity counts as the largest finite number, so that the scale is one that readers can use. Where 448 / amax is
// infinite, which 0 would turn into NaN, the largest finite number serves as well.
template <class Format>
SK_INLINE Scales scales_for(F32 most, float floor, Dtype dtype) {
  const F32 huge = splat(3.402823466e38f), largest_code = splat(Format::kMax);
  const F32 amax = max(min(most, huge), splat(floor));
  const F32 scale = div(amax, largest_code);
  if (dtype == Dtype::f32) return {scale, min(div(largest_code, amax), huge)};
  // Found on the bits: log2 and exp2 miss by one. The inverse of 2^(e - 127) is 2^(254 - e - 127).
  const I32 up = and_(add(bits(scale), splat_i(0x7fffff)), splat_i(0x7f800000));
  return {from_bits(up), from_bits(sub(splat_i(254 << 23), up))};
}

// E8M0 scales are exponent bytes: byte 0 reads as 0.0 and byte 255 as infinity.
template <class Lanes>
SK_INLINE void store_scales(void* scales, Dtype dtype, int64_t i, F32 x, Lanes lanes) {
  if (dtype == Dtype::f32)
    store(static_cast<float*>(scales) + i, x, lanes);
  else
    store(static_cast<uint8_t*>(scales) + i, shr<23>(bits(x)), lanes);
}
SK_INLINE float load_scale(const void* scales, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(scales)[i];
  return __builtin_bit_cast(float, static_cast<uint32_t>(static_cast<const uint8_t*>(scales)[i]) << 23);
}

// --- rows of codes

// n values to n bytes.
template <class T>
SK_INLINE void encode_row(E4m3, const T* x, int64_t n, float inverse, uint8_t* q) {
  const F32 s = splat(inverse);
  map_row(x, q, n, [&](int64_t i, auto lanes) { return encode<E4m3>(mul(load(x + i, lanes), s)); });
}
// n values, n even, to n / 2 bytes; the earlier value is the lower half of a byte.
template <class T>
SK_INLINE void encode_row(E2m1, const T* x, int64_t n, float inverse, uint8_t* q) {
  const F32 s = splat(inverse);
  const auto pack = [&](F32 even, F32 odd) {
    return or_(encode<E2m1>(mul(even, s)), shl<4>(encode<E2m1>(mul(odd, s))));
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) store(q + i / 2, pack(load(x + i, Even{}), load(x + i, Odd{})));
  const int64_t left = n - i;
  if (left > 0) {
    const F32 a = load(x + i, left), b = load(x + i + kLanes, sk::max(left - kLanes, 0));
    store(q + i / 2, pack(even_lanes(a, b), odd_lanes(a, b)), left / 2);
  }
}

// Whether e4m3 values times the scale are bf16 values, with nothing to round: a power of two of moderate size.
SK_INLINE bool keeps_e4m3_exact(float scale) {
  const uint32_t u = __builtin_bit_cast(uint32_t, scale), exponent = u >> 23;
  return (u & 0x7fffff) == 0 && exponent > 27 && exponent < 227;
}
// n codes, a multiple of 32, times such a scale; false where one of them is NaN, which only rounding makes 0x7fc0.
SK_INLINE bool decode_exact(const uint8_t* q, int64_t n, float scale, bf16* x) {
  const F32 s = splat(scale), zero = splat(0.0f);
  F32 nan = zero;
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    const Bf16x2 pairs = decode_e4m3_pairs(q + i);
    const F32 a = mul(even(pairs), s), b = mul(odd(pairs), s);
    nan = fma(b, zero, fma(a, zero, nan));
    store_pairs(x + i, join_pairs(a, b));
  }
  return to_bits(ne(nan, nan)) == 0;
}

// n codes to n values times scale, rounded once.
template <class T>
SK_INLINE void decode_row(E4m3, const uint8_t* q, int64_t n, float scale, T* x) {
  const F32 s = splat(scale);
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(bf16))
    if (keeps_e4m3_exact(scale) && decode_exact(q, n / (2 * kLanes) * 2 * kLanes, scale, x))
      i = n / (2 * kLanes) * 2 * kLanes;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Bf16x2 pairs = decode_e4m3_pairs(q + i);
    store_even_odd(x + i, result_of<T>(mul(even(pairs), s)), result_of<T>(mul(odd(pairs), s)));
  }
  for (; i < n; i += kLanes) {
    const int64_t lanes = sk::min(n - i, kLanes);
    store_result(x + i, mul(decode<E4m3>(load(q + i, lanes)), s), lanes);
  }
}
template <class T>
SK_INLINE void decode_row(E2m1, const uint8_t* q, int64_t n, float scale, T* x) {
  const F32 s = splat(scale);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const I32 codes = load(q + i / 2);
    const F32 even = mul(decode<E2m1>(codes), s), odd = mul(decode<E2m1>(shr<4>(codes)), s);
    store_even_odd(x + i, result_of<T>(even), result_of<T>(odd));
  }
  const int64_t left = n - i;
  if (left > 0) {
    const I32 codes = load(q + i / 2, left / 2);
    const F32 even = result_of<T>(mul(decode<E2m1>(codes), s)),
              odd = result_of<T>(mul(decode<E2m1>(shr<4>(codes)), s));
    store(x + i, interleave_low(even, odd), left);
    if (left > kLanes) store(x + i + kLanes, interleave_high(even, odd), left - kLanes);
  }
}

// --- quantisers

struct Nothing {
  void operator()(int64_t) const {}
};
// A row in groups with a scale each: codes to q, scales to scales[first_scale...]. Sixteen groups at a time: their
// scales are one vector, and no group waits for the division of another. done(n) is told when the first n codes are
// there.
template <class Format, class T, class Done = Nothing>
static void quantize_row(const T* x, int64_t dim, int64_t group, float floor, uint8_t* q, void* scales, Dtype dtype,
                         int64_t first_scale, const Done& done = {}) {
  group = sk::min(group, dim);
  for (int64_t start = 0; start < dim; start += kLanes * group, first_scale += kLanes) {
    const int64_t size = sk::min(dim - start, kLanes * group), groups = ceil_div(size, group);
    float most[kLanes] = {}, inverse[kLanes];
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t k = g * group;
      most[g] = largest(larger_magnitudes(splat(0.0f), x + start + k, sk::min(group, size - k)));
    }
    const Scales s = scales_for<Format>(load(most), floor, dtype);
    store_scales(scales, dtype, first_scale, s.scale, groups);
    store(inverse, s.inverse);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t k = g * group, n = sk::min(group, size - k);
      encode_row(Format{}, x + start + k, n, inverse[g], q + (start + k) * Format::kBits / 8);
      done(start + k + n);
    }
  }
}

// One scale for a block of rows: codes to q, the scale to scales[i].
template <class Format, class T>
static void quantize_block(Rows<const T> x, int64_t rows, int64_t cols, float floor, Rows<uint8_t> q, void* scales,
                           Dtype dtype, int64_t i) {
  F32 most = splat(0.0f);
  for (int64_t r = 0; r < rows; ++r) most = larger_magnitudes(most, x.data + r * x.stride, cols);
  const Scales s = scales_for<Format>(splat(largest(most)), floor, dtype);
  store_scales(scales, dtype, i, s.scale, int64_t{1});
  float inverse[kLanes];
  store(inverse, s.inverse);
  for (int64_t r = 0; r < rows; ++r)
    encode_row(Format{}, x.data + r * x.stride, cols, inverse[0], q.data + r * q.stride);
}

}  // namespace sk::simd::SK_ISA
