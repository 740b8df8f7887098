// rows[l, t, (n - 2) * heads + j] = h_n mod prime[l, n, j] + offset, h_n = xor over k < n of ids[t, k] *
// multiplier[l, k]
#pragma once
#include "core/variant.h"

namespace sk::engram_hash {

struct Args {
  const int32_t* ids;          // [tokens, longest]
  const int64_t* multipliers;  // [layers, longest]
  const int32_t* primes;       // [layers, longest - 1, heads], positive
  const int32_t* offsets;      // [layers, (longest - 1) * heads]
  uint64_t* inverses;          // scratch, as many as primes
  int32_t* rows;               // [layers, tokens, (longest - 1) * heads]
  int64_t tokens, layers, longest, heads;
};

SK_CPU_VARIANTS

}  // namespace sk::engram_hash
