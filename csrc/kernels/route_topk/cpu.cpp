#include "core/parallel.h"
#include "kernels/route_topk/op.h"

namespace sk::route_topk::SK_ISA {

void run(const Args& a) {
  // About twice the row's bytes: scoring takes longer than reading.
  parallel_rows(a.tokens, 2 * a.logits.experts * size_of(Dtype::f32), [&](int64_t first, int64_t last) {
    const int64_t slot = first * a.selection.top_k;
    moe::SK_ISA::select(a.logits.from(first), last - first, a.selection, a.weighing, a.weights + slot, a.ids + slot);
  });
}

}  // namespace sk::route_topk::SK_ISA
