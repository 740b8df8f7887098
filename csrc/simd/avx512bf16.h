// AVX-512 with BF16, VBMI, VBMI2 and VNNI: VDPBF16PS multiplies pairs, VPERMI2B decodes FP8, VPEXPANDB spreads 2:4
// codes.
#pragma once
#include <immintrin.h>

#include "core/types.h"
#include "simd/tables.h"

namespace sk::simd::avx512bf16 {

#include "simd/avx512_lanes.h"

constexpr int kAccumulators = 24, kTileVectors = 4;  // that fit the registers; vectors of a tile of many rows
constexpr bool kDotsBf16 = true;                // whether dot() is an instruction

SK_INLINE F32 dot(F32 acc, Bf16x2 a, Bf16x2 b) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// acc + the four products of unsigned bytes of a with signed bytes of b, exactly.
SK_INLINE I32 dot_bytes(I32 acc, I32 a, I32 b) { return {_mm512_dpbusd_epi32(acc.v, a.v, b.v)}; }

// e4m3 -> bf16, exactly. 7 magnitude bits pick from 128 bf16 values held as two byte planes (VPERMI2B reads 128
// bytes and ignores bit 7); the sign is bit 7 of both formats' top byte. Not a shift: VDPBF16PS would flush e4m3
// subnormals, which a shift leaves subnormal in bf16.
SK_INLINE void decode_e4m3(__m512i x, Bf16x2* out) {
  const auto plane = [](const uint8_t* t, int i) { return _mm512_loadu_si512(t + 64 * i); };
  const __m512i low = _mm512_permutex2var_epi8(plane(kE4m3Low, 0), x, plane(kE4m3Low, 1));
  const __m512i high =
      _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(plane(kE4m3High, 0), x, plane(kE4m3High, 1)), x,
                                _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);
  out[0].v = _mm512_unpacklo_epi8(low, high);
  out[1].v = _mm512_unpackhi_epi8(low, high);
}
// 64 bytes of e4m3 in kernel order (gemm/gemm.h) -> two vectors of pairs.
SK_INLINE void decode_e4m3(const uint8_t* p, Bf16x2* out) { decode_e4m3(_mm512_loadu_si512(p), out); }

// Two of every four codes: 32 of them, then 8 bytes of masks, bit after bit one for each element of 16 fours.
SK_INLINE void decode_e4m3_2to4(const uint8_t* p, Bf16x2* out) {
  uint64_t masks;
  __builtin_memcpy(&masks, p + 32, sizeof masks);
  const __m512i kept = _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  decode_e4m3(to_kernel_order(I32{_mm512_maskz_expand_epi8(masks, kept)}).v, out);
}
// 32 bytes of e4m3 -> a vector of pairs.
SK_INLINE Bf16x2 decode_e4m3_pairs(const uint8_t* p) {
  const __m512i x = _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  Bf16x2 out[2];  // of 8 codes in every 128-bit chunk the first vector's
  decode_e4m3(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), x), out);
  return out[0];
}

}  // namespace sk::simd::avx512bf16
