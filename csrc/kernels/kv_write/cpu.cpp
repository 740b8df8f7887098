#include "kernels/kv_write/op.h"
#include "kv/records.h"

namespace sk::kv_write::SK_ISA {
using namespace kv::SK_ISA;

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    kv::each_token(a.slots, a.tokens, a.dim * size_of(a.dtype), [&](int64_t t, int) {
      insert(a.target, a.slots[t], static_cast<const T*>(a.values.data) + t * a.values.stride, a.dim);
    });
  });
}

}  // namespace sk::kv_write::SK_ISA
