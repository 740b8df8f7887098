#include "core/parallel.h"
#include "hyper/mix.h"
#include "kernels/mhc_post_pre/op.h"

namespace sk::mhc_post_pre::SK_ISA {
using namespace sk::hyper::SK_ISA;

void run(const Args& a) {
  with_types(a.post, [&](auto t, auto y) { pre<decltype(t)>(a.pre, Expanded<decltype(t), decltype(y)>{a.post}); });
}

}  // namespace sk::mhc_post_pre::SK_ISA
