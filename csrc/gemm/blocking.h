// How a GEMM's work is cut. A choice changes the speed and never the bits: whatever it is, sums have the order of
// gemm.h. sparsekern/model.py has the values that it may take, and chooses.
#pragma once
#include <cstdint>

namespace sk::gemm {

struct Blocking {
  int64_t item_rows = 256;   // of an item: their sums (64 columns of f32) stay in the second-level cache
  int64_t decode_rows = 0;  // items of more rows decode their weights once, not in every tile; 0: where that pays
  int64_t prefetch = 2048;  // bytes that weights are fetched ahead, rounded up to whole pieces; 0: they are not
  int64_t threads = 0;      // 1: one; 0: all, where there is enough to do
};

}  // namespace sk::gemm
