#include "core/parallel.h"
#include "kernels/route_topk/op.h"
#include "moe/route.h"

namespace sk::route_topk::SK_ISA {
using namespace sk::moe::SK_ISA;

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const Rows<const T> logits = {static_cast<const T*>(a.logits.data), a.logits.stride};
    with_scoring(a.weighing.scoring, [&](auto scoring) {
      // About twice the row's bytes: scoring takes longer than reading.
      parallel_rows(a.tokens, 2 * a.experts * size_of(Dtype::f32), [&](int64_t first, int64_t last) {
        route_rows<scoring.kValue>(logits, a.experts, a.selection, a.weighing, a.weights, a.ids, first, last);
      });
    });
  });
}

}  // namespace sk::route_topk::SK_ISA
