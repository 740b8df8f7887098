// AVX2 and FMA: the sixteen lanes are two 256-bit registers.
#pragma once
#include <immintrin.h>

#include "core/types.h"
#include "simd/tables.h"

namespace sk::simd::avx2 {

inline constexpr int kLanes = 16;

struct F32 { __m256 lo, hi; };
struct I32 { __m256i lo, hi; };
struct Mask { __m256i lo, hi; };     // all ones or all zeros
struct Bf16x2 { __m256i lo, hi; };  // 16 pairs (k, k + 1)

// --- loads and stores; with n: the first n lanes, the others are 0 and memory there is not touched
SK_INLINE __m256 widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
SK_INLINE __m256i first8(int64_t n) {
  const int count = static_cast<int>(n < 0 ? 0 : n > 8 ? 8 : n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <class T>
struct Lanes16 {
  alignas(32) T v[16];
};
template <class T>
SK_INLINE Lanes16<T> copy_first(const T* p, int64_t n) {  // bytes and words have no masked load
  Lanes16<T> t = {};
  for (int64_t i = 0; i < (n < kLanes ? n : kLanes); ++i) t.v[i] = p[i];
  return t;
}
SK_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SK_INLINE F32 load(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first8(n)), _mm256_maskload_ps(p + 8, first8(n - 8))};
}
SK_INLINE F32 load(const bf16* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1))};
}
SK_INLINE F32 load(const bf16* p, int64_t n) { return load(copy_first(p, n).v); }
SK_INLINE I32 load(const int32_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
SK_INLINE I32 load(const int32_t* p, int64_t n) {
  return {_mm256_maskload_epi32(p, first8(n)), _mm256_maskload_epi32(p + 8, first8(n - 8))};
}
SK_INLINE I32 load(const uint8_t* p) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(b), _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))};
}
SK_INLINE I32 load(const uint8_t* p, int64_t n) { return load(copy_first(p, n).v); }

// bf16 in the upper halves, rounded to nearest even; the lower halves are arbitrary. Every NaN becomes 0x7fc0.
SK_INLINE __m256i round_to_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd_bit = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, odd_bit), _mm256_set1_epi32(0x7fff));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan);
}
SK_INLINE __m128i narrow8(__m256 x) {
  const __m256i r = _mm256_srli_epi32(round_to_bf16(x), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
SK_INLINE void store(float* p, F32 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
// By powers of two: masked stores take tens of cycles on AMD's processors.
SK_INLINE void store_first8(void* p, __m256i x, int64_t n) {
  if (n >= 8) return _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  auto* to = static_cast<char*>(p);
  __m128i left = _mm256_castsi256_si128(x);
  if (n & 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), left);
    left = _mm256_extracti128_si256(x, 1);
    to += 16;
  }
  if (n & 2) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), left);
    left = _mm_unpackhi_epi64(left, left);
    to += 8;
  }
  if (n & 1) _mm_storeu_si32(to, left);
}
SK_INLINE void store(int32_t* p, I32 x, int64_t n) {
  if (n > 0) store_first8(p, x.lo, n);
  if (n > 8) store_first8(p + 8, x.hi, n - 8);
}
SK_INLINE void store(float* p, F32 x, int64_t n) {
  if (n > 0) store_first8(p, _mm256_castps_si256(x.lo), n);
  if (n > 8) store_first8(p + 8, _mm256_castps_si256(x.hi), n - 8);
}
SK_INLINE void store(bf16* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow8(x.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + 1, narrow8(x.hi));
}
SK_INLINE void store(int32_t* p, I32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, x.hi);
}
SK_INLINE void store(uint8_t* p, I32 x) {  // the low byte of each lane
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(x.lo, low), _mm256_and_si256(x.hi, low)), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
template <class T, class V>
SK_INLINE void store_first(T* p, V x, int64_t n) {
  Lanes16<T> t;
  store(t.v, x);
  for (int64_t i = 0; i < (n < kLanes ? n : kLanes); ++i) p[i] = t.v[i];
}
SK_INLINE void store(bf16* p, F32 x, int64_t n) { store_first(p, x, n); }
SK_INLINE void store(uint8_t* p, I32 x, int64_t n) { store_first(p, x, n); }

// --- 16-bit words, the low halves of the lanes; p as it comes, aligned or not
SK_INLINE I32 load_words(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
SK_INLINE void store_words(void* p, I32 x) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(x.lo, low), _mm256_and_si256(x.hi, low));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xd8));
}

// A cache line from anywhere to a multiple of 64, past the caches; finish_lines() makes it visible to others.
SK_INLINE void stream_line(void* to, const void* from) {
  const __m256i* f = static_cast<const __m256i*>(from);
  __m256i* t = static_cast<__m256i*>(to);
  _mm256_stream_si256(t, _mm256_loadu_si256(f));
  _mm256_stream_si256(t + 1, _mm256_loadu_si256(f + 1));
}
SK_INLINE void finish_lines() { _mm_sfence(); }

// --- arithmetic
SK_INLINE F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SK_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SK_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SK_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SK_INLINE F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SK_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SK_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
SK_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
SK_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
SK_INLINE F32 round(F32 a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }

// --- integers
SK_INLINE I32 splat_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
SK_INLINE I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
SK_INLINE I32 sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
SK_INLINE I32 and_(I32 a, I32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SK_INLINE I32 or_(I32 a, I32 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
SK_INLINE I32 xor_(I32 a, I32 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
SK_INLINE I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
SK_INLINE I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
template <int N> SK_INLINE I32 shl(I32 a) { return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)}; }
template <int N> SK_INLINE I32 shr(I32 a) { return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)}; }
template <int N> SK_INLINE I32 sra(I32 a) { return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)}; }
SK_INLINE I32 bits(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
SK_INLINE F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
SK_INLINE I32 to_int(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
SK_INLINE F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// x * 2^n, rounded once, for 1/2 < |x| < 2 and integer n in [-252, 252]. In two steps, so that no factor overflows.
SK_INLINE F32 scale_by_power(F32 x, F32 n) {
  const I32 twice = bits(add(n, splat(12582912.0f + 254.0f))), half = shr<1>(twice);  // n + 254 in the lowest bits
  const F32 a = from_bits(shl<23>(half)), b = from_bits(shl<23>(sub(twice, half)));
  return mul(mul(x, a), b);
}

// --- comparisons: false where an operand is NaN, but for ne
SK_INLINE Mask mask_of(__m256 lo, __m256 hi) { return {_mm256_castps_si256(lo), _mm256_castps_si256(hi)}; }
SK_INLINE Mask lt(F32 a, F32 b) {
  return mask_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ));
}
SK_INLINE Mask eq(F32 a, F32 b) {
  return mask_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ));
}
SK_INLINE Mask ne(F32 a, F32 b) {
  return mask_of(_mm256_cmp_ps(a.lo, b.lo, _CMP_NEQ_UQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_NEQ_UQ));
}
SK_INLINE Mask eq(I32 a, I32 b) { return {_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi)}; }
SK_INLINE Mask gt(I32 a, I32 b) { return {_mm256_cmpgt_epi32(a.lo, b.lo), _mm256_cmpgt_epi32(a.hi, b.hi)}; }
SK_INLINE I32 select(Mask m, I32 yes, I32 no) {
  return {_mm256_blendv_epi8(no.lo, yes.lo, m.lo), _mm256_blendv_epi8(no.hi, yes.hi, m.hi)};
}
SK_INLINE F32 select(Mask m, F32 yes, F32 no) { return from_bits(select(m, bits(yes), bits(no))); }
SK_INLINE uint32_t to_bits(Mask m) {  // lane i is bit i
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.lo)) |
                               _mm256_movemask_ps(_mm256_castsi256_ps(m.hi)) << 8);
}

// --- across lanes: halves 16 -> 8 -> 4 -> 2 -> 1, on every ISA
SK_INLINE float sum(F32 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
SK_INLINE float largest(F32 a) {  // no NaN among the lanes
  const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}
SK_INLINE I32 max_across(I32 a) {  // the largest lane, in all lanes
  __m256i m = _mm256_max_epi32(a.lo, a.hi);
  m = _mm256_max_epi32(m, _mm256_permute2x128_si256(m, m, 0x01));
  m = _mm256_max_epi32(m, _mm256_shuffle_epi32(m, 0x4e));
  m = _mm256_max_epi32(m, _mm256_shuffle_epi32(m, 0xb1));
  return {m, m};
}
SK_INLINE I32 permute(I32 a, I32 from) {  // lane i is lane from[i] % 16 of a
  const auto half = [&](__m256i f) {
    const __m256i in_hi = _mm256_slli_epi32(f, 28);  // its sign says which register
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(a.lo, f)),
                                                _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(a.hi, f)),
                                                _mm256_castsi256_ps(in_hi)));
  };
  return {half(from.lo), half(from.hi)};
}
// The lanes whose bit is set, in their order, to p; what else the 16 places at p hold is arbitrary then.
SK_INLINE void compress(int32_t* p, I32 x, uint32_t set) {
  const auto half = [](int32_t* to, __m256i y, uint32_t byte) {
    const __m128i from = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kSetBits.at[byte]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(y, _mm256_cvtepu8_epi32(from)));
  };
  half(p, x.lo, set & 0xff);
  half(p + __builtin_popcount(set & 0xff), x.hi, set >> 8);
}
SK_INLINE void compress(float* p, F32 x, uint32_t set) { compress(reinterpret_cast<int32_t*>(p), bits(x), set); }
// Lanes in runs of N: the even-numbered runs of a, then those of b; and the odd-numbered ones.
template <int N, bool kOdd>
SK_INLINE __m256i runs(I32 a) {
  if constexpr (N == 8) return kOdd ? a.hi : a.lo;
  if constexpr (N == 4) return _mm256_permute2x128_si256(a.lo, a.hi, kOdd ? 0x31 : 0x20);
  if constexpr (N == 2) {
    const __m256i pairs = kOdd ? _mm256_unpackhi_epi64(a.lo, a.hi) : _mm256_unpacklo_epi64(a.lo, a.hi);
    return _mm256_permute4x64_epi64(pairs, 0xd8);
  }
  const __m256 lo = _mm256_castsi256_ps(a.lo), hi = _mm256_castsi256_ps(a.hi);
  return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(lo, hi, kOdd ? 0xdd : 0x88)), 0xd8);
}
template <int N> SK_INLINE I32 even_runs(I32 a, I32 b) { return {runs<N, false>(a), runs<N, false>(b)}; }
template <int N> SK_INLINE I32 odd_runs(I32 a, I32 b) { return {runs<N, true>(a), runs<N, true>(b)}; }

// --- moves between two vectors, read as 32 lanes a, b: the even ones, the odd ones; and back, 16 by 16
template <int kPick>
SK_INLINE __m256 every_other(F32 x) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(x.lo, x.hi, kPick)), 0xd8));
}
SK_INLINE F32 even_lanes(F32 a, F32 b) { return {every_other<0x88>(a), every_other<0x88>(b)}; }
SK_INLINE F32 odd_lanes(F32 a, F32 b) { return {every_other<0xdd>(a), every_other<0xdd>(b)}; }
SK_INLINE F32 interleave(__m256 even, __m256 odd) {
  const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
SK_INLINE F32 interleave_low(F32 even, F32 odd) { return interleave(even.lo, odd.lo); }
SK_INLINE F32 interleave_high(F32 even, F32 odd) { return interleave(even.hi, odd.hi); }

// --- pairs of bf16, the operands of dot()
SK_INLINE Bf16x2 load_pairs(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
SK_INLINE void store_pairs(void* p, Bf16x2 x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.hi);
}
SK_INLINE __m256i narrow_pairs8(__m256 even, __m256 odd) {
  return _mm256_blend_epi16(_mm256_srli_epi32(round_to_bf16(even), 16), round_to_bf16(odd), 0xaa);
}
SK_INLINE Bf16x2 narrow_pairs(F32 even, F32 odd) {
  return {narrow_pairs8(even.lo, odd.lo), narrow_pairs8(even.hi, odd.hi)};
}
// The upper halves as they are: of floats that bf16 holds exactly.
SK_INLINE __m256i join_pairs8(__m256 even, __m256 odd) {
  return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd), 0xaa);
}
SK_INLINE Bf16x2 join_pairs(F32 even, F32 odd) {
  return {join_pairs8(even.lo, odd.lo), join_pairs8(even.hi, odd.hi)};
}
SK_INLINE Bf16x2 splat_pair(const void* p) {
  const __m256i x = _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
  return {x, x};
}
SK_INLINE F32 even(Bf16x2 x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.hi, 16))};
}
SK_INLINE F32 odd(Bf16x2 x) {
  const __m256i top = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm256_castsi256_ps(_mm256_and_si256(x.lo, top)), _mm256_castsi256_ps(_mm256_and_si256(x.hi, top))};
}

// acc + a.odd * b.odd, then + a.even * b.even: the order in which VDPBF16PS rounds.
SK_INLINE F32 dot(F32 acc, Bf16x2 a, Bf16x2 b) { return fma(even(a), even(b), fma(odd(a), odd(b), acc)); }

// acc + the four products of unsigned bytes of a with signed bytes of b, exactly: VPMADDUBSW would saturate.
SK_INLINE __m256i dot_bytes8(__m256i acc, __m256i u, __m256i s) {
  const __m256i evens =
      _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odds = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(evens, odds));
}
SK_INLINE I32 dot_bytes(I32 acc, I32 a, I32 b) {
  return {dot_bytes8(acc.lo, a.lo, b.lo), dot_bytes8(acc.hi, a.hi, b.hi)};
}

// --- chunks of weights (gemm/gemm.h): 16 columns times 4 bytes
constexpr int kAccumulators = 6, kTileVectors = 1;  // that fit the registers; vectors of a tile of many rows
constexpr bool kDotsBf16 = false;               // whether dot() is an instruction

// Eight rows of eight lanes. Unrolled, or the rows would live in memory.
SK_INLINE void transpose8(__m256i* v) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
      u[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
  }
}
// v[i] lane j <-> v[j] lane i
SK_INLINE void transpose(I32* v) {
  __m256i q[4][8];  // upper left, upper right, lower left, lower right
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    q[0][i] = v[i].lo;
    q[1][i] = v[i].hi;
    q[2][i] = v[i + 8].lo;
    q[3][i] = v[i + 8].hi;
  }
#pragma GCC unroll 4
  for (auto& quarter : q) transpose8(quarter);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    v[i] = {q[0][i], q[2][i]};
    v[i + 8] = {q[1][i], q[3][i]};
  }
}
// 64 bytes of each of 16 rows, from `at` on: lane i of all of them to `to + i * stride`. By quarters, which fit the
// registers.
SK_INLINE void transpose_lines(const uint8_t* const* rows, int64_t at, uint8_t* to, int64_t stride) {
  for (int half_line = 0; half_line < 2; ++half_line)
    for (int half = 0; half < 2; ++half) {
      __m256i v[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[8 * half + i] + at + 32 * half_line));
      transpose8(v);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (8 * half_line + i) * stride + 32 * half), v[i]);
    }
}
// Four bytes a lane, two pairs -> kernel order: in every group of four lanes, all first pairs, then all second ones.
SK_INLINE I32 shuffle_bytes(I32 x, __m128i order) {
  const __m256i both = _mm256_broadcastsi128_si256(order);
  return {_mm256_shuffle_epi8(x.lo, both), _mm256_shuffle_epi8(x.hi, both)};
}
SK_INLINE I32 to_kernel_order(I32 x) {
  return shuffle_bytes(x, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}
SK_INLINE I32 from_kernel_order(I32 x) {
  return shuffle_bytes(x, _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
}

// Words of bf16 as their low and high bytes.
struct Bytes { __m256i low, high; };
SK_INLINE __m256i look_up(const Table<uint8_t, 16>& table, __m256i nibbles) {  // 0 where bit 7 is set
  const __m128i t = _mm_load_si128(reinterpret_cast<const __m128i*>(table.at));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), nibbles);
}
// 32 codes of e4m3. Any NaN serves as NaN.
SK_INLINE Bytes e4m3_bytes(__m256i x) {
  const __m256i from_nan = _mm256_and_si256(_mm256_add_epi8(x, _mm256_set1_epi8(1)), _mm256_set1_epi8(0x7f));
  const __m256i high_nibble = _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
  const __m256i below_16 = _mm256_add_epi8(from_nan, _mm256_set1_epi8(0x70));  // bit 7 is set from 16 on
  return {_mm256_xor_si256(look_up(kE4m3LowNibble, from_nan), look_up(kE4m3MendLow, below_16)),
          _mm256_xor_si256(look_up(kE4m3HighNibble, high_nibble), look_up(kE4m3MendHigh, below_16))};
}
// 64 bytes of e4m3 in kernel order (gemm/gemm.h) -> two vectors of pairs.
SK_INLINE void decode_e4m3(const uint8_t* p, Bf16x2* out) {
  // Each 128-bit part holds 8 bytes of the first vector, then 8 of the second.
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  const Bytes a = e4m3_bytes(_mm256_loadu_si256(q)), b = e4m3_bytes(_mm256_loadu_si256(q + 1));
  out[0] = {_mm256_unpacklo_epi8(a.low, a.high), _mm256_unpacklo_epi8(b.low, b.high)};
  out[1] = {_mm256_unpackhi_epi8(a.low, a.high), _mm256_unpackhi_epi8(b.low, b.high)};
}

// 32 bytes of e4m3 -> a vector of pairs.
SK_INLINE Bf16x2 decode_e4m3_pairs(const uint8_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const Bytes b = e4m3_bytes(_mm256_permute4x64_epi64(x, 0xd8));
  return {_mm256_unpacklo_epi8(b.low, b.high), _mm256_unpackhi_epi8(b.low, b.high)};
}
// The two values of every four (k to k + 3 of a lane) that are there -> pairs (k, k + 1) and (k + 2, k + 3), zeros
// elsewhere. A lane's four bits, two of which are set, say where they go; 8 bytes, the first lane in the lower half.
SK_INLINE void expand_2to4(Bf16x2 kept, const uint8_t* masks, Bf16x2* out) {
  const __m256i of_lane = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i own_bytes =
      _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  const auto half = [&](__m256i words, const uint8_t* four, __m256i* to) {
    int32_t bits;
    __builtin_memcpy(&bits, four, sizeof bits);
    const __m256i mask = _mm256_srlv_epi32(_mm256_set1_epi32(bits), of_lane);  // VPERMD looks at three bits
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      const uint32_t* table = pair == 0 ? kExpand01.at : kExpand23.at;
      const __m256i from =
          _mm256_permutevar8x32_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)), mask);
      to[pair] = _mm256_shuffle_epi8(words, _mm256_or_si256(from, own_bytes));
    }
  };
  __m256i lo[2], hi[2];
  half(kept.lo, masks, lo);
  half(kept.hi, masks + 4, hi);
  out[0] = {lo[0], hi[0]};
  out[1] = {lo[1], hi[1]};
}
// The same of 32 codes of e4m3 that 8 bytes of masks follow.
SK_INLINE void decode_e4m3_2to4(const uint8_t* p, Bf16x2* out) { expand_2to4(decode_e4m3_pairs(p), p + 32, out); }

// 64 bytes of e2m1 in kernel order -> four vectors of pairs.
SK_INLINE void decode_e2m1(const uint8_t* p, Bf16x2* out) {
  const auto pairs = [](__m256i bytes, __m256i& first, __m256i& second) {
    const __m256i nibbles = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    const __m256i low = look_up(kE2m1LowBytes, nibbles), high = look_up(kE2m1HighBytes, nibbles);
    first = _mm256_unpacklo_epi8(low, high);
    second = _mm256_unpackhi_epi8(low, high);
  };
  const Bf16x2 x = load_pairs(p);
  pairs(x.lo, out[0].lo, out[2].lo);
  pairs(x.hi, out[0].hi, out[2].hi);
  pairs(_mm256_srli_epi16(x.lo, 4), out[1].lo, out[3].lo);
  pairs(_mm256_srli_epi16(x.hi, 4), out[1].hi, out[3].hi);
}

// --- FTZ, DAZ and round-to-nearest for GEMM loops (DESIGN, law 9)
SK_INLINE uint32_t set_gemm_rounding() {
  const uint32_t old = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  return old;
}
SK_INLINE void set_rounding(uint32_t csr) { _mm_setcsr(csr); }

}  // namespace sk::simd::avx2
