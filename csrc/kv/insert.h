// Where tokens are written, and by which thread.
#pragma once
#include "core/parallel.h"
#include "kv/format.h"

namespace sk::kv {

struct Target {
  Format format;
  Pool<uint8_t> pool;  // bf16: of one row a page
  Dtype plain_dtype;   // of the records of format bf16
  float floor;         // of a tile's largest magnitude
  bool pow2;           // scales are rounded up to powers of two
};

// Tokens of one slot go to one thread, which keeps their order. Eight slots that follow one another do, too: their
// records share cache lines.
SK_INLINE int64_t part_of(int64_t slot, int64_t parts) {
  const uint64_t mixed = static_cast<uint64_t>(slot >> 3) * 0x9e3779b97f4a7c15u;
  return static_cast<int64_t>((mixed >> 32) * static_cast<uint64_t>(parts) >> 32);
}

// write(token, worker) for every token that has a slot, worth a thread from some bytes a token on; of equal slots the
// last one comes last.
template <class Write>
static inline void each_token(const int64_t* slots, int64_t tokens, int64_t bytes_per_token, const Write& write) {
  constexpr int64_t kWorthAThread = 16 << 10;
  const int64_t parts = max(1, min(tokens * bytes_per_token / kWorthAThread, 8 * threads()));
  parallel_for(parts, [&](int64_t part, int worker) {
    for (int64_t t = 0; t < tokens; ++t)
      if (slots[t] >= 0 && part_of(slots[t], parts) == part) write(t, worker);
  });
}

}  // namespace sk::kv
