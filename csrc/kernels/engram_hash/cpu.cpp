#include "core/parallel.h"
#include "kernels/engram_hash/op.h"

namespace sk::engram_hash::SK_ISA {

// The remainder that is not negative. `inverse` is 2^64 / p, rounded down: the quotient it gives is at most two
// short.
SK_INLINE int32_t remainder(int64_t h, int32_t p, uint64_t inverse) {
  const auto negative = static_cast<uint64_t>(h >> 63), divisor = static_cast<uint64_t>(p);
  const uint64_t u = static_cast<uint64_t>(h) ^ negative;  // h, or -h - 1
  const auto quotient = static_cast<uint64_t>(static_cast<unsigned __int128>(u) * inverse >> 64);
  uint64_t r = u - quotient * divisor;
  r -= r >= divisor ? divisor : 0;
  r -= r >= divisor ? divisor : 0;
  return static_cast<int32_t>(negative != 0 ? divisor - 1 - r : r);
}

void run(const Args& a) {
  const int64_t columns = (a.longest - 1) * a.heads;
  for (int64_t i = 0; i < a.layers * columns; ++i) a.inverses[i] = UINT64_MAX / static_cast<uint64_t>(a.primes[i]);
  parallel_rows(a.layers * a.tokens, 32 * columns, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t layer = row / a.tokens;
      const int32_t* ids = a.ids + row % a.tokens * a.longest;
      const int64_t* multipliers = a.multipliers + layer * a.longest;
      const auto product = [&](int64_t k) {  // wraps around
        return static_cast<uint64_t>(static_cast<int64_t>(ids[k])) * static_cast<uint64_t>(multipliers[k]);
      };
      uint64_t h = product(0);
      int64_t at = layer * columns;
      int32_t* to = a.rows + row * columns;
      for (int64_t n = 1; n < a.longest; ++n) {
        h ^= product(n);
        for (int64_t j = 0; j < a.heads; ++j, ++at)
          *to++ = remainder(static_cast<int64_t>(h), a.primes[at], a.inverses[at]) + a.offsets[at];
      }
    }
  });
}

}  // namespace sk::engram_hash::SK_ISA
