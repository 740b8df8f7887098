#include "core/parallel.h"
#include "kernels/sparsify_2to4/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::sparsify_2to4::SK_ISA {
using namespace sk::simd::SK_ISA;
namespace {

constexpr int64_t kBlock = 4 * kLanes;  // values that make one vector of fours

// Values as the bits that they are: only their order is a matter of numbers.
SK_INLINE I32 load_bits(const float* p) { return load(reinterpret_cast<const int32_t*>(p)); }
SK_INLINE I32 load_bits(const bf16* p) { return load_words(p); }
SK_INLINE I32 load_bits(const uint8_t* p) { return load(p); }
SK_INLINE F32 value_of(const float*, I32 x) { return from_bits(x); }
SK_INLINE F32 value_of(const bf16*, I32 x) { return from_bits(shl<16>(x)); }
SK_INLINE F32 value_of(const uint8_t*, I32 x) { return decode<E4m3>(x); }

// The two values of each four, side by side.
SK_INLINE void store_kept(float* p, I32 first, I32 second) {
  store(p, interleave_low(from_bits(first), from_bits(second)));
  store(p + kLanes, interleave_high(from_bits(first), from_bits(second)));
}
SK_INLINE void store_kept(bf16* p, I32 first, I32 second) {
  store(reinterpret_cast<int32_t*>(p), or_(first, shl<16>(second)));
}
SK_INLINE void store_kept(uint8_t* p, I32 first, I32 second) { store_words(p, or_(first, shl<8>(second))); }

struct Fours { I32 at[4]; };  // lane i holds elements 4 i to 4 i + 3

template <class T>
SK_INLINE Fours load_fours(const T* p) {
  const I32 a = load_bits(p), b = load_bits(p + kLanes), c = load_bits(p + 2 * kLanes), d = load_bits(p + 3 * kLanes);
  const I32 even_ab = even_runs<1>(a, b), odd_ab = odd_runs<1>(a, b);
  const I32 even_cd = even_runs<1>(c, d), odd_cd = odd_runs<1>(c, d);
  return {{even_runs<1>(even_ab, even_cd), even_runs<1>(odd_ab, odd_cd), odd_runs<1>(even_ab, even_cd),
           odd_runs<1>(odd_ab, odd_cd)}};
}

// What counts: NaN is less than anything.
template <class T, class U>
SK_INLINE F32 score(I32 x, const U* importance, I32 weight) {
  F32 s = abs(value_of(static_cast<const T*>(nullptr), x));
  if (importance != nullptr) s = mul(s, value_of(importance, weight));
  return select(ne(s, s), splat(-__builtin_inff()), s);
}

template <class T, class U>
void sparsify_block(const T* w, const U* importance, T* values, uint8_t* metadata) {
  const Fours x = load_fours(w), weight = importance != nullptr ? load_fours(importance) : Fours{};
  F32 s[4];
  for (int i = 0; i < 4; ++i) s[i] = score<T>(x.at[i], importance, weight.at[i]);

  // An element that loses to fewer than two others stays. Of equals the earlier one wins.
  const I32 one = splat_i(1), none = splat_i(0);
  I32 losses[4] = {none, none, none, none};
  for (int i = 0; i < 4; ++i)
    for (int j = i + 1; j < 4; ++j) {
      const I32 later_wins = select(lt(s[i], s[j]), one, none);
      losses[i] = add(losses[i], later_wins);
      losses[j] = add(losses[j], sub(one, later_wins));
    }
  Mask stays[4];
  I32 mask = none;
  for (int i = 0; i < 4; ++i) {
    stays[i] = gt(splat_i(2), losses[i]);
    mask = or_(mask, select(stays[i], splat_i(1 << i), none));
  }
  const I32 first = select(stays[0], x.at[0], select(stays[1], x.at[1], x.at[2]));
  const I32 second = select(stays[3], x.at[3], select(stays[2], x.at[2], x.at[1]));
  store_kept(values, first, second);
  store(metadata, or_(even_runs<1>(mask, mask), shl<4>(odd_runs<1>(mask, mask))), kLanes / 2);
}

template <class T>
void copy(const T* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// The last values of a row, fewer than a block.
template <class T, class U>
void sparsify_tail(const T* w, const U* importance, int64_t n, T* values, uint8_t* metadata) {
  T row[kBlock] = {}, kept[kBlock / 2];
  U weights[kBlock] = {};
  uint8_t masks[kLanes / 2];
  copy(w, n, row);
  if (importance != nullptr) copy(importance, n, weights);
  sparsify_block(row, importance != nullptr ? weights : nullptr, kept, masks);
  if (n % 8 != 0) masks[n / 8] &= 0x0f;  // there is no such four
  copy(kept, n / 2, values);
  copy(masks, ceil_div(n, 8), metadata);
}

template <class T, class U>
void sparsify(const Args& a, const U* importance) {
  parallel_rows(a.rows, 2 * a.dim * int64_t{sizeof(T)}, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* const w = static_cast<const T*>(a.w.data) + r * a.w.stride;
      T* const values = static_cast<T*>(a.values) + r * (a.dim / 2);
      uint8_t* const metadata = a.metadata + r * ceil_div(a.dim, 8);
      int64_t k = 0;
      for (; k + kBlock <= a.dim; k += kBlock)
        sparsify_block(w + k, importance != nullptr ? importance + k : nullptr, values + k / 2, metadata + k / 8);
      if (k < a.dim)
        sparsify_tail(w + k, importance != nullptr ? importance + k : nullptr, a.dim - k, values + k / 2,
                      metadata + k / 8);
    }
  });
}

}  // namespace

void run(const Args& a) {
  with_float_type(a.importance_dtype, [&](auto type) {
    const auto* importance = static_cast<const decltype(type)*>(a.importance);
    if (a.dtype == Dtype::e4m3)
      sparsify<uint8_t>(a, importance);
    else
      with_float_type(a.dtype, [&](auto value) { sparsify<decltype(value)>(a, importance); });
  });
}

}  // namespace sk::sparsify_2to4::SK_ISA
