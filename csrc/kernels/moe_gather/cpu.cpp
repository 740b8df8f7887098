#include "core/parallel.h"
#include "kernels/moe_gather/op.h"
#include "moe/rows.h"

namespace sk::moe_gather::SK_ISA {

void run(const Args& a) {
  const bool stream = moe::SK_ISA::worth_streaming(a.out, a.rows, a.bytes);
  parallel_rows(a.rows, 2 * a.bytes, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const int32_t token = a.row_token[r];
      uint8_t* to = a.out + r * a.bytes;
      if (token < 0)
        __builtin_memset(to, 0, static_cast<__SIZE_TYPE__>(a.bytes));
      else
        moe::SK_ISA::copy(to, a.x.data + token * a.x.stride, a.bytes, stream);
    }
    if (stream) simd::SK_ISA::finish_lines();
  });
}

}  // namespace sk::moe_gather::SK_ISA
