// AVX-512 for processors without it, slow and to the bit: with SPARSEKERN_AVX512=EMULATED the AVX-512 kernels are
// compiled against this header, so that their code is tested on any machine. Only what csrc/simd uses is here;
// another intrinsic does not compile ("target specific option mismatch") until it is added, from Intel's description
// of it.
#pragma once
#include_next <immintrin.h>

#include <cstdint>

namespace sk_emulation {

#define SK_OP static inline __attribute__((always_inline))

// A register as lanes of T.
template <class T>
struct Lanes {
  static constexpr int kCount = 64 / sizeof(T);
  T at[kCount];
  template <class V>
  SK_OP Lanes of(const V& v) {
    static_assert(sizeof(V) == 64);
    Lanes r;
    __builtin_memcpy(&r, &v, 64);
    return r;
  }
  operator __m512() const { return __builtin_bit_cast(__m512, *this); }
  operator __m512i() const { return __builtin_bit_cast(__m512i, *this); }
};

// Lane i is f(i).
template <class T, class F>
SK_OP Lanes<T> lanes(F f) {
  Lanes<T> r;
  for (int i = 0; i < Lanes<T>::kCount; ++i) r.at[i] = static_cast<T>(f(i));
  return r;
}
template <class T, class F>
SK_OP Lanes<T> map(__m512i a, F f) {
  const auto x = Lanes<T>::of(a);
  return lanes<T>([&](int i) { return f(x.at[i]); });
}
template <class T, class F, class V>
SK_OP Lanes<T> map(V a, V b, F f) {
  const auto x = Lanes<T>::of(a), y = Lanes<T>::of(b);
  return lanes<T>([&](int i) { return f(x.at[i], y.at[i]); });
}
template <class T, class F, class V>
SK_OP uint64_t mask(V a, V b, F f) {
  const auto x = Lanes<T>::of(a), y = Lanes<T>::of(b);
  uint64_t m = 0;
  for (int i = 0; i < Lanes<T>::kCount; ++i) m |= static_cast<uint64_t>(f(x.at[i], y.at[i]) ? 1 : 0) << i;
  return m;
}
template <class T, class V>
SK_OP Lanes<T> blend(uint64_t m, V no, V yes) {
  const auto x = Lanes<T>::of(no), y = Lanes<T>::of(yes);
  return lanes<T>([&](int i) { return m >> i & 1 ? y.at[i] : x.at[i]; });
}
// Masked lanes are zeros, and their memory is not touched.
template <class T>
SK_OP Lanes<T> load(uint64_t m, const void* p) {
  return lanes<T>([&](int i) { return m >> i & 1 ? static_cast<const T*>(p)[i] : T{}; });
}
template <class T, class V>
SK_OP void store(void* p, uint64_t m, V v) {
  T at[sizeof(V) / sizeof(T)];
  __builtin_memcpy(at, &v, sizeof v);
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (m >> i & 1) static_cast<T*>(p)[i] = at[i];
}
// VPERM*: lane i is lane from[i] of a, or of a and b one after the other.
template <class T>
SK_OP Lanes<T> permute(__m512i from, __m512i a) {
  const auto x = Lanes<T>::of(a), index = Lanes<T>::of(from);
  return lanes<T>([&](int i) { return x.at[index.at[i] & (Lanes<T>::kCount - 1)]; });
}
template <class T, class V>
SK_OP Lanes<T> permute(V a, __m512i from, V b) {
  constexpr int kCount = Lanes<T>::kCount;
  const auto x = Lanes<T>::of(a), y = Lanes<T>::of(b), index = Lanes<T>::of(from);
  return lanes<T>([&](int i) { return (index.at[i] & kCount ? y : x).at[index.at[i] & (kCount - 1)]; });
}
// VPUNPCK*: the low (kHigh: the high) halves of each 128-bit chunk, interleaved.
template <class T, bool kHigh>
SK_OP Lanes<T> unpack(__m512i a, __m512i b) {
  constexpr int kChunk = 16 / sizeof(T);
  const auto x = Lanes<T>::of(a), y = Lanes<T>::of(b);
  return lanes<T>([&](int i) {
    const int from = i / kChunk * kChunk + (kHigh ? kChunk / 2 : 0) + i % kChunk / 2;
    return (i % 2 ? y : x).at[from];
  });
}
// VSHUFI32X4: two 128-bit chunks of a, then two of b.
SK_OP __m512i shuffle_chunks(__m512i a, __m512i b, int order) {
  const auto x = Lanes<int64_t>::of(a), y = Lanes<int64_t>::of(b);
  return lanes<int64_t>([&](int i) { return (i < 4 ? x : y).at[2 * (order >> i / 2 * 2 & 3) + i % 2]; });
}

// VDPBF16PS flushes subnormals, whatever MXCSR says, and rounds after each of its two products.
SK_OP float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
SK_OP __m512 dpbf16(__m512 acc, __m512i a, __m512i b) {
  const auto sum = Lanes<float>::of(acc);
  const auto x = Lanes<uint32_t>::of(a), y = Lanes<uint32_t>::of(b);
  const auto value = [](uint32_t u) { return flushed(__builtin_bit_cast(float, u)); };
  return lanes<float>([&](int i) {
    const uint32_t high = 0xffff0000u;
    const float odd = flushed(__builtin_fmaf(value(x.at[i] & high), value(y.at[i] & high), flushed(sum.at[i])));
    return flushed(__builtin_fmaf(value(x.at[i] << 16), value(y.at[i] << 16), odd));
  });
}
// VSCALEFPS: x * 2^floor(n), rounded once: exact in double for the exponents in use.
SK_OP float scalef(float x, float n) {
  return static_cast<float>(static_cast<double>(x) *
                            __builtin_bit_cast(double, static_cast<uint64_t>(1023 + static_cast<int>(n)) << 52));
}
template <int kKind>
SK_OP bool compare(float a, float b) {
  static_assert(kKind == _CMP_LT_OQ || kKind == _CMP_EQ_OQ || kKind == _CMP_NEQ_UQ || kKind == _CMP_UNORD_Q);
  return kKind == _CMP_LT_OQ    ? a < b
         : kKind == _CMP_EQ_OQ  ? a == b
         : kKind == _CMP_NEQ_UQ ? a != b
                                : a != a || b != b;
}
SK_OP float nearest(float x) { return _mm_cvtss_f32(_mm_round_ss(_mm_set_ss(x), _mm_set_ss(x), 8)); }

template <class T, class... X>
SK_OP __m512i listed(X... x) {
  return Lanes<T>{{static_cast<T>(x)...}};
}
template <class T>
SK_OP Lanes<T> splat(T x) {
  return lanes<T>([&](int) { return x; });
}
// The lanes whose bit is set, next to each other from the first; zeros after them.
template <class T>
SK_OP Lanes<T> compress(uint64_t m, __m512i a) {
  const auto x = Lanes<T>::of(a);
  Lanes<T> r{};
  for (int i = 0, n = 0; i < Lanes<T>::kCount; ++i)
    if (m >> i & 1) r.at[n++] = x.at[i];
  return r;
}
// And back: to the lanes whose bit is set, in their order; zeros elsewhere.
template <class T>
SK_OP Lanes<T> expand(uint64_t m, __m512i a) {
  const auto x = Lanes<T>::of(a);
  int n = 0;
  return lanes<T>([&](int i) { return m >> i & 1 ? x.at[n++] : T{}; });
}
// Lane by lane from V, of type From, to R, of type To.
template <class To, class From, class R, class V>
SK_OP R convert(const V& v) {
  From from[sizeof(V) / sizeof(From)];
  To to[sizeof(V) / sizeof(From)];
  static_assert(sizeof from == sizeof(V) && sizeof to == sizeof(R));
  __builtin_memcpy(from, &v, sizeof from);
  for (unsigned i = 0; i < sizeof(V) / sizeof(From); ++i) to[i] = static_cast<To>(from[i]);
  R r;
  __builtin_memcpy(&r, to, sizeof to);
  return r;
}
// Zeros above v.
SK_OP __m512i extended(__m256i v) {
  Lanes<uint8_t> r{};
  __builtin_memcpy(&r, &v, sizeof v);
  return r;
}
// The low sizeof(R) bytes of v.
template <class R, class V>
SK_OP R low(const V& v) {
  R r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
template <class R, class V>
SK_OP R upper_half(const V& v) {
  R r;
  __builtin_memcpy(&r, reinterpret_cast<const char*>(&v) + 32, 32);
  return r;
}
SK_OP __m512i repeat(__m128i v) {  // in every 128-bit chunk
  uint32_t word[4];
  __builtin_memcpy(word, &v, 16);
  return lanes<uint32_t>([&](int i) { return word[i % 4]; });
}
SK_OP __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  const auto x = Lanes<float>::of(a), y = Lanes<float>::of(b), z = Lanes<float>::of(c);
  return lanes<float>([&](int i) { return __builtin_fmaf(x.at[i], y.at[i], z.at[i]); });
}
SK_OP __m512i shuffle_bytes(__m512i a, __m512i order) {  // within 128-bit chunks
  const auto x = Lanes<uint8_t>::of(a), o = Lanes<uint8_t>::of(order);
  return lanes<uint8_t>([&](int i) { return o.at[i] & 0x80 ? 0 : x.at[i / 16 * 16 + (o.at[i] & 15)]; });
}
SK_OP __m512i shuffle_words(__m512i a, int order) {  // 32-bit ones, within 128-bit chunks
  const auto x = Lanes<int32_t>::of(a);
  return lanes<int32_t>([&](int i) { return x.at[i / 4 * 4 + (order >> i % 4 * 2 & 3)]; });
}
SK_OP __m512i ternary(__m512i a, __m512i b, __m512i c, int table) {
  const auto x = Lanes<uint64_t>::of(a), y = Lanes<uint64_t>::of(b), z = Lanes<uint64_t>::of(c);
  return lanes<uint64_t>([&](int i) {
    uint64_t r = 0;
    for (int row = 0; row < 8; ++row)
      if (table >> row & 1)
        r |= (row & 4 ? x.at[i] : ~x.at[i]) & (row & 2 ? y.at[i] : ~y.at[i]) & (row & 1 ? z.at[i] : ~z.at[i]);
    return r;
  });
}

// VPMADDWD: products of neighbouring words, added by twos.
SK_OP __m512i madd_words(__m512i a, __m512i b) {
  const auto x = Lanes<int16_t>::of(a), y = Lanes<int16_t>::of(b);
  return lanes<int32_t>([&](int i) {
    const auto product = [&](int j) { return static_cast<uint32_t>(x.at[j] * y.at[j]); };
    return static_cast<int32_t>(product(2 * i) + product(2 * i + 1));
  });
}
// VPDPBUSD: four products of bytes, unsigned by signed, onto a sum.
SK_OP __m512i dot_bytes(__m512i sum, __m512i a, __m512i b) {
  const auto s = Lanes<int32_t>::of(sum);
  const auto x = Lanes<uint8_t>::of(a);
  const auto y = Lanes<int8_t>::of(b);
  return lanes<int32_t>([&](int i) {
    uint32_t total = static_cast<uint32_t>(s.at[i]);
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += static_cast<uint32_t>(x.at[j] * y.at[j]);
    return static_cast<int32_t>(total);
  });
}

}  // namespace sk_emulation

#define SK_EMU ::sk_emulation::

#define _mm512_loadu_si512(p) (SK_EMU low<__m512i>(*reinterpret_cast<const SK_EMU Lanes<uint8_t>*>(p)))
#define _mm512_loadu_ps(p) (SK_EMU low<__m512>(*reinterpret_cast<const SK_EMU Lanes<uint8_t>*>(p)))
#define _mm512_storeu_si512(p, v) SK_EMU store<int64_t>(p, ~0ull, v)
#define _mm512_storeu_ps(p, v) SK_EMU store<float>(p, ~0ull, v)
#define _mm512_stream_si512(p, v) SK_EMU store<int64_t>(p, ~0ull, v)
#define _mm512_maskz_loadu_ps(m, p) (__m512)(SK_EMU load<float>(m, p))
#define _mm512_maskz_loadu_epi32(m, p) (__m512i)(SK_EMU load<int32_t>(m, p))
#define _mm256_maskz_loadu_epi16(m, p) (SK_EMU low<__m256i>(SK_EMU load<int16_t>((m) & 0xffff, p)))
#define _mm_maskz_loadu_epi8(m, p) (SK_EMU low<__m128i>(SK_EMU load<int8_t>((m) & 0xffff, p)))
#define _mm512_mask_storeu_ps(p, m, v) SK_EMU store<float>(p, m, v)
#define _mm512_mask_storeu_epi32(p, m, v) SK_EMU store<int32_t>(p, m, v)
#define _mm256_mask_storeu_epi16(p, m, v) SK_EMU store<int16_t>(p, m, v)
#define _mm_mask_storeu_epi8(p, m, v) SK_EMU store<int8_t>(p, m, v)
#define _mm512_set1_ps(x) __m512(SK_EMU splat<float>(x))
#define _mm512_set1_epi8(x) __m512i(SK_EMU splat<int8_t>(x))
#define _mm512_set1_epi16(x) __m512i(SK_EMU splat<int16_t>(x))
#define _mm512_set1_epi32(x) __m512i(SK_EMU splat<int32_t>(x))
#define _mm512_set1_epi64(x) __m512i(SK_EMU splat<int64_t>(x))
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_epi32(...) (SK_EMU listed<int32_t>(__VA_ARGS__))
#define _mm512_setr_epi64(...) (SK_EMU listed<int64_t>(__VA_ARGS__))
#define _mm512_broadcast_i32x4(x) (SK_EMU repeat(x))
#define _mm512_add_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x + y; }))
#define _mm512_sub_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x - y; }))
#define _mm512_mul_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x * y; }))
#define _mm512_div_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x / y; }))
#define _mm512_min_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x < y ? x : y; }))
#define _mm512_min_epi32(a, b) __m512i(SK_EMU map<int32_t>(a, b, [](int32_t x, int32_t y) { return x < y ? x : y; }))
#define _mm512_max_ps(a, b) __m512(SK_EMU map<float>(a, b, [](float x, float y) { return x > y ? x : y; }))
#define _mm512_max_epi32(a, b) __m512i(SK_EMU map<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; }))
#define _mm512_fmadd_ps(a, b, c) (SK_EMU fmadd(a, b, c))
#define _mm512_sqrt_ps(a) \
  __m512(SK_EMU map<float>(_mm512_castps_si512(a), [](float x) { return __builtin_sqrtf(x); }))
#define _mm512_roundscale_ps(a, how) \
  __m512(SK_EMU map<float>(_mm512_castps_si512(a), [](float x) { return SK_EMU nearest(x); }))
#define _mm512_scalef_ps(a, n) __m512(SK_EMU map<float>(a, n, [](float x, float y) { return SK_EMU scalef(x, y); }))
#define _mm512_add_epi32(a, b) __m512i(SK_EMU map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; }))
#define _mm512_add_epi64(a, b) __m512i(SK_EMU map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x + y; }))
#define _mm512_sub_epi32(a, b) __m512i(SK_EMU map<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x - y; }))
#define _mm512_and_si512(a, b) __m512i(SK_EMU map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; }))
#define _mm512_or_si512(a, b) __m512i(SK_EMU map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x | y; }))
#define _mm512_xor_si512(a, b) __m512i(SK_EMU map<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; }))
#define _mm512_slli_epi16(a, n) \
  __m512i(SK_EMU map<uint16_t>(a, [](uint16_t x) { return static_cast<uint16_t>(x << (n)); }))
#define _mm512_srli_epi16(a, n) \
  __m512i(SK_EMU map<uint16_t>(a, [](uint16_t x) { return static_cast<uint16_t>(x >> (n)); }))
#define _mm512_slli_epi32(a, n) \
  __m512i(SK_EMU map<uint32_t>(a, [](uint32_t x) { return static_cast<uint32_t>(x << (n)); }))
#define _mm512_srli_epi32(a, n) \
  __m512i(SK_EMU map<uint32_t>(a, [](uint32_t x) { return static_cast<uint32_t>(x >> (n)); }))
#define _mm512_srai_epi32(a, n) __m512i(SK_EMU map<int32_t>(a, [](int32_t x) { return x >> (n); }))
#define _mm512_ternarylogic_epi32(a, b, c, table) (SK_EMU ternary(a, b, c, table))
#define _mm512_castps_si512(a) (__builtin_bit_cast(__m512i, a))
#define _mm512_castsi512_ps(a) (__builtin_bit_cast(__m512, a))
#define _mm512_castsi512_si256(a) (SK_EMU low<__m256i>(a))
#define _mm512_castsi512_si128(a) (SK_EMU low<__m128i>(a))
#define _mm512_castps512_ps256(a) (SK_EMU low<__m256>(a))
#define _mm512_castps512_ps128(a) (SK_EMU low<__m128>(a))
#define _mm512_extractf32x8_ps(a, half) (SK_EMU upper_half<__m256>(a))
#define _mm512_extracti64x4_epi64(a, half) (SK_EMU upper_half<__m256i>(a))
#define _mm512_cvtepu8_epi16(a) (SK_EMU convert<int16_t, uint8_t, __m512i>(a))
#define _mm512_cvtepu8_epi32(a) (SK_EMU convert<int32_t, uint8_t, __m512i>(a))
#define _mm512_cvtepu16_epi32(a) (SK_EMU convert<int32_t, uint16_t, __m512i>(a))
#define _mm512_cvtepi32_epi16(a) (SK_EMU convert<int16_t, int32_t, __m256i>(a))
#define _mm512_cvtepi32_epi8(a) (SK_EMU convert<int8_t, int32_t, __m128i>(a))
#define _mm512_cvtepi32_ps(a) (SK_EMU convert<float, int32_t, __m512>(a))
#define _mm512_cvtps_epi32(a)    \
  __m512i(SK_EMU lanes<int32_t>( \
      [x = SK_EMU Lanes<float>::of(a)](int i) { return _mm_cvtss_si32(_mm_set_ss(x.at[i])); }))
#define _mm512_cmp_ps_mask(a, b, kind) static_cast<__mmask16>(SK_EMU mask<float>(a, b, SK_EMU compare<kind>))
#define _mm512_cmpeq_epi32_mask(a, b) \
  static_cast<__mmask16>(SK_EMU mask<int32_t>(a, b, [](int32_t x, int32_t y) { return x == y; }))
#define _mm512_cmpgt_epi32_mask(a, b) \
  static_cast<__mmask16>(SK_EMU mask<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y; }))
#define _mm512_test_epi32_mask(a, b) \
  static_cast<__mmask16>(SK_EMU mask<int32_t>(a, b, [](int32_t x, int32_t y) { return (x & y) != 0; }))
#define _mm512_test_epi16_mask(a, b) \
  static_cast<__mmask32>(SK_EMU mask<int16_t>(a, b, [](int16_t x, int16_t y) { return (x & y) != 0; }))
#define _mm512_mask_blend_ps(m, no, yes) __m512(SK_EMU blend<float>(m, no, yes))
#define _mm512_mask_blend_epi32(m, no, yes) __m512i(SK_EMU blend<int32_t>(m, no, yes))
#define _mm512_mask_mov_epi32(no, m, yes) __m512i(SK_EMU blend<int32_t>(m, no, yes))
#define _mm512_mask_mov_epi16(no, m, yes) __m512i(SK_EMU blend<int16_t>(m, no, yes))
#define _mm512_mask_add_epi32(no, m, a, b) _mm512_mask_blend_epi32(m, no, _mm512_add_epi32(a, b))
#define _mm512_maskz_compress_epi32(m, a) __m512i(SK_EMU compress<int32_t>(m, a))
#define _mm512_maskz_expand_epi8(m, a) __m512i(SK_EMU expand<uint8_t>(m, a))
#define _mm512_zextsi256_si512(a) (SK_EMU extended(a))
#define _mm512_permutexvar_epi8(from, a) __m512i(SK_EMU permute<uint8_t>(from, a))
#define _mm512_permutex2var_epi8(a, from, b) __m512i(SK_EMU permute<uint8_t>(a, from, b))
#define _mm512_unpacklo_epi8(a, b) __m512i(SK_EMU unpack<uint8_t, false>(a, b))
#define _mm512_unpackhi_epi8(a, b) __m512i(SK_EMU unpack<uint8_t, true>(a, b))
#define _mm512_permutexvar_epi16(from, a) __m512i(SK_EMU permute<uint16_t>(from, a))
#define _mm512_permutex2var_epi16(a, from, b) __m512i(SK_EMU permute<uint16_t>(a, from, b))
#define _mm512_unpacklo_epi16(a, b) __m512i(SK_EMU unpack<uint16_t, false>(a, b))
#define _mm512_unpackhi_epi16(a, b) __m512i(SK_EMU unpack<uint16_t, true>(a, b))
#define _mm512_permutexvar_epi32(from, a) __m512i(SK_EMU permute<uint32_t>(from, a))
#define _mm512_permutex2var_epi32(a, from, b) __m512i(SK_EMU permute<uint32_t>(a, from, b))
#define _mm512_unpacklo_epi32(a, b) __m512i(SK_EMU unpack<uint32_t, false>(a, b))
#define _mm512_unpackhi_epi32(a, b) __m512i(SK_EMU unpack<uint32_t, true>(a, b))
#define _mm512_permutexvar_epi64(from, a) __m512i(SK_EMU permute<uint64_t>(from, a))
#define _mm512_permutex2var_epi64(a, from, b) __m512i(SK_EMU permute<uint64_t>(a, from, b))
#define _mm512_unpacklo_epi64(a, b) __m512i(SK_EMU unpack<uint64_t, false>(a, b))
#define _mm512_unpackhi_epi64(a, b) __m512i(SK_EMU unpack<uint64_t, true>(a, b))
#define _mm512_permutex2var_ps(a, from, b) __m512(SK_EMU permute<uint32_t>(a, from, b))
#define _mm512_shuffle_epi8(a, order) (SK_EMU shuffle_bytes(a, order))
#define _mm512_shuffle_epi32(a, order) (SK_EMU shuffle_words(a, order))
#define _mm512_shuffle_i32x4(a, b, order) (SK_EMU shuffle_chunks(a, b, order))
#define _mm512_shuffle_i64x2(a, b, order) (SK_EMU shuffle_chunks(a, b, order))
#define _mm512_dpbf16_ps(acc, a, b) \
  (SK_EMU dpbf16(acc, __builtin_bit_cast(__m512i, a), __builtin_bit_cast(__m512i, b)))
#define _mm512_srai_epi16(a, n) \
  __m512i(SK_EMU map<int16_t>(a, [](int16_t x) { return static_cast<int16_t>(x >> (n)); }))
#define _mm512_madd_epi16(a, b) (SK_EMU madd_words(a, b))
#define _mm512_dpbusd_epi32(sum, a, b) (SK_EMU dot_bytes(sum, a, b))
