#include "core/parallel.h"
#include "kernels/moe_gather/op.h"

namespace sk::moe_gather::SK_ISA {

void run(const Args& a) {
  parallel_rows(a.rows, 2 * a.bytes, [&](int64_t first, int64_t last) {
    const auto n = static_cast<__SIZE_TYPE__>(a.bytes);
    for (int64_t r = first; r < last; ++r) {
      const int32_t token = a.row_token[r];
      if (token >= 0)
        __builtin_memcpy(a.out + r * a.bytes, a.x.data + token * a.x.stride, n);
      else
        __builtin_memset(a.out + r * a.bytes, 0, n);
    }
  });
}

}  // namespace sk::moe_gather::SK_ISA
