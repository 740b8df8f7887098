// AVX-512 F, BW, VL, DQ. No bf16 instructions: a pair of products is two FMAs.
#pragma once
#include <immintrin.h>

#include "core/types.h"
#include "simd/tables.h"

namespace sk::simd::avx512 {

#include "simd/avx512_lanes.h"

constexpr int kAccumulators = 16, kTileVectors = 4;  // that fit the registers; vectors of a tile of many rows
constexpr bool kDotsBf16 = false;               // whether dot() is an instruction

// acc + a.odd * b.odd, then + a.even * b.even: the order in which VDPBF16PS rounds.
SK_INLINE F32 dot(F32 acc, Bf16x2 a, Bf16x2 b) { return fma(even(a), even(b), fma(odd(a), odd(b), acc)); }

// acc + the four products of unsigned bytes of a with signed bytes of b, exactly: VPMADDUBSW would saturate.
SK_INLINE I32 dot_bytes(I32 acc, I32 a, I32 b) {
  const __m512i evens = _mm512_madd_epi16(_mm512_and_si512(a.v, _mm512_set1_epi16(0xff)),
                                          _mm512_srai_epi16(_mm512_slli_epi16(b.v, 8), 8));
  const __m512i odds = _mm512_madd_epi16(_mm512_srli_epi16(a.v, 8), _mm512_srai_epi16(b.v, 8));
  return {_mm512_add_epi32(acc.v, _mm512_add_epi32(evens, odds))};
}

// 32 words of bf16 magnitudes a register: e4m3 has 128 of them.
SK_INLINE __m512i e4m3_words(__m256i codes) {
  const __m512i x = _mm512_cvtepu8_epi16(codes);
  const auto table = [](int i) { return _mm512_loadu_si512(kBf16OfE4m3 + 32 * i); };
  const __m512i low = _mm512_permutex2var_epi16(table(0), x, table(1));
  const __m512i high = _mm512_permutex2var_epi16(table(2), x, table(3));
  const __m512i magnitude = _mm512_mask_mov_epi16(low, _mm512_test_epi16_mask(x, _mm512_set1_epi16(0x40)), high);
  const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(x, 8), _mm512_set1_epi16(static_cast<short>(0x8000)));
  return _mm512_or_si512(magnitude, sign);
}
// 64 bytes of e4m3 in kernel order (gemm/gemm.h) -> two vectors of pairs.
SK_INLINE void decode_e4m3(const uint8_t* p, Bf16x2* out) {
  const __m512i x = _mm512_loadu_si512(p);
  // Each 128-bit chunk holds 8 bytes of the first vector, then 8 of the second.
  const __m512i split = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x);
  out[0].v = e4m3_words(_mm512_castsi512_si256(split));
  out[1].v = e4m3_words(_mm512_extracti64x4_epi64(split, 1));
}
// 32 bytes of e4m3 -> a vector of pairs.
SK_INLINE Bf16x2 decode_e4m3_pairs(const uint8_t* p) {
  return {e4m3_words(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Two of every four codes: 32 of them, then 8 bytes of masks.
SK_INLINE void decode_e4m3_2to4(const uint8_t* p, Bf16x2* out) { expand_2to4(decode_e4m3_pairs(p), p + 32, out); }

}  // namespace sk::simd::avx512
