// Index tensors: the values a caller gave, and what they must be.
#pragma once
#include <string>

#include "bindings/call.h"

namespace sk {

// An index as the caller gave it: int32 cannot hold them all.
inline int64_t given(const TensorView& t, int64_t row, int64_t column) {
  const int64_t at = row * t.row_stride() + column;
  return t.dtype == Dtype::i64 ? t.as<const int64_t>()[at] : t.as<const int32_t>()[at];
}

// Refuses indices outside [lowest, limit).
inline void check_range(const Call& c, int arg, const char* name, const int32_t* indices, int64_t lowest,
                        int64_t limit) {
  if constexpr (!Call::kReadsValues) return;  // CUDA kernels take what is out of range for -1
  const TensorView& t = c.arg(arg);
  const auto low = static_cast<int32_t>(max(lowest, int64_t{INT32_MIN}));
  const auto high = static_cast<int32_t>(min(limit - 1, int64_t{INT32_MAX}));
  constexpr int64_t kBlock = 64;  // compilers compare several at once where the number is known
  int32_t outside = 0;
  int64_t done = 0;
  for (; done + kBlock <= t.size(); done += kBlock)
    for (int64_t i = 0; i < kBlock; ++i) outside |= (indices[done + i] < low) | (indices[done + i] > high);
  for (; done < t.size(); ++done) outside |= (indices[done] < low) | (indices[done] > high);
  if (outside == 0) return;
  for (int64_t i = 0;; ++i)
    if (indices[i] < lowest || indices[i] >= limit) {
      const int64_t row = i / t.last(), column = i % t.last();
      const std::string at = t.rank == 1 ? std::to_string(i) : std::to_string(row) + ", " + std::to_string(column);
      fail(name, "[", at, "] is ", given(t, row, column), ", expected ", lowest, " to ", limit - 1);
    }
}

}  // namespace sk
