#include "core/parallel.h"
#include "kernels/kv_copy_pages/op.h"
#include "simd/isa.h"

namespace sk::kv_copy_pages::SK_ISA {

template <class Byte>
SK_INLINE Byte* row_of(const Pages<Byte>& pages, Byte* spare, int64_t page, int64_t row, int64_t row_bytes) {
  return page == kSpare ? spare + row * row_bytes : pages.data + page * pages.page_stride + row * pages.row_stride;
}

void run(const Args& a) {
  for (int64_t w = 0; w < a.wave_count; ++w) {
    const Copy* copies = a.copies + a.waves[w];
    const int64_t count = a.waves[w + 1] - a.waves[w];
    parallel_rows(count * a.rows, 2 * a.row_bytes, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const Copy& c = copies[i / a.rows];
        __builtin_memcpy(row_of(a.dst, a.spare, c.to, i % a.rows, a.row_bytes),
                         row_of<const uint8_t>(a.src, a.spare, c.from, i % a.rows, a.row_bytes),
                         static_cast<__SIZE_TYPE__>(a.row_bytes));
      }
    });
  }
}

}  // namespace sk::kv_copy_pages::SK_ISA
