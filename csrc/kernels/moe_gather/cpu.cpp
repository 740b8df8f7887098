#include "core/parallel.h"
#include "kernels/moe_gather/op.h"
#include "simd/isa.h"

namespace sk::moe_gather::SK_ISA {
using namespace sk::simd::SK_ISA;

void run(const Args& a) {
  // A result that no cache can hold is written past them: that saves reading what is overwritten.
  constexpr int64_t kLine = 64, kLargerThanCaches = 32 << 20;
  const bool streams = a.rows * a.bytes >= kLargerThanCaches && a.bytes % kLine == 0 &&
                       reinterpret_cast<__UINTPTR_TYPE__>(a.out) % kLine == 0;
  parallel_rows(a.rows, 2 * a.bytes, [&](int64_t first, int64_t last) {
    const auto n = static_cast<__SIZE_TYPE__>(a.bytes);
    for (int64_t r = first; r < last; ++r) {
      const int32_t token = a.row_token[r];
      uint8_t* to = a.out + r * a.bytes;
      if (token < 0) {
        __builtin_memset(to, 0, n);
        continue;
      }
      const uint8_t* from = a.x.data + token * a.x.stride;
      if (streams)
        for (int64_t i = 0; i < a.bytes; i += kLine) stream_line(to + i, from + i);
      else
        __builtin_memcpy(to, from, n);
    }
    if (streams) finish_lines();
  });
}

}  // namespace sk::moe_gather::SK_ISA
