// M = softmax of each row of logits, + eps; M /= column sums + eps; then iters - 1 times: rows, columns
#pragma once
#include "core/variant.h"
#include "hyper/streams.h"

namespace sk::sinkhorn {

struct Args {
  Rows<const float> logits;  // [matrices * n, n]
  float* out;                // [matrices, n, n]
  int64_t matrices, n, iters;
  float eps;
};

SK_CPU_VARIANTS

}  // namespace sk::sinkhorn
