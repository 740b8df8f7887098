// Rows of bytes to where they are wanted. A result that no cache can hold is written past them: that saves reading
// what is overwritten.
#pragma once
#include "simd/isa.h"

namespace sk::moe::SK_ISA {
using namespace sk::simd::SK_ISA;

inline constexpr int64_t kLine = 64;

static bool worth_streaming(const void* to, int64_t rows, int64_t bytes_a_row) {
  constexpr int64_t kLargerThanCaches = 32 << 20;
  return rows * bytes_a_row >= kLargerThanCaches && bytes_a_row % kLine == 0 &&
         reinterpret_cast<__UINTPTR_TYPE__>(to) % kLine == 0;
}

// Streams whole lines only, to where one begins; finish_lines() is to follow the last.
SK_INLINE void copy(uint8_t* to, const uint8_t* from, int64_t bytes, bool stream) {
  if (stream)
    for (int64_t i = 0; i < bytes; i += kLine) stream_line(to + i, from + i);
  else
    __builtin_memcpy(to, from, static_cast<__SIZE_TYPE__>(bytes));
}

}  // namespace sk::moe::SK_ISA
