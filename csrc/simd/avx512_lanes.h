// Sixteen lanes in one 512-bit register: what avx512.h and avx512bf16.h share. Included inside their namespaces.

inline constexpr int kLanes = 16;

struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct Mask { __mmask16 m; };
struct Bf16x2 { __m512i v; };  // 16 pairs (k, k + 1)

SK_INLINE __mmask16 first(int64_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// --- loads and stores; with n: the first n lanes, the others are 0 and memory there is not touched
SK_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
SK_INLINE F32 load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
SK_INLINE F32 widen(__m256i h) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))}; }
SK_INLINE F32 load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
SK_INLINE F32 load(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
SK_INLINE I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
SK_INLINE I32 load(const int32_t* p, int64_t n) { return {_mm512_maskz_loadu_epi32(first(n), p)}; }
SK_INLINE I32 load(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
SK_INLINE I32 load(const uint8_t* p, int64_t n) { return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p))}; }

SK_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
SK_INLINE void store(float* p, F32 x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
SK_INLINE void store(int32_t* p, I32 x) { _mm512_storeu_si512(p, x.v); }
SK_INLINE void store(int32_t* p, I32 x, int64_t n) { _mm512_mask_storeu_epi32(p, first(n), x.v); }
SK_INLINE void store(uint8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
SK_INLINE void store(uint8_t* p, I32 x, int64_t n) { _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(x.v)); }

// --- 16-bit words, the low halves of the lanes; p as it comes, aligned or not
SK_INLINE I32 load_words(const void* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
SK_INLINE void store_words(void* p, I32 x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}

// A cache line from anywhere to a multiple of 64, past the caches; finish_lines() makes it visible to others.
SK_INLINE void stream_line(void* to, const void* from) {
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
SK_INLINE void finish_lines() { _mm_sfence(); }

// --- arithmetic
SK_INLINE F32 splat(float x) { return {_mm512_set1_ps(x)}; }
SK_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
SK_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SK_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SK_INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
SK_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SK_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
SK_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }  // a < b ? a : b
SK_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }  // a > b ? a : b
SK_INLINE F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, 8)}; }  // to nearest, ties to even

// --- integers
SK_INLINE I32 splat_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
SK_INLINE I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
SK_INLINE I32 sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
SK_INLINE I32 and_(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
SK_INLINE I32 or_(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
SK_INLINE I32 xor_(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
SK_INLINE I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
SK_INLINE I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int N> SK_INLINE I32 shl(I32 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> SK_INLINE I32 shr(I32 a) { return {_mm512_srli_epi32(a.v, N)}; }  // logical
template <int N> SK_INLINE I32 sra(I32 a) { return {_mm512_srai_epi32(a.v, N)}; }
SK_INLINE I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
SK_INLINE F32 from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
SK_INLINE I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }  // rounds to nearest, ties to even
SK_INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// x * 2^n, rounded once, for 1/2 < |x| < 2 and integer n in [-252, 252].
SK_INLINE F32 scale_by_power(F32 x, F32 n) { return {_mm512_scalef_ps(x.v, n.v)}; }

// --- comparisons: false where an operand is NaN, but for ne
SK_INLINE Mask lt(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
SK_INLINE Mask eq(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
SK_INLINE Mask ne(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)}; }
SK_INLINE Mask eq(I32 a, I32 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
SK_INLINE Mask gt(I32 a, I32 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
SK_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
SK_INLINE I32 select(Mask m, I32 yes, I32 no) { return {_mm512_mask_blend_epi32(m.m, no.v, yes.v)}; }
SK_INLINE uint32_t to_bits(Mask m) { return m.m; }  // lane i is bit i

// --- across lanes: halves 16 -> 8 -> 4 -> 2 -> 1, on every ISA
SK_INLINE float sum(F32 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
SK_INLINE float largest(F32 a) {  // no NaN among the lanes
  const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}
SK_INLINE I32 max_across(I32 a) {  // the largest lane, in all lanes
  __m512i m = _mm512_max_epi32(a.v, _mm512_shuffle_i64x2(a.v, a.v, 0x4e));
  m = _mm512_max_epi32(m, _mm512_shuffle_i64x2(m, m, 0xb1));
  m = _mm512_max_epi32(m, _mm512_shuffle_epi32(m, _MM_PERM_BADC));
  return {_mm512_max_epi32(m, _mm512_shuffle_epi32(m, _MM_PERM_CDAB))};
}
SK_INLINE I32 permute(I32 a, I32 from) { return {_mm512_permutexvar_epi32(from.v, a.v)}; }  // lane i: a[from[i] % 16]
// The lanes whose bit is set, in their order, to p; what else the 16 places at p hold is arbitrary then. A masked
// store of the lanes themselves (VPCOMPRESSD to memory) takes some processors a hundred cycles.
SK_INLINE void compress(int32_t* p, I32 x, uint32_t set) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(set), x.v));
}
SK_INLINE void compress(float* p, F32 x, uint32_t set) { compress(reinterpret_cast<int32_t*>(p), bits(x), set); }
// Lanes in runs of N: the even-numbered runs of a, then those of b; and the odd-numbered ones.
template <int N, bool kOdd>
SK_INLINE I32 runs(I32 a, I32 b) {
  if constexpr (N == 8) return {_mm512_shuffle_i64x2(a.v, b.v, kOdd ? 0xee : 0x44)};
  if constexpr (N == 4) return {_mm512_shuffle_i64x2(a.v, b.v, kOdd ? 0xdd : 0x88)};
  const __m512i one = _mm512_set1_epi32(1), even = _mm512_slli_epi32(_mm512_loadu_si512(kLaneNumbers.at), 1);
  if constexpr (N == 1) return {_mm512_permutex2var_epi32(a.v, kOdd ? _mm512_or_si512(even, one) : even, b.v)};
  const __m512i pairs = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  return {_mm512_permutex2var_epi64(a.v, kOdd ? _mm512_add_epi64(pairs, _mm512_set1_epi64(1)) : pairs, b.v)};
}
template <int N> SK_INLINE I32 even_runs(I32 a, I32 b) { return runs<N, false>(a, b); }
template <int N> SK_INLINE I32 odd_runs(I32 a, I32 b) { return runs<N, true>(a, b); }

// --- f32 -> bf16, to nearest even; every NaN becomes 0x7fc0. On the bits, because VCVTNEPS2BF16 flushes subnormals
// whatever MXCSR says.
SK_INLINE __m512i round_to_bf16(F32 x) {  // in the upper halves; the lower halves are arbitrary
  const __m512i u = _mm512_castps_si512(x.v);
  const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
  const __m512i half = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
  const __m512i r = _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
}
SK_INLINE __m256i narrow(F32 x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bf16(x), 16)); }
SK_INLINE void store(bf16* p, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
SK_INLINE void store(bf16* p, F32 x, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow(x)); }

// --- moves between two vectors, read as 32 lanes a, b: the even ones, the odd ones; and back, 16 by 16
SK_INLINE F32 even_lanes(F32 a, F32 b) {
  return {
      _mm512_permutex2var_ps(a.v, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b.v)};
}
SK_INLINE F32 odd_lanes(F32 a, F32 b) {
  return {
      _mm512_permutex2var_ps(a.v, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b.v)};
}
SK_INLINE F32 interleave_low(F32 even, F32 odd) {
  return {_mm512_permutex2var_ps(even.v, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                                 odd.v)};
}
SK_INLINE F32 interleave_high(F32 even, F32 odd) {
  return {_mm512_permutex2var_ps(
      even.v, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), odd.v)};
}

// --- pairs of bf16, the operands of dot()
SK_INLINE Bf16x2 load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
SK_INLINE void store_pairs(void* p, Bf16x2 x) { _mm512_storeu_si512(p, x.v); }
SK_INLINE Bf16x2 narrow_pairs(F32 even, F32 odd) {
  const __m512i low = _mm512_srli_epi32(round_to_bf16(even), 16);
  return {_mm512_mask_mov_epi16(low, 0xaaaaaaaa, round_to_bf16(odd))};
}
// The upper halves as they are: of floats that bf16 holds exactly.
SK_INLINE Bf16x2 join_pairs(F32 even, F32 odd) {
  return {_mm512_mask_mov_epi16(_mm512_srli_epi32(_mm512_castps_si512(even.v), 16), 0xaaaaaaaa,
                                _mm512_castps_si512(odd.v))};
}
SK_INLINE Bf16x2 splat_pair(const void* p) { return {_mm512_set1_epi32(*static_cast<const int32_t*>(p))}; }
SK_INLINE F32 even(Bf16x2 x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
SK_INLINE F32 odd(Bf16x2 x) {
  return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}

// --- chunks of weights (gemm/gemm.h): 16 columns times 4 bytes
// v[i] lane j <-> v[j] lane i
SK_INLINE void transpose(I32* v) {
  __m512i t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i].v, v[i + 1].v);
    t[i + 1] = _mm512_unpackhi_epi32(v[i].v, v[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      u[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  // u[4 g + c]: in 128-bit chunk q, lanes 4 g .. 4 g + 3 of column 4 q + c.
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(u[c], u[c + 4], 0x88), b = _mm512_shuffle_i32x4(u[c], u[c + 4], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(u[c + 8], u[c + 12], 0x88),
                  e = _mm512_shuffle_i32x4(u[c + 8], u[c + 12], 0xdd);
    v[c].v = _mm512_shuffle_i32x4(a, d, 0x88);
    v[c + 8].v = _mm512_shuffle_i32x4(a, d, 0xdd);
    v[c + 4].v = _mm512_shuffle_i32x4(b, e, 0x88);
    v[c + 12].v = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
}
// 64 bytes of each of 16 rows, from `at` on: lane i of all of them to `to + i * stride`.
SK_INLINE void transpose_lines(const uint8_t* const* rows, int64_t at, uint8_t* to, int64_t stride) {
  I32 block[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) block[i] = load(reinterpret_cast<const int32_t*>(rows[i] + at));
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<int32_t*>(to + i * stride), block[i]);
}
// Four bytes a lane, two pairs -> kernel order: in every group of four lanes, all first pairs, then all second ones.
SK_INLINE I32 shuffle_bytes(I32 x, __m128i order) {
  return {_mm512_shuffle_epi8(x.v, _mm512_broadcast_i32x4(order))};
}
SK_INLINE I32 to_kernel_order(I32 x) {
  return shuffle_bytes(x, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}
SK_INLINE I32 from_kernel_order(I32 x) {
  return shuffle_bytes(x, _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
}

// 64 bytes of e2m1 in kernel order (gemm/gemm.h) -> four vectors of pairs. VPERMW looks at five bits of each word,
// which holds a byte twice: the table repeats, so the next nibble's lowest bit does not matter.
SK_INLINE void decode_e2m1(const uint8_t* p, Bf16x2* out) {
  const __m512i x = _mm512_loadu_si512(p);
  const __m512i table = _mm512_loadu_si512(kBf16OfE2m1);
  const __m512i first = _mm512_unpacklo_epi8(x, x), second = _mm512_unpackhi_epi8(x, x);
  out[0].v = _mm512_permutexvar_epi16(first, table);
  out[1].v = _mm512_permutexvar_epi16(_mm512_srli_epi16(first, 4), table);
  out[2].v = _mm512_permutexvar_epi16(second, table);
  out[3].v = _mm512_permutexvar_epi16(_mm512_srli_epi16(second, 4), table);
}

// The two values of every four (k to k + 3 of a lane) that are there -> pairs (k, k + 1) and (k + 2, k + 3), zeros
// elsewhere. A lane's four bits, two of which are set, say where they go; 8 bytes, the first lane in the lower half.
SK_INLINE void expand_2to4(Bf16x2 kept, const uint8_t* masks, Bf16x2* out) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(masks));
  const __m128i of_lane = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));  // in the low halves
  const __m512i mask = _mm512_cvtepu8_epi32(of_lane);  // VPERMD looks at four bits
  const __m512i own_bytes = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  const auto pair = [&](const uint32_t* table) {
    const __m512i from = _mm512_permutexvar_epi32(mask, _mm512_loadu_si512(table));
    return Bf16x2{_mm512_shuffle_epi8(kept.v, _mm512_or_si512(from, own_bytes))};
  };
  out[0] = pair(kExpand01.at);
  out[1] = pair(kExpand23.at);
}

// --- FTZ, DAZ and round-to-nearest for GEMM loops (DESIGN, law 9)
SK_INLINE uint32_t set_gemm_rounding() {
  const uint32_t old = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  return old;
}
SK_INLINE void set_rounding(uint32_t csr) { _mm_setcsr(csr); }
