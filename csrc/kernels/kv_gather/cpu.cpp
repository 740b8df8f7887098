#include "core/parallel.h"
#include "kernels/kv_gather/op.h"
#include "kv/records.h"

namespace sk::kv_gather::SK_ISA {
using namespace kv::SK_ISA;

SK_INLINE void copy(const uint8_t* from, uint8_t* to, int64_t n) {
  __builtin_memcpy(to, from, static_cast<__SIZE_TYPE__>(n));
}

// One record to row r.
SK_INLINE void gather(const Args& a, int64_t page, int64_t place, int64_t r) {
  uint8_t* to = a.out + r * a.row_bytes;
  if (a.format == kv::Format::bf16) {
    copy(a.pool.data + page * a.pool.page_stride + place * a.row_stride, to, a.row_bytes);
    return;
  }
  const kv::Layout& f = kv::layout_of(a.format);
  const auto record = record_at(f, a.pool, page, place);
  if (a.scale == nullptr) {
    decode_record(f, record, reinterpret_cast<bf16*>(to));
  } else {
    copy(record.data, to, a.row_bytes);
    copy(record.scales, a.scale + r * a.scale_bytes, a.scale_bytes);
  }
}

static int64_t sequence_of(const Args& a, int64_t row) {  // the last that begins at the row or before, and has it
  int64_t low = 0, high = a.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

void run(const Args& a) {
  const int64_t filled = a.sequences > 0 ? a.offsets[a.sequences] : 0;
  parallel_rows(filled, 2 * a.row_bytes, [&](int64_t first, int64_t last) {
    int64_t b = sequence_of(a, first);
    for (int64_t r = first; r < last;) {
      while (a.offsets[b + 1] <= r) ++b;
      const int64_t token = a.starts[b] + r - a.offsets[b];
      const int64_t page = a.block_table[b * a.max_pages + token / a.pool.page_size];
      const int64_t place = token % a.pool.page_size;
      const int64_t run = min(a.pool.page_size - place, min(last, a.offsets[b + 1]) - r);
      for (int64_t i = 0; i < run; ++i) gather(a, page, place + i, r + i);
      r += run;
    }
  });
  const auto tail = static_cast<__SIZE_TYPE__>(a.rows - filled);
  __builtin_memset(a.out + filled * a.row_bytes, 0, tail * static_cast<__SIZE_TYPE__>(a.row_bytes));
  if (a.scale != nullptr)
    __builtin_memset(a.scale + filled * a.scale_bytes, 0, tail * static_cast<__SIZE_TYPE__>(a.scale_bytes));
}

}  // namespace sk::kv_gather::SK_ISA
