#include "core/parallel.h"
#include "kernels/engram_lookup/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::engram_lookup::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int64_t kLine = 64, kLargerThanCaches = 32 << 20;

// Entries lie anywhere in a table that no cache holds: as many are fetched ahead as memory answers at once.
SK_INLINE void fetch(const Args& a, int64_t i) {
  constexpr int64_t kLinesAhead = 64;
  const int64_t bytes = a.scale.data != nullptr ? a.dim : a.bytes;
  const int64_t ahead = i + max(1, kLinesAhead * kLine / max(bytes, 1));
  if (ahead >= a.count || a.rows[ahead] < 0) return;
  const uint8_t* entry = a.table.data + a.rows[ahead] * a.table.stride;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(entry + at);
  if (a.scale.data != nullptr) __builtin_prefetch(a.scale.data + a.rows[ahead] * a.scale.stride);
}

static void decode_entry(const Args& a, int64_t entry, bf16* out) {
  const uint8_t *codes = a.table.data + entry * a.table.stride, *scales = a.scale.data + entry * a.scale.stride;
  for (int64_t at = 0; at < a.dim; at += kGroup)
    decode_row(E4m3{}, codes + at, min(kGroup, a.dim - at), load_scale(scales, Dtype::e8m0, at / kGroup), out + at);
}

void run(const Args& a) {
  // A result that no cache can hold is written past them: that saves reading what is overwritten.
  const bool streams = a.count * a.bytes >= kLargerThanCaches && a.bytes % kLine == 0 &&
                       reinterpret_cast<__UINTPTR_TYPE__>(a.out) % kLine == 0;
  parallel_rows(a.count, 2 * a.bytes, [&](int64_t first, int64_t last) {
    const auto n = static_cast<__SIZE_TYPE__>(a.bytes);
    for (int64_t i = first; i < last; ++i) {
      fetch(a, i);
      uint8_t* to = a.out + i * a.bytes;
      const int64_t entry = a.rows[i];
      const uint8_t* from = a.table.data + entry * a.table.stride;
      if (entry < 0)
        __builtin_memset(to, 0, n);
      else if (a.scale.data != nullptr)
        decode_entry(a, entry, reinterpret_cast<bf16*>(to));
      else if (streams)
        for (int64_t at = 0; at < a.bytes; at += kLine) stream_line(to + at, from + at);
      else
        __builtin_memcpy(to, from, n);
    }
    if (streams) finish_lines();
  });
}

}  // namespace sk::engram_lookup::SK_ISA
