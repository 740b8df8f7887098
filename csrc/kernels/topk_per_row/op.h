// out[r, :] = the columns of the k largest scores[r, first:last], ascending, then -1
#pragma once
#include "core/variant.h"
#include "indexer/problem.h"

namespace sk::topk_per_row {

struct Args {
  Rows<const void> scores;  // [rows, cols] of dtype
  Dtype dtype;
  const indexer::Range* ranges;  // [rows]
  int32_t* out;                  // [rows, k]
  int64_t rows, cols, k;
  indexer::Bounds bounds = {};   // on a device, instead of ranges
};

SK_CPU_VARIANTS

}  // namespace sk::topk_per_row
