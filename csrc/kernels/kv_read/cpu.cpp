#include "core/parallel.h"
#include "kernels/kv_read/op.h"
#include "kv/records.h"

namespace sk::kv_read::SK_ISA {
using namespace kv::SK_ISA;

template <class T>
SK_INLINE void read_plain(const Args& a, int64_t slot, T* out) {
  const uint8_t* row = a.pool.data + slot * a.pool.page_stride;
  if (a.plain_dtype == Dtype::f32)
    convert_row(reinterpret_cast<const float*>(row), out, a.dim);
  else
    convert_row(reinterpret_cast<const bf16*>(row), out, a.dim);
}

// Records lie anywhere: no hardware prefetcher finds the next one.
constexpr int64_t kAhead = 2;
SK_INLINE void prefetch(const Args& a, int64_t slot) {
  if (slot < 0) return;
  const bool plain = a.format == kv::Format::bf16;
  if (plain) return prefetch_bytes(a.pool.data + slot * a.pool.page_stride, a.dim * size_of(a.plain_dtype));
  prefetch_record(kv::layout_of(a.format), record_at(kv::layout_of(a.format), a.pool, slot));
}

void run(const Args& a) {
  with_float_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_rows(a.rows, a.dim * (size_of(a.dtype) + 2), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        if (r + kAhead < a.rows) prefetch(a, a.slots[r + kAhead]);
        T* out = static_cast<T*>(a.out) + r * a.dim;
        if (a.slots[r] < 0)
          __builtin_memset(out, 0, static_cast<__SIZE_TYPE__>(a.dim) * sizeof(T));
        else if (a.format == kv::Format::bf16)
          read_plain(a, a.slots[r], out);
        else
          decode_record(kv::layout_of(a.format), record_at(kv::layout_of(a.format), a.pool, a.slots[r]), out);
      }
    });
  });
}

}  // namespace sk::kv_read::SK_ISA
