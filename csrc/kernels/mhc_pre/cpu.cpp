#include "core/parallel.h"
#include "hyper/mix.h"
#include "kernels/mhc_pre/op.h"

namespace sk::mhc_pre::SK_ISA {
using namespace sk::hyper::SK_ISA;

void run(const Args& a) {
  with_float_type(a.in.dtype, [&](auto type) { pre<decltype(type)>(a, Ready{}); });
}

}  // namespace sk::mhc_pre::SK_ISA
