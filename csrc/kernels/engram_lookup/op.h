// out[i, :] = table[rows[i], :], times its scales where it has some; zeros where rows[i] is -1
#pragma once
#include "core/variant.h"

namespace sk::engram_lookup {

struct Args {
  Rows<const uint8_t> table;  // [entries, dim]; the stride in bytes
  Rows<const uint8_t> scale;  // e8m0 [entries, ceil(dim / 32)] where the table is e4m3; else null
  const int32_t* rows;        // [count], -1 or an entry
  uint8_t* out;               // [count, dim], bytes as in the table; bf16 where it is e4m3
  int64_t count, dim, bytes;  // bytes of a result
  int64_t entries;            // of the table
};

inline constexpr int64_t kGroup = 32;  // codes that share a scale

SK_CPU_VARIANTS

}  // namespace sk::engram_lookup
