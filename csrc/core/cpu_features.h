// Which instruction set kernels use: the best this processor has, or less where a cap says so.
#pragma once
#include "core/variant.h"

namespace sk {

inline constexpr const char* kIsaNames[] = {"scalar", "avx2", "avx512", "avx512bf16"};

Isa best_isa();
Isa active_isa();          // min(best_isa(), the cap)
void cap_isa(Isa highest);

// The first row that may run.
template <class Args, int N>
const Variant<Args>& pick(const Variant<Args> (&rows)[N]) {
  for (const auto& row : rows)
    if (row.isa <= active_isa()) return row;
  return rows[N - 1];
}

}  // namespace sk
