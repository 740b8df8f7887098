// Rows for the experts on a device (csrc/moe/permutation.cu). Slots are counted in chunks.
#pragma once
#include "moe/permutation.h"

namespace sk::moe {

constexpr int64_t kSlotsAChunk = 1024;
constexpr int64_t chunks_on_device(int64_t slots) { return max(1, ceil_div(slots, kSlotsAChunk)); }

// `counts` [chunks, experts] is scratch. Rows that nobody fills get -1; slots for which there is no row, too.
void permute_on_device(const Slots& slots, int32_t* counts, int64_t alignment, const Permutation& result,
                       void* stream);

}  // namespace sk::moe
