// Scores of experts and the weights made of them.
//
// The score of NaN is NaN until it is chosen, then 0. An infinite logit scores like the largest finite one, so that
// no weight becomes NaN.
#pragma once
#include "moe/routing.h"
#include "simd/isa.h"

namespace sk::moe::SK_ISA {
using namespace sk::simd::SK_ISA;

inline constexpr float kLargest = __FLT_MAX__;

SK_INLINE F32 finite(F32 z) { return max(splat(-kLargest), min(splat(kLargest), z)); }  // NaN stays NaN
SK_INLINE F32 without_nan(F32 x) { return select(eq(x, x), x, splat(0.0f)); }
SK_INLINE Mask first_lanes(int64_t n) { return gt(splat_i(static_cast<int32_t>(n)), lane_numbers()); }

// Scores experts of one row. `top` is the row's largest logit, which only a softmax asks for.
template <Scoring kScoring>
SK_INLINE F32 score(F32 z, F32 top) {
  if constexpr (kScoring == Scoring::sigmoid) return sigmoid(z);
  if constexpr (kScoring == Scoring::softmax) return without_nan(exp(sub(finite(z), top)));
  const F32 x = min(splat(kLargest), z);  // NaN stays NaN
  return sqrt(select(lt(splat(20.0f), x), x, log1p(exp(x))));
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

// The weights of k chosen experts, at most kMaxTopK; `chosen` holds their scores and is changed.
static void weigh_chosen(float* chosen, int64_t k, float total, const Weighing& how, float* weights) {
  const int vectors = k > kLanes ? 2 : 1;
  static_assert(kMaxTopK == 2 * kLanes, "two vectors hold them all");
  F32 w[2];
  for (int v = 0; v < vectors; ++v) {
    w[v] = without_nan(load(chosen + v * kLanes, k - v * kLanes));
    if (how.scoring == Scoring::softmax) w[v] = div(w[v], splat(total < 1.0f ? 1.0f : total));
  }
  if (how.renormalize) {
    for (int v = 0; v < vectors; ++v) store(chosen + v * kLanes, w[v]);
    float sum = 1e-20f;
    for (int64_t i = 0; i < k; ++i) sum += chosen[i];
    for (int v = 0; v < vectors; ++v) w[v] = div(w[v], splat(sum));
  }
  for (int v = 0; v < vectors; ++v) store(weights + v * kLanes, mul(w[v], splat(how.scale)), k - v * kLanes);
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
