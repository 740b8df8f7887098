#include "core/parallel.h"
#include "hyper/lanes.h"
#include "kernels/sinkhorn/op.h"

namespace sk::sinkhorn::SK_ISA {
using namespace sk::hyper::SK_ISA;

void run(const Args& a) {
  const int64_t n = a.n, size = n * n;
  // About the bytes of as many loads as there are divisions.
  parallel_rows(ceil_div(a.matrices, kLanes), 64 * n * a.iters, [&](int64_t first, int64_t last) {
    F32 m[hyper::kMaxStreams * hyper::kMaxStreams];
    for (int64_t block = first; block < last; ++block) {
      const int64_t at = block * kLanes, count = min(kLanes, a.matrices - at);
      if (a.logits.stride == n)
        load_tokens(a.logits.data + at * size, size, count, size, m);
      else
        for (int64_t r = 0; r < n; ++r)
          load_tokens(a.logits.data + (at * n + r) * a.logits.stride, n * a.logits.stride, count, n, m + r * n);
      balance(m, n, a.iters, a.eps);
      store_tokens(m, size, a.out + at * size, count);
    }
  });
}

}  // namespace sk::sinkhorn::SK_ISA
