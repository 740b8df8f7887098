// Rows for the experts: the slots of ids, sorted by expert, each expert's rows padded to the alignment
#pragma once
#include "core/variant.h"
#include "moe/permutation.h"

namespace sk::moe_permutation {

struct Args {
  moe::Slots slots;
  int32_t* counts;  // of count_slots, scratch from then on; on a device just scratch (moe/device.h)
  int64_t alignment;
  moe::Permutation result;
};

SK_CPU_VARIANTS

}  // namespace sk::moe_permutation
