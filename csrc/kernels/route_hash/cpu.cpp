#include "core/parallel.h"
#include "kernels/route_hash/op.h"
#include "moe/scores.h"

namespace sk::route_hash::SK_ISA {
using namespace sk::moe::SK_ISA;
using moe::Scoring;

template <Scoring kScoring, class T>
static void weigh_row(const Args& a, int64_t row) {
  const T* z = static_cast<const T*>(a.logits.data) + row * a.logits.stride;
  const int32_t* ids = a.ids + row * a.top_k;
  F32 top = splat(0.0f);
  float total = 1.0f;
  if constexpr (kScoring == Scoring::softmax) {
    top = top_of(z, a.experts);
    total = softmax_total(z, a.experts, top);
  }
  alignas(64) T chosen[moe::kMaxTopK];
  alignas(64) float scores[moe::kMaxTopK];
  for (int64_t i = 0; i < a.top_k; ++i) chosen[i] = z[ids[i]];
  for (int64_t i = 0; i < a.top_k; i += kLanes)
    store(scores + i, score<kScoring>(load(chosen + i, a.top_k - i), top));
  weigh(scores, a.top_k, total, a.weighing, a.weights + row * a.top_k);
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    with_scoring(a.weighing.scoring, [&](auto scoring) {
      const bool reads_all = a.weighing.scoring == Scoring::softmax;
      constexpr int64_t kLine = 64;  // a chosen logit costs a cache line
      const int64_t bytes = reads_all ? 2 * a.experts * size_of(Dtype::f32) : a.top_k * kLine;
      parallel_rows(a.tokens, bytes, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) weigh_row<scoring.kValue, decltype(type)>(a, row);
      });
    });
  });
}

}  // namespace sk::route_hash::SK_ISA
