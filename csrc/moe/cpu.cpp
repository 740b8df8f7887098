#include "moe/route.h"
#include "moe/routing.h"

namespace sk::moe::SK_ISA {
namespace {

// Only the chosen logits are read, but for a softmax.
template <Scoring kScoring, class T>
void weigh_row(const T* z, int64_t experts, const int32_t* ids, int64_t k, const Weighing& how, float* weights) {
  F32 top = splat(0.0f);
  float total = 1.0f;
  if constexpr (kScoring == Scoring::softmax) {
    top = top_of(z, experts);
    total = softmax_total(z, experts, top);
  }
  alignas(64) T chosen[kMaxTopK];
  alignas(64) float scores[kMaxTopK];
  for (int64_t i = 0; i < k; ++i) chosen[i] = z[ids[i]];
  for (int64_t i = 0; i < k; i += kLanes) store(scores + i, score<kScoring>(load(chosen + i, k - i), top));
  weigh_chosen(scores, 1, k, &total, how, weights);
}

// body(rows, s): rows of the type that the logits have, s.kValue the scoring.
template <class Body>
SK_INLINE void with_types(const Logits& logits, Scoring scoring, const Body& body) {
  with_float_type(logits.dtype, [&](auto type) {
    const Rows<const decltype(type)> rows = {static_cast<const decltype(type)*>(logits.rows.data),
                                             logits.rows.stride};
    with_scoring(scoring, [&](auto s) { body(rows, s); });
  });
}

}  // namespace

void select(const Logits& logits, int64_t rows, const Selection& selection, const Weighing& weighing, float* weights,
            int32_t* ids) {
  with_types(logits, weighing.scoring, [&](auto z, auto s) {
    select_rows<s.kValue>(z, logits.experts, rows, selection, weighing, weights, ids);
  });
}

void weigh(const Logits& logits, int64_t rows, const int32_t* ids, int64_t top_k, const Weighing& weighing,
           float* weights) {
  with_types(logits, weighing.scoring, [&](auto z, auto s) {
    for (int64_t r = 0; r < rows; ++r)
      weigh_row<s.kValue>(z.data + r * z.stride, logits.experts, ids + r * top_k, top_k, weighing,
                          weights + r * top_k);
  });
}

}  // namespace sk::moe::SK_ISA
