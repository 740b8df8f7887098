#include "core/parallel.h"
#include "kernels/engram_lookup/op.h"
#include "simd/isa.h"
#include "simd/small_floats.h"

namespace sk::engram_lookup::SK_ISA {
using namespace sk::simd::SK_ISA;

constexpr int64_t kLine = 64, kLargerThanCaches = 32 << 20;

// Entries lie anywhere in a table that no cache holds. While one is copied, a later one is fetched, as far ahead as
// memory answers requests at once; line by line, so that loads, stores and requests never wait for a burst of
// another.
constexpr int64_t kLinesAhead = 64;

template <class Line>
SK_INLINE void copy_entry(const uint8_t* from, const uint8_t* later, int64_t bytes, uint8_t* to, const Line& line) {
  int64_t at = 0;
  const auto step = [&] {
    __builtin_prefetch(later + at);
    line(to + at, from + at);
    at += kLine;
  };
  while (at + 4 * kLine <= bytes) step(), step(), step(), step();  // one by one takes a quarter longer
  while (at + kLine <= bytes) step();
  if (at == bytes) return;
  __builtin_prefetch(later + bytes - 1);
  __builtin_memcpy(to + at, from + at, static_cast<__SIZE_TYPE__>(bytes - at));
}

// dim codes, and a scale for every kGroup of them.
SK_INLINE void decode_entry(const uint8_t* codes, const uint8_t* scales, const uint8_t* later, int64_t dim,
                            bf16* out) {
  for (int64_t at = 0; at < dim; at += kGroup) {
    __builtin_prefetch(later + at);
    decode_row(E4m3{}, codes + at, min(kGroup, dim - at), load_scale(scales, Dtype::e8m0, at / kGroup), out + at);
  }
}

void run(const Args& a) {
  const bool codes = a.scale.data != nullptr;
  // A result that no cache can hold is written past them: that saves reading what is overwritten.
  const bool streams = a.count * a.bytes >= kLargerThanCaches && a.bytes % kLine == 0 &&
                       reinterpret_cast<__UINTPTR_TYPE__>(a.out) % kLine == 0;
  const int64_t ahead = max(1, kLinesAhead * kLine / max(codes ? a.dim : a.bytes, 1));
  // What is fetched ahead should be for the same thread: few large parts.
  const int64_t part = max(ceil_div(a.count, 16 * threads()), kLinesAhead);
  const auto copy = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      uint8_t* to = a.out + i * a.bytes;
      const int64_t entry = a.rows[i], later_entry = max(a.rows[min(i + ahead, a.count - 1)], 0);
      const uint8_t *from = a.table.data + entry * a.table.stride,
                    *later = a.table.data + later_entry * a.table.stride;
      if (entry < 0) {
        __builtin_memset(to, 0, static_cast<__SIZE_TYPE__>(a.bytes));
      } else if (codes) {
        __builtin_prefetch(a.scale.data + later_entry * a.scale.stride);
        decode_entry(from, a.scale.data + entry * a.scale.stride, later, a.dim, reinterpret_cast<bf16*>(to));
      } else if (streams) {
        copy_entry(from, later, a.bytes, to, [](uint8_t* y, const uint8_t* x) { stream_line(y, x); });
      } else {
        copy_entry(from, later, a.bytes, to, [](uint8_t* y, const uint8_t* x) { __builtin_memcpy(y, x, kLine); });
      }
    }
    if (streams) finish_lines();
  };
  parallel_for(ceil_div(a.count, part), [&](int64_t p, int) { copy(p * part, min(a.count, (p + 1) * part)); });
}

}  // namespace sk::engram_lookup::SK_ISA
