#include "core/parallel.h"
#include "kernels/kv_write/op.h"
#include "kv/records.h"

namespace sk::kv_write::SK_ISA {
using namespace kv::SK_ISA;

// Tokens of one slot go to one thread, which keeps their order. Eight slots that follow one another do, too: their
// records share cache lines.
SK_INLINE int64_t part_of(int64_t slot, int64_t parts) {
  const uint64_t mixed = static_cast<uint64_t>(slot >> 3) * 0x9e3779b97f4a7c15u;
  return static_cast<int64_t>((mixed >> 32) * static_cast<uint64_t>(parts) >> 32);
}

template <class T, class Write>
static void each_token(const Args& a, int64_t part, int64_t parts, const Write& write) {
  for (int64_t t = 0; t < a.tokens; ++t)
    if (a.slots[t] >= 0 && part_of(a.slots[t], parts) == part)
      write(a.slots[t], static_cast<const T*>(a.values.data) + t * a.values.stride);
}

SK_INLINE const bf16* as_bf16(const bf16* x, bf16*, int64_t) { return x; }
SK_INLINE const bf16* as_bf16(const float* x, bf16* row, int64_t n) {
  convert_row(x, row, n);
  return row;
}

void run(const Args& a) {
  constexpr int64_t kWorthAThread = 16 << 10;  // bytes of values
  const int64_t bytes = a.tokens * a.dim * size_of(a.dtype);
  const int64_t parts = max(1, min(bytes / kWorthAThread, 8 * threads()));
  parallel_for(parts, [&](int64_t part, int) {
    with_float_type(a.dtype, [&](auto type) {
      using T = decltype(type);
      if (a.format == kv::Format::bf16) {
        with_float_type(a.plain_dtype, [&](auto plain) {
          using P = decltype(plain);
          each_token<T>(a, part, parts, [&](int64_t slot, const T* x) {
            convert_row(x, reinterpret_cast<P*>(a.pool.data + slot * a.pool.page_stride), a.dim);
          });
        });
      } else {
        const kv::Layout& f = kv::layout_of(a.format);
        const Scaling how{a.floor, a.pow2};
        each_token<T>(a, part, parts, [&](int64_t slot, const T* x) {
          bf16 row[kMaxDim];
          encode_record(f, as_bf16(x, row, f.dim), how, record_at(f, a.pool, slot));
        });
      }
    });
  });
}

}  // namespace sk::kv_write::SK_ISA
