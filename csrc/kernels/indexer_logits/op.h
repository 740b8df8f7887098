// out[i, j] = the score of key j for query i (indexer/problem.h), -inf where the query does not see the key
#pragma once
#include "core/variant.h"
#include "indexer/problem.h"

namespace sk::indexer_logits {

struct Args {
  indexer::Problem problem;
  float* out;  // [rows, cols]
  int64_t cols;
};

SK_CPU_VARIANTS

}  // namespace sk::indexer_logits
