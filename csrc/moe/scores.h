// Scores of experts and the weights made of them.
//
// The score of NaN is NaN until it is chosen, then 0. An infinite logit scores like the largest finite one, so that
// no weight becomes NaN.
#pragma once
#include "moe/routing.h"
#include "simd/isa.h"
#include "simd/loops.h"

namespace sk::moe::SK_ISA {
using namespace sk::simd::SK_ISA;

inline constexpr float kLargest = __FLT_MAX__;
inline constexpr int64_t kRoutedRows = 8;  // that go through every step together

SK_INLINE F32 finite(F32 z) { return max(splat(-kLargest), min(splat(kLargest), z)); }  // NaN stays NaN
SK_INLINE F32 without_nan(F32 x) { return select(eq(x, x), x, splat(0.0f)); }
SK_INLINE Mask first_lanes(int64_t n) { return gt(splat_i(static_cast<int32_t>(n)), lane_numbers()); }
// x where there are lanes, `other` elsewhere.
template <class V>
SK_INLINE V only(All, V x, V) {
  return x;
}
template <class V>
SK_INLINE V only(int64_t n, V x, V other) {
  return select(first_lanes(n), x, other);
}

// The score of a logit in two steps, each short enough for a processor to work on many at once. `top` is the row's
// largest logit, which only a softmax asks for.
template <Scoring kScoring>
SK_INLINE F32 begin_score(F32 z, F32 top) {
  if constexpr (kScoring == Scoring::sigmoid) return exp_minus_abs(z);
  if constexpr (kScoring == Scoring::softmax) return without_nan(exp(sub(finite(z), top)));
  return exp(min(splat(kLargest), z));  // NaN stays NaN
}
template <Scoring kScoring>
SK_INLINE F32 finish_score(F32 z, F32 begun) {
  if constexpr (kScoring == Scoring::sigmoid) return sigmoid_of(z, begun);
  if constexpr (kScoring == Scoring::softmax) return begun;
  const F32 x = min(splat(kLargest), z);
  return sqrt(select(lt(splat(20.0f), x), x, log1p(begun)));
}
template <Scoring kScoring>
SK_INLINE F32 score(F32 z, F32 top) {
  return finish_score<kScoring>(z, begin_score<kScoring>(z, top));
}

template <class T>
static F32 top_of(const T* z, int64_t n) {
  F32 top = splat(-kLargest);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(finite(load(z + i)), top);  // NaN loses
  if (i < n) top = max(select(first_lanes(n - i), finite(load(z + i, n - i)), top), top);
  return splat(largest(top));
}

// What the scores of a row are divided by: a softmax by their sum, which is at least 1 but where all are NaN.
template <class T>
static float softmax_total(const T* z, int64_t n, F32 top) {
  F32 total = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total = add(total, score<Scoring::softmax>(load(z + i), top));
  if (i < n)
    total = add(total, select(first_lanes(n - i), score<Scoring::softmax>(load(z + i, n - i), top), splat(0)));
  return sum(total);
}

// The weights of `rows` times k chosen experts, of which each row has its softmax total. Rows lie one after the
// other, and vectors take no notice of where they end. `chosen` holds scores, in whole vectors, and is changed.
static void weigh_chosen(float* chosen, int64_t rows, int64_t k, const float* totals, const Weighing& how,
                         float* weights) {
  alignas(64) float divisors[kRoutedRows * kMaxTopK + kLanes];
  const auto each = [&](auto body) {
    for (int64_t i = 0; i < rows * k; i += kLanes) body(i);
  };
  const auto divide_rows = [&](auto divisor_of) {
    for (int64_t r = 0; r < rows; ++r) {
      const F32 d = splat(divisor_of(r));  // what is written too far, the next row overwrites
      for (int64_t i = 0; i < k; i += kLanes) store(divisors + r * k + i, d);
    }
    each([&](int64_t i) { store(chosen + i, div(load(chosen + i), load(divisors + i))); });
  };
  each([&](int64_t i) { store(chosen + i, without_nan(load(chosen + i))); });
  if (how.scoring == Scoring::softmax) divide_rows([&](int64_t r) { return totals[r] < 1.0f ? 1.0f : totals[r]; });
  if (how.renormalize)
    divide_rows([&](int64_t r) {
      float sum = 1e-20f;
      for (int64_t i = 0; i < k; ++i) sum += chosen[r * k + i];
      return sum;
    });
  each([&](int64_t i) { store(weights + i, mul(load(chosen + i), splat(how.scale)), rows * k - i); });
}

// body(s) with s.kValue the scoring: chosen at run time, outside the loop.
template <Scoring kScoring>
struct ScoringIs {
  static constexpr Scoring kValue = kScoring;
};
template <class Body>
SK_INLINE void with_scoring(Scoring s, const Body& body) {
  if (s == Scoring::sigmoid) return body(ScoringIs<Scoring::sigmoid>{});
  if (s == Scoring::softmax) return body(ScoringIs<Scoring::softmax>{});
  return body(ScoringIs<Scoring::sqrtsoftplus>{});
}

}  // namespace sk::moe::SK_ISA
