#include "core/parallel.h"
#include "kernels/route_hash/op.h"

namespace sk::route_hash::SK_ISA {

void run(const Args& a) {
  const bool reads_all = a.weighing.scoring == moe::Scoring::softmax;
  constexpr int64_t kLine = 64;  // a chosen logit costs a cache line
  const int64_t bytes = reads_all ? 2 * a.logits.experts * size_of(Dtype::f32) : a.top_k * kLine;
  parallel_rows(a.tokens, bytes, [&](int64_t first, int64_t last) {
    const int64_t slot = first * a.top_k;
    moe::SK_ISA::weigh(a.logits.from(first), last - first, a.ids + slot, a.top_k, a.weighing, a.weights + slot);
  });
}

}  // namespace sk::route_hash::SK_ISA
