// out[i, :] = the k keys that score best for query i (indexer/problem.h), ascending, then -1
#pragma once
#include "core/variant.h"
#include "indexer/workspace.h"

namespace sk::indexer_topk {

// On a device: scores [rows, keys] of some queries at a time, and what is known of blocks of keys.
struct DeviceScratch {
  int64_t rows, blocks;
  float* scores;
  uint32_t* marks;  // [rows, 2, blocks]
};

struct Args {
  indexer::Problem problem;
  indexer::Choice choice;
  int32_t* out;       // [rows, columns]
  int64_t columns;    // choice.k, or more
  int64_t most_keys;  // that a query sees
  int64_t limit;      // bytes of scratch
  bool physical;      // keys as page * page_size + place
  DeviceScratch on_device = {};
};

SK_CPU_VARIANTS

}  // namespace sk::indexer_topk
