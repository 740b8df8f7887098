#include "core/parallel.h"
#include "hyper/mix.h"
#include "kernels/mhc_post/op.h"

namespace sk::mhc_post::SK_ISA {
using namespace sk::hyper::SK_ISA;

void run(const Args& a) {
  const int64_t bytes = (2 * a.in.n * size_of(a.in.dtype) + size_of(a.y_dtype)) * a.in.dim;
  with_types(a, [&](auto t, auto y) {
    parallel_rows(a.in.tokens, bytes, [&](int64_t first, int64_t last) {
      for (int64_t token = first; token < last; ++token) expand<decltype(t), decltype(y)>(a, token, 0, a.in.dim);
    });
  });
}

}  // namespace sk::mhc_post::SK_ISA
