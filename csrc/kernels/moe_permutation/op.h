// Rows for the experts: the slots of ids, sorted by expert, each expert's rows padded to the alignment
#pragma once
#include "core/variant.h"
#include "moe/permutation.h"

namespace sk::moe_permutation {

struct Args {
  moe::Slots slots;
  int32_t* counts;  // of count_slots; scratch from then on
  int64_t alignment;
  moe::Permutation result;
};

// On a device slots are counted in chunks, `counts` [chunks, experts] being the scratch.
constexpr int64_t kSlotsAChunk = 1024;
constexpr int64_t chunks_on_device(int64_t slots) { return max(1, ceil_div(slots, kSlotsAChunk)); }

SK_CPU_VARIANTS

}  // namespace sk::moe_permutation
