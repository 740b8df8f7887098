// out[i, :] = the k keys that score best for query i (indexer/problem.h), ascending, then -1
#pragma once
#include "core/variant.h"
#include "indexer/workspace.h"

namespace sk::indexer_topk {

struct Args {
  indexer::Problem problem;
  indexer::Choice choice;
  int32_t* out;       // [rows, columns]
  int64_t columns;    // choice.k, or more
  int64_t most_keys;  // that a query sees
  int64_t limit;      // bytes of scratch
  bool physical;      // keys as page * page_size + place
};

SK_CPU_VARIANTS

}  // namespace sk::indexer_topk
