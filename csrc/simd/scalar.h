// Sixteen lanes as plain loops: the portable fallback, and the text that defines what the others compute.
#pragma once
#include "core/types.h"
#include "simd/tables.h"
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace sk::simd::scalar {

inline constexpr int kLanes = 16;

struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct Mask { bool v[16]; };
struct Bf16x2 { uint32_t v[16]; };  // 16 pairs (k, k + 1), k in the low half

template <class R, class F>
SK_INLINE R lanes(F f) {
  R r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}

SK_INLINE float float_of(uint32_t u) { return __builtin_bit_cast(float, u); }
SK_INLINE uint32_t bits_of(float f) { return __builtin_bit_cast(uint32_t, f); }
SK_INLINE float widen(bf16 h) { return float_of(static_cast<uint32_t>(h.bits) << 16); }
SK_INLINE bf16 narrow(float x) {
  const uint32_t u = bits_of(x);
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : (u + (u >> 16 & 1) + 0x7fff) >> 16)};
}

// --- loads and stores; with n: the first n lanes, the others are 0 and memory there is not touched
SK_INLINE F32 load(const float* p, int64_t n) {
  return lanes<F32>([&](int i) { return i < n ? p[i] : 0.0f; });
}
SK_INLINE F32 load(const bf16* p, int64_t n) {
  return lanes<F32>([&](int i) { return i < n ? widen(p[i]) : 0.0f; });
}
SK_INLINE I32 load(const int32_t* p, int64_t n) {  // p need not be aligned: words are also taken out of bytes
  I32 r{};
  if (n > 0) __builtin_memcpy(r.v, p, 4 * min(n, kLanes));
  return r;
}
SK_INLINE I32 load(const uint8_t* p, int64_t n) {
  return lanes<I32>([&](int i) { return i < n ? p[i] : 0; });
}
SK_INLINE F32 load(const float* p) { return load(p, kLanes); }
SK_INLINE F32 load(const bf16* p) { return load(p, kLanes); }
SK_INLINE I32 load(const int32_t* p) { return load(p, kLanes); }
SK_INLINE I32 load(const uint8_t* p) { return load(p, kLanes); }

SK_INLINE void store(float* p, F32 x, int64_t n = kLanes) {
  for (int i = 0; i < min(n, kLanes); ++i) p[i] = x.v[i];
}
SK_INLINE void store(bf16* p, F32 x, int64_t n = kLanes) {
  for (int i = 0; i < min(n, kLanes); ++i) p[i] = narrow(x.v[i]);
}
SK_INLINE void store(int32_t* p, I32 x, int64_t n = kLanes) {
  if (n > 0) __builtin_memcpy(p, x.v, 4 * min(n, kLanes));
}
SK_INLINE void store(uint8_t* p, I32 x, int64_t n = kLanes) {
  for (int i = 0; i < min(n, kLanes); ++i) p[i] = static_cast<uint8_t>(x.v[i]);
}

// --- 16-bit words, the low halves of the lanes; p as it comes, aligned or not
SK_INLINE I32 load_words(const void* p) {
  uint16_t words[kLanes];
  __builtin_memcpy(words, p, sizeof words);
  return lanes<I32>([&](int i) { return words[i]; });
}
SK_INLINE void store_words(void* p, I32 x) {
  uint16_t words[kLanes];
  for (int i = 0; i < kLanes; ++i) words[i] = static_cast<uint16_t>(x.v[i]);
  __builtin_memcpy(p, words, sizeof words);
}

// A cache line from anywhere to a multiple of 64, past the caches; finish_lines() makes it visible to others.
SK_INLINE void stream_line(void* to, const void* from) { __builtin_memcpy(to, from, 64); }
SK_INLINE void finish_lines() {}

// --- arithmetic
SK_INLINE F32 splat(float x) {
  return lanes<F32>([&](int) { return x; });
}
SK_INLINE F32 add(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] + b.v[i]; });
}
SK_INLINE F32 sub(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] - b.v[i]; });
}
SK_INLINE F32 mul(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] * b.v[i]; });
}
SK_INLINE F32 div(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] / b.v[i]; });
}
SK_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return lanes<F32>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
SK_INLINE F32 sqrt(F32 a) {
  return lanes<F32>([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
SK_INLINE F32 min(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
SK_INLINE F32 max(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
SK_INLINE F32 round(F32 a) {
  return lanes<F32>([&](int i) { return __builtin_nearbyintf(a.v[i]); });
}

// --- integers
SK_INLINE uint32_t u(int32_t x) { return static_cast<uint32_t>(x); }
SK_INLINE int32_t s(uint32_t x) { return static_cast<int32_t>(x); }
SK_INLINE I32 splat_i(int32_t x) {
  return lanes<I32>([&](int) { return x; });
}
SK_INLINE I32 add(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return s(u(a.v[i]) + u(b.v[i])); });
}
SK_INLINE I32 sub(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return s(u(a.v[i]) - u(b.v[i])); });
}
SK_INLINE I32 and_(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return a.v[i] & b.v[i]; });
}
SK_INLINE I32 or_(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return a.v[i] | b.v[i]; });
}
SK_INLINE I32 xor_(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return a.v[i] ^ b.v[i]; });
}
SK_INLINE I32 min(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
SK_INLINE I32 max(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <int N> SK_INLINE I32 shl(I32 a) {
  return lanes<I32>([&](int i) { return s(u(a.v[i]) << N); });
}
template <int N> SK_INLINE I32 shr(I32 a) {
  return lanes<I32>([&](int i) { return s(u(a.v[i]) >> N); });
}
template <int N> SK_INLINE I32 sra(I32 a) {
  return lanes<I32>([&](int i) { return a.v[i] >> N; });
}
SK_INLINE I32 bits(F32 a) {
  return lanes<I32>([&](int i) { return s(bits_of(a.v[i])); });
}
SK_INLINE F32 from_bits(I32 a) {
  return lanes<F32>([&](int i) { return float_of(u(a.v[i])); });
}
SK_INLINE I32 to_int(F32 a) {  // rounds to nearest, ties to even; out of range and NaN give INT32_MIN
  return lanes<I32>([&](int i) {
    const float r = __builtin_nearbyintf(a.v[i]);
    return r >= -2147483648.0f && r < 2147483648.0f ? static_cast<int32_t>(r) : INT32_MIN;
  });
}
SK_INLINE F32 to_float(I32 a) {
  return lanes<F32>([&](int i) { return static_cast<float>(a.v[i]); });
}
// x * 2^n, rounded once, for 1/2 < |x| < 2 and integer n in [-252, 252]. In two steps, so that no factor overflows.
SK_INLINE F32 scale_by_power(F32 x, F32 n) {
  const I32 whole = to_int(n), half = sra<1>(whole);
  const F32 a = from_bits(shl<23>(add(half, splat_i(127))));
  const F32 b = from_bits(shl<23>(add(sub(whole, half), splat_i(127))));
  return mul(mul(x, a), b);
}

// --- comparisons: false where an operand is NaN, but for ne
SK_INLINE Mask lt(F32 a, F32 b) {
  return lanes<Mask>([&](int i) { return a.v[i] < b.v[i]; });
}
SK_INLINE Mask eq(F32 a, F32 b) {
  return lanes<Mask>([&](int i) { return a.v[i] == b.v[i]; });
}
SK_INLINE Mask ne(F32 a, F32 b) {
  return lanes<Mask>([&](int i) { return a.v[i] != b.v[i]; });
}
SK_INLINE Mask eq(I32 a, I32 b) {
  return lanes<Mask>([&](int i) { return a.v[i] == b.v[i]; });
}
SK_INLINE Mask gt(I32 a, I32 b) {
  return lanes<Mask>([&](int i) { return a.v[i] > b.v[i]; });
}
SK_INLINE F32 select(Mask m, F32 yes, F32 no) {
  return lanes<F32>([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
SK_INLINE I32 select(Mask m, I32 yes, I32 no) {
  return lanes<I32>([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
SK_INLINE uint32_t to_bits(Mask m) {  // lane i is bit i
  uint32_t r = 0;
  for (int i = 0; i < kLanes; ++i) r |= static_cast<uint32_t>(m.v[i]) << i;
  return r;
}

// --- across lanes: halves 16 -> 8 -> 4 -> 2 -> 1, on every ISA
SK_INLINE float sum(F32 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
  return a.v[0];
}
SK_INLINE float largest(F32 a) {  // no NaN among the lanes
  float r = a.v[0];
  for (int i = 1; i < kLanes; ++i) r = a.v[i] > r ? a.v[i] : r;
  return r;
}
SK_INLINE I32 max_across(I32 a) {  // the largest lane, in all lanes
  int32_t r = a.v[0];
  for (int i = 1; i < kLanes; ++i) r = a.v[i] > r ? a.v[i] : r;
  return splat_i(r);
}
SK_INLINE I32 permute(I32 a, I32 from) {  // lane i is lane from[i] % 16 of a
  return lanes<I32>([&](int i) { return a.v[from.v[i] & 15]; });
}
// The lanes whose bit is set, in their order, to p; what else the 16 places at p hold is arbitrary then.
template <class T, class V>
SK_INLINE void compress(T* p, V x, uint32_t set) {
  for (int i = 0, n = 0; i < kLanes; ++i)
    if (set >> i & 1) p[n++] = x.v[i];
}
// Lanes in runs of N: the even-numbered runs of a, then those of b; and the odd-numbered ones.
template <int N>
SK_INLINE I32 even_runs(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return (i < 8 ? a : b).v[i % 8 / N * 2 * N + i % N]; });
}
template <int N>
SK_INLINE I32 odd_runs(I32 a, I32 b) {
  return lanes<I32>([&](int i) { return (i < 8 ? a : b).v[i % 8 / N * 2 * N + N + i % N]; });
}

// --- moves between two vectors, read as 32 lanes a, b: the even ones, the odd ones; and back, 16 by 16
SK_INLINE F32 even_lanes(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return i < 8 ? a.v[2 * i] : b.v[2 * i - 16]; });
}
SK_INLINE F32 odd_lanes(F32 a, F32 b) {
  return lanes<F32>([&](int i) { return i < 8 ? a.v[2 * i + 1] : b.v[2 * i - 15]; });
}
SK_INLINE F32 interleave_low(F32 even, F32 odd) {
  return lanes<F32>([&](int i) { return i % 2 == 0 ? even.v[i / 2] : odd.v[i / 2]; });
}
SK_INLINE F32 interleave_high(F32 even, F32 odd) {
  return lanes<F32>([&](int i) { return i % 2 == 0 ? even.v[8 + i / 2] : odd.v[8 + i / 2]; });
}

// --- pairs of bf16, the operands of dot()
SK_INLINE Bf16x2 load_pairs(const void* p) {
  Bf16x2 r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
SK_INLINE void store_pairs(void* p, Bf16x2 x) { __builtin_memcpy(p, &x, sizeof x); }
SK_INLINE Bf16x2 splat_pair(const void* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return lanes<Bf16x2>([&](int) { return pair; });
}
SK_INLINE Bf16x2 narrow_pairs(F32 even, F32 odd) {
  return lanes<Bf16x2>([&](int i) {
    return static_cast<uint32_t>(narrow(even.v[i]).bits) | static_cast<uint32_t>(narrow(odd.v[i]).bits) << 16;
  });
}
// The upper halves as they are: of floats that bf16 holds exactly.
SK_INLINE Bf16x2 join_pairs(F32 even, F32 odd) {
  return lanes<Bf16x2>([&](int i) { return bits_of(even.v[i]) >> 16 | (bits_of(odd.v[i]) & 0xffff0000u); });
}
SK_INLINE F32 even(Bf16x2 x) {
  return lanes<F32>([&](int i) { return float_of(x.v[i] << 16); });
}
SK_INLINE F32 odd(Bf16x2 x) {
  return lanes<F32>([&](int i) { return float_of(x.v[i] & 0xffff0000u); });
}

// acc + a.odd * b.odd, then + a.even * b.even: the order in which VDPBF16PS rounds.
SK_INLINE F32 dot(F32 acc, Bf16x2 a, Bf16x2 b) { return fma(even(a), even(b), fma(odd(a), odd(b), acc)); }

// acc + the four products of unsigned bytes of a with signed bytes of b, exactly.
SK_INLINE I32 dot_bytes(I32 acc, I32 a, I32 b) {
  return lanes<I32>([&](int i) {
    const uint32_t u = static_cast<uint32_t>(a.v[i]), s = static_cast<uint32_t>(b.v[i]);
    int32_t sum = 0;
    for (int shift = 0; shift < 32; shift += 8)
      sum += static_cast<int32_t>(u >> shift & 0xff) * static_cast<int8_t>(s >> shift & 0xff);
    return static_cast<int32_t>(static_cast<uint32_t>(acc.v[i]) + static_cast<uint32_t>(sum));
  });
}

// --- chunks of weights (gemm/gemm.h): 16 columns times 4 bytes
constexpr int kAccumulators = 4, kTileVectors = 1;  // that fit the registers; vectors of a tile of many rows
constexpr bool kDotsBf16 = false;               // whether dot() is an instruction

// v[i] lane j <-> v[j] lane i
SK_INLINE void transpose(I32* v) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const int32_t t = v[i].v[j];
      v[i].v[j] = v[j].v[i];
      v[j].v[i] = t;
    }
}
// 64 bytes of each of 16 rows, from `at` on: lane i of all of them to `to + i * stride`.
SK_INLINE void transpose_lines(const uint8_t* const* rows, int64_t at, uint8_t* to, int64_t stride) {
  I32 block[kLanes];
  for (int i = 0; i < kLanes; ++i) block[i] = load(reinterpret_cast<const int32_t*>(rows[i] + at));
  transpose(block);
  for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<int32_t*>(to + i * stride), block[i]);
}
// Four bytes a lane, two pairs -> kernel order: in every group of four lanes, all first pairs, then all second ones.
SK_INLINE I32 to_kernel_order(I32 x) {
  return lanes<I32>([&](int i) {
    const int lane = i & ~3, half = i >> 1 & 1, at = 2 * (i & 1);  // which pair, of which two lanes
    const auto pair = [&](int l) { return u(x.v[lane + l]) >> 16 * half & 0xffffu; };
    return s(pair(at) | pair(at + 1) << 16);
  });
}
SK_INLINE I32 from_kernel_order(I32 x) {
  return lanes<I32>([&](int i) {
    const int group = i & ~3, l = i & 3;
    const auto pair = [&](int half) { return u(x.v[group + 2 * half + l / 2]) >> 16 * (l & 1) & 0xffffu; };
    return s(pair(0) | pair(1) << 16);
  });
}

// 64 bytes of e4m3 in kernel order -> two vectors of pairs.
SK_INLINE void decode_e4m3(const uint8_t* p, Bf16x2* out) {
  for (int half = 0; half < 2; ++half)
    out[half] = lanes<Bf16x2>([&](int lane) {
      const uint8_t* c = p + 16 * (lane / 4) + 8 * half + 2 * (lane % 4);
      const auto word = [](uint8_t x) { return kBf16OfE4m3[x & 0x7f] | static_cast<uint32_t>(x & 0x80) << 8; };
      return word(c[0]) | word(c[1]) << 16;
    });
}
// 64 bytes of e2m1 in kernel order -> four vectors of pairs.
SK_INLINE void decode_e2m1(const uint8_t* p, Bf16x2* out) {
  for (int quarter = 0; quarter < 4; ++quarter)
    out[quarter] = lanes<Bf16x2>([&](int lane) {
      const auto word = [&](int parity) {
        const uint8_t* c = p + 16 * (lane / 4) + 8 * (quarter / 2) + 2 * (lane % 4) + parity;
        return static_cast<uint32_t>(kBf16OfE2m1[*c >> 4 * (quarter % 2) & 15]);
      };
      return word(0) | word(1) << 16;
    });
}

// 32 bytes of e4m3 -> a vector of pairs.
SK_INLINE Bf16x2 decode_e4m3_pairs(const uint8_t* p) {
  const auto word = [](uint8_t x) { return kBf16OfE4m3[x & 0x7f] | static_cast<uint32_t>(x & 0x80) << 8; };
  return lanes<Bf16x2>([&](int lane) { return word(p[2 * lane]) | word(p[2 * lane + 1]) << 16; });
}
// The two values of every four (k to k + 3 of a lane) that are there -> pairs (k, k + 1) and (k + 2, k + 3), zeros
// elsewhere. A lane's four bits, two of which are set, say where they go; 8 bytes, the first lane in the lower half.
SK_INLINE void expand_2to4(Bf16x2 kept, const uint8_t* masks, Bf16x2* out) {
  for (int pair = 0; pair < 2; ++pair)
    out[pair] = lanes<Bf16x2>([&](int lane) {
      const uint32_t bytes = expand_2to4_bytes(masks[lane / 2] >> lane % 2 * 4, pair);
      const auto word = [&](uint32_t from) { return from & 0x80 ? 0 : kept.v[lane] >> 8 * (from & 2) & 0xffffu; };
      return word(bytes) | word(bytes >> 16) << 16;
    });
}
// The same of 32 codes of e4m3 that 8 bytes of masks follow.
SK_INLINE void decode_e4m3_2to4(const uint8_t* p, Bf16x2* out) { expand_2to4(decode_e4m3_pairs(p), p + 32, out); }

// --- FTZ, DAZ and round-to-nearest for GEMM loops (DESIGN, law 9)
#if defined(__SSE2__)
SK_INLINE uint32_t set_gemm_rounding() {
  const uint32_t old = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  return old;
}
SK_INLINE void set_rounding(uint32_t csr) { _mm_setcsr(csr); }
#else
SK_INLINE uint32_t set_gemm_rounding() { return 0; }
SK_INLINE void set_rounding(uint32_t) {}
#endif

}  // namespace sk::simd::scalar
